# SPDX-License-Identifier: Apache-2.0
"""Which policies make up a handler: the named one, and those that it wraps.

A wrapper has one parameter of type "policy". Its template extends the template of the policy that
this names, whose parameters are set with the wrapper's name for it and a dot (``inner.min``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bpfoom.errors import ParameterError
from bpfoom.policy import params
from bpfoom.policy.find import Policy, find_policy, is_path
from bpfoom.policy.functions import Scope
from bpfoom.policy.params import ParamSpec, Value
from bpfoom.policy.values import Setting


@dataclass(frozen=True)
class Layer:
    """One policy of a plan, with its own parameters under the names that its card gives them.

    ``prefix`` stands before those names where they are set: "" for the outermost.
    """

    policy: Policy
    prefix: str
    values: dict[str, Value]


@dataclass(frozen=True)
class Plan:
    """The policies of a handler, outermost first; ``specs`` and ``values`` have dotted names."""

    layers: tuple[Layer, ...]
    specs: tuple[ParamSpec, ...]
    values: dict[str, Value]

    @property
    def policy(self) -> Policy:
        """The one that was named."""
        return self.layers[0].policy

    @property
    def policies(self) -> list[Policy]:
        """All of them, outermost first."""
        return [layer.policy for layer in self.layers]

    def scopes(self) -> list[Scope]:
        """What rendering takes. Templates are called by their numbers in the chain: the paths,
        which a template could write, are not our text."""
        names = [f"policy {number}" for number in range(len(self.layers))]
        return [
            Scope(names[number], _settings(layer, names[number + 1 : number + 2]))
            for number, layer in enumerate(self.layers)
        ]


def plan(name_or_path: str, settings: Mapping[str, str]) -> Plan:
    """The named policy and all that it wraps, every parameter checked.

    Raises NotThereError, CardError, ParameterError; the latter also where a policy would wrap
    itself.
    """
    found: list[tuple[Policy, str]] = []
    specs: list[ParamSpec] = []
    name, prefix = name_or_path, ""
    while True:
        policy = find_policy(name)
        _refuse_circle(policy, [outer for outer, _ in found], prefix)
        found.append((policy, prefix))
        specs += [replace(spec, name=prefix + spec.name) for spec in policy.card.params]
        wrapped = policy.card.wrapped
        if wrapped is None:
            break
        key = prefix + wrapped.name
        given = str(params.parse(wrapped, settings[key]) if key in settings else wrapped.default)
        # It is looked up again at an update, which may be run from anywhere.
        name = os.path.abspath(given) if is_path(given) else given
        settings = {**settings, key: name}
        prefix = f"{key}."
    values = params.resolve(specs, settings)
    layers = tuple(
        Layer(policy, at, {spec.name: values[at + spec.name] for spec in policy.card.params})
        for policy, at in found
    )
    return Plan(layers, tuple(specs), values)


def _settings(layer: Layer, wrapped: list[str]) -> tuple[Setting, ...]:
    """A layer's parameters; the wrapped policy is named by its template."""
    return tuple(
        Setting(
            spec.name,
            spec.type,
            wrapped[0] if spec.type == "policy" else layer.values[spec.name],
            spec.live,
            layer.prefix,
        )
        for spec in layer.policy.card.params
    )


def _refuse_circle(policy: Policy, outer: list[Policy], prefix: str) -> None:
    """A policy's template can stand in the chain once: its functions have one name each."""
    if policy.path in [known.path for known in outer]:
        chain = " > ".join([*(known.name for known in outer), policy.name])
        raise ParameterError(
            f"parameter {prefix.removesuffix('.')}: {policy.name} would wrap itself: {chain}",
            hint="each policy can stand in a chain once",
            parameter=prefix.removesuffix("."),
            value=policy.name,
        )
