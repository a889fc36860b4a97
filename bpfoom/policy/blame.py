# SPDX-License-Identifier: Apache-2.0
"""What went wrong while rendering, as an error with file and line in the words of who wrote it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Mapping

import jinja2

from bpfoom import near, resources
from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError, MissingFeatureError, TemplateError
from bpfoom.policy import unknown

_EXTENDS = re.compile(r"\{%[-+]?\s*extends\b")
_REQUIRED = re.compile(r"Required block '(\w+)' not found")  # Jinja's words
_CALL = re.compile(r"Functions\.(\w+\(\) .*)")  # Python's, of bpfoom.policy.functions


def error_at(message: str, path: str, line: int | None) -> TemplateError:
    """An error in a template."""
    place = f"{path}:{line}" if line else path
    return TemplateError(
        f"{place}: {message}", hint="correct the template", path=path, line=line or 0
    )


def located(
    error: Exception, paths: Collection[str], own: Mapping[str, str], btf: Btf
) -> BpfoomError:
    """The error with the innermost template line that it came through.

    ``own`` has the texts of the policies by path, outermost first; ``paths`` also names what they
    share.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in paths]
    path, line = (frames[-1].filename, frames[-1].lineno) if frames else ("template", None)
    if isinstance(error, MissingFeatureError):
        error.detail = error.detail or f"asked for by {path}:{line}"
        nearest = unknown.in_types(error, btf) if path in own else ""
        error.hint = f"{nearest} If not: {error.hint}" if nearest else error.hint
        return error
    if isinstance(error, BpfoomError):
        if "line" in error.data:
            return error
        found = error_at(error.message, path, line)
        found.hint = error.hint or found.hint
        found.data.update(error.data)
        return found
    required = _REQUIRED.match(str(error))
    if required:
        return _unfilled(required[1], own)
    what, hint = _said(error, paths)
    found = error_at(what, path, line)
    found.hint = hint or found.hint
    return found


def _unfilled(block: str, own: Mapping[str, str]) -> TemplateError:
    """A block that a base requires: the policy that extends the base is to fill it."""
    path, text = list(own.items())[-1]
    extends = _EXTENDS.search(text)
    line = text.count("\n", 0, extends.start()) + 1 if extends else None
    found = error_at(f"a policy that extends this needs a block {block!r}", path, line)
    found.hint = f"{{% block {block} %}} ... {{% endblock %}}: docs/policies.md has what it returns"
    return found


def _said(error: Exception, paths: Collection[str]) -> tuple[str, str]:
    """What Jinja and Python mean, and what to do; "" where nothing particular."""
    if isinstance(error, jinja2.UndefinedError):
        what, _, hint = str(error).partition("\n")
        return what, hint
    if isinstance(error, TypeError) and (call := _CALL.match(str(error))):
        return call[1], "docs/policies.md has what a template can call, and with what"
    if isinstance(error, jinja2.TemplateNotFound):
        shared = [path for path in paths if path.startswith(resources.SHARED)]
        hint = near.hint(str(error), [path.removeprefix("bpf/") for path in shared])
        return f"no template {error}; shared ones are include/NAME", hint
    known: dict[type[Exception], str] = {
        TimeoutError: "rendering takes too long; look for a loop without an end",
        MemoryError: "rendering takes too much memory; look for a loop without an end",
        RecursionError: "templates extend or include each other in a circle",
    }
    what = next((text for kind, text in known.items() if isinstance(error, kind)), "")
    return what or f"{type(error).__name__}: {error}", ""
