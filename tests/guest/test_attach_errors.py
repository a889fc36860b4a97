# SPDX-License-Identifier: Apache-2.0
"""Every way in which the kernel refuses a link, and what becomes of a link without its cgroup.

The tree is byhand's: box has a memory controller of its own, bare/child has none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError
from bpfoom.handler import info, syscalls
from bpfoom.handler.syscalls import F_CGROUP_FD, Fd
from bpfoom.observe import cgroupfs
from tests.guest.asm import (
    R0,
    R1,
    R2,
    R3,
    R6,
    R7,
    R8,
    R10,
    Asm,
    attached,
    forget_seen,
    leave,
    loaded_program,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, oom_once, ops_map, wait_for

CAP_SYS_RESOURCE, CAP_BPF = 24, 39
COUNTERS = {
    "invocations", "handled", "passed", "kernel", "unproven", "invalid",
    "promised", "promises_broken", "kills", "slow", "last_ns", "max_ns",
}  # fmt: skip


def link(btf: Btf, ops: Fd, target: int, flags: int = F_CGROUP_FD) -> Fd:
    """Create a link with whatever flags, to whatever descriptor."""
    attach_type = btf.enum_value("bpf_attach_type", "BPF_STRUCT_OPS")
    return syscalls.link_create(ops, target, attach_type=attach_type, flags=flags)


def refused(btf: Btf, ops: Fd, target: int, flags: int = F_CGROUP_FD) -> int:
    """The errno of a link that must not come to be."""
    with pytest.raises(BpfoomError) as raised:
        link(btf, ops, target, flags)
    return int(raised.value.data["errno"])


@contextmanager
def opened(path: Path) -> Iterator[int]:
    with Fd(os.open(path, os.O_RDONLY)) as fd:
        yield fd.fileno()


def test_section_4_a_link_must_name_a_cgroup(trees: Trees, btf: Btf) -> None:
    with ops_map(btf) as ops, opened(trees.box.path) as box:
        assert refused(btf, ops, box, flags=0) == errno.EINVAL
        link(btf, ops, box).close()


def test_section_4_unknown_flags(trees: Trees, btf: Btf) -> None:
    with ops_map(btf) as ops, opened(trees.box.path) as box:
        for bit in range(32):
            flag = 1 << bit
            if flag != F_CGROUP_FD:
                assert refused(btf, ops, box, flag) == errno.EINVAL, bit
                assert refused(btf, ops, box, flag | F_CGROUP_FD) == errno.EINVAL, bit
        link(btf, ops, box).close()


def test_section_4_not_a_cgroup2_directory(trees: Trees, btf: Btf, tmp_path: Path) -> None:
    with ops_map(btf) as ops:
        for path in (
            tmp_path,
            trees.box.path / "memory.max",
            Path("/proc/self"),
            Path("/dev/null"),
        ):
            with opened(path) as target:
                assert refused(btf, ops, target) == errno.EBADF, path
        assert refused(btf, ops, -1) == errno.EBADF


def test_section_4_already_removed(trees: Trees, btf: Btf) -> None:
    with ops_map(btf) as ops, opened(trees.box.path) as box:
        trees.box.path.rmdir()
        assert refused(btf, ops, box) == errno.ENOENT


def attach_while_removed(btf: Btf, ops: Fd, path: Path) -> set[int]:
    """Make links to a cgroup that is being removed, until it is gone: their errnos."""
    path.mkdir()
    errors: set[int] = set()
    remover = threading.Thread(target=path.rmdir)
    with opened(path) as target:
        remover.start()
        while errno.ENOENT not in errors:
            try:
                link(btf, ops, target).close()
            except BpfoomError as error:
                errors.add(int(error.data["errno"]))
        remover.join()
    return errors


def test_section_4_being_removed_now(trees: Trees, btf: Btf) -> None:
    """A moment in each rmdir: the cgroup is offline, and its descriptor still good."""
    seen_so_far: set[int] = set()

    def met() -> bool:
        seen_so_far.update(attach_while_removed(btf, ops, ROOT / "brief"))
        return errno.EBUSY in seen_so_far

    with ops_map(btf) as ops:
        wait_for(met, "a link to a cgroup that is being removed")
    assert seen_so_far == {errno.EBUSY, errno.ENOENT}


def test_section_4_a_handler_is_there(trees: Trees, btf: Btf) -> None:
    with (
        ops_map(btf) as ops,
        ops_map(btf) as other,
        opened(trees.box.path) as box,
        link(btf, ops, box) as first,
    ):
        assert refused(btf, ops, box) == errno.EEXIST
        assert refused(btf, other, box) == errno.EEXIST
        # The same ops may serve another cgroup meanwhile.
        with opened(ROOT) as root:
            link(btf, ops, root).close()
        syscalls.link_detach(first)
        # Detached is gone, whoever still holds the link.
        link(btf, other, box).close()


def test_section_4_a_map_without_f_link(trees: Trees, btf: Btf) -> None:
    """Such a map registers its ops when it is filled, for the whole machine: ours refuse."""
    with ops_map(btf, flags=0, fill=False) as ops, opened(trees.box.path) as box:
        assert refused(btf, ops, box) == errno.EOPNOTSUPP
    with pytest.raises(BpfoomError) as raised, ops_map(btf, flags=0):
        pass
    assert raised.value.data["errno"] == errno.EOPNOTSUPP


def test_section_4_a_map_that_is_not_filled(trees: Trees, btf: Btf) -> None:
    with ops_map(btf, fill=False) as ops, opened(trees.box.path) as box:
        assert refused(btf, ops, box) == errno.EINVAL


def test_section_4_no_struct_ops_map_at_all(trees: Trees, btf: Btf) -> None:
    for flags in (0, F_CGROUP_FD):
        with syscalls.map_create("array", "none", 4, 8, 1) as array, opened(trees.box.path) as box:
            assert refused(btf, array, box, flags) == errno.EINVAL


def test_section_4_no_memory_controller(trees: Trees, btf: Btf) -> None:
    with ops_map(btf) as ops:
        with opened(trees.child.path) as child:
            assert refused(btf, ops, child) == errno.EOPNOTSUPP
        # The parent that does not hand it on has one itself.
        with opened(trees.child.path.parent) as bare:
            link(btf, ops, bare).close()


def test_section_4_a_threaded_cgroup(trees: Trees, btf: Btf) -> None:
    (trees.child.path / "cgroup.type").write_text("threaded")
    with ops_map(btf) as ops:
        with opened(trees.child.path) as child:
            assert refused(btf, ops, child) == errno.EOPNOTSUPP
        with opened(trees.child.path.parent) as domain:
            assert (trees.child.path.parent / "cgroup.type").read_text() == "domain threaded\n"
            link(btf, ops, domain).close()


class _Capabilities(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def drop(capability: int) -> None:
    """Go on without one capability."""
    libc = ctypes.CDLL(None, use_errno=True)
    who = _Capabilities(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low half, then the high one
    assert libc.capget(ctypes.byref(who), sets) == 0
    for which in range(3):
        sets[3 * (capability // 32) + which] &= ~(1 << capability % 32)
    assert libc.capset(ctypes.byref(who), sets) == 0


def without(capability: int, call: Callable[[], object]) -> int:
    """The errno of a call made by a child without that capability, 0 if it succeeds."""
    child = os.fork()
    if not child:
        code = 255
        try:
            drop(capability)
            call()
            code = 0
        except BpfoomError as error:
            code = int(error.data["errno"])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_section_4_needs_cap_bpf(trees: Trees, btf: Btf) -> None:
    """CAP_SYS_ADMIN, with which bpf(2) is content, does not stand in for it."""
    with ops_map(btf) as ops, ops_map(btf) as other, opened(trees.box.path) as box:
        assert without(CAP_BPF, lambda: link(btf, ops, box)) == errno.EPERM
        with link(btf, ops, box) as made:
            before = info.link_info(made).map_id
            assert without(CAP_BPF, lambda: syscalls.link_update(made, other)) == errno.EPERM
            assert info.link_info(made).map_id == before
            assert without(CAP_SYS_RESOURCE, lambda: syscalls.link_update(made, other)) == 0
            assert info.link_info(made).map_id != before


def test_section_4_controller_off_and_on_again(trees: Trees, btf: Btf) -> None:
    with attached(of_handler().exit(0), trees.box, btf) as handler:
        oom_once(trees.box)
        before = handler.counters()
        assert before["invocations"] > 0
        switch(ROOT, "-memory")
        with ops_map(btf) as ops, opened(trees.box.path) as box:
            assert refused(btf, ops, box) == errno.EOPNOTSUPP
        limit(ROOT, "32M")
        oom_once(trees.box)
        assert handler.counters() == before
        limit(ROOT, "max")
        switch(ROOT, "+memory")
        limit(trees.box.path, "32M")
        oom_once(trees.box)
        assert handler.counters()["invocations"] > before["invocations"]
        assert handler.counters()["map_id"] == before["map_id"] != 0


def switch(path: Path, controller: str) -> None:
    (path / "cgroup.subtree_control").write_text(controller)


def limit(path: Path, value: str) -> None:
    (path / "memory.max").write_text(value)
    (path / "memory.swap.max").write_text("0")


@pytest.mark.parametrize("how", ["rmdir", "detach"])
def test_section_4_what_is_left_of_a_link(how: str, trees: Trees, btf: Btf) -> None:
    with attached(of_handler().exit(0), trees.box, btf) as handler:
        before = handler.counters()
        assert before.keys() >= COUNTERS
        assert before["map_id"] == info.link_info(handler.link).map_id != 0
        assert before["cgroup_id"] == info.link_info(handler.link).cgroup_id == trees.box.id
        poll = select.poll()
        poll.register(handler.link.fileno(), 0)
        assert poll.poll(0) == []
        if how == "rmdir":
            trees.box.path.rmdir()
        else:
            syscalls.link_detach(handler.link)
        assert poll.poll(DEADLINE_S * 1000) == [(handler.link.fileno(), select.POLLHUP)]
        left = info.link_info(handler.link)
        assert (left.map_id, left.cgroup_id) == (0, trees.box.id)
        counters = handler.counters()
        assert (counters["map_id"], counters["cgroup_id"]) == (0, trees.box.id)
        assert not counters.keys() & COUNTERS


HOLDS, GO, RESULT, BOX_ASKED, ROOT_ASKED, OF = range(6)


def declare_later(btf: Btf) -> Asm:
    """Hold the memcg of the cgroup in the context, wait for GO, declare an OOM of it."""
    code = Asm().copy(R6, R1).load(R1, R6, 0).memcg(R7, btf, "absent").const(R0, 1).note(HOLDS)
    code.copy(R1, R10).add(R1, -16).const(R2, 0).const(R3, 100 * DEADLINE_S)
    code.kfunc("bpf_iter_num_new")
    code.place("again").copy(R1, R10).add(R1, -16).kfunc("bpf_iter_num_next")
    code.jump_if(R0, "==", 0, "over").busy(10)
    code.slot(R1, GO).load(R1, R1, 0).jump_if(R1, "==", 0, "again")
    code.place("over").copy(R1, R10).add(R1, -16).kfunc("bpf_iter_num_destroy")
    code.copy(R1, R7).const(R2, 0).const(R3, 1).kfunc("bpf_out_of_memory").note(RESULT)
    return code.copy(R1, R7).kfunc("bpf_put_mem_cgroup").place("absent").exit(0)


def test_section_4_an_oom_of_a_removed_cgroup_goes_up(trees: Trees, btf: Btf) -> None:
    """A program that holds the memcg of the box declares the OOM once the box is removed."""
    forget_seen()
    above = of_handler().count(ROOT_ASKED).member(R8, R6, btf, "oom_control", "memcg")
    above.jump_if(R8, "==", 0, "system").member(R0, R8, btf, "mem_cgroup", "css.cgroup")
    above.member(R0, R0, btf, "cgroup", "kn").member(R0, R0, btf, "kernfs_node", "id").keep(OF)
    with (
        attached(of_handler().count(BOX_ASKED).exit(0), trees.box, btf),
        attached(above.place("system").exit(0), cgroupfs.resolve(str(ROOT)), btf),
        loaded_program(declare_later(btf), btf) as program,
    ):
        context = struct.pack("<Q", trees.box.id)
        runner = threading.Thread(target=syscalls.prog_run, args=(program, context))
        runner.start()
        wait_for(lambda: seen()[HOLDS] == 1, "the program to hold the memcg")
        trees.box.path.rmdir()
        leave(GO, 1)
        runner.join(DEADLINE_S)
        assert not runner.is_alive()
    slots = seen()
    assert (slots[BOX_ASKED], slots[ROOT_ASKED]) == (0, 1)
    assert slots[OF] == trees.box.id
    assert slots[RESULT] == 0, "nobody was left to be killed"
