# SPDX-License-Identifier: Apache-2.0
"""Handlers by hand that do one thing each, and the pieces of them. What their kfuncs return they
leave in slots; UNSEEN in the first one means that they have not come so far."""

from __future__ import annotations

from bpfoom.btf.types import Btf
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.asm import HANDLED, PASS, R0, R1, R2, R3, R6, R8, Asm, of_handler

FIRST, SECOND, VICTIMS, OTHER, REFUSED, STARTED = range(6)
UNSEEN = 12345

# More than may be promised, in milliseconds.
FOR_EVER = (1 << 32) - 1


def kill_task(code: Asm, slot: int) -> Asm:
    """Kill the task in r8; the result goes to a slot."""
    code.copy(R1, R6).copy(R2, R8).string(R3, "by hand")
    return code.kfunc("bpf_oom_kill_process").note(slot)


def kill_memcg(code: Asm, slot: int) -> Asm:
    """Kill all of the memcg in r8; the result goes to a slot."""
    code.copy(R1, R6).copy(R2, R8).string(R3, "by hand")
    return code.kfunc("bpf_oom_kill_cgroup").note(slot)


def note_victims(code: Asm, slot: int) -> Asm:
    return code.copy(R1, R6).kfunc("bpf_oom_victims").note(slot)


def of_task(pid: int) -> Asm:
    """r8 = the task; a task that is not there leaves UNSEEN in the first slot."""
    return of_handler().const(R0, UNSEEN).note(FIRST).task(R8, pid, "absent")


def of_cgroup(cgroup: Cgroup, btf: Btf) -> Asm:
    """r8 = the memcg; a cgroup that is not there leaves UNSEEN in the first slot."""
    return of_handler().const(R0, UNSEEN).note(FIRST).const(R1, cgroup.id).memcg(R8, btf, "absent")


def end(code: Asm, release: str, verdict: int) -> Asm:
    """Release r8 and return."""
    return code.copy(R1, R8).kfunc(release).place("absent").exit(verdict)


def process_killer(pid: int, verdict: int = HANDLED) -> Asm:
    return end(kill_task(of_task(pid), FIRST), "bpf_task_release", verdict)


def cgroup_killer(cgroup: Cgroup, btf: Btf, verdict: int = HANDLED) -> Asm:
    return end(kill_memcg(of_cgroup(cgroup, btf), FIRST), "bpf_put_mem_cgroup", verdict)


def promise(code: Asm, milliseconds: int) -> Asm:
    """Promise memory; success goes to the first slot, an error to the one for refusals."""
    refused, done = f"refused {len(code.insns)}", f"promised {len(code.insns)}"
    code.copy(R1, R6).const(R2, milliseconds).kfunc("bpf_oom_promise")
    code.jump_if(R0, "!=", 0, refused).note(FIRST).jump(done)
    return code.place(refused).note(REFUSED).place(done)


def promiser(milliseconds: int, verdict: int = HANDLED) -> Asm:
    code = of_handler().const(R0, UNSEEN).note(FIRST)
    return promise(code, milliseconds).exit(verdict)


def of_oom(btf: Btf) -> Asm:
    """r8 = the memcg that is out of memory; UNSEEN if it is the whole system."""
    code = of_handler().const(R0, UNSEEN).note(FIRST)
    code.load(R8, R6, btf.place("oom_control", "memcg").offset // 8)
    return code.jump_if(R8, "==", 0, "absent")


def raise_max(code: Asm, limit: int, slot: int = FIRST) -> Asm:
    """Raise the limit of the memcg in r8 to so many bytes; the result goes to a slot."""
    code.copy(R1, R6).copy(R2, R8).const(R3, limit)
    return code.kfunc("bpf_oom_raise_max").note(slot)


def raiser(limit: int, btf: Btf, verdict: int = HANDLED) -> Asm:
    return raise_max(of_oom(btf), limit).place("absent").exit(verdict)


def sluggard(milliseconds: int) -> Asm:
    """Says that it has started, takes its time, and passes."""
    code = of_handler().const(R0, 1).note(STARTED)
    for _ in range(milliseconds // 1000):
        code.busy(1000)
    return code.exit(PASS)


def promises_or_raises(limit: int, btf: Btf) -> Asm:
    """Promises as long as possible; raises the limit if it may not, into the second slot."""
    code = promise(of_oom(btf), FOR_EVER).jump_if(R0, "==", 0, "absent")
    return raise_max(code, limit, SECOND).place("absent").exit(HANDLED)
