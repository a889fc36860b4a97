# SPDX-License-Identifier: Apache-2.0
"""Directories nested deeper than a path can say, as whoever owns a cgroup can make them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "d" * 250
_LEVELS = 18  # times 251 is beyond PATH_MAX


@contextmanager
def nested(top: Path) -> Iterator[int]:
    """Below a directory, for the length of the block; the inode of the innermost."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(_LEVELS):
            os.mkdir(_NAME, dir_fd=here)
            here = _moved(here, _NAME)
        yield os.fstat(here).st_ino
        for _ in range(_LEVELS):
            here = _moved(here, "..")
            os.rmdir(_NAME, dir_fd=here)
    finally:
        os.close(here)


def _moved(here: int, name: str) -> int:
    there = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
    os.close(here)
    return there
