# SPDX-License-Identifier: Apache-2.0
"""Allocations of the kernel that fail on purpose: one after the other, or some in a hundred.

Only tasks that ask for it are hit, so the machine around them stays sound. Needs the debug kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfoom.errors import BpfoomError

_DEBUG = Path("/sys/kernel/debug")
_TASK = Path("/proc/thread-self")
_BUDGET = 1_000_000_000
_EVERYWHERE = {
    "failslab": {"ignore-gfp-wait": "N"},
    # Unless told, single pages and those of user space never fail.
    "fail_page_alloc": {"ignore-gfp-wait": "N", "ignore-gfp-highmem": "N", "min-order": "0"},
}


class Faults:
    """Failing allocations while they are on."""

    def injected(self) -> int:
        """How many allocations have failed so far."""
        left = sum(int((_DEBUG / name / "times").read_text()) for name in _EVERYWHERE)
        return len(_EVERYWHERE) * _BUDGET - left

    def fail_nth(self, number: int, call: Callable[[], object]) -> bool:
        """Do ``call`` with its ``number``-th allocation failing; whether it had that many.

        An error it raises is what should happen, and let pass.
        """
        before = self.injected()
        with open(_TASK / "fail-nth", "wb", buffering=0) as nth:
            nth.write(str(number).encode())
            try:
                call()
            except (BpfoomError, OSError, MemoryError):
                pass
            finally:
                nth.write(b"0")
        return self.injected() > before

    @contextmanager
    def fail_here(self) -> Iterator[None]:
        """Have the calling thread's allocations fail as often as was said."""
        with open(_TASK / "make-it-fail", "wb", buffering=0) as ask:
            ask.write(b"1")
            try:
                yield
            finally:
                ask.write(b"0")


@contextmanager
def failing(percent: int = 0) -> Iterator[Faults]:
    """Turn faults on: for ``fail_nth()`` and, so often, for tasks with make-it-fail."""
    common = {"times": str(_BUDGET), "task-filter": "Y", "verbose": "1"}
    try:
        for name, own in _EVERYWHERE.items():
            for setting, value in {**common, **own, "probability": str(percent)}.items():
                (_DEBUG / name / setting).write_text(value)
        yield Faults()
    finally:
        for name in _EVERYWHERE:
            (_DEBUG / name / "probability").write_text("0")
