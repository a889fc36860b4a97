# SPDX-License-Identifier: Apache-2.0
"""What Jinja would leave out of a policy that extends a base without a word.

Blocks that no base has or that are for none, text that stands outside of every block, and
``{% set %}`` of names that no template reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from jinja2 import Environment, nodes

from bpfoom import near
from bpfoom.errors import TemplateError
from bpfoom.policy import lines

# What does something, though it stands outside of every block.
_HEARD = (nodes.Block, nodes.Assign, nodes.AssignBlock, nodes.Macro, nodes.Import, nodes.FromImport)


def check(
    environment: Environment, texts: Mapping[str, tuple[str, str]], own: Iterable[str]
) -> None:
    """Raise TemplateError for what the templates ``own`` say and nothing hears.

    ``texts`` has each template's text and path.
    """
    trees = {name: environment.parse(text, name, path) for name, (text, path) in texts.items()}
    names = [name for tree in trees.values() for name in tree.find_all(nodes.Name)]
    read = {name.name for name in names if name.ctx == "load"}
    own = list(own)
    bases = [tree for name, tree in trees.items() if name not in own]
    for name in own:
        tree, path = trees[name], texts[name][1]
        if tree.find(nodes.Extends) is not None:
            others = [other for key, other in trees.items() if key != name]
            _check_blocks(tree, path, others)
            _check_outside(tree, path)
            _check_sets(tree, path, read)
        else:
            _check_extends(tree, path, bases)


def _check_blocks(tree: nodes.Template, path: str, others: Iterable[nodes.Template]) -> None:
    known = _blocks(others)
    for block in tree.body:
        if isinstance(block, nodes.Block) and block.name not in known:
            raise _error(
                path,
                block.lineno,
                f"no base has a block {block.name!r}",
                near.hint(block.name, known) or f"did you mean: {', '.join(sorted(known))}?",
            )


def _check_extends(tree: nodes.Template, path: str, bases: Iterable[nodes.Template]) -> None:
    """Refuse a block that was meant for a base: all of it would be C by itself."""
    known = _blocks(bases)
    for block in tree.find_all(nodes.Block):
        if block.name in known:
            raise _error(
                path,
                block.lineno,
                f"a block {block.name!r} in a policy that extends no base",
                'begin it with {% extends "include/tasks.bpf.c.j2" %}, or cgroups for tasks',
            )


def _blocks(trees: Iterable[nodes.Template]) -> set[str]:
    return {block.name for tree in trees for block in tree.find_all(nodes.Block)}


def _check_outside(tree: nodes.Template, path: str) -> None:
    """Refuse what follows ``{% extends %}`` and is in no block."""
    body = list(tree.body)
    extends = next(n for n, node in enumerate(body) if list(_extends(node)))
    for line in _left_out(body[extends + 1 :]):
        raise _error(
            path,
            line,
            "what stands here is outside of every block, so no part of the policy",
            "put it into a block, such as {% block declarations %}; remarks go between {# and #}",
        )


def _extends(node: nodes.Node) -> Iterator[nodes.Node]:
    if isinstance(node, nodes.Extends):
        yield node
    yield from node.find_all(nodes.Extends)


def _left_out(body: Iterable[nodes.Node]) -> Iterator[int]:
    """The lines of nodes that a template which extends another does not render."""
    for node in body:
        if isinstance(node, nodes.If):
            yield from _left_out([*node.body, *node.elif_, *node.else_])
        elif isinstance(node, nodes.Output):
            for part in node.nodes:
                if not isinstance(part, nodes.TemplateData):
                    yield part.lineno
                else:
                    text, origins = lines.separate(part.data)
                    written = zip(text.split("\n"), origins, strict=True)
                    yield from (origin.line for line, origin in written if line.strip())
        elif not isinstance(node, _HEARD):
            yield node.lineno


def _check_sets(tree: nodes.Template, path: str, read: set[str]) -> None:
    targets = [assign.target for assign in tree.find_all(nodes.Assign)]
    targets += [assign.target for assign in tree.find_all(nodes.AssignBlock)]
    for name in (name for target in targets for name in _names(target)):
        if name.name not in read:
            raise _error(
                path,
                name.lineno,
                f"no template reads {name.name!r}, which is set here",
                near.hint(name.name, read) or "leave it out",
            )


def _names(target: nodes.Node) -> list[nodes.Name]:
    return [target] if isinstance(target, nodes.Name) else list(target.find_all(nodes.Name))


def _error(path: str, line: int, what: str, hint: str) -> TemplateError:
    return TemplateError(f"{path}:{line}: {what}", hint=hint, path=path, line=line)
