# SPDX-License-Identifier: Apache-2.0
"""The JSON of the verbs that deal with the guest, of the real one, against docs/schemas."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.host.test_vm_command import BPFOOM, WARN, own_directories, vm  # noqa: F401 - a fixture
from tests.schemas import valid

pytestmark = pytest.mark.usefixtures("own_directories")


def test_vm_run() -> None:
    done = vm("run", "--json", "--", "sh", "-c", r"printf 'a\377'; echo b >&2; exit 3")
    told = valid("vm-run", json.loads(done.stdout))
    assert (done.returncode, told["exit_status"]) == (3, 3)
    assert (told["stdout"], told["stderr"]) == ("a\N{REPLACEMENT CHARACTER}", "b\n")


def test_vm_run_with_a_splat() -> None:
    done = vm("run", "--json", "--", "sh", "-c", WARN)
    assert done.returncode == 69
    (splat,) = valid("vm-run", json.loads(done.stdout))["splats"]
    error = valid("error", json.loads(done.stderr))
    assert error["data"]["splats"] == [splat["title"]]


def test_kernel_status() -> None:
    done = subprocess.run([*BPFOOM, "kernel", "status", "--json"], capture_output=True, check=True)
    status = valid("kernel-status", json.loads(done.stdout))
    plain, *others = status["flavours"]
    assert (plain["flavour"], plain["state"]) == ("plain", "built")
    assert [other["flavour"] for other in others] == ["debug", "base"]
    built = valid("kernel", plain["kernel"])
    assert (built["patches"], built["compiler"]) == (status["patches"], status["compiler"])
    table = subprocess.run([*BPFOOM, "kernel", "status"], capture_output=True, check=True)
    lines = table.stdout.decode().splitlines()
    assert f"patches:  {len(status['patches'])}" in lines
    assert ["plain", "built", built["release"], built["path"]] in [row.split() for row in lines]
