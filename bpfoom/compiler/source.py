# SPDX-License-Identifier: Apache-2.0
"""What must hold of rendered C text before a compiler sees it, and where its lines came from.

Refuses every way to read a file from C, so that none depends on the child's confinement alone,
and entry functions in a form that bcc would rewrite; finds what a policy's text leaves open.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from bpfoom import resources
from bpfoom.errors import CompileError, LintError

# bcc's name for the text: it prints lines of no other file.
NAME = "/virtual/main.c"
ENTRY_PARAMETERS = "u64 *ctx"
_DIRECTIVES = frozenset(
    {"define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif", "error"}
)
# Strings and character constants are matched so that a comment inside one is none; both end at
# the line's end even without their quote, as they do for clang.
_LEXEMES = re.compile(
    r"""(?P<comment>/\*.*?(?:\*/|\Z)|//[^\n]*)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?""",
    re.DOTALL,
)
_BRACES = re.compile(rf"{_LEXEMES.pattern}|(?P<brace>[{{}}])", re.DOTALL)
_ASM = re.compile(r"\b(?:asm|__asm|__asm__)\b")
_BARRIER = re.compile(r'(?:asm|__asm|__asm__)\s+(?:volatile|__volatile__)\s*\(\s*""\s*[:)]')
_DIRECTIVE = re.compile(r"[ \t\f\v]*(?:#|%:)[ \t\f\v]*(?P<name>\w*)(?P<rest>[^\n]*)")
_REFUSED = {
    "__has_include": re.compile(r"\b__has_(?:include|include_next|embed)\b"),
    "_Pragma": re.compile(r"\b_Pragma\b"),
    "token pasting": re.compile(r"##|%:%:"),
    "a trigraph": re.compile(r"\?\?[=/'()!<>-]"),
}
_ASSEMBLY = "assembly"
_ASM_HINT = "write it in C; what the kernel offers besides is called through {{ kfunc(...) }}"
_FILES_HINT = (
    "a policy has no files to read: types come from {{ struct(...) }}, shared text from "
    "{% include %}"
)
_PRAGMAS = re.compile(r"\s+(?:unroll\b|clang\s+loop\b)")
_PLACE = re.compile(rf"(?:{re.escape(NAME)}):(\d+)(?::\d+)?")
# Newer clangs number the lines that they quote.
_QUOTED = re.compile(r"^( *\d+)(?= \| )", re.M)

Origins = Sequence[tuple[str, int]]


def _without_comments(text: str) -> str:
    """The text as the preprocessor sees it: lines spliced, comments blank, line count kept."""
    spliced = re.sub(r"\\[ \t]*\n", "\x00", text)

    def blank(found: re.Match[str]) -> str:
        comment = found["comment"]
        return (
            found[0]
            if comment is None
            else " " + "\n" * comment.count("\n") + "\x00" * comment.count("\x00")
        )

    return _LEXEMES.sub(blank, spliced)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Logical lines of the text with the number of the first physical one."""
    number = 1
    for line in _without_comments(text).split("\n"):
        yield number, line.replace("\x00", "")
        number += 1 + line.count("\x00")


def check(text: str, origins: Origins) -> None:
    """Raise CompileError for anything that could read a file, naming the template's line."""
    for number, line in _lines(text):
        reason = _refused(line)
        if reason:
            path, at = origin(origins, number)
            raise CompileError(
                f"{path}:{at}: {reason} is refused",
                hint=_ASM_HINT if reason == _ASSEMBLY else _FILES_HINT,
                path=path,
                line=at,
            )


def _refused(line: str) -> str:
    directive = _DIRECTIVE.match(line)
    if directive:
        name = directive["name"]
        allowed = name in _DIRECTIVES or not name and not directive["rest"].strip()
        if not allowed and not (name == "pragma" and _PRAGMAS.match(directive["rest"])):
            return f"#{name}"
    for what, pattern in _REFUSED.items():
        if pattern.search(line):
            return what
    for found in _ASM.finditer(line):
        if not _BARRIER.match(line, found.start()):
            return _ASSEMBLY
    return ""


def check_entries(text: str, programs: Sequence[str]) -> None:
    """Raise LintError for an entry function that takes anything but one ``u64 *ctx``.

    bcc reads further parameters, and members of a pt_regs, from where a kprobe has them.
    """
    plain = _without_comments(text).replace("\x00", " ")
    for name in programs:
        heads = re.findall(rf"\b{re.escape(name)}\s*\(([^)]*)\)\s*\{{", plain)
        if [" ".join(head.split()) for head in heads] != [ENTRY_PARAMETERS]:
            raise LintError(
                f"{name} must be written as: int {name}({ENTRY_PARAMETERS})",
                hint="make other functions static; bcc would rewrite further parameters as "
                "pt_regs reads",
                findings=[["entry", 0, name]],
            )


def unclosed(text: str, origins: Origins) -> tuple[str, int, str] | None:
    """A brace or comment of a policy's own text that ends elsewhere: path, line, what it is.

    What clang says of it is about the text that comes next, which is bpfoom's.
    """
    written = zip(text.split("\n"), origins, strict=False)
    for path, run in itertools.groupby(written, lambda line: line[1][0]):
        lines = list(run)
        found = _unclosed("\n".join(line for line, _ in lines))
        if found and not path.startswith(resources.SHARED):
            at, what = found
            return path, lines[at][1][1], what
    return None


def _unclosed(text: str) -> tuple[int, str] | None:
    """The same of one text, with its line from 0."""
    opened: list[int] = []
    for found in _BRACES.finditer(text):
        line = text.count("\n", 0, found.start())
        comment, brace = found["comment"] or "", found["brace"]
        if comment.startswith("/*") and (len(comment) < 4 or not comment.endswith("*/")):
            return line, "a comment that nothing ends"
        if brace == "{":
            opened.append(line)
        elif brace == "}" and not opened:
            return line, "a } that closes nothing"
        elif brace == "}":
            opened.pop()
    return (opened[-1], "a { that nothing closes") if opened else None


def origin(origins: Origins, line: int) -> tuple[str, int]:
    """Template path and line of a line of the rendered text, from 1."""
    return origins[min(max(line, 1), len(origins)) - 1] if origins else (NAME, line)


def numbered(text: str) -> str:
    """The text with #line directives wherever one can stand, as bcc adds lines of its own."""
    out, previous = [], ""
    for number, line in enumerate(text.split("\n"), 1):
        if not previous or previous[-1] in ";{}" or line == "{":
            out.append(f'#line {number} "{NAME}"')
        out.append(line)
        previous = line.strip()
    return "\n".join(out)


def translate(diagnostics: str, origins: Origins) -> str:
    """clang's words with places in the rendered text replaced by places in templates."""

    def place(found: re.Match[str]) -> str:
        path, line = origin(origins, int(found[1]))
        return f"{path}:{line}"

    def quoted(found: re.Match[str]) -> str:
        return str(origin(origins, int(found[1]))[1]).rjust(len(found[1]))

    return _PLACE.sub(place, _QUOTED.sub(quoted, diagnostics))
