# SPDX-License-Identifier: Apache-2.0
"""SYSCALL programs that declare an OOM, or ask what would be done about one.

Their context begins with the cgroup's ID (0: the whole system), the order and the flags.
"""

from __future__ import annotations

import errno
import struct

from bpfoom.btf.types import Btf
from bpfoom.handler import ask, syscalls
from bpfoom.handler.ask import Answer
from bpfoom.handler.syscalls import Fd
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.asm import R0, R1, R2, R3, R4, R6, R7, R8, Asm, loaded_program

WAIT_ON_OOM_LOCK = 1 << 0

# Where programs say that they have started, and leave what they return, for whoever cannot ask.
CALLED, RETURNED = 30, 31

_CONTEXT = struct.Struct("<QqQ")
# struct bpf_oom_dry_run_result, in bytes.
RESULT = 112


def context(cgroup: Cgroup | None, order: int = 0, flags: int = 0) -> bytes:
    """What a declaration is run with; None is the whole system."""
    return _CONTEXT.pack(cgroup.id if cgroup else 0, order, flags)


def declaration(btf: Btf, *, busy_ms: int = 0) -> Asm:
    """Declare an OOM, after having done nothing for a while; returns what the kfunc does."""
    code = _of_caller(btf)
    if busy_ms:
        code.copy(R7, R8).busy(busy_ms).copy(R8, R7)
    code.copy(R1, R8).load(R2, R6, 8).load(R3, R6, 16)
    return _end(code.kfunc("bpf_out_of_memory"))


def declare(btf: Btf, cgroup: Cgroup | None, order: int = 0, flags: int = 0) -> int:
    """Declare an OOM of the cgroup, or of the whole system: 1, 0 or -errno."""
    with loaded_program(declaration(btf), btf) as program:
        return run(program, context(cgroup, order, flags))


def trial(btf: Btf, size: int = RESULT) -> Asm:
    """A dry run into ``size`` bytes of the context, behind what it begins with."""
    code = _of_caller(btf)
    code.copy(R1, R8).load(R2, R6, 8).copy(R3, R6).add(R3, _CONTEXT.size).const(R4, size)
    return _end(code.kfunc("bpf_oom_dry_run"))


def dry_run(btf: Btf, cgroup: Cgroup | None, order: int = 0) -> Answer:
    """What would be done if the cgroup, or the whole system, were out of memory."""
    return ask.dry_run(cgroup.id if cgroup else 0, order, btf)


def run(program: Fd, context: bytes) -> int:
    """Run a program once; what it returns."""
    return syscalls.prog_run(program, context)[0]


def _of_caller(btf: Btf) -> Asm:
    """r6 = the context, r8 = the memcg that it names, held, or NULL."""
    code = Asm().copy(R6, R1).const(R0, 1).note(CALLED).const(R8, 0)
    code.load(R1, R6, 0).jump_if(R1, "==", 0, "system")
    return code.memcg(R8, btf, "absent").place("system")


def _end(code: Asm) -> Asm:
    """Release the memcg and return r0."""
    code.note(RETURNED).copy(R7, R0).jump_if(R8, "==", 0, "end").copy(R1, R8).kfunc(
        "bpf_put_mem_cgroup"
    )
    code.place("end").copy(R0, R7).exit()
    return code.place("absent").exit(-errno.ENOENT)
