# SPDX-License-Identifier: Apache-2.0
"""The workload process: takes memory when it is told to, and stays until its stdin is closed.

Run as a script by stage.py, isolated from site-packages so that it starts quickly and small. It
obeys lines on stdin, ``name COMM``, ``take BYTES``, and answers each with ``done`` on stdout.
"""

from __future__ import annotations

import mmap
import sys

_CHUNK = b"\1" * (1 << 20)


def _take(size: int) -> mmap.mmap:
    """Anonymous private memory of that size, every page written."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, len(_CHUNK)):
        area[start : start + len(_CHUNK)] = _CHUNK[: size - start]
    return area


def main() -> None:
    held = []
    for line in sys.stdin:
        order, value = line.split()
        if order == "name":
            with open("/proc/self/comm", "w") as comm:
                comm.write(value)
        else:
            held.append(_take(int(value)))
        print("done", flush=True)


if __name__ == "__main__":
    main()
