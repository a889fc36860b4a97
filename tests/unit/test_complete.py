# SPDX-License-Identifier: Apache-2.0
"""Completion as a shell asks for it: click's own protocol, and a real bash with our script."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfoom.cli import main
from bpfoom.cli.complete import SHELLS
from bpfoom.mounts import Mount
from bpfoom.observe import cgroupfs
from bpfoom.policy.find import find_policies

NAMES = {policy.name for policy in find_policies()}
ATTACH = "bpfoom attach --policy "


def ask(shell: str, line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The values that are offered for what stands at the end of the line."""
    words = line.split(" ")
    environment = {
        "_BPFOOM_COMPLETE": f"{shell}_complete",
        "COMP_LINE": line,
        "COMP_WORDS": line,
        # zsh counts words, fish hands over the last one.
        "COMP_CWORD": str(len(words) - 1) if shell == "zsh" else words[-1],
    }
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        for name, value in environment.items():
            patch.setenv(name, value)
        main.main([])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.strip("\n").split("\n")
    if shell == "zsh":  # kind, value and help on a line each
        return lines[1::3]
    return [text.split(",", 1)[1].split("\t")[0] for text in lines if "," in text]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mount of cgroup2 with /shop/api, /shop/batch and /shed."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path in ("shop/api", "shop/batch", "shed"):
            (root / path).mkdir(parents=True)
        (root / "shop" / "cgroup.procs").touch()
        monkeypatch.setattr(cgroupfs, "mount", lambda: Mount(root, root.stat().st_dev))
        yield root


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bpfoom det", {"detach"}),
        ("bpfoom attach --pol", {"--policy"}),
        (f"{ATTACH}", NAMES),
        (f"{ATTACH}larg", {"largest-task", "largest-cgroup"}),
        (f"{ATTACH}nope", set()),
        (f"{ATTACH}nope --set ", set()),
        (f"{ATTACH}largest-task --set ", {"min="}),
        (f"{ATTACH}largest-task --set min=1M --set ", set()),
        (f"{ATTACH}protect --set inner=priority --set inner.m", {"inner.min="}),
        (f"{ATTACH}protect --set inner=priority --set inner.u", {"inner.unit="}),
        ("bpfoom policies sw", {"swap"}),
        ("bpfoom render larg", {"largest-task", "largest-cgroup"}),
        ("bpfoom check priority --set u", {"unit="}),
        ("bpfoom compile swa", {"swap"}),
        ("bpfoom completion ", set(SHELLS)),
    ],
)
def test_words(
    shell: str, line: str, offered: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(ask(shell, line, capsys)) == offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (f"{ATTACH}protect --set inner=larg", {"largest-task", "largest-cgroup"}),
        (f"{ATTACH}priority --set unit=", {"cgroup", "task"}),
        (f"{ATTACH}priority --set=unit=t", {"task"}),
        (f"{ATTACH}priority --set=un", {"unit="}),
        (f"{ATTACH}priority --set min=", set()),
    ],
)
def test_bash_gets_what_it_replaces(
    line: str, offered: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(ask("bash", line, capsys)) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_whole_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{ATTACH}priority --set unit=t"
    assert ask(shell, line, capsys) == ["unit=task"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", ["shed", "shop"]),
        ("sho", ["shop"]),
        ("/sh", ["/shed", "/shop"]),
        ("shop/", ["shop/api", "shop/batch"]),
        ("/shop/b", ["/shop/batch"]),
        ("{root}/sh", ["{root}/shed", "{root}/shop"]),
        ("nope/", []),
    ],
)
@pytest.mark.parametrize(
    "verb", ["attach --cgroup", "show --cgroup", "marks show", "explain --cgroup"]
)
def test_cgroups(
    verb: str, typed: str, offered: list[str], tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask("bash", f"bpfoom {verb} {typed.format(root=tree)}", capsys)
    assert found == [text.format(root=tree) for text in offered]


def test_units(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("web.service", "db.service", "web.slice", "web.service.d"):
        (tree / "system.slice" / name).mkdir(parents=True)
    assert ask("bash", "bpfoom attach --unit ", capsys) == ["db.service", "web.service"]
    assert ask("bash", "bpfoom attach --unit w", capsys) == ["web.service"]


def test_a_policy_may_be_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("bash", f"{ATTACH}./x", capsys) == ["./x"]


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("bpfoom deta", "detach"),
        (f"{ATTACH}priority --set unit=ta", "task"),
        (f"{ATTACH}priority --set unit", "unit="),
    ],
)
def test_in_bash(line: str, reply: str) -> None:
    """As readline would call it; what is behind the cursor does not count."""
    script = (
        'source <("$0" -m bpfoom.cli.main completion bash); '
        'bpfoom() { "$PYTHON" -m bpfoom.cli.main "$@"; }; '
        f"COMP_LINE='{line} --json' COMP_POINT={len(line)}; "
        '_bpfoom_completion bpfoom 2>&1; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PYTHON": sys.executable}
    asked = subprocess.run(
        ["bash", "--norc", "-c", script, sys.executable],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    # Outside of readline compopt has nobody to tell.
    assert [text for text in asked.stdout.splitlines() if "compopt" not in text] == [reply]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["completion", shell])
    text = capsys.readouterr().out
    assert "_BPFOOM_COMPLETE" in text and f"{shell}_complete" in text


@pytest.mark.parametrize("line", ["bpfoom ", f"{ATTACH}protect --set inner.", "bpfoom show -"])
def test_nothing_heavy_is_imported(line: str) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *{n.partition('.')[0] for n in sys.modules}))\n"
        "from bpfoom.cli.main import main\nmain([])\n"
    )
    environment = {**os.environ, "_BPFOOM_COMPLETE": "bash_complete", "COMP_LINE": line}
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    loaded = asked.stdout.splitlines()[-1].split()
    assert loaded[0] == "LOADED" and "click" in loaded
    heavy = {"pyroute2", "bcc", "rich", "jinja2", "qemu", "inotify_simple", "junitparser"}
    assert not heavy & set(loaded)
