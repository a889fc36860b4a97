# SPDX-License-Identifier: Apache-2.0
"""Where handlers are asked, in which order, and what comes before them.

::

    /                           who is asked about OOMs of the whole system
    └── bpfoom-test
        ├── box     32M         where memory runs out
        │   └── leaf            below it: not asked
        └── bare                beside it: not asked

Some of it changes the whole machine: there are guests of their own for that, and one panics.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.kmsg import KernelLog
from tests.guest import callers
from tests.guest.asm import (
    HANDLED,
    KERNEL,
    PASS,
    R0,
    R1,
    R2,
    R3,
    R6,
    R8,
    R9,
    Asm,
    attached,
    forget_seen,
    leave,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, oom_once, wait_for
from tests.guest.memory import Hog, hog, pool, take

CURRENT_PID_TGID, CURRENT_TASK_BTF = 14, 158
VM = Path("/proc/sys/vm")
LRU_GEN = Path("/sys/kernel/mm/lru_gen")
# Without swap, a machine reads the same programs again and again before it gives up.
THRASHING_S = 300
# Removed cgroups are gone once their last page is; a controller moves once they are.
LINGER_S = 300
PF_KTHREAD = 0x00200000
EOPNOTSUPP = 95

# Slot 0 counts the calls of all; each handler notes which call was its first in a slot of its own.
ALL, EATER = 0, 1
AFTER = 2


def in_order(slot: int) -> Asm:
    """A handler that notes when it was asked first, and passes."""
    code = of_handler().count(ALL).slot(R8, slot).load(R9, R8, 0)
    code.jump_if(R9, "!=", 0, "again").slot(R1, ALL).load(R9, R1, 0).store(R8, 0, R9)
    return code.place("again").exit(PASS)


@pytest.fixture
def root() -> Cgroup:
    return cgroupfs.resolve("/")


def test_section_3_nearest_first_and_the_root_last(trees: Trees, btf: Btf, root: Cgroup) -> None:
    leaf = trees.box.path / "leaf"
    (trees.box.path / "cgroup.subtree_control").write_text("+memory")
    leaf.mkdir()
    places = [trees.box, cgroupfs.resolve(str(ROOT)), root]
    aside = [cgroupfs.resolve(str(leaf)), cgroupfs.resolve(str(ROOT / "bare"))]
    forget_seen()
    with ExitStack() as stack:
        for slot, cgroup in enumerate([*places, *aside], start=1):
            stack.enter_context(attached(in_order(slot), cgroup, btf))
        assert callers.declare(btf, trees.box) == 0, "there is nobody in it"
    assert seen()[: 1 + len(places + aside)] == (3, 1, 2, 3, 0, 0)


def test_section_3_a_real_oom_goes_the_same_way(trees: Trees, btf: Btf, root: Cgroup) -> None:
    forget_seen()
    with ExitStack() as stack:
        for slot, cgroup in enumerate([trees.box, root], start=1):
            stack.enter_context(attached(in_order(slot), cgroup, btf))
        oom_once(trees.box)
    assert seen()[1:3] == (1, 2)


def test_section_3_system_wide_only_the_root_is_asked(trees: Trees, btf: Btf, root: Cgroup) -> None:
    MEMCG = 4
    system = of_handler().count(ALL).member(R0, R6, btf, "oom_control", "memcg").keep(MEMCG)
    forget_seen()
    with (
        attached(in_order(1), trees.box, btf),
        attached(in_order(2), cgroupfs.resolve(str(ROOT)), btf),
        attached(system.exit(PASS), root, btf),
    ):
        assert callers.dry_run(btf, None).cgroup_id == root.id
    assert seen()[: MEMCG + 1] == (1, 0, 0, 0, 0)


def test_section_3_page_faults_are_disabled(trees: Trees, btf: Btf) -> None:
    """Of the task that is in the handler, and not of the same task before and after."""
    code = of_handler().count(ALL).helper(CURRENT_TASK_BTF)
    code.member(R0, R0, btf, "task_struct", "pagefault_disabled").note(1)
    forget_seen()
    with attached(code.exit(PASS), trees.box, btf):
        oom_once(trees.box)
    assert seen()[ALL] > 0
    assert seen()[1] == 1


def test_section_3_sysrq_f_asks_nobody(btf: Btf, root: Cgroup, trees: Trees) -> None:
    """It kills the worst process of the machine: one that has asked for it."""
    forget_seen()
    with (
        attached(in_order(1), root, btf) as handler,
        hog(cgroupfs.resolve(str(ROOT / "bare")), 8, adj=1000) as worst,
    ):
        Path("/proc/sysrq-trigger").write_text("f")
        wait_for(worst.ended, "sysrq-f to kill")
        assert handler.counters()["invocations"] == seen()[ALL] == 0


@contextmanager
def setting(file: Path, value: str) -> Iterator[None]:
    """A knob of the machine, set for the length of the block."""
    before = file.read_text()
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)


def test_section_3_oom_kill_allocating_task_is_not_for_memcgs(trees: Trees, btf: Btf) -> None:
    with (
        setting(VM / "oom_kill_allocating_task", "1"),
        attached(of_handler().exit(PASS), trees.box, btf) as handler,
    ):
        oom_once(trees.box)
        assert handler.counters()["passed"] > 0


def test_section_3_panic_on_oom_1_is_not_for_memcgs(trees: Trees, btf: Btf) -> None:
    with (
        setting(VM / "panic_on_oom", "1"),
        attached(of_handler().exit(PASS), trees.box, btf) as handler,
    ):
        oom_once(trees.box)
        assert handler.counters()["passed"] > 0


def kill_by_pid(btf: Btf) -> Asm:
    """A handler of the root that kills the process in EATER, and counts when that one asks."""
    code = of_handler().helper(CURRENT_PID_TGID).insn(0x77, R0, imm=32)
    code.slot(R1, EATER).load(R8, R1, 0).jump_if_reg(R0, "!=", R8, "others").count(ALL)
    code.place("others").copy(R1, R8).kfunc("bpf_task_from_pid").jump_if(R0, "==", 0, "gone")
    code.copy(R8, R0).copy(R1, R6).copy(R2, R0).string(R3, "By the test")
    code.kfunc("bpf_oom_kill_process").copy(R1, R8).kfunc("bpf_task_release")
    return code.exit(HANDLED).place("gone").exit(PASS)


@contextmanager
def eating(pieces: int = 0) -> Iterator[Hog]:
    """The only process that may be killed, and is killed first; EATER says which one it is.

    It takes so many pieces of 64 MiB, without being waited for.
    """
    forget_seen()
    with (
        setting(Path("/proc/self/oom_score_adj"), "-1000"),
        hog(cgroupfs.resolve(str(ROOT / "bare")), adj=1000) as eater,
    ):
        leave(EATER, eater.pid)
        for _ in range(pieces):
            take(eater, 64)
        yield eater


def leave_it_to_the_eater() -> Asm:
    """A handler of the root that has everybody but the process in EATER wait for a second."""
    code = of_handler().helper(CURRENT_PID_TGID).insn(0x77, R0, imm=32).slot(R1, EATER)
    code.load(R1, R1, 0).jump_if_reg(R0, "!=", R1, "others").count(ALL).exit(PASS)
    code.place("others").copy(R1, R6).const(R2, 1000).kfunc("bpf_oom_promise")
    return code.exit(HANDLED)


@pytest.mark.guest_memory(448)
def test_section_3_system_wide_the_allocating_task_comes_first(
    trees: Trees, btf: Btf, root: Cgroup
) -> None:
    with (
        setting(VM / "oom_kill_allocating_task", "1"),
        attached(leave_it_to_the_eater(), root, btf),
        KernelLog() as log,
        eating(8) as eater,
    ):
        wait_for(eater.ended, "the eater to be killed", THRASHING_S)
        lines = log.lines()
        assert seen()[ALL] == 0
    assert any(line.startswith("Out of memory (oom_kill_allocating_task): Kill") for line in lines)


@pytest.mark.guest_memory(448)
@pytest.mark.loses_guest
def test_section_3_panic_on_oom_comes_before_handlers(trees: Trees, btf: Btf, root: Cgroup) -> None:
    """The root's handler would save the guest, as one does in test_victims."""
    (VM / "panic_on_oom").write_text("1")
    with attached(kill_by_pid(btf), root, btf), eating(8) as eater:
        wait_for(eater.ended, "the panic", THRASHING_S)
    pytest.fail("it has not panicked")


@pytest.mark.guest_memory(448)
def test_section_3_kswapd_min_ttl_is_system_wide_and_does_not_wait(
    trees: Trees, btf: Btf, root: Cgroup
) -> None:
    """Nothing is old enough to be reclaimed: kswapd itself declares an OOM, and cannot wait."""
    KTHREAD, MEMCG, PROMISE = range(2, 5)
    code = of_handler().helper(CURRENT_TASK_BTF).member(R8, R0, btf, "task_struct", "flags")
    code.insn(0x57, R8, imm=PF_KTHREAD).jump_if(R8, "==", 0, "kill")
    code.count(KTHREAD).member(R0, R6, btf, "oom_control", "memcg").keep(MEMCG)
    code.copy(R1, R6).const(R2, 100).kfunc("bpf_oom_promise").note(PROMISE)
    code.place("kill").exit(PASS)
    with (
        setting(LRU_GEN / "enabled", "y"),
        setting(LRU_GEN / "min_ttl_ms", "600000"),
        attached(code, root, btf),
        eating(10) as eater,
    ):
        wait_for(eater.ended, "the machine to run out of memory", THRASHING_S)
    assert seen()[KTHREAD] > 0
    assert seen()[MEMCG] == 0
    assert seen()[PROMISE] == -EOPNOTSUPP


@contextmanager
def memory_in_v1(root: Cgroup, where: Path) -> Iterator[Path]:
    """A v1 hierarchy with the memory controller and one cgroup in it, limited to 32 MiB."""
    with memory_switched_off(root), mounted_v1(where):
        box = where / "box"
        box.mkdir()
        (box / "memory.limit_in_bytes").write_text("33554432")
        yield box
        wait_for(lambda: removed(box), "the v1 cgroup to be empty", LINGER_S)


@contextmanager
def memory_switched_off(root: Cgroup) -> Iterator[None]:
    (root.path / "cgroup.subtree_control").write_text("-memory")
    yield
    wait_for(lambda: "memory" in root.controllers(), "the controller to come back", LINGER_S)
    (root.path / "cgroup.subtree_control").write_text("+memory")


@contextmanager
def mounted_v1(where: Path) -> Iterator[None]:
    """The controller moves only where no removed cgroup lingers, of tests before or of this one."""
    argv = ["mount", "-t", "cgroup", "-o", "memory", "v1", str(where)]
    wait_for(lambda: without_caches(argv), "v2 to let the controller go", LINGER_S)
    yield
    wait_for(only_a_root_has_memory, "the v1 cgroup to be gone", LINGER_S)
    subprocess.run(["umount", where], check=True)


def without_caches(argv: list[str]) -> bool:
    (VM / "drop_caches").write_text("3")
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True


def only_a_root_has_memory() -> bool:
    (VM / "drop_caches").write_text("3")
    rows = (line.split() for line in Path("/proc/cgroups").read_text().splitlines())
    return any(row[0] == "memory" and row[2] == "1" for row in rows)


def oom_kills() -> int:
    """OOM kills of the machine since boot."""
    return cgroupfs.parse_counters(Path("/proc/vmstat").read_text())["oom_kill"]


@pytest.mark.parametrize("verdict", [PASS, KERNEL])
def test_section_3_no_kill_when_memory_came_back_meanwhile(
    verdict: int, trees: Trees, btf: Btf
) -> None:
    """Handlers take their time, and the kernel looks again before it chooses."""
    forget_seen()
    code = of_handler().count(ALL).busy(1500).count(AFTER).exit(verdict)
    with (
        attached(code, trees.box, btf) as handler,
        pool(trees.box, 20) as path,
        hog(trees.box) as taker,
    ):
        take(taker, 20)
        wait_for(lambda: seen()[ALL] == 1, "the handler to be asked")
        os.truncate(path, 0)
        assert seen()[AFTER] == 0, "the handler was quicker than this test"
        assert taker.obeyed(DEADLINE_S)
        assert handler.counters()["invocations"] == 1
        assert trees.box.memory_events()["oom_kill"] == 0


@pytest.mark.guest_memory(448)
def test_section_3_a_v1_memcg_asks_nobody(btf: Btf, root: Cgroup, tmp_path: Path) -> None:
    """The memory controller in a hierarchy of its own: what is attached in the other is idle."""
    forget_seen()
    with attached(in_order(1), root, btf) as handler, memory_in_v1(root, tmp_path) as box:
        before = oom_kills()
        script = f"echo 0 > {box}/cgroup.procs && exec tail /dev/zero"
        assert subprocess.Popen(["sh", "-c", script]).wait(DEADLINE_S) == -signal.SIGKILL
        assert oom_kills() == before + 1
        assert handler.counters()["invocations"] == seen()[ALL] == 0
