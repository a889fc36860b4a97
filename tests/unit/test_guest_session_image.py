# SPDX-License-Identifier: Apache-2.0
"""What the root file system is made of, and QEMU's command line. Nothing is built or started."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom import resources
from bpfoom.errors import BuildError, UsageError
from bpfoom.guest import accel, pydeps, qemu, rootfs
from bpfoom.guest.recipe import PLAIN, RECIPES, SYSTEMD, Recipe

LOCK = """\
# a comment
click==8.5.1 \\
    --hash=sha256:aa
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:bb
ruff==0.17.6 \\
    --hash=sha256:cc
rich==15.0.0 \\
    --hash=sha256:dd \\
    --hash=sha256:ee
"""


def test_the_guest_gets_the_lock_without_host_tools() -> None:
    wanted = pydeps.guest_requirements(LOCK)
    assert wanted.splitlines() == [
        *("click==8.5.1 \\", "    --hash=sha256:aa"),
        *("colorama==0.4.6 ; sys_platform == 'win32' \\", "    --hash=sha256:bb"),
        *("rich==15.0.0 \\", "    --hash=sha256:dd \\", "    --hash=sha256:ee"),
    ]


def test_a_requirement_for_some_pythons_is_refused() -> None:
    with pytest.raises(BuildError, match="tomli is wanted for some Python versions only"):
        pydeps.guest_requirements("tomli==2 ; python_version < '3.11' \\\n    --hash=sha256:aa\n")


def test_the_lock_we_ship_fits_the_guest() -> None:
    wanted = pydeps.guest_requirements(pydeps.lock_file().read_text())
    names = {line.partition("==")[0] for line in wanted.splitlines() if "==" in line}
    assert {"click", "jinja2", "pyroute2", "pytest", "qemu-qmp", "rich"} <= names
    assert not names & pydeps.HOST_ONLY


def test_parse_packages() -> None:
    text = "# why\n\npython3   # us\nbpftool/trixie-backports\n"
    assert rootfs.parse_packages(text) == ["python3", "bpftool/trixie-backports"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_part_of_a_recipe_is_in_vm(recipe: Recipe) -> None:
    vm = resources.room("vm")
    assert rootfs.packages(recipe)
    assert all((vm / overlay).is_dir() for overlay in recipe.overlays)
    assert recipe.setup is None or (vm / recipe.setup).is_file()


def test_asking_for_an_image_again_is_the_same_key() -> None:
    assert rootfs.key(SYSTEMD) == rootfs.key(SYSTEMD)


def test_each_recipe_has_a_key_of_its_own() -> None:
    assert len({rootfs.key(recipe) for recipe in RECIPES.values()}) == len(RECIPES)


def test_the_systemd_image_holds_what_the_plain_one_does() -> None:
    assert set(rootfs.packages(PLAIN)) < set(rootfs.packages(SYSTEMD))


def machine(run_dir: Path, **changes: object) -> qemu.Machine:
    facts: dict[str, object] = {
        "kernel": Path("/k/bzImage"),
        "image": Path("/i/rootfs.ext4"),
        "recipe": PLAIN,
        "run_dir": run_dir,
        "source": Path("/src"),
        "source_at": "/bpfoom",
        "pycache": Path("/pyc"),
        "memory_mib": 512,
        "cpus": 2,
        "accelerator": "tcg",
    }
    return qemu.Machine(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # The unit suite runs on machines without QEMU: the list is composed, not started.
    monkeypatch.setattr(qemu, "binary", lambda: qemu.BINARY)
    return qemu.command(machine(Path("/run,1")))


def test_commas_in_paths_are_doubled(argv: list[str]) -> None:
    assert "file,id=kmsg,path=/run,,1/kernel.log" in argv


def test_image_and_checkout_are_read_only(argv: list[str]) -> None:
    assert [a for a in argv if a.startswith("file=/i/rootfs.ext4,") and "readonly=on" in a]
    assert [a for a in argv if "path=/src," in a and a.endswith("readonly=on")]


def test_what_is_written_to_a_writable_image_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "binary", lambda: qemu.BINARY)
    argv = qemu.command(machine(Path("/run"), recipe=SYSTEMD))
    assert [a for a in argv if a.startswith("file=/i/rootfs.ext4,") and "snapshot=on" in a]
    assert " rw " in argv[argv.index("-append") + 1]


def test_there_is_no_network_device(argv: list[str]) -> None:
    assert "-nodefaults" in argv
    assert not [a for a in argv if "net" in a]


@pytest.mark.parametrize(("asked", "used"), [("tcg", "tcg,thread=multi"), ("kvm", "kvm")])
def test_accelerator(monkeypatch: pytest.MonkeyPatch, asked: str, used: str) -> None:
    monkeypatch.setattr(qemu, "binary", lambda: qemu.BINARY)
    argv = qemu.command(machine(Path("/run"), accelerator=asked))
    assert argv[argv.index("-accel") + 1] == used


def test_what_was_asked_for_is_not_tried() -> None:
    assert accel.choose(Path("/no/kernel"), "kvm") == "kvm"


def test_unknown_accelerator() -> None:
    with pytest.raises(UsageError, match="no such accelerator: hax"):
        accel.choose(Path("/no/kernel"), "hax")
