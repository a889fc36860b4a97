# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed where no checkout is: policies, patches and stubs come with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = CHECKOUT / "tests" / "data"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the wheel was installed to, alone."""
    made = tmp_path_factory.mktemp("wheel")
    run = [sys.executable, "-m"]
    wheel = made / "dist"
    subprocess.run(
        [*run, "build", "--wheel", "--no-isolation", f"--outdir={wheel}", str(CHECKOUT)],
        check=True,
        capture_output=True,
    )
    (file,) = wheel.glob("*.whl")
    target = made / "site"
    subprocess.run(
        [*run, "pip", "install", "--no-deps", "--no-index", f"--target={target}", str(file)],
        check=True,
        capture_output=True,
    )
    return target


def bpfoom(installed: Path, *words: str, cwd: Path) -> str:
    """Run the installed command; the dependencies come from where this interpreter has them."""
    # -S keeps the editable install's path hook away: the wheel's package is the only one.
    argv = [sys.executable, "-S", "-m", "bpfoom.cli.main", *words]
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-S", "-c", "import bpfoom; print(bpfoom.__file__)"]
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_policies(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(bpfoom(installed, "policies", "--json", cwd=tmp_path))
    assert {"largest-task", "largest-cgroup"} <= {policy["name"] for policy in listed}


def test_render(installed: Path, tmp_path: Path) -> None:
    btf = next(DATA.glob("*.btf"))
    text = bpfoom(installed, "render", "largest-task", "--btf", str(btf), cwd=tmp_path)
    assert "bpf_oom_kill_process" in text


def test_new(installed: Path, tmp_path: Path) -> None:
    bpfoom(installed, "new", "mine", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.bpf.c.j2", "mine.toml"}


def test_kernel_patches(installed: Path, tmp_path: Path) -> None:
    patches = json.loads(bpfoom(installed, "kernel", "patches", "--json", cwd=tmp_path))
    series = (CHECKOUT / "kernel-patches" / "series").read_text().splitlines()
    names = [line for line in series if line and not line.startswith("#")]
    assert [patch["name"] for patch in patches] == names


def test_units_of_systemd(installed: Path) -> None:
    shipped = sorted(path.name for path in (CHECKOUT / "bpfoom" / "units").iterdir())
    assert shipped == ["bpfoom-agent.service", "bpfoom-apply.service"]
    assert sorted(path.name for path in (installed / "bpfoom" / "units").iterdir()) == shipped
