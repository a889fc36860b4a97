# SPDX-License-Identifier: Apache-2.0
"""In the guest: how long the kernel takes over each of many OOMs that no handler sees.

``python3 -m tests.compare.oom_path N`` prints a JSON list of N times in ns, from the entry of
out_of_memory() to the victim being marked. It needs nothing that only a patched kernel has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bpfoom.observe.latency import KillTrace

_BOX = Path("/sys/fs/cgroup/bpfoom-oom-path")
_LIMIT = "8M"


def main(argv: list[str]) -> int:
    # The report goes to the log, as ever, but not to a slow console.
    Path("/proc/sys/kernel/printk").write_text("1")
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")
    _BOX.mkdir()
    (_BOX / "memory.max").write_text(_LIMIT)
    (_BOX / "memory.swap.max").write_text("0")
    print(json.dumps([_one() for _ in range(int(argv[0]))]))
    _BOX.rmdir()
    return 0


def _one() -> int:
    eater = f"echo 0 > {_BOX}/cgroup.procs && exec tail /dev/zero"
    with KillTrace() as trace:
        status = subprocess.run(["sh", "-c", eater], check=False).returncode
        took = trace.nanoseconds()
    if took is None or status != -9:
        raise SystemExit(f"no OOM was traced; the eater ended with {status}")
    return took


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
