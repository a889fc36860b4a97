# SPDX-License-Identifier: Apache-2.0
"""Refuses instructions that bcc emitted silently wrong, before any kernel sees them.

Each rule stands for a trap that was measured; the verifier would either pass the result or explain
it in terms that the author of a template cannot use. Says nothing about memory safety: that is
the verifier's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from bpfoom.compiler.decode import CALL, CALLX, CLASS_LDX, CLASS_ST, CLASS_STX, EXIT, LDDW, Insn
from bpfoom.compiler.object import Line, Relocation, line_of
from bpfoom.errors import LintError
from bpfoom.policy import magic

MAX_STACK = 512
_FRAME = 10

# What the kernel series lets a handler call, by the numbers of uapi/linux/bpf.h.
HELPERS = {
    1: "map_lookup_elem",
    5: "ktime_get_ns",
    7: "get_prandom_u32",
    8: "get_smp_processor_id",
    14: "get_current_pid_tgid",
    16: "get_current_comm",
    42: "get_numa_node_id",
    93: "spin_lock",
    94: "spin_unlock",
    113: "probe_read_kernel",
    115: "probe_read_kernel_str",
    118: "jiffies64",
    125: "ktime_get_boot_ns",
    130: "ringbuf_output",
    131: "ringbuf_reserve",
    132: "ringbuf_submit",
    133: "ringbuf_discard",
    134: "ringbuf_query",
    153: "per_cpu_ptr",
    154: "this_cpu_ptr",
    158: "get_current_task_btf",
    182: "strncmp",
    195: "map_lookup_percpu_elem",
}


@dataclass(frozen=True)
class Finding:
    """A rule that fired: where (slot), and what it means for the author."""

    rule: str
    insn: int
    message: str


Rule = Callable[[Sequence[Insn], frozenset[int]], Iterator[Finding]]


def static_data(insns: Sequence[Insn], _known: frozenset[int]) -> Iterator[Finding]:
    """A string literal, a global, static or constant data: bcc has no section for it and loads
    its offset instead. LLVM never needs an lddw for a constant that fits in 32 bits."""
    for insn in insns:
        if insn.code == LDDW and insn.imm < 1 << 31:
            yield Finding(
                "static-data",
                insn.index,
                "a string literal, global or table: use {{ string(...) }}, a map, or plain code",
            )


def magic_left(insns: Sequence[Insn], known: frozenset[int]) -> Iterator[Finding]:
    """A magic constant that no relocation accounts for: computed with, or of another rendering."""
    for insn in insns:
        if insn.index in known:
            continue
        value = insn.imm >> 32 if insn.code == LDDW else insn.imm
        if value in magic.HIGHS or magic.KFUNC_BASE <= value <= magic.KFUNC_LIMIT:
            yield Finding(
                "magic-left",
                insn.index,
                "a kfunc, map or string is used other than by calling or passing it",
            )


def calls(insns: Sequence[Insn], known: frozenset[int]) -> Iterator[Finding]:
    """Calls that lead nowhere, or where a handler may not go."""
    for insn in insns:
        if insn.code == CALLX:
            yield Finding("indirect-call", insn.index, "a call through a pointer")
        if insn.code != CALL or insn.index in known:
            continue
        if insn.src != 0 or insn.imm == -1:
            yield Finding(
                "undeclared-call",
                insn.index,
                "a function that is not declared, or not inlined: declare kfuncs with "
                "{{ kfunc(...) }}, make functions static __always_inline",
            )
        elif insn.imm not in HELPERS:
            yield Finding("helper", insn.index, f"helper {insn.imm} is not open to OOM handlers")


def jumps(insns: Sequence[Insn], _known: frozenset[int]) -> Iterator[Finding]:
    """Jumps out of the program or into the middle of an lddw."""
    starts = {insn.index for insn in insns}
    for insn in insns:
        if insn.is_jump and insn.target not in starts:
            yield Finding("jump", insn.index, f"jumps to {insn.target}, which is no instruction")


def ends(insns: Sequence[Insn], _known: frozenset[int]) -> Iterator[Finding]:
    """A program that runs off its end, or has a part that leads to no exit."""
    by_index = {insn.index: insn for insn in insns}
    before: dict[int, list[int]] = {}
    seen: set[int] = set()
    todo = [0]
    while todo:
        at = todo.pop()
        insn = by_index.get(at)
        if insn is None:
            yield Finding("runs-off", at, "the program runs off its end: a missing return?")
        elif at not in seen:
            seen.add(at)
            for after in _next(insn, by_index):
                before.setdefault(after, []).append(at)
                todo.append(after)
    exits = [at for at in seen if by_index[at].code == EXIT]
    stuck = seen - _closure(exits, before)
    if stuck:
        # What leads back says where the loop is, what leads there may be far before it.
        back = [at for at in stuck if by_index[at].is_jump and by_index[at].target <= at]
        yield Finding(
            "no-exit",
            min(back or stuck),
            "nothing from here on leads to a return: a loop without an end",
        )


def _next(insn: Insn, by_index: Mapping[int, Insn]) -> Iterator[int]:
    """The slots that may follow; a target that is none is for :func:`jumps` to say."""
    if insn.is_jump and insn.target in by_index:
        yield insn.target
    if insn.falls_through:
        yield insn.index + insn.slots


def _closure(starts: Iterable[int], edges: Mapping[int, Iterable[int]]) -> set[int]:
    """All that can be come to from the starts."""
    found: set[int] = set()
    todo = list(starts)
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo += edges.get(at, ())
    return found


def stack(insns: Sequence[Insn], _known: frozenset[int]) -> Iterator[Finding]:
    """Accesses below the 512 bytes of stack; clang refuses most of these itself."""
    for insn in insns:
        base = insn.src if insn.kind == CLASS_LDX else insn.dst
        touches = insn.kind in (CLASS_LDX, CLASS_ST, CLASS_STX) and base == _FRAME
        if touches and insn.off < -MAX_STACK:
            yield Finding("stack", insn.index, f"{-insn.off} bytes of stack, most is 512")


RULES: tuple[Rule, ...] = (static_data, magic_left, calls, jumps, ends, stack)


def findings(
    insns: Sequence[Insn], relocations: Iterable[Relocation], helpers: Set[int] = frozenset()
) -> list[Finding]:
    """Everything that is wrong with a program, in the order of its instructions."""
    opened = {i.index for i in insns if i.code == CALL and i.src == 0 and i.imm in helpers}
    known = frozenset(r.insn for r in relocations) | opened
    found = [finding for rule in RULES for finding in rule(insns, known)]
    return sorted(found, key=lambda f: (f.insn, f.rule))


def check(
    program: str,
    insns: Sequence[Insn],
    relocations: Iterable[Relocation],
    lines: Sequence[Line] = (),
    helpers: Set[int] = frozenset(),
) -> None:
    """Raise LintError when any rule fires, with the places in templates as far as ``lines`` go.

    ``helpers`` may be called besides :data:`HELPERS`.
    """
    found = findings(insns, relocations, helpers)
    if not found:
        return
    places = [_place(line_of(lines, f.insn)) for f in found]
    first = line_of(lines, found[0].insn)
    where: dict[str, Any] = {"path": first.path, "line": first.line} if first else {}
    raise LintError(
        f"{places[0]}{program}: {found[0].message}",
        hint="see the C text with `bpfoom render`; traps of bcc are listed in docs/policies.md",
        detail="\n".join(
            f"  {place}instruction {f.insn}: {f.rule}: {f.message}"
            for f, place in zip(found, places, strict=True)
        ),
        program=program,
        findings=[[f.rule, f.insn, f.message] for f in found],
        **where,
    )


def _place(line: Line | None) -> str:
    return f"{line.path}:{line.line}: " if line else ""
