# SPDX-License-Identifier: Apache-2.0
"""Descriptors, error mapping and the directory side of pins; what needs bpffs is in tests/guest."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from bpfoom.errors import PermissionDeniedError, SyscallError
from bpfoom.handler import info, syscalls
from bpfoom.handler.pins import Pins, find_bpffs
from bpfoom.handler.syscalls import Fd

MOUNTINFO = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:27 / {first} rw,relatime shared:9 - bpf bpf rw,mode=700
31 22 0:28 / {second} rw,relatime - bpf bpf rw
"""


def test_fd_closes_once() -> None:
    number = os.open(os.devnull, os.O_RDONLY)
    with Fd(number) as fd:
        assert fd.fileno() == number
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    fd.close()
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EPERM, PermissionDeniedError), (errno.EINVAL, SyscallError)]
)
def test_failed_calls_carry_call_and_errno(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=errno.errorcode[number]) as raised:
        syscalls.fail("BPF_MAP_CREATE", number, object="history")
    assert raised.value.data == {  # type: ignore[attr-defined]
        "call": "BPF_MAP_CREATE",
        "errno": number,
        "object": "history",
    }


def test_fdinfo_is_taken_as_it_comes() -> None:
    text = "pos:\t0\nlink_type:\tstruct_ops\ninvocations:\t12\nname:\ta: b\nnothing here\n"
    assert info.parse_fdinfo(text) == {
        "pos": "0",
        "link_type": "struct_ops",
        "invocations": "12",
        "name": "a: b",
    }


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("/run/bpf", "/sys/fs/bpf", "/sys/fs/bpf"),
        ("/run/bpf", "/mnt/bpf", "/run/bpf"),
    ],
)
def test_bpffs_is_found(tmp_path: Path, first: str, second: str, found: str) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTINFO.format(first=first, second=second))
    assert find_bpffs(mountinfo) == Path(found)


def test_no_bpffs(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTINFO.splitlines()[0] + "\n")
    assert find_bpffs(mountinfo) is None


def test_only_cgroup_ids_count_as_handlers(tmp_path: Path) -> None:
    for name in ("42", "7", "shared", "x1"):
        (tmp_path / name).mkdir()
    assert Pins(tmp_path).cgroup_ids() == [7, 42]
    assert Pins(tmp_path / "absent").cgroup_ids() == []


def test_shared_maps_are_versioned(tmp_path: Path) -> None:
    assert Pins(tmp_path).shared_path("bpfoom_ring") == tmp_path / "shared" / "v1-bpfoom_ring"


def _hold(base: Path, held: multiprocessing.synchronize.Event) -> None:
    with Pins(base).writing():
        held.set()
        time.sleep(600)


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    writer = context.Process(target=_hold, args=(tmp_path / "bpfoom", held))
    writer.start()
    assert held.wait(60)
    writer.kill()
    writer.join()
    with Pins(tmp_path / "bpfoom").writing():
        assert (tmp_path / "bpfoom").stat().st_mode & 0o777 == 0o700
