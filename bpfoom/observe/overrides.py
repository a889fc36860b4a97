# SPDX-License-Identifier: Apache-2.0
"""What the kernel obeys before, or beside, the handlers that it asks: sysctls and cgroup files."""

from __future__ import annotations

from pathlib import Path

PANIC, ALLOCATING = "panic_on_oom", "oom_kill_allocating_task"
GROUP, IDLE = "memory.oom.group", "no memory controller"
# Files under /proc/sys/vm, and what a value other than 0 does to handlers.
SYSCTLS = {
    PANIC: "1: the machine panics on a system-wide OOM, 2: on each; nobody is asked",
    ALLOCATING: "on a system-wide OOM the task that allocates is killed; nobody is asked",
}
EFFECTS = {
    **{f"vm.{name}": effect for name, effect in SYSCTLS.items()},
    GROUP: "whoever is chosen in it on an OOM of it, or of a cgroup above, all of it is killed",
    IDLE: "its memory is that of the cgroup above, whose OOMs do not come to its handler",
}


def sysctls(base: Path = Path("/proc/sys/vm")) -> dict[str, int]:
    """Those of :data:`SYSCTLS` that are set, with their values."""
    values = {name: int((base / name).read_text()) for name in SYSCTLS}
    return {name: value for name, value in values.items() if value}


def of_cgroup(*, is_root: bool, oom_group: bool, idle: bool, set_to: dict[str, int]) -> list[str]:
    """The names in :data:`EFFECTS` that hold for OOMs of one cgroup.

    ``set_to`` are the machine's sysctls, ``idle`` is a handler without a memory controller.
    """
    panics = set_to.get(PANIC, 0)
    holds = {
        f"vm.{PANIC}": panics == 2 or bool(panics) and is_root,
        f"vm.{ALLOCATING}": ALLOCATING in set_to and is_root,
        GROUP: oom_group,
        IDLE: idle,
    }
    return [name for name, does in holds.items() if does]
