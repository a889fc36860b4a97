# SPDX-License-Identifier: Apache-2.0
"""A test that passes and leaves a map and a cgroup behind: tests/host reads the report.

Not collected by itself: its name is no test module's.
"""

from __future__ import annotations

from pathlib import Path

from bpfoom.handler import syscalls


def test_passes_and_leaks() -> None:
    with syscalls.map_create("array", "forgotten", 4, 8, 1) as made:
        syscalls.obj_pin(made, "/sys/fs/bpf/forgotten")
    Path("/sys/fs/cgroup/forgotten").mkdir()
