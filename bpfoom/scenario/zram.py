# SPDX-License-Identifier: Apache-2.0
"""Swap and a disk made of compressed memory, for as long as a scenario needs them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfoom.errors import CommandError, MissingFeatureError

_CONTROL = Path("/sys/class/zram-control")


@contextmanager
def swap(size: int) -> Iterator[None]:
    """Swap of that many bytes, used before any other."""
    with _device(size) as device:
        _run("mkswap", str(device))
        _run("swapon", "--priority", "32767", str(device))
        try:
            yield
        finally:
            _run("swapoff", str(device))


@contextmanager
def disk(size: int) -> Iterator[Path]:
    """The directory of an ext4 file system of that many bytes: its files have page cache."""
    with _device(size) as device, tempfile.TemporaryDirectory(prefix="bpfoom-disk-") as mounted:
        _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", str(device))
        _run("mount", str(device), mounted)
        try:
            yield Path(mounted)
        finally:
            _run("umount", mounted)


@contextmanager
def _device(size: int) -> Iterator[Path]:
    try:
        number = (_CONTROL / "hot_add").read_text().strip()
    except FileNotFoundError:
        raise MissingFeatureError(
            "the scenario needs a zram device",
            hint="modprobe zram, or a kernel with CONFIG_ZRAM=y",
            object="zram",
        ) from None
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
        yield Path(f"/dev/zram{number}")
    finally:
        (_CONTROL / "hot_remove").write_text(number)


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:
        raise MissingFeatureError(
            f"there is no {argv[0]}",
            hint="packages util-linux, mount and e2fsprogs",
            object=argv[0],
        ) from None
    if done.returncode:
        raise CommandError(
            f"{argv[0]} failed with status {done.returncode}",
            detail=done.stderr,
            argv=list(argv),
            status=done.returncode,
        )
