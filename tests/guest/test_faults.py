# SPDX-License-Identifier: Apache-2.0
"""Out of memory in the OOM path itself: no allocation that fails may leave more than an error.

The suite looks for splats and leaks; here it is shown that allocations really failed, and that the
machine goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import pytest

from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError
from bpfoom.handler import info, pins, syscalls
from bpfoom.handler.attach import link_to_cgroup
from bpfoom.handler.load import Loaded, load
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.asm import Asm, attached, loaded_program
from tests.guest.byhand import DEADLINE_S, Trees, oom_once, remove_tree, wait_for
from tests.guest.callers import context, declaration, run
from tests.guest.faults import Faults, failing
from tests.guest.handlers import cgroup_killer
from tests.guest.memory import kills

pytestmark = [pytest.mark.flavours("debug"), pytest.mark.fault_injection]

# More allocations than any call here makes.
MOST = 5000


class Bench:
    """A box that runs out of memory, and handlers that kill all of it."""

    def __init__(self, box: Cgroup, btf: Btf, stack: ExitStack) -> None:
        self.box = box
        self.btf = btf
        self.code: Asm = cgroup_killer(box, btf)
        self.first, self.second = (stack.enter_context(self.load()) for _ in range(2))

    def load(self) -> AbstractContextManager[Loaded]:
        """Load the handler."""
        return load(self.code.handler(self.btf), self.btf, pins.require(), note={})

    def attach(self, handler: Loaded, cgroup: Cgroup | None = None) -> Fd:
        """Attach it to the box; the link is the caller's."""
        with Fd(os.open((cgroup or self.box).path, os.O_RDONLY)) as target:
            return link_to_cgroup(handler, target, self.btf)


@pytest.fixture
def bench(trees: Trees, btf: Btf) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(trees.box, btf, stack)


Operation = Callable[[Bench], AbstractContextManager[Callable[[], object]]]
"""Prepares something, yields the call that is to fail, and tidies up."""


@contextmanager
def loading(bench: Bench) -> Iterator[Callable[[], object]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(bench.load())


@contextmanager
def attaching(bench: Bench) -> Iterator[Callable[[], object]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(bench.attach(bench.first))


@contextmanager
def updating(bench: Bench) -> Iterator[Callable[[], object]]:
    with bench.attach(bench.first) as link:
        yield lambda: syscalls.link_update(link, bench.second.ops_map)


@contextmanager
def detaching(bench: Bench) -> Iterator[Callable[[], object]]:
    with bench.attach(bench.first) as link:
        yield lambda: syscalls.link_detach(link)


@contextmanager
def removing_the_cgroup(bench: Bench) -> Iterator[Callable[[], object]]:
    path = bench.box.path.parent / "brief"
    path.mkdir()
    try:
        with bench.attach(bench.first, cgroupfs.resolve(str(path))) as link:
            yield path.rmdir
            if not path.exists():
                wait_for(lambda: info.link_info(link).map_id == 0, "the link to be detached")
    finally:
        remove_tree(path)


@contextmanager
def declaring_an_oom(bench: Bench) -> Iterator[Callable[[], object]]:
    with bench.attach(bench.first), loaded_program(declaration(bench.btf), bench.btf) as program:
        yield lambda: run(program, context(bench.box))


FALLIBLE = (loading, attaching, removing_the_cgroup, declaring_an_oom)
INFALLIBLE = (updating, detaching)


def fail_each(operation: Operation, bench: Bench, faults: Faults) -> int:
    """Do it again and again, each time with another allocation failing, until none is left."""
    for number in range(1, MOST):
        with operation(bench) as call:
            if not faults.fail_nth(number, call):
                return number - 1
    pytest.fail(f"more than {MOST} allocations")


@pytest.mark.parametrize("operation", FALLIBLE, ids=lambda operation: operation.__name__)
def test_every_allocation_fails_once(operation: Operation, bench: Bench) -> None:
    with failing() as faults:
        assert fail_each(operation, bench, faults) > 0
    still_works(bench)


@pytest.mark.parametrize("operation", INFALLIBLE, ids=lambda operation: operation.__name__)
def test_nothing_is_allocated(operation: Operation, bench: Bench) -> None:
    """A handler can always be taken away, or replaced by one that is loaded."""
    with failing() as faults:
        assert fail_each(operation, bench, faults) == 0
    still_works(bench)


def test_ooms_of_tasks_whose_allocations_fail(bench: Bench) -> None:
    """One in a hundred, page faults included: some eaters give up early, the others are killed."""
    with failing(percent=1) as faults, attached(bench.code, bench.box, bench.btf) as it:
        for _ in range(200):
            eater = fragile_eater(bench.box)
            eater.wait(DEADLINE_S)
            if it.counters()["kills"] >= 10:
                break
        assert it.counters()["kills"] >= 10
        assert faults.injected() > 0
    still_works(bench)


def test_attaching_with_failures_during_ooms(bench: Bench) -> None:
    with eaters(bench.box), failing(percent=5) as faults:
        before = kills(bench.box)
        for _ in range(300):
            with (
                faults.fail_here(),
                suppress(BpfoomError, OSError, MemoryError),
                bench.attach(bench.first) as link,
            ):
                syscalls.link_update(link, bench.second.ops_map)
        assert faults.injected() > 0
        wait_for(lambda: kills(bench.box) > before, "the machine to get on")
    still_works(bench)


def still_works(bench: Bench) -> None:
    """An OOM of the box is handled as ever."""
    with attached(bench.code, bench.box, bench.btf) as it:
        oom_once(bench.box)
        assert it.counters()["handled"] > 0


def fragile_eater(cgroup: Cgroup) -> subprocess.Popen[bytes]:
    """A task in the cgroup that grows until it is killed, or gives up."""
    ask = f"echo 0 > {cgroup.path}/cgroup.procs && echo 1 > /proc/self/make-it-fail"
    return subprocess.Popen(
        ["sh", "-c", f"{ask} && exec tail /dev/zero"], stderr=subprocess.DEVNULL
    )


@contextmanager
def eaters(cgroup: Cgroup) -> Iterator[None]:
    """One task after the other that runs the cgroup out of memory."""
    each = f"(echo 0 > {cgroup.path}/cgroup.procs && exec tail /dev/zero) 2>/dev/null"
    with subprocess.Popen(
        ["sh", "-c", f"while :; do {each}; done"], start_new_session=True
    ) as made:
        try:
            yield
        finally:
            os.killpg(made.pid, signal.SIGKILL)
