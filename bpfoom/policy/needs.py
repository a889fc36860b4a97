# SPDX-License-Identifier: Apache-2.0
"""What the shipped policies ask of a kernel, read from their templates without rendering them.

A template asks by calling ``struct``, ``constants`` and ``kfunc``; what it asks for only where
``has_kfunc`` or its like say that it is there, it can do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jinja2 import Environment, nodes

from bpfoom.policy.find import find_policies, includes

STRUCT, ENUM, KFUNC = "struct", "constants", "kfunc"
_IF_THERE = ("has_kfunc", "has_struct", "has_member")


@dataclass(frozen=True)
class Need:
    """``kind`` is one of the above; ``member`` a struct's or an enum's, "" for a kfunc."""

    kind: str
    name: str
    member: str = ""


@dataclass(frozen=True)
class Needs:
    """Each need with the policies that have it, in the order of first mention, and all policies.

    Policies whose base is a parameter's to choose have only needs of their own, and are not among
    ``all``.
    """

    of: Mapping[Need, tuple[str, ...]]
    all: tuple[str, ...]

    def everybody(self, need: Need) -> bool:
        """Whether nothing at all can be attached without it."""
        return set(self.all) <= set(self.of[need])


def shipped() -> Needs:
    """The needs of the policies that are found by name."""
    environment = Environment()
    shared = {name: environment.parse(text) for name, text in includes().items()}
    found: dict[Need, tuple[str, ...]] = {}
    alone = []
    for policy in find_policies():
        tree = environment.parse(policy.text)
        if all(_named(extends, shared) for extends in tree.find_all(nodes.Extends)):
            alone.append(policy.name)
        for need in dict.fromkeys(_asked(tree, shared)):
            found[need] = (*found.get(need, ()), policy.name)
    return Needs(found, tuple(alone))


def _asked(node: nodes.Node, shared: Mapping[str, nodes.Template]) -> Iterator[Need]:
    """What a template asks for, those that it extends and includes too, in their order."""
    if isinstance(node, nodes.If) and _looks_first(node.test):
        return
    if isinstance(node, nodes.Extends | nodes.Include):
        if name := _named(node, shared):
            yield from _asked(shared[name], shared)
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
        words = [str(a.value) for a in node.args if isinstance(a, nodes.Const)]
        if node.node.name == KFUNC:
            yield from (Need(KFUNC, word) for word in words)
        elif node.node.name in (STRUCT, ENUM):
            yield from (Need(node.node.name, words[0], word) for word in words[1:])
    for below in node.iter_child_nodes():
        yield from _asked(below, shared)


def _named(node: nodes.Extends | nodes.Include, shared: Mapping[str, nodes.Template]) -> str:
    """The shared template that it names; "" if a parameter names it."""
    name = node.template.value if isinstance(node.template, nodes.Const) else ""
    return name if name in shared else ""


def _looks_first(test: nodes.Node) -> bool:
    calls = [test, *test.find_all(nodes.Call)]
    return any(
        isinstance(c, nodes.Call) and getattr(c.node, "name", "") in _IF_THERE for c in calls
    )
