# SPDX-License-Identifier: Apache-2.0
"""Ask the kernel what it would do if a cgroup were out of memory now: ``bpf_oom_dry_run()``.

The kfunc is for SYSCALL programs. Ours is a few instructions that need no compiler: it looks the
cgroup up by its id, asks, and leaves the answer in its context.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from bpfoom.btf.types import Btf, Kind
from bpfoom.compiler.object import Program, Relocation
from bpfoom.errors import BpfoomError, MissingFeatureError, NotThereError
from bpfoom.handler import syscalls
from bpfoom.handler.relocate import relocate

RESULT = "bpf_oom_dry_run_result"
# enum bpf_oom_outcome
OUTCOMES = {0: "kernel", 1: "handler", 2: "promise", 3: "join", 4: "victims"}
# The kernel's killer would wait for a victim that is on its way out.
WAITS = -1

_CONTEXT = struct.Struct("<Qq")  # the cgroup's id (0: the whole system), the order
_INSN = struct.Struct("<BBhi")
_MOV, _COPY, _ADD, _LOAD, _CALL, _EXIT, _IF_ZERO = 0xB7, 0xBF, 0x07, 0x79, 0x85, 0x95, 0x15
_FIELDS = {"victim_pid": "i", "nr_kills": "I", "promise_ms": "I", "kernel_pid": "i"} | {
    "cgroup_id": "Q",
    "victim_memcg_id": "Q",
    "raised_max": "Q",
    "outcome": "I",
    "verdict": "i",
}


@dataclass(frozen=True)
class Answer:
    """struct bpf_oom_dry_run_result: what would become of the OOM.

    ``cgroup_id`` is that of the handler that was asked last (0: none), ``victim_memcg_id`` the
    cgroup of the first victim or what is killed whole, ``raised_max`` bytes (0: stays),
    ``kernel_pid`` whom the kernel's killer would choose (0: nobody, :data:`WAITS`).
    """

    cgroup_id: int
    victim_memcg_id: int
    raised_max: int
    outcome: str
    verdict: int
    victim_pid: int
    nr_kills: int
    promise_ms: int
    kernel_pid: int
    handler_name: str


def dry_run(cgroup_id: int, order: int, btf: Btf) -> Answer:
    """What would be done if that cgroup could not have 2^order pages; 0 is the whole system.

    Raises MissingFeatureError on a kernel without the kfunc, NotThereError without the cgroup.
    """
    if not btf.has_function("bpf_oom_dry_run"):
        raise MissingFeatureError(
            "this kernel cannot be asked what it would do: it has no bpf_oom_dry_run()",
            hint="try it in the guest, whose kernel has it: `bpfoom vm shell`",
            function="bpf_oom_dry_run",
        )
    size = btf.size_of(btf.struct_id(RESULT))
    program, kfuncs = _program(btf, size)
    insns = relocate(program, {name: btf.find(name, Kind.FUNC) or 0 for name in kfuncs}, {})
    with syscalls.prog_load(program.name, insns, kind="syscall", sleepable=True) as loaded:
        code, after = syscalls.prog_run(loaded, _CONTEXT.pack(cgroup_id, order) + bytes(size))
    if code == -errno.ENOENT:
        raise NotThereError("the cgroup has been removed", cgroup_id=cgroup_id)
    if code:
        raise BpfoomError(
            f"the kernel does not say what it would do: {errno.errorcode.get(-code, code)}",
            hint="an order is 0 to 10 on most kernels",
            errno=-code,
            order=order,
        )
    return _answer(after[_CONTEXT.size :], btf)


def _answer(raw: bytes, btf: Btf) -> Answer:
    found = {}
    for name, form in _FIELDS.items():
        (found[name],) = struct.unpack_from(f"<{form}", raw, btf.place(RESULT, name).offset // 8)
    place = btf.place(RESULT, "handler_name")
    text = raw[place.offset // 8 :][: place.size // 8].split(b"\0", 1)[0].decode("ascii", "replace")
    outcome = found.pop("outcome")
    return Answer(**found, outcome=OUTCOMES.get(outcome, str(outcome)), handler_name=text)


def _program(btf: Btf, size: int) -> tuple[Program, tuple[str, ...]]:
    """The program and its kfuncs. r6 is the context, r7 the cgroup, r8 its memcg or NULL."""
    css = btf.place("cgroup", "self").offset // 8
    steps: list[tuple[int, int, int, int, int] | str] = [
        (_COPY, 6, 1, 0, 0),
        (_MOV, 8, 0, 0, 0),
        (_LOAD, 1, 6, 0, 0),
        (_IF_ZERO, 1, 0, 10, 0),  # to `ask`
        "bpf_cgroup_from_id",
        (_IF_ZERO, 0, 0, 20, 0),  # to `absent`
        (_COPY, 7, 0, 0, 0),
        (_COPY, 1, 0, 0, 0),
        (_ADD, 1, 0, 0, css),
        "bpf_get_mem_cgroup",
        (_COPY, 8, 0, 0, 0),
        (_COPY, 1, 7, 0, 0),
        "bpf_cgroup_release",
        (_IF_ZERO, 8, 0, 12, 0),  # to `absent`
        # ask:
        (_COPY, 1, 8, 0, 0),
        (_LOAD, 2, 6, 8, 0),
        (_COPY, 3, 6, 0, 0),
        (_ADD, 3, 0, 0, _CONTEXT.size),
        (_MOV, 4, 0, 0, size),
        "bpf_oom_dry_run",
        (_COPY, 7, 0, 0, 0),
        (_IF_ZERO, 8, 0, 2, 0),  # to `end`
        (_COPY, 1, 8, 0, 0),
        "bpf_put_mem_cgroup",
        # end:
        (_COPY, 0, 7, 0, 0),
        (_EXIT, 0, 0, 0, 0),
        # absent:
        (_MOV, 0, 0, 0, -errno.ENOENT),
        (_EXIT, 0, 0, 0, 0),
    ]
    called = [(at, step) for at, step in enumerate(steps) if isinstance(step, str)]
    insns = b"".join(
        _INSN.pack(_CALL, 0, 0, 0) if isinstance(step, str) else _packed(*step) for step in steps
    )
    relocations = tuple(Relocation(at, "kfunc", name) for at, name in called)
    return (
        Program("dry_run", "syscall", "", True, insns, relocations),
        tuple(name for _, name in called),
    )


def _packed(code: int, dst: int, src: int, off: int, imm: int) -> bytes:
    return _INSN.pack(code, dst | src << 4, off, imm)
