# SPDX-License-Identifier: Apache-2.0
"""What clang says of the C text, as an error about the template that it came from."""

from __future__ import annotations

import re

from bpfoom.compiler import source
from bpfoom.compiler.child import KEPT
from bpfoom.compiler.source import NAME, Origins
from bpfoom.errors import CompileError

# Mistakes that the kernel's verifier passes, and that decide wrongly then.
_MISTAKES = (
    "implicit-function-declaration",
    "return-type",
    "int-conversion",
    "incompatible-pointer-types",
    "uninitialized",
    "division-by-zero",
    "shift-count-overflow",
    "shift-count-negative",
    "array-bounds",
)
CFLAGS = (*(f"-Werror={name}" for name in _MISTAKES), "-Wno-unused-function")

_ERROR = re.compile(
    r"^(?:error: )?(?P<where>\S+?:\d+): (?:error: |in function )?(?P<what>.*)$", re.M
)
_NO_VALUE = re.compile(
    rf"^{re.escape(NAME)}:(\d+)(?=:\d+: (?:error|warning): non-void function does not return)", re.M
)
_UNDECLARED = re.compile(r"(?:implicit declaration of|undeclared) function '(\w+)'")
_STACK = re.compile(r"BPF stack limit")
# Of the kernel's version, which no program of ours depends on, and how many errors there are.
_NOISE = re.compile(r"^(?:WARNING: .*|\d+ errors? generated\.)\n?", re.M)


def refusal(
    message: str, diagnostics: str, text: str, origins: Origins, *, hint: str = ""
) -> CompileError:
    """The error of a text that did not compile; ``message`` and ``hint`` where clang names no
    place."""
    said = _NO_VALUE.sub(lambda found: _where_it_ends(found, text), diagnostics[:KEPT])
    detail = _NOISE.sub("", source.translate(said, origins))
    first = _ERROR.search(detail)
    if _STACK.search(detail):
        return CompileError(
            "the policy needs more than the 512 bytes of stack that there are",
            hint="keep what is large in a map of one entry, and its address on the stack: "
            '{{ map("NAME", "percpu_array", value_size=BYTES, entries=1) }}',
        )
    if not first:
        return CompileError(message, hint=hint or _hint(""), detail=detail)
    path, _, line = first["where"].rpartition(":")
    rest = detail[: first.start()] + detail[first.end() :].removeprefix("\n")
    return CompileError(first[0], hint=_hint(first[0]), detail=rest, path=path, line=int(line))


def _where_it_ends(found: re.Match[str], text: str) -> str:
    """clang means the closing brace, which is the base's; the author wrote the line before."""
    lines = text.split("\n")
    at = int(found[1]) - 1
    while at > 1 and not lines[at - 1].strip():
        at -= 1
    return f"{NAME}:{at}"


def _hint(said: str) -> str:
    undeclared = _UNDECLARED.search(said)
    if undeclared:
        return (
            f'a function of the kernel is declared by {{{{ kfunc("{undeclared[1]}") }}}} in the '
            "block `declarations`, one of your own is written there"
        )
    return "the C text that clang saw: `bpfoom render --show-line-map`"
