# SPDX-License-Identifier: Apache-2.0
"""Programs that the verifier must refuse, with what it says, and all that handlers may call.

The lists of helpers and kfuncs are complete: every one that this kernel has is tried.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from bpfoom.btf import libbpf
from bpfoom.btf.types import Btf, Kind
from bpfoom.errors import BpfoomError
from bpfoom.handler import syscalls
from bpfoom.handler.load import OpsLayout
from bpfoom.handler.syscalls import Fd
from tests.guest.asm import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R10,
    Asm,
    loaded_handler,
    loaded_program,
    of_handler,
)

CURRENT_TASK_BTF = 158
PROG_TYPE_EXT = 28

# What a handler may call. Anything else that can be named is refused.
HELPERS = {
    "map_lookup_elem", "map_lookup_percpu_elem", "ktime_get_ns", "ktime_get_boot_ns", "jiffies64",
    "get_smp_processor_id", "get_numa_node_id", "get_prandom_u32", "get_current_pid_tgid",
    "get_current_comm", "get_current_task_btf", "per_cpu_ptr", "this_cpu_ptr",
    "probe_read_kernel", "probe_read_kernel_str", "ringbuf_output", "ringbuf_reserve",
    "ringbuf_submit", "ringbuf_discard", "ringbuf_query", "spin_lock", "spin_unlock", "strncmp",
}  # fmt: skip
KFUNCS = {
    "bpf_oom_kill_process", "bpf_oom_kill_cgroup", "bpf_oom_victims", "bpf_oom_promise",
    "bpf_oom_raise_max", "bpf_task_is_oom_victim",
    "bpf_cast_to_kern_ctx", "bpf_rdonly_cast", "bpf_rcu_read_lock", "bpf_rcu_read_unlock",
    "bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy",
    "bpf_iter_css_new", "bpf_iter_css_next", "bpf_iter_css_destroy",
    "bpf_iter_css_task_new", "bpf_iter_css_task_next", "bpf_iter_css_task_destroy",
    "bpf_iter_task_new", "bpf_iter_task_next", "bpf_iter_task_destroy",
    "bpf_task_acquire", "bpf_task_release", "bpf_task_from_pid", "bpf_task_under_cgroup",
    "bpf_cgroup_acquire", "bpf_cgroup_release", "bpf_cgroup_ancestor", "bpf_cgroup_from_id",
    "bpf_get_root_mem_cgroup", "bpf_get_mem_cgroup", "bpf_put_mem_cgroup",
    "bpf_mem_cgroup_usage", "bpf_mem_cgroup_page_state", "bpf_mem_cgroup_vm_events",
    "bpf_mem_cgroup_memory_events", "bpf_mem_cgroup_flush_stats",
}  # fmt: skip

# Those that the interface names as dangerous, and what only other programs may call: that the
# kernel under test has them is what makes their refusal mean something.
DANGEROUS_HELPERS = {
    "map_update_elem", "loop", "copy_from_user", "copy_from_user_task", "trace_printk",
    "send_signal", "get_task_stack", "for_each_map_elem", "timer_init", "probe_read_user",
}  # fmt: skip
DANGEROUS_KFUNCS = {
    "bpf_out_of_memory", "bpf_oom_dry_run", "bpf_copy_from_user_str",
    "bpf_copy_from_user_task_str", "bpf_send_signal_task", "bpf_iter_kmem_cache_new",
    "bpf_dynptr_from_file", "bpf_wq_init", "bpf_obj_new_impl",
}  # fmt: skip


def refusal(code: Asm, btf: Btf, **how: Any) -> tuple[int, str]:
    """Errno and the verifier's log; (0, "") for a program that was loaded."""
    load = loaded_program if "kind" in how else loaded_handler
    try:
        with load(code, btf, **how):
            return 0, ""
    except BpfoomError as error:
        return int(error.data["errno"]), error.detail


def offset(btf: Btf, struct_name: str, path: str) -> int:
    return btf.place(struct_name, path).offset // 8


def storing(where: int, struct_name: str, path: str, size: int) -> Callable[[Btf], Asm]:
    """A handler that writes to what it was given."""

    def code(btf: Btf) -> Asm:
        there = offset(btf, struct_name, path)
        return of_handler().const(R1, 1).store(where, there, R1, size).exit(0)

    return code


def killing(message: Callable[[Asm], Asm]) -> Callable[[Btf], Asm]:
    """A handler that kills the current task, with a message of some sort in r3."""

    def code(_: Btf) -> Asm:
        asm = of_handler().helper(CURRENT_TASK_BTF).copy(R2, R0).copy(R1, R6)
        return message(asm).kfunc("bpf_oom_kill_process").exit(0)

    return code


def on_the_stack(asm: Asm) -> Asm:
    return asm.const(R3, 0).store(R10, -8, R3).copy(R3, R10).add(R3, -8)


def unchecked(kfunc: str) -> Callable[[Btf], Asm]:
    """A handler that gives oc->memcg to a kfunc without having looked whether there is one."""

    def code(btf: Btf) -> Asm:
        asm = of_handler().load(R2, R6, offset(btf, "oom_control", "memcg"))
        if kfunc == "bpf_mem_cgroup_usage":
            return asm.copy(R1, R2).kfunc(kfunc).exit(0)
        return asm.copy(R1, R6).const(R3, 1 << 30).kfunc(kfunc).exit(0)

    return code


def kill_under_rcu(_: Btf) -> Asm:
    asm = of_handler().kfunc("bpf_rcu_read_lock").helper(CURRENT_TASK_BTF)
    asm.copy(R2, R0).copy(R1, R6).string(R3, "never").kfunc("bpf_oom_kill_process")
    return asm.kfunc("bpf_rcu_read_unlock").exit(0)


def through_an_untrusted_pointer(btf: Btf) -> Asm:
    """task->mm->owner: a pointer that nobody holds for the handler."""
    asm = of_handler().helper(CURRENT_TASK_BTF)
    asm.load(R2, R0, offset(btf, "task_struct", "mm"))
    asm.jump_if(R2, "==", 0, "out").load(R2, R2, offset(btf, "mm_struct", "owner"))
    asm.copy(R1, R6).string(R3, "never").kfunc("bpf_oom_kill_process")
    return asm.place("out").exit(0)


def calling(kfunc: str) -> Callable[[Btf], Asm]:
    """Another program that calls it; nobody looks at arguments before the right to call."""
    return lambda _: Asm().const(R1, 0).const(R2, 0).const(R3, 0).const(R4, 0).kfunc(kfunc).exit(0)


@dataclass(frozen=True)
class Bad:
    """``how``: load it as another type, at a function of the kernel if there is an ``attach``."""

    name: str
    code: Callable[[Btf], Asm]
    error: int
    says: str
    how: dict[str, Any] = field(default_factory=dict)


NOT_ALLOWED = "calling kernel function {} is not allowed"
READ_ONLY = "only read is supported"
SYSCALL = {"kind": "syscall"}
FENTRY = {"kind": "tracing", "attach": "bpf_fentry_test1", "sleepable": False}
FENTRY_S = {"kind": "tracing", "attach": "__x64_sys_getpgid", "sleepable": True}

CALLER_KFUNCS = ("bpf_out_of_memory", "bpf_oom_dry_run")

BAD = (
    Bad(
        "section_1 store to oc", storing(R6, "oom_control", "totalpages", 8), errno.EACCES,
        READ_ONLY,
    ),
    Bad(
        "section_1 store to oc->bpf_memory_freed",
        storing(R6, "oom_control", "bpf_memory_freed", 1), errno.EACCES, READ_ONLY,
    ),
    Bad(
        "section_1 store to oc->bpf_dry_run", storing(R6, "oom_control", "bpf_dry_run", 1),
        errno.EACCES, READ_ONLY,
    ),
    Bad(
        "section_1 store to the cgroup", storing(R7, "cgroup", "level", 4), errno.EACCES, READ_ONLY
    ),
    Bad(
        "section_1 not sleepable", lambda _: of_handler().exit(0), errno.EINVAL,
        "attach to unsupported member handle_out_of_memory of struct bpf_oom_ops",
        {"sleepable": False},
    ),
    Bad(
        "section_1 memcg not checked for NULL", unchecked("bpf_mem_cgroup_usage"), errno.EACCES,
        "Possibly NULL pointer passed to trusted R1",
    ),
    Bad(
        "section_5 memcg to be raised not checked for NULL", unchecked("bpf_oom_raise_max"),
        errno.EACCES, "Possibly NULL pointer passed to trusted R2",
    ),
    Bad(
        "section_5 message on the stack", killing(on_the_stack), errno.EINVAL,
        "R3 doesn't point to a const string",
    ),
    Bad(
        "section_5 message in a writable map", killing(lambda asm: asm.slot(R3, 0)), errno.EACCES,
        "R3 does not point to a readonly map",
    ),
    Bad(
        "section_5 no message", killing(lambda asm: asm.const(R3, 0)), errno.EACCES,
        "Possibly NULL pointer passed to trusted R3",
    ),
    Bad(
        "section_5 kill through an untrusted pointer", through_an_untrusted_pointer, errno.EINVAL,
        "R2 must be referenced or trusted",
    ),
    Bad(
        "section_8 kill inside bpf_rcu_read_lock", kill_under_rcu, errno.EACCES,
        "kernel func bpf_oom_kill_process is sleepable within rcu_read_lock region",
    ),
    *(
        Bad(
            f"section_5 {kfunc} from {kind}", calling(kfunc), errno.EACCES,
            NOT_ALLOWED.format(kfunc), how,
        )
        for kfunc in sorted(name for name in KFUNCS if "oom" in name)
        for kind, how in (("SYSCALL", SYSCALL), ("fentry", FENTRY), ("fentry.s", FENTRY_S))
    ),
    *(
        Bad(f"section_6 {kfunc} from fentry.s", calling(kfunc), errno.EACCES,
            NOT_ALLOWED.format(kfunc), FENTRY_S)
        for kfunc in CALLER_KFUNCS
    ),
    *(
        Bad(f"section_6 {kfunc} in fentry itself", calling(kfunc), errno.EACCES,
            f"program must be sleepable to call sleepable kfunc {kfunc}", FENTRY)
        for kfunc in CALLER_KFUNCS
    ),
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name.replace(" ", "-"))
def test_refused(bad: Bad, btf: Btf) -> None:
    how = dict(bad.how)
    if attach := how.pop("attach", ""):
        how["attach_btf_id"] = btf.find(attach, Kind.FUNC)
        how["attach_type"] = btf.enum_value("bpf_attach_type", "BPF_TRACE_FENTRY")
    error, log = refusal(bad.code(btf), btf, **how)
    assert bad.says in log
    assert error == bad.error


def test_section_1_what_may_be_read(btf: Btf) -> None:
    """The same programs with a load in the place of the store."""
    code = of_handler()
    for path, size in (("totalpages", 8), ("bpf_memory_freed", 1), ("bpf_dry_run", 1)):
        code.load(R0, R6, offset(btf, "oom_control", path), size)
    code.load(R0, R7, offset(btf, "cgroup", "level"), 4)
    assert refusal(code.exit(0), btf) == (0, "")


def test_section_6_callers_that_are_allowed(btf: Btf) -> None:
    """From SYSCALL both; what the others lack is told above."""
    code = calling("bpf_out_of_memory")(btf)
    assert refusal(code, btf, kind="syscall") == (0, "")
    code = Asm().const(R1, 0).const(R2, 0).slot(R3, 0).const(R4, 128)
    assert refusal(code.kfunc("bpf_oom_dry_run").exit(0), btf, kind="syscall") == (0, "")


# Both lists, whole


def handler_log(call: bytes, btf: Btf) -> str:
    """What the verifier says to a handler that makes this call, with nothing in its registers."""
    layout = OpsLayout.read(btf)
    program, log = load_raw(
        syscalls.PROG_TYPES["struct_ops"],
        call + Asm().exit(0).assemble(),
        attach_btf_id=layout.type_id,
        expected_attach_type=layout.callback_index,
        prog_flags=syscalls.F_SLEEPABLE,
    )
    if program >= 0:
        Fd(program).close()
    return log


def load_raw(kind: int, insns: bytes, **options: Any) -> tuple[int, str]:
    """BPF_PROG_LOAD with whatever options: descriptor or -errno, and the log."""
    log = ctypes.create_string_buffer(1 << 16)
    opts = syscalls._ProgLoadOpts(sz=ctypes.sizeof(syscalls._ProgLoadOpts), **options)
    opts.log_level, opts.log_size = 1, len(log)
    opts.log_buf = ctypes.cast(log, ctypes.c_char_p)
    result = libbpf.load().bpf_prog_load(
        kind, b"by_hand", b"GPL", insns, ctypes.c_size_t(len(insns) // 8), ctypes.byref(opts)
    )
    return result, log.value.decode("utf-8", "replace")


def test_section_8_the_helpers_are_those_of_the_list(btf: Btf) -> None:
    values = btf.enum_values("bpf_func_id")
    numbers = {name.removeprefix("BPF_FUNC_"): number for name, number in values.items()}
    del numbers["unspec"], numbers["__BPF_FUNC_MAX_ID"]
    assert numbers.keys() >= DANGEROUS_HELPERS
    allowed = set()
    for name, number in numbers.items():
        log = handler_log(Asm().helper(number).assemble(), btf)
        if f"program of this type cannot use helper bpf_{name}#{number}" not in log:
            allowed.add(name)
    assert allowed == HELPERS


def test_section_8_the_kfuncs_are_those_of_the_list(btf: Btf) -> None:
    known = kfuncs(btf)
    assert known.keys() >= DANGEROUS_KFUNCS
    allowed = set()
    for name, type_id in known.items():
        log = handler_log(Asm().insn(0x85, 0, 2, 0, type_id).assemble(), btf)
        # Not even looked at: bound to a device, or of a prototype that no program can call.
        unreached = "processed 0 insns" in log and "calling kernel function" not in log
        if NOT_ALLOWED.format(name) not in log and not unreached:
            allowed.add(name)
    assert allowed == KFUNCS


def kfuncs(btf: Btf) -> dict[str, int]:
    """Every function that BTF tags as a kfunc, and its id."""
    found = {}
    for type_id in range(1, btf.count()):
        tag = btf.type(type_id)
        if tag.kind is Kind.DECL_TAG and tag.name == "bpf_kfunc":
            found[btf.type(tag.size_or_type).name] = tag.size_or_type
    return found


# Replacing a handler's code behind the back of its link


def function_btf() -> bytes:
    """BTF of one function, id 3: ``int by_hand(void)``, global."""
    types = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("<III", 0, 13 << 24, 1)
    types += struct.pack("<III", 5, 12 << 24 | 1, 2)
    strings = b"\0int\0by_hand\0"
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def test_section_8_no_freplace_of_a_handler(btf: Btf) -> None:
    """An extension would be verified for a type without our lists."""
    layout, raw = OpsLayout.read(btf), function_btf()
    insns = Asm().exit(0).assemble()
    func_info = ctypes.create_string_buffer(struct.pack("<II", 0, 3), 8)
    with Fd(libbpf.load().bpf_btf_load(raw, len(raw), None)) as types:
        target, log = load_raw(
            syscalls.PROG_TYPES["struct_ops"],
            insns,
            attach_btf_id=layout.type_id,
            expected_attach_type=layout.callback_index,
            prog_flags=syscalls.F_SLEEPABLE,
            prog_btf_fd=types.fileno(),
            func_info=ctypes.addressof(func_info),
            func_info_cnt=1,
            func_info_rec_size=8,
        )
    assert target >= 0, log
    with Fd(target):
        result, log = load_raw(PROG_TYPE_EXT, insns, attach_prog_fd=target, attach_btf_id=3)
    assert result == -errno.EINVAL
    assert "Cannot replace functions of this struct_ops type" in log
