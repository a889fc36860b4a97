# SPDX-License-Identifier: Apache-2.0
"""``param`` in a template means that template's own parameters, whoever extends it.

Templates that extend each other share one set of names, so the name itself is made another in each
of them, before Jinja sees it.
"""

from __future__ import annotations

from collections.abc import Iterable

from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream


class OwnParameters(Extension):
    """Replaces ``param`` by the template's scope; in a template that has none it stays undefined.

    The environment's ``bpfoom_scopes`` maps the names of templates to those of their scopes.
    """

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        scope = getattr(self.environment, "bpfoom_scopes").get(stream.name)  # noqa: B009
        previous = ""
        for token in stream:
            own = token.type == "name" and token.value == "param" and previous != "dot"
            previous = token.type
            yield Token(token.lineno, token.type, scope) if scope and own else token
