# SPDX-License-Identifier: Apache-2.0
"""Descriptors, error mapping and the directory side of pins; what needs bpffs is in tests/guest."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bpfoom.compiler.build import render_policy
from bpfoom.errors import ForeignPinError, PermissionDeniedError, SyscallError
from bpfoom.handler import foreign, info, maps, pins, syscalls, trigger
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


def test_a_trigger_alone_is_no_handler(tmp_path: Path) -> None:
    for name in ("7/trigger", "42/link", "42/trigger", "43"):
        (tmp_path / name).mkdir(parents=True)
    assert Pins(tmp_path).with_handlers() == [42]


@pytest.mark.parametrize("name", ["007", "-1", "٤٢", "4 2", "42x"])
def test_what_only_looks_like_an_id(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert Pins(tmp_path).cgroup_ids() == []
    (found,) = foreign.found(Pins(tmp_path))
    assert found.data["path"] == str(tmp_path / name)


def in_place_of_the_base(base: Path) -> Path:
    base.write_text("")
    return base


def link_to_elsewhere(base: Path) -> Path:
    (base.parent / "elsewhere").mkdir()
    base.symlink_to(base.parent / "elsewhere")
    return base


def in_place_of_a_directory(base: Path) -> Path:
    base.mkdir()
    (base / "42").write_text("")
    return base / "42"


def directory_in_place_of_a_link(base: Path) -> Path:
    (base / "42" / "link" / "deep").mkdir(parents=True)
    return base / "42" / "link"


def symbolic_link_in_place_of_a_link(base: Path) -> Path:
    (base / "42").mkdir(parents=True)
    (base / "42" / "link").symlink_to("/nowhere")
    return base / "42" / "link"


def link_to_another_directory(base: Path) -> Path:
    (base / "43").mkdir(parents=True)
    (base / "42").symlink_to(base / "43")
    return base / "42"


def directory_in_place_of_a_trigger(base: Path) -> Path:
    (base / "42" / "trigger" / "deep").mkdir(parents=True)
    return base / "42" / "trigger"


def symbolic_link_in_place_of_its_work(base: Path) -> Path:
    (base / "42").mkdir(parents=True)
    (base / "42" / "trigger-work").symlink_to("/nowhere")
    return base / "42" / "trigger-work"


def among_the_shared(base: Path) -> Path:
    (base / "shared" / "mine").mkdir(parents=True)
    return base / "shared" / "mine"


def in_place_of_a_shared_map(base: Path) -> Path:
    path = Pins(base).shared_path("bpfoom_rules-new")
    path.mkdir(parents=True)
    return path


def in_place_of_the_agent(base: Path) -> Path:
    base.mkdir()
    (base / "agent").write_text("")
    return base / "agent"


def beside_a_link(base: Path) -> Path:
    (base / "42" / "mine").mkdir(parents=True)
    return base / "42" / "mine"


def beside_the_directories(base: Path) -> Path:
    (base / "mine").mkdir(parents=True)
    return base / "mine"


@pytest.mark.parametrize(
    "strange",
    [
        link_to_elsewhere,
        in_place_of_the_base,
        in_place_of_a_directory,
        directory_in_place_of_a_link,
        symbolic_link_in_place_of_a_link,
        link_to_another_directory,
        directory_in_place_of_a_trigger,
        symbolic_link_in_place_of_its_work,
        among_the_shared,
        in_place_of_a_shared_map,
        in_place_of_the_agent,
        beside_a_link,
        beside_the_directories,
    ],
)
def test_what_is_not_ours_is_named_and_stays(
    strange: Callable[[Path], Path], tmp_path: Path
) -> None:
    base = tmp_path / "bpfoom"
    where, path = Pins(base), strange(base)
    with suppress(ForeignPinError):
        assert where.sweep() == []
    with suppress(ForeignPinError):
        assert trigger.sweep(where, lambda _: False) == []
    with suppress(ForeignPinError):
        where.open_link(42)
    assert [error.data["path"] for error in foreign.everywhere(where)] == [str(path)]
    assert os.path.lexists(path)


@pytest.mark.parametrize(
    "strange",
    [in_place_of_a_directory, directory_in_place_of_a_link, symbolic_link_in_place_of_a_link],
)
def test_who_looks_for_a_link_is_told(strange: Callable[[Path], Path], tmp_path: Path) -> None:
    path = strange(tmp_path / "bpfoom")
    with pytest.raises(ForeignPinError, match="not bpfoom's") as raised:
        Pins(tmp_path / "bpfoom").open_link(42)
    assert raised.value.data["path"] == str(path)
    assert str(path) in raised.value.hint


@pytest.mark.parametrize(
    "strange",
    [
        link_to_another_directory,
        directory_in_place_of_a_trigger,
        symbolic_link_in_place_of_its_work,
    ],
)
def test_who_sets_a_trigger_is_told(strange: Callable[[Path], Path], tmp_path: Path) -> None:
    path = strange(tmp_path / "bpfoom")
    with pytest.raises(ForeignPinError, match="not bpfoom's") as raised:
        Pins(tmp_path / "bpfoom").require_trigger_room(42)
    assert raised.value.data["path"] == str(path)


def test_a_trigger_in_a_strangers_place_keeps_nobody_from_sweeping(tmp_path: Path) -> None:
    directory_in_place_of_a_trigger(tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "77").mkdir()
    assert trigger.sweep(Pins(tmp_path), lambda _: False, among={42, 77}) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["42", "7"]


def test_an_empty_directory_is_swept(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "43" / "mine").mkdir(parents=True)
    assert Pins(tmp_path).sweep() == []
    assert [path.name for path in tmp_path.iterdir()] == ["43"]


def test_shared_maps_of_other_versions(tmp_path: Path) -> None:
    for name in ("v1-bpfoom_ring", "v2-bpfoom_ring", "v3-other", "bpfoom_ring", "v-bpfoom_ring"):
        (tmp_path / "shared" / name).mkdir(parents=True)
    assert Pins(tmp_path).other_versions("bpfoom_ring") == {
        2: tmp_path / "shared" / "v2-bpfoom_ring"
    }


def test_the_shared_maps_are_those_of_policies() -> None:
    """What is known here of their layout is what policies are rendered with."""
    kernel = Path(__file__).parents[1] / "data" / "kernel.btf"
    maps_made = render_policy("largest-task", {}, btf=kernel).facts["maps"]
    shapes = {
        made["name"]: maps.shape(
            made["type"], made["key_size"], made["value_size"], made["max_entries"]
        )
        for made in maps_made
        if made["shared"]
    }
    assert shapes == pins.SHAPES


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
