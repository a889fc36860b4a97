# SPDX-License-Identifier: Apache-2.0
"""What clang says of the C text, as an error about the template that it came from."""

from __future__ import annotations

import re

from bpfoom import resources
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
_NO_FUNCTION = re.compile(r"(?:implicit declaration of|undeclared) function '(\w+)'")
_NO_NAME = re.compile(r"undeclared identifier '(\w+)'")
_NO_MEMBER = re.compile(r"no member named '(\w+)' in 'struct (\w+)'")
_WIDE = re.compile(r"call to built-in function '__\w+ti?[23]' is not supported")
_FLOAT = re.compile(r"call to built-in function '__(?:float|fix|\w*[sd]f)\w*' is not supported")
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
        return CompileError(message, hint=hint or _hint("", text), detail=detail)
    path, _, line = first["where"].rpartition(":")
    if path.startswith(resources.SHARED) and (unclosed := source.unclosed(text, origins)):
        path, number, what = unclosed
        return CompileError(
            f"{path}:{number}: error: {what}",
            hint="clang saw it further on: what a block opens ends in it",
            detail=first[0],
            path=path,
            line=number,
        )
    rest = detail[: first.start()] + detail[first.end() :].removeprefix("\n")
    said = first[0].removeprefix("error: ")
    return CompileError(said, hint=_hint(said, text), detail=rest, path=path, line=int(line))


def _where_it_ends(found: re.Match[str], text: str) -> str:
    """clang means the closing brace, which is the base's; the author wrote the line before."""
    lines = text.split("\n")
    at = int(found[1]) - 1
    while at > 1 and not lines[at - 1].strip():
        at -= 1
    return f"{NAME}:{at}"


def _hint(said: str, text: str) -> str:
    """What to do about clang's first error; ``text`` is the C text that it saw."""
    function, name, member = (p.search(said) for p in (_NO_FUNCTION, _NO_NAME, _NO_MEMBER))
    if function:
        return (
            f'a function of the kernel is declared by {{{{ kfunc("{function[1]}") }}}} in the '
            "block `declarations`, one of your own is written there"
        )
    if name:
        return (
            f'a value of an enum is declared by {{{{ constants("ENUM", "{name[1]}") }}}} in the '
            "block `declarations`; what each block sees is in docs/policies.md"
        )
    # Of a kernel's struct there are the members that were asked for, see policy.cgen.
    if member and f"sizeof(struct {member[2]}) ==" in text:
        return (
            f'if the kernel has it, ask for it: {{{{ struct("{member[2]}", "{member[1]}") }}}} in '
            "the block `declarations`"
        )
    if _WIDE.search(said):
        return (
            "BPF has no 128-bit arithmetic; where none was written LLVM has made it of a loop, "
            "which a volatile counter keeps as it is"
        )
    if _FLOAT.search(said):
        return "BPF has no floating point: compute with whole numbers, such as * 3 / 2"
    return "the C text that clang saw: `bpfoom render --show-line-map`"
