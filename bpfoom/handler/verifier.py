# SPDX-License-Identifier: Apache-2.0
"""What the verifier's words mean: why it refused a program and where, or how much work it had."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bpfoom import resources
from bpfoom.compiler import decode
from bpfoom.compiler.object import Line, Program, line_of
from bpfoom.errors import BpfoomError, VerifierError

_STATISTICS = ("processed ", "verification time", "stack depth", "subprog ")
# An instruction as the log shows it when it is looked at, and one that a message speaks of.
_VISITED = re.compile(r"(\d+): \([0-9a-f]{2}\) ")
_MENTIONED = re.compile(r"\binsn (\d+)\b")
# What follows this are two dumps of registers.
_ENDLESS = re.compile(
    r"^(?:infinite loop detected at insn \d+|BPF program is too large\. Processed .*)$", re.M
)
_BOUND = "a loop needs a bound that the verifier can see: for (i = 0; i < 64; i++)"
_PATHS = (
    f"{_BOUND}; if there is none, keep what is found on the way in maps, not on the stack "
    "(docs/policies.md, The verifier)"
)
_HINT = (
    "the log's end is above, more of it is in --json; `bpfoom render --show-line-map` shows the C "
    "text it is about"
)
_LOOP = re.compile(r"\b(?:for|while|do|goto)\b")
_STACK = re.compile(r"^stack depth (?:max )?(\d+)", re.M)
_PROCESSED = re.compile(r"^processed (\d+) insns .*\btotal_states (\d+) peak_states (\d+)", re.M)


@dataclass(frozen=True)
class Statistics:
    """How much work a program was: instructions looked at, states kept (in all, and at most at a
    time), and bytes of stack; None for what this kernel does not say."""

    verified_instructions: int | None
    total_states: int | None
    peak_states: int | None
    stack_bytes: int | None


def statistics(log: str) -> Statistics:
    """The verifier's statistics."""
    stack, processed = _STACK.search(log), _PROCESSED.search(log)
    return Statistics(
        verified_instructions=int(processed[1]) if processed else None,
        total_states=int(processed[2]) if processed else None,
        peak_states=int(processed[3]) if processed else None,
        stack_bytes=int(stack[1]) if stack else None,
    )


def refused(program: Program, error: BpfoomError) -> VerifierError:
    """The error of a load that left the verifier's log, with the place in the template."""
    line, hint = place(error.detail, program.lines), _HINT
    if _ENDLESS.search(error.detail):
        line, hint = _endless(line, program)
    where = f"{line.path}:{line.line}: " if line else ""
    return VerifierError(
        f"{where}the kernel's verifier refused {program.name}: {explanation(error.detail)}",
        hint=hint,
        detail=error.detail,
        shown=ending(error.detail),
        object=program.name,
        errno=error.data.get("errno"),
        **({"path": line.path, "line": line.line} if line else {}),
    )


def _endless(line: Line | None, program: Program) -> tuple[Line | None, str]:
    """The loop that has no bound, as far as it is known, and what to do.

    Where the verifier gave up it names no place, and may have been in any of the policy's loops.
    """
    found = [line] if line else loops(program)
    if not found:
        return None, _PATHS
    if len(found) == 1:
        return found[0], _BOUND
    return None, f"{_BOUND}; there are loops at {', '.join(f'{it.path}:{it.line}' for it in found)}"


def loops(program: Program) -> list[Line]:
    """The lines of a policy's own loops, as far as they can be told by what jumps back.

    So does much that is no loop, or goes on with the walk of a base: hence the look at the text.
    """
    insns = decode.instructions(program.insns)
    back = [insn.index for insn in insns if insn.is_jump and insn.target <= insn.index]
    places = [line for at in back if (line := line_of(program.lines, at))]
    own = [
        it for it in places if _LOOP.search(it.text) and not it.path.startswith(resources.SHARED)
    ]
    return list({(line.path, line.line): line for line in own}.values())


def explanation(log: str) -> str:
    """The line of a verifier log that says why.

    Verifiers with diagnostics have a line "Verification failed: kind: problem"; a loop without an
    end is said before its states; elsewhere it is the last one before the statistics.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("Verification failed:"):
            return line.partition(":")[2].strip()
    endless = _ENDLESS.search(log)
    if endless:
        return endless[0]
    spoken = [line for line in lines if not line.startswith(_STATISTICS)]
    return spoken[-1] if spoken else "without a word"


def ending(log: str) -> str:
    """What a verifier log says from the last instruction on; the rest is the way there.

    A log that ends with no instruction is short.
    """
    lines = log.splitlines()
    visits = [number for number, line in enumerate(lines) if _VISITED.match(line)]
    first = visits[-1] if visits else 0
    if first == 0:
        return log
    return "\n".join([f"... {first} lines before these: see them with --json", *lines[first:]])


def place(log: str, lines: Sequence[Line]) -> Line | None:
    """The line that a refusal is about: of the last instruction that the verifier looked at.

    What it refuses without looking at instructions one by one, it refuses naming one.
    """
    visited = [int(found[1]) for line in log.splitlines() if (found := _VISITED.match(line))]
    mentioned = _MENTIONED.search(log)
    if visited:
        return line_of(lines, visited[-1])
    return line_of(lines, int(mentioned[1])) if mentioned else None
