# SPDX-License-Identifier: Apache-2.0
"""Templates to C text in Jinja's sandbox.

A pure function of templates, parameters and BTF; it reads no file. It trusts neither template nor
parameter, but limits on CPU and memory belong to the process it runs in (bpfoom.compiler.child).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError, TemplateError
from bpfoom.policy import blame, lines, typos, unknown
from bpfoom.policy.functions import Facts, Functions, Scope, scope_name
from bpfoom.policy.scopes import OwnParameters
from bpfoom.policy.values import Live, Number, ParamText

MAX_OUTPUT = 1 << 20
_CONTROL = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")


@dataclass(frozen=True)
class Template:
    """A template's text, and the path that messages name it by."""

    text: str
    path: str


@dataclass(frozen=True)
class Rendered:
    """C text; ``origins`` has (path, line) for each of its lines."""

    text: str
    origins: tuple[tuple[str, int], ...]
    facts: Facts


def render(
    templates: Mapping[str, Template],
    scopes: Sequence[Scope],
    btf: Btf,
    *,
    dry_run: bool = False,
) -> Rendered:
    """Render the first scope's template, which can reach ``templates`` and nothing else.

    Raises TemplateError with file and line, MissingFeatureError for what the BTF lacks.
    """
    for template in templates.values():
        _check_text(template)
    main = scopes[0].template
    functions = Functions(btf, scopes)
    names = {**functions.names(), "dry_run": dry_run}
    hidden = {scope_name(number) for number in range(len(scopes))}
    environment = _environment(templates, scopes, {*names, "param"} - hidden)
    try:
        texts = {name: (template.text, template.path) for name, template in templates.items()}
        typos.check(environment, texts, [scope.template for scope in scopes])
        text = functions.finish(_output(environment, main, names))
    except jinja2.TemplateSyntaxError as error:
        path = error.filename or templates[main].path
        raise blame.error_at(error.message or "syntax error", path, error.lineno) from error
    except (BpfoomError, Exception) as error:
        own = {templates[scope.template].path: templates[scope.template].text for scope in scopes}
        raise blame.located(error, {t.path for t in templates.values()}, own, btf) from error
    text, origins = lines.separate(text)
    paths = {name: template.path for name, template in templates.items()}
    places = tuple((paths.get(o.template, templates[main].path), o.line) for o in origins)
    found = _CONTROL.search(text)
    if found:
        place = places[text.count("\n", 0, found.start())]
        raise blame.error_at(f"renders the control character {found[0]!r}", *place)
    return Rendered(text, places, functions.facts)


def warm_up() -> None:
    """Import all that rendering imports on first use, for a process about to lose its files."""
    template = Template("{% for i in range(2) %}{{ i ~ 'text' }}{% endfor %}", "warm-up")
    try:
        _output(_environment({"": template}, (), {}), "", {})
        _output(_environment({"": Template("{{ nothing.there }}", "warm-up")}, (), {}), "", {})
    except jinja2.UndefinedError as error:
        traceback.extract_tb(error.__traceback__)


def _environment(
    templates: Mapping[str, Template], scopes: Sequence[Scope], names: Collection[str]
) -> SandboxedEnvironment:
    def load(name: str) -> tuple[str, str, Callable[[], bool]] | None:
        found = templates.get(name)
        return (found.text, found.path, lambda: True) if found else None

    environment = SandboxedEnvironment(
        loader=jinja2.FunctionLoader(load),
        undefined=unknown.undefined_among(names),
        autoescape=False,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        extensions=[lines.LineMarks, OwnParameters],
    )
    environment.extend(
        bpfoom_scopes={scope.template: scope_name(n) for n, scope in enumerate(scopes)}
    )
    # Same input, same text: nothing random, no clock.
    environment.globals.pop("lipsum", None)
    environment.filters.pop("random", None)
    return environment


def _output(environment: SandboxedEnvironment, main: str, names: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in environment.get_template(main).generate(names):
        size += len(piece)
        if size > MAX_OUTPUT:
            raise TemplateError(
                f"renders more than {MAX_OUTPUT >> 10} KiB", hint="look for a loop without an end"
            )
        pieces.append(piece)
    return "".join(pieces)


def _finalize(value: Any) -> Any:
    """What ``{{ value }}`` writes. Only numbers and text can be written at all."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Number):
        return value.as_c()
    if isinstance(value, int):
        if value < 0:  # in parentheses: what stands before it may be a minus, too
            return f"({value}{'' if value >= -(1 << 31) else 'LL'})"
        return value if value < 1 << 31 else f"{value}ULL"
    if isinstance(value, Live):
        return str(value)
    if isinstance(value, str | jinja2.Undefined | ParamText):
        return value
    raise TemplateError(f"a {type(value).__name__} cannot be written as C")


def _check_text(template: Template) -> None:
    found = _CONTROL.search(template.text)
    if found:
        line = template.text.count("\n", 0, found.start()) + 1
        raise blame.error_at(f"control character {found[0]!r}", template.path, line)
