# SPDX-License-Identifier: Apache-2.0
"""Blocks that a policy fills and no base has: Jinja would leave them out without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from jinja2 import Environment, nodes

from bpfoom.errors import TemplateError


def check(
    environment: Environment, texts: Mapping[str, tuple[str, str]], own: Iterable[str]
) -> None:
    """Raise TemplateError for a block of the templates ``own`` that nothing else knows.

    ``texts`` has each template's text and path.
    """
    trees = {name: environment.parse(text, name, path) for name, (text, path) in texts.items()}
    for name in own:
        tree, path = trees[name], texts[name][1]
        if tree.find(nodes.Extends) is None:
            continue
        others = [other for key, other in trees.items() if key != name]
        known = {block.name for other in others for block in other.find_all(nodes.Block)}
        for block in tree.body:
            if isinstance(block, nodes.Block) and block.name not in known:
                close = difflib.get_close_matches(block.name, known, n=3) or sorted(known)
                raise TemplateError(
                    f"{path}:{block.lineno}: no base has a block {block.name!r}",
                    hint=f"did you mean: {', '.join(close)}?",
                    path=path,
                    line=block.lineno,
                )
