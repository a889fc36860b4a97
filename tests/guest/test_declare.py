# SPDX-License-Identifier: Apache-2.0
"""bpf_out_of_memory(): OOMs that a program declares, and what is left out for them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import cgroupfs
from tests.guest.asm import (
    PASS,
    R0,
    R6,
    Asm,
    Attached,
    attached,
    forget_seen,
    loaded_program,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, eat, wait_for
from tests.guest.callers import (
    CALLED,
    RETURNED,
    WAIT_ON_OOM_LOCK,
    context,
    declaration,
    declare,
    dry_run,
    run,
    trial,
)
from tests.guest.handlers import FIRST, OTHER, SECOND, STARTED, process_killer, sluggard
from tests.guest.memory import hog, kills, make

SYSCTL = Path("/proc/sys/vm")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    forget_seen()


def test_section_6_declared_the_kernel_chooses(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 4) as small, hog(trees.box, 12) as large:
        assert declare(btf, trees.box, flags=WAIT_ON_OOM_LOCK) == 1
        wait_for(large.ended, "the larger one to die")
        assert not small.ended()
    assert kills(trees.box) == 1


def test_section_6_declared_a_handler_chooses(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 4) as small, hog(trees.box, 12) as large:
        with attached(process_killer(small.pid), trees.box, btf):
            assert declare(btf, trees.box) == 1
        wait_for(small.ended, "the chosen one to die")
        assert not large.ended()


def test_section_6_declared_where_nobody_can_be_killed(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 4, adj=-1000) as spared:
        assert declare(btf, trees.box) == 0
        assert not spared.ended()


@contextmanager
def nobody_killable() -> Iterator[None]:
    """Spare every process of the machine."""
    before = {}
    for path in Path("/proc").glob("[0-9]*/oom_score_adj"):
        with suppress(FileNotFoundError, ProcessLookupError):
            before[path] = path.read_text()
            path.write_text("-1000")
    try:
        yield
    finally:
        for path, adj in before.items():
            with suppress(FileNotFoundError, ProcessLookupError):
                path.write_text(adj)


def test_section_6_no_panic_where_nobody_at_all_can_be_killed(trees: Trees, btf: Btf) -> None:
    with nobody_killable():
        assert dry_run(btf, None).kernel_pid == 0
        assert declare(btf, None) == 0


@pytest.mark.parametrize(
    ("order", "flags"),
    [(-1, 0), (11, 0), (0, 1 << 1), (0, WAIT_ON_OOM_LOCK | 1 << 1), (0, 1 << 63)],
)
def test_section_6_no_such_order_no_such_flag(
    order: int, flags: int, trees: Trees, btf: Btf
) -> None:
    with hog(trees.box, 4) as bystander:
        assert declare(btf, trees.box, order, flags) == -errno.EINVAL
        assert not bystander.ended()


def test_section_6_the_highest_order_there_is(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 4):
        assert declare(btf, trees.box, 10) == 1


# Who else holds oom_lock


@contextmanager
def oom_lock_held(trees: Trees, btf: Btf) -> Iterator[Attached]:
    """A handler of the box holds it, for about four seconds and then some more."""
    with attached(sluggard(4000), trees.box, btf) as it:
        eater = eat(trees.box)
        try:
            wait_for(lambda: seen()[STARTED] == 1, "the handler to be called")
            yield it
        finally:
            eater.kill()
            eater.wait()


def test_section_6_another_oom_is_in_the_way(trees: Trees, btf: Btf) -> None:
    """Without the flag it says so, with it waits until the handler is through."""
    other = make(ROOT / "other")
    with loaded_program(declaration(btf), btf) as program, oom_lock_held(trees, btf) as it:
        assert run(program, context(other)) == -errno.EBUSY
        assert it.counters()["invocations"] == 0
        assert run(program, context(other, flags=WAIT_ON_OOM_LOCK)) == 0
        assert it.counters()["invocations"] > 0


@contextmanager
def in_child(program: Fd, given: bytes) -> Iterator[int]:
    """Run a program in a process of its own, which is killed at the end of the block."""
    child = os.fork()
    if not child:
        run(program, given)
        os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("code", [declaration, trial])
def test_section_6_killed_while_it_waits(
    code: Callable[[Btf], Asm], trees: Trees, btf: Btf
) -> None:
    """A dry run waits for oom_lock, too."""
    given = context(make(ROOT / "other"), flags=WAIT_ON_OOM_LOCK) + bytes(256)
    with loaded_program(code(btf), btf) as program, oom_lock_held(trees, btf) as it:
        with in_child(program, given) as child:
            wchan = Path("/proc", str(child), "wchan")
            wait_for(lambda: wchan.read_text() not in ("0", ""), "the child to wait")
            assert seen()[CALLED] == 1
        assert it.counters()["invocations"] == 0
        assert seen()[RETURNED] == -errno.EINTR


# What is left out


def test_section_6_who_declares_is_not_preferred(trees: Trees, btf: Btf) -> None:
    """Although it is being killed, which would be enough for an OOM of its own."""
    with hog(trees.box, 4) as victim:
        with (
            loaded_program(declaration(btf, busy_ms=1500), btf) as program,
            in_child(program, context(trees.box)),
        ):
            wait_for(lambda: seen()[CALLED] == 1, "the child to run the program")
        assert seen()[RETURNED] == 1
        wait_for(victim.ended, "the victim to die")
    assert kills(trees.box) == 1


@contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    path = SYSCTL / name
    before = path.read_text()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize("whole", [True, False], ids=["system", "box"])
def test_section_6_no_panic_on_oom(level: str, whole: bool, trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 8, adj=1000) as victim, sysctl("panic_on_oom", level):
        assert declare(btf, None if whole else trees.box) == 1
        wait_for(victim.ended, "the victim to die")


def test_section_6_no_oom_kill_allocating_task(trees: Trees, btf: Btf) -> None:
    """It would be this very process."""
    with hog(trees.box, 8, adj=1000) as victim, sysctl("oom_kill_allocating_task", "1"):
        assert declare(btf, None) == 1
        wait_for(victim.ended, "the victim to die")


# What a handler is told


def observer(btf: Btf) -> Asm:
    """Notes whether it is declared, whether it is a dry run, and which memcg it is about."""

    def offset(member: str) -> int:
        return btf.place("oom_control", member).offset // 8

    code = of_handler().load(R0, R6, offset("bpf_declared"), 1).note(FIRST)
    code.load(R0, R6, offset("bpf_dry_run"), 1).note(SECOND)
    return code.load(R0, R6, offset("memcg")).keep(OTHER).exit(PASS)


def test_section_6_a_handler_sees_what_it_is(trees: Trees, btf: Btf) -> None:
    with attached(observer(btf), trees.box, btf):
        dry_run(btf, trees.box)
        assert seen()[FIRST : SECOND + 1] == (0, 1)
        declare(btf, trees.box)
        assert seen()[FIRST : SECOND + 1] == (1, 0)
        assert seen()[OTHER] != 0
        eat(trees.box).wait(DEADLINE_S)
        assert seen()[FIRST : SECOND + 1] == (0, 0)


@pytest.mark.parametrize("by_name", [True, False], ids=["root", "NULL"])
def test_section_6_the_root_is_the_whole_system(by_name: bool, trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    with ExitStack() as stack:
        victim = stack.enter_context(hog(trees.box, 8, adj=1000))
        it = stack.enter_context(attached(observer(btf), root, btf))
        below = stack.enter_context(attached(observer(btf), trees.box, btf))
        assert declare(btf, root if by_name else None) == 1
        wait_for(victim.ended, "the victim to die")
        assert (it.counters()["invocations"], below.counters()["invocations"]) == (1, 0)
        assert seen()[FIRST] == 1
        assert seen()[OTHER] == 0


# What is no declaration


def test_section_3_sysrq_asks_nobody(trees: Trees, btf: Btf) -> None:
    root, code = cgroupfs.resolve("/"), of_handler().exit(PASS)
    with hog(trees.box, 8, adj=1000) as victim, attached(code, root, btf) as it:
        Path("/proc/sysrq-trigger").write_text("f")
        wait_for(victim.ended, "the victim to die")
        assert it.counters()["invocations"] == 0
