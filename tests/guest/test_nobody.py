# SPDX-License-Identifier: Apache-2.0
"""Somebody who is not root: told what is missing, and nothing of what others have attached.

::

    /sys/fs/cgroup
    └── bpfoom-secret      a handler named by-hand, a mark
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.errors import ForeignPinError
from bpfoom.handler import features, pins
from bpfoom.handler.attach import attach
from bpfoom.handler.pins import Pins
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.byhand import cli, cli_json, handler_object, oom_once, remove_tree, returns
from tests.schemas import valid
from tests.verbs import MORE, REFUSED

# Start-up of some verbs takes seconds; on a debug kernel far more.
pytestmark = pytest.mark.flavours("plain")

NOBODY = 65534
SECRET = Path("/sys/fs/cgroup/bpfoom-secret")


@pytest.fixture(scope="module")
def secret() -> Iterator[Cgroup]:
    """Root's: a handler that was asked once, and a mark."""
    SECRET.mkdir()
    (SECRET / "memory.max").write_text("32M")
    (SECRET / "memory.swap.max").write_text("0")
    cgroup = cgroupfs.resolve(str(SECRET))
    with Btf.from_file() as btf:
        obj = handler_object(returns(0), with_map=True)
        attach(obj, cgroup.path, btf, pins.require(), name=cgroup.name)
    oom_once(cgroup)
    cli_json("marks", "set", f"{cgroup.name}=avoid")
    yield cgroup
    cli("marks", "clear", "--all")
    cli("detach", "--all")
    pins.require().shared_path("test_map").unlink(missing_ok=True)
    remove_tree(SECRET)


def as_nobody(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, in a child that has given up root."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(ours)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with open(theirs, "w") as told:
                json.dump(cli(*args), told)
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as telling:
        text = telling.read()
    os.waitpid(child, 0)
    code, out, err = json.loads(text)
    return code, out, err


COMMANDS = [(*path.split()[1:], *args) for path, args in REFUSED.items()] + MORE


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_what_is_missing_is_said(args: tuple[str, ...], secret: Cgroup) -> None:
    code, out, err = as_nobody(*args)
    assert code == 5, out + err
    said = out + err
    assert "root" in said
    for told in (secret.name, str(secret.path), f"id:{secret.id}", "by-hand", "avoid"):
        assert told.strip("/") not in said.replace(" ".join(args), "")


@pytest.mark.parametrize("verb", ["list", "show", "status", "events", "marks list"])
def test_as_json_too(verb: str, secret: Cgroup) -> None:
    args = (*verb.split(), *REFUSED[f"bpfoom {verb}"], "--json")
    code, out, err = as_nobody(*args)
    assert code == 5, out + err
    document = json.loads(out or err)
    if verb == "status":
        valid(verb, document)
        assert (document["handlers"], document["tree"]) == ([], None)
    else:
        assert valid("error", document)["error"] == "PermissionDeniedError"
    assert SECRET.name not in out + err


def test_the_doctor_shows_what_else_there_is(secret: Cgroup) -> None:
    code, out, err = as_nobody("doctor")
    assert (code, err) == (5, "")
    assert out.endswith(f"attach cannot work here: {features.RIGHTS}\n")
    assert "not shown to you" in out


def test_completion_does_not_tell_what_is_attached(secret: Cgroup) -> None:
    """Cgroups it offers as ls would; parameters of a handler only to who may know it."""
    line = f"bpfoom update --cgroup {SECRET.name} --set "
    asked = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main"],
        env={**os.environ, "_BPFOOM_COMPLETE": "bash_complete", "COMP_LINE": line},
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True,
    )  # fmt: skip
    assert (asked.returncode, asked.stdout.strip(), asked.stderr) == (0, "", "")


def everything(where: Pins) -> list[Path]:
    return [where.base, *sorted(where.base.rglob("*"))]


def test_pins_are_for_root_only(secret: Cgroup) -> None:
    where = pins.require()
    found = everything(where)
    assert where.link_path(secret.id) in found and where.shared_path("bpfoom_marks") in found
    for path in found:
        about = path.stat()
        wanted = 0o700 if stat.S_ISDIR(about.st_mode) else 0o600
        assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (wanted, 0, 0), path


def test_nobody_gets_at_a_pin(secret: Cgroup) -> None:
    where = pins.require()
    paths = everything(where)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            code = sum(os.access(path, mode) for path in paths for mode in (os.R_OK, os.X_OK))
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("mode", "owner"), [(0o700, NOBODY), (0o777, 0)])
def test_root_does_not_pin_where_others_can_reach(mode: int, owner: int) -> None:
    base = pins.USUAL_BPFFS / "bpfoom-of-nobody"
    base.mkdir()
    try:
        base.chmod(mode)
        os.chown(base, owner, owner)
        with pytest.raises(ForeignPinError, match=f"uid {owner}"), Pins(base).writing():
            pass
    finally:
        base.rmdir()
