# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, from /proc/self/mountinfo.

Who may mount something (FUSE lets everybody) chooses its name: a name is bytes, and whatever
Python takes for white space may be in it, but for the four bytes that the kernel escapes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
# Space, tab, newline and backslash.
_ESCAPED = re.compile(rb"\\(040|011|012|134)")


@dataclass(frozen=True)
class Mount:
    """A mount: where, and the device number that its files report."""

    path: Path
    device: int


def of_type(kind: str, mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """The mounts of a type of file system, in the order of mounting."""
    found = []
    for line in mountinfo.read_bytes().split(b"\n"):
        head, _, tail = line.partition(b" - ")
        if tail.split(b" ")[0] != kind.encode():
            continue
        fields = head.split(b" ")
        major, minor = (int(part) for part in fields[2].split(b":"))
        path = _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), fields[4])
        found.append(Mount(Path(os.fsdecode(path)), os.makedev(major, minor)))
    return found
