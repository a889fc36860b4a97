# SPDX-License-Identifier: Apache-2.0
"""The small parts of the kernel build: mirror, source choice, config check, preflight, chroot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from bpfoom import cache, resources
from bpfoom.cli.kernel import kernel_command
from bpfoom.errors import BuildError, PreflightError
from bpfoom.guest import (
    chroot,
    elf,
    kconfig,
    kernel,
    mirror,
    preflight,
    process,
    series,
    source,
    toolchain,
)
from bpfoom.guest.flavour import BASE, DEBUG, FLAVOURS, PLAIN, Flavour


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- mirror --------------------------------------------------------------------------------------

ROWS = """\
Other|main|http://other.example/debian/
Debian|contrib|http://contrib.example/debian/
Debian|main|mirror+file:/etc/apt/mirrors/debian.list/
Debian|main|http://second.example/debian/
"""
DUMP = """\
APT::Architecture "amd64";
Acquire "";
Acquire::AllowInsecureRepositories "1";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::Packages::Optional "0";
Acquire::Languages:: "none";
"""


def test_the_first_debian_main_entry_is_the_mirror() -> None:
    assert mirror.pick_uri(ROWS) == "mirror+file:/etc/apt/mirrors/debian.list/"
    assert mirror.pick_uri("Ubuntu|main|http://other.example/ubuntu/\n") is None


def test_settings_follow_the_mirror_but_no_waiver_of_signatures() -> None:
    assert mirror.pick_settings(DUMP) == [
        ("Acquire::http::Proxy", "http://proxy.example:3128"),
        ("Acquire::Check-Valid-Until", "false"),
        ("Acquire::Languages::", "none"),
    ]


def test_sources_are_signed_by_debian() -> None:
    lines = mirror.Mirror("http://one.example/debian/").sources().splitlines()
    assert lines == [
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        f" http://one.example/debian/ {suite} main"
        for suite in ("trixie", "trixie-backports")
    ]


def test_mmdebstrap_reaches_a_mirror_list_inside_the_tree() -> None:
    found = mirror.Mirror("mirror+file:/etc/apt/my mirrors/a.list/", (("Acquire::Retries", "3"),))
    assert mirror.mmdebstrap_options(found) == [
        '--aptopt=Acquire::Retries "3"',
        "--setup-hook=mkdir -p \"$1\"'/etc/apt/my mirrors'",
        "--setup-hook=copy-in '/etc/apt/my mirrors/a.list' '/etc/apt/my mirrors'",
    ]


# --- source --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["linux-source-6.12", "linux-source-7.3", "linux-source-7.4"], "linux-source-7.3"),
        (["linux-source-6.12", "linux-source-7.10", "linux-source-7.4"], "linux-source-7.4"),
        (["linux-source-7.3", "linux-source-7.3-rt"], "linux-source-7.3"),
    ],
)
def test_the_base_or_the_nearest_newer_one(names: list[str], chosen: str) -> None:
    assert source.choose(names) == chosen


def test_a_mirror_with_only_older_sources() -> None:
    with pytest.raises(BuildError) as caught:
        source.choose(["linux-source-7.2", "linux-source-6.12"])
    assert "linux-source-6.12, linux-source-7.2" in caught.value.detail
    assert "--source" in caught.value.hint


# --- config --------------------------------------------------------------------------------------

FRAGMENT = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="text"\nCONFIG_D=16\n'


def test_a_config_that_holds_the_fragment() -> None:
    kconfig.verify(FRAGMENT, 'CONFIG_A=y\nCONFIG_C="text"\nCONFIG_D=16\nCONFIG_E=y\n')


def test_every_lost_option_is_named() -> None:
    with pytest.raises(BuildError) as caught:
        kconfig.verify(FRAGMENT, '# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C="other"\nCONFIG_D=16')
    assert caught.value.data["options"] == ["A", "B", "C"]
    assert "CONFIG_B: wanted n, got y" in caught.value.detail


@pytest.mark.parametrize("name", sorted({f for made in FLAVOURS.values() for f in made.fragments}))
def test_every_option_of_a_fragment_has_a_reason(name: str) -> None:
    """A comment stands above it, or above the options it belongs with; none appears twice."""
    reason, names = False, list[str]()
    for line in (resources.room("vm") / name).read_text().splitlines():
        if options := kconfig.parse(line):
            assert reason, f"no reason above {line}"
            names += options
        else:
            reason = line.startswith("# ") and not line.startswith("# ---")
    assert names
    assert len(names) == len(set(names))


# --- flavours ------------------------------------------------------------------------------------


def plan_of(flavour: Flavour) -> kernel.Plan:
    origin = source.Source(Path("/src"), "any", "7.3.4", "0" * 32, ours=True)
    tools = toolchain.Toolchain(Path("/chroot"), "gcc")
    applied, fragment = kernel.patches(flavour), kernel.fragment(flavour)
    return kernel.Plan(flavour, origin, applied, fragment, tools)


def test_flavours_have_kernels_and_trees_of_their_own() -> None:
    plans = [plan_of(flavour) for flavour in FLAVOURS.values()]
    assert len({plan.key for plan in plans}) == len({plan.tree.key for plan in plans}) == 3


def test_what_makes_a_flavour() -> None:
    plain, debug, base = (plan_of(flavour) for flavour in (PLAIN, DEBUG, BASE))
    assert plain.series == debug.series != base.series == series.Series(())
    options = [kconfig.parse(plan.fragment) for plan in (plain, debug, base)]
    assert "KASAN" not in options[0]
    assert options[1]["KASAN"] == "y"
    # A comparison with the base kernel is one of the series alone.
    name = {"LOCALVERSION": '"-bpfoom"'}
    assert options[2] | name == options[0]
    assert len({values["LOCALVERSION"] for values in options}) == 3


# --- ELF -----------------------------------------------------------------------------------------


def test_a_section_of_a_real_elf_file() -> None:
    assert elf.section(Path("/bin/sh"), ".interp").startswith(b"/lib")


def test_a_section_that_is_not_there() -> None:
    with pytest.raises(BuildError, match=r"no section \.BTF"):
        elf.section(Path("/bin/sh"), ".BTF")


def test_a_file_that_is_no_elf(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(BuildError, match="not a 64-bit"):
        elf.section(tmp_path / "text", ".BTF")


# --- chroot and processes ------------------------------------------------------------------------


def test_chroot_command_keeps_every_value_an_argument_of_its_own() -> None:
    binds = [chroot.Bind(Path("/a b"), "/src", read_only=True), chroot.Bind(Path("/o;x"), "/obj")]
    argv = chroot.command(Path("/r$x"), ["make", "V=1 2"], binds=binds, env={"K": "$(id)"})
    assert argv[argv.index("sh") + 2 :] == [
        *("/r$x", "2", "ro", "/a b", "/src", "rw", "/o;x", "/obj"),
        *("chroot", f"--userspec={os.getuid()}:{os.getgid()}", "--groups=", "/r$x"),
        *("env", "-i", "-C", "/", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C"),
        *("K=$(id)", "make", "V=1 2"),
    ]


def test_a_failing_command_shows_its_last_lines_and_the_log(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", list[str]()
    script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; done; exit 3"
    with pytest.raises(BuildError) as caught:
        process.must(["sh", "-c", script], "counting", log=log, on_line=seen.append)
    assert caught.value.message == "counting failed with exit status 3"
    assert caught.value.detail.splitlines()[-1] == "line 100"
    assert str(log) in caught.value.hint
    assert len(log.read_text().splitlines()) == len(seen) == 100


def test_a_program_that_is_not_installed() -> None:
    with pytest.raises(PreflightError, match="no-such-program is not installed"):
        process.must(["no-such-program"], "trying")


def test_the_chroot_has_what_the_build_calls() -> None:
    assert {"gcc", "make", "dwarves", "flex", "bison"} <= set(toolchain.packages())


# --- preflight -----------------------------------------------------------------------------------


def test_all_findings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ubuntu = {"ID": "ubuntu", "VERSION_ID": "24.04", "PRETTY_NAME": "Ubuntu 24.04 LTS"}
    monkeypatch.setattr(preflight, "_os_release", lambda: ubuntu)
    monkeypatch.setattr(preflight, "_total_memory", lambda: 1 << 30)
    tools = {"no-such-a": "package-a", "no-such-b": "package-b"}
    with pytest.raises(PreflightError) as caught:
        preflight.check(tools)
    text = caught.value.detail
    assert "this is Ubuntu 24.04 LTS: only Debian 12 (bookworm) or 13 (trixie)" in text
    assert "1.0 GiB of memory" in text
    assert "apt-get install package-a package-b" in text
    assert len(caught.value.data["findings"]) >= 3


# --- command -------------------------------------------------------------------------------------


def test_status_before_any_build() -> None:
    result = CliRunner().invoke(kernel_command, ["status", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["source"] is None
    assert facts["flavours"] == [
        {"flavour": name, "state": "not built", "kernel": None} for name in FLAVOURS
    ]
    assert not cache.root().exists()


def test_patches_lists_the_series() -> None:
    result = CliRunner().invoke(kernel_command, ["patches", "--json"])
    assert result.exit_code == 0
    names = [row["name"] for row in json.loads(result.stdout)]
    order = (resources.room("kernel-patches") / "series").read_text().splitlines()
    assert names == [line for line in order if line and not line.startswith("#")]
