# SPDX-License-Identifier: Apache-2.0
"""Which policies make up a handler: the named one, and those that it wraps.

A wrapper has one parameter of type "policy". Its template extends the template of the policy that
this names, whose parameters are set with the wrapper's name for it and a dot (``inner.min``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bpfoom.errors import NotThereError, ParameterError
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

    @property
    def files(self) -> dict[str, str]:
        """The parameters that wrap a policy by its file, and where that is."""
        named = {spec.name: str(self.values[spec.name]) for spec in self.specs if _wraps(spec)}
        return {name: path for name, path in named.items() if is_path(path)}

    def scopes(self) -> list[Scope]:
        """What rendering takes. Templates are called by their numbers in the chain: the paths,
        which a template could write, are not our text."""
        names = [f"policy {number}" for number in range(len(self.layers))]
        return [
            Scope(names[number], _settings(layer, names[number + 1 : number + 2]))
            for number, layer in enumerate(self.layers)
        ]


def plan(
    name_or_path: str, settings: Mapping[str, str], directory: str | os.PathLike[str] = ""
) -> Plan:
    """The named policy and all that it wraps, every parameter checked.

    Wrapped policies that are named by path are looked up from ``directory``, by default the
    current one; those that a card names so, from where the card's file is. Raises NotThereError,
    CardError, ParameterError; the latter also where a policy would wrap itself.
    """
    found: list[tuple[Policy, str]] = []
    specs: list[ParamSpec] = []
    name, prefix = name_or_path, ""
    while True:
        policy = _find(name, prefix)
        _refuse_circle(policy, [outer for outer, _ in found], prefix)
        found.append((policy, prefix))
        specs += [replace(spec, name=prefix + spec.name) for spec in policy.card.params]
        wrapped = policy.card.wrapped
        if wrapped is None:
            break
        key = prefix + wrapped.name
        name, base = str(wrapped.default), policy.path.parent
        if key in settings:
            name, base = str(params.parse(wrapped, settings[key])), Path(directory)
        if is_path(name):
            # It is looked up again at an update, which may be run from anywhere.
            name = os.path.abspath(base / name)
        settings = {**settings, key: name}
        prefix = f"{key}."
    values = params.resolve(specs, settings)
    layers = tuple(
        Layer(policy, at, {spec.name: values[at + spec.name] for spec in policy.card.params})
        for policy, at in found
    )
    return Plan(layers, tuple(specs), values)


def settled(
    name_or_path: str, settings: Mapping[str, str], directory: str | os.PathLike[str]
) -> dict[str, str]:
    """Settings that a file in ``directory`` has, such that they mean the same from anywhere.

    Raises what :func:`plan` does.
    """
    if not any(map(is_path, settings.values())):
        return dict(settings)
    files = plan(name_or_path, settings, directory).files
    return {name: files.get(name, text) for name, text in settings.items()}


def _find(name: str, prefix: str) -> Policy:
    try:
        return find_policy(name)
    except NotThereError as error:
        if prefix:
            error.data["parameter"] = prefix.removesuffix(".")
        raise


def _wraps(spec: ParamSpec) -> bool:
    return spec.type == "policy"


def _settings(layer: Layer, wrapped: list[str]) -> tuple[Setting, ...]:
    """A layer's parameters; the wrapped policy is named by its template."""
    return tuple(
        Setting(
            spec.name,
            spec.type,
            wrapped[0] if _wraps(spec) else layer.values[spec.name],
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
