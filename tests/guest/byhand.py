# SPDX-License-Identifier: Apache-2.0
"""Handlers made by hand from instructions, and a box that runs out of memory, for many tests.

::

    /sys/fs/cgroup                  memory controller on for the children
    └── bpfoom-test                 memory on for the children, too
        ├── box                     memory.max 32M, no swap
        └── bare                    subtree_control empty
            └── child               so: no memory controller of its own
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.cli import main
from bpfoom.compiler.object import HandlerObject, MapSpec, Program, Provenance, Relocation
from bpfoom.handler import pins, syscalls
from bpfoom.handler.load import OpsLayout
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup

ROOT = Path("/sys/fs/cgroup/bpfoom-test")
DEADLINE_S = 60

EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def returns(verdict: int) -> bytes:
    """A handler that does nothing and answers ``verdict``."""
    return struct.pack("<BBhi", 0xB7, 0, 0, verdict) + EXIT


def handler_object(insns: bytes, *, name: str = "by-hand", with_map: bool = False) -> HandlerObject:
    relocations: tuple[Relocation, ...] = ()
    maps: tuple[MapSpec, ...] = ()
    if with_map:
        lddw = struct.pack("<BBhi", 0x18, 1, 0, 2) + struct.pack("<BBhi", 0, 0, 0, 0)
        insns, relocations = lddw + insns, (Relocation(0, "map", "test_map"),)
        maps = (MapSpec("test_map", "array", 4, 16, 4, shared=True),)
    program = Program("by_hand", "struct_ops", "handle_out_of_memory", True, insns, relocations)
    provenance = Provenance(name, "", "00" * 32, "0", "", "")
    return HandlerObject((program,), maps, (), (), (), (), provenance)


@contextmanager
def ops_map(
    btf: Btf,
    *,
    verdict: int | None = 0,
    name: bytes = b"by-hand",
    flags: int = syscalls.F_LINK,
    fill: bool = True,
) -> Iterator[Fd]:
    """A bpf_oom_ops map as nothing of bpfoom would make it; no callback for a verdict of None."""
    layout = OpsLayout.read(btf)
    value = bytearray(layout.value_size)
    value[layout.name : layout.name + len(name)] = name
    with ExitStack() as stack:
        if verdict is not None:
            program = syscalls.prog_load(
                "by_hand",
                returns(verdict),
                attach_btf_id=layout.type_id,
                attach_type=layout.callback_index,
            )
            stack.enter_context(program)
            struct.pack_into("<Q", value, layout.callback, program.fileno())
        tiny = stack.enter_context(syscalls.btf_load_tiny())
        made = syscalls.map_create(
            "struct_ops",
            "by_hand",
            4,
            layout.value_size,
            1,
            flags=flags,
            btf_fd=tiny.fileno(),
            vmlinux_value_type_id=layout.value_type_id,
        )
        stack.enter_context(made)
        if fill:
            syscalls.map_update(made, bytes(4), bytes(value))
        yield made


@dataclass(frozen=True)
class Trees:
    box: Cgroup
    child: Cgroup


@pytest.fixture
def trees() -> Iterator[Trees]:
    for path in (ROOT, ROOT / "box", ROOT / "bare", ROOT / "bare" / "child"):
        path.mkdir()
        if path == ROOT:
            (path / "cgroup.subtree_control").write_text("+memory")
    (ROOT / "box" / "memory.max").write_text("32M")
    (ROOT / "box" / "memory.swap.max").write_text("0")
    yield Trees(cgroupfs.resolve(f"{ROOT}/box"), cgroupfs.resolve(f"{ROOT}/bare/child"))
    cli("detach", "--all")
    remove_tree(ROOT)
    assert pins.require().cgroup_ids() == []


@pytest.fixture
def btf() -> Iterator[Btf]:
    with Btf.from_file() as running:
        yield running


def remove_tree(top: Path) -> None:
    """Kill everything in a tree and remove it, leaves first."""
    if not top.exists():
        return
    (top / "cgroup.kill").write_text("1")
    wait_for(lambda: "populated 0" in (top / "cgroup.events").read_text(), f"{top} to be empty")
    for path, _, _ in os.walk(top, topdown=False):
        os.rmdir(path)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def cli(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(list(args))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def cli_json(*args: str) -> Any:
    code, out, err = cli(*args, "--json")
    assert code == 0, err
    return json.loads(out)


def eat(cgroup: Cgroup) -> subprocess.Popen[bytes]:
    """A task in the cgroup that grows until it is killed."""
    script = f"echo 0 > {cgroup.path}/cgroup.procs && exec tail /dev/zero"
    return subprocess.Popen(["sh", "-c", script])


def oom_once(cgroup: Cgroup) -> subprocess.Popen[bytes]:
    """Run one cgroup out of memory; the task that ate it, which is dead."""
    eater = eat(cgroup)
    assert eater.wait(DEADLINE_S) == -signal.SIGKILL
    return eater
