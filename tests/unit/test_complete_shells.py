# SPDX-License-Identifier: Apache-2.0
"""Completion in real shells: what bash, zsh and fish make of our scripts."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from bpfoom.cli import complete
from bpfoom.cli.main import VERBS, cli
from bpfoom.cli.man import walk

DEADLINE_S = 60
COMMANDS = {ctx.command_path: ctx for ctx in walk(cli, "bpfoom")}

# What is typed, all that is offered, and what stands in the line after a tab.
LINES = [
    ("bpfoom deta", ["detach"], "bpfoom detach "),
    ("bpfoom marks cl", ["clear"], "bpfoom marks clear "),
    ("bpfoom attach --pol", ["--policy"], "bpfoom attach --policy "),
    ("bpfoom render larg", ["largest-cgroup", "largest-task"], "bpfoom render largest-"),
    ("bpfoom check priority --set un", ["unit="], "bpfoom check priority --set unit="),
    (
        "bpfoom check priority --set unit=ta",
        ["unit=task"],
        "bpfoom check priority --set unit=task ",
    ),
]

# Asks its completion at the first prompt, as if tab was pressed, and tells what came of it.
ZSHRC = """\
autoload -Uz compinit
compinit -u -D
source <(bpfoom completion zsh)
compadd() {
    local -a offered
    builtin compadd -O offered "$@"
    print -rl -- $offered >> "$TOLD"
    builtin compadd "$@"
}
zle-line-init() {
    BUFFER=$LINE CURSOR=${#LINE}
    zle complete-word
    print -r -- "$BUFFER" > "$TYPED"
    exit
}
zle -N zle-line-init
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose bin has the bpfoom of this checkout."""
    script = tmp_path / "bin" / "bpfoom"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bpfoom.cli.main "$@"\n')
    script.chmod(0o755)
    return tmp_path


def environment(home: Path, **more: str) -> dict[str, str]:
    checkout = str(Path(__file__).parents[2])
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return {"HOME": str(home), "PATH": path, "PYTHONPATH": checkout, "TERM": "vt100"} | more


def in_zsh(line: str, home: Path) -> tuple[list[str], str]:
    (home / ".zshrc").write_text(ZSHRC)
    told, typed = home / "told", home / "typed"
    told.touch()
    files = {"LINE": line, "TOLD": str(told), "TYPED": str(typed), "ZDOTDIR": str(home)}
    keeper, terminal = pty.openpty()
    try:
        subprocess.run(
            ["zsh", "-i"],
            stdin=terminal, stdout=terminal, stderr=terminal,
            env=environment(home, **files), timeout=DEADLINE_S, check=False, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(keeper)
        os.close(terminal)
    # What has a description is looked at before it is offered.
    return sorted(set(told.read_text().split())), typed.read_text().rstrip("\n")


# What is typed into bash: the line, a tab, and around what has become of it: tell '...'.
KEYS = "{line}\t\x01tell '\x05'\n"
BASHRC = """\
source <(bpfoom completion bash)
tell() { printf '%s\\n' "$1" > "$TYPED"; exit; }
"""


def in_bash(line: str, home: Path) -> str:
    (home / "bashrc").write_text(BASHRC)
    typed = home / "typed"
    keeper, terminal = pty.openpty()
    try:
        os.write(keeper, KEYS.format(line=line).encode())
        subprocess.run(
            ["bash", "--noprofile", "--rcfile", str(home / "bashrc"), "-i"],
            stdin=terminal, stdout=terminal, stderr=terminal,
            env=environment(home, TYPED=str(typed), INPUTRC="/dev/null"),
            timeout=DEADLINE_S, check=False, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(keeper)
        os.close(terminal)
    return typed.read_text().rstrip("\n")


def in_fish(line: str, home: Path) -> list[tuple[str, str]]:
    """Values and their descriptions."""
    asked = subprocess.run(
        ["fish", "--no-config", "-c", "bpfoom completion fish | source; complete -C $LINE"],
        env=environment(home, LINE=line),
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert asked.stderr == ""
    return [
        (value, text)
        for value, _, text in (ln.partition("\t") for ln in asked.stdout.split("\n")[:-1])
    ]


@pytest.mark.parametrize(("line", "_offered", "after"), LINES)
def test_bash(line: str, _offered: list[str], after: str, home: Path) -> None:
    assert in_bash(line, home) == after


@pytest.mark.parametrize(("line", "offered", "after"), LINES)
def test_zsh(line: str, offered: list[str], after: str, home: Path) -> None:
    assert in_zsh(line, home) == (offered, after)


@pytest.mark.parametrize(("line", "offered", "_after"), LINES)
def test_fish(line: str, offered: list[str], _after: str, home: Path) -> None:
    assert sorted(value for value, _ in in_fish(line, home)) == offered


def test_fish_shows_descriptions_whole(home: Path) -> None:
    (option,) = (p for p in COMMANDS["bpfoom events"].command.params if p.name == "since")
    assert isinstance(option, click.Option) and "," in (option.help or "")
    assert in_fish("bpfoom events --sin", home) == [("--since", option.help)]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_verb(shell: str, home: Path) -> None:
    offered: dict[str, Callable[[], list[str]]] = {
        "zsh": lambda: in_zsh("bpfoom ", home)[0],
        "fish": lambda: [value for value, _ in in_fish("bpfoom ", home)],
    }
    assert set(offered[shell]()) == set(VERBS)


@pytest.mark.parametrize("path", COMMANDS)
def test_cgroups_and_policies_are_completed_wherever_they_are_named(path: str) -> None:
    wanted = {
        "--cgroup": complete.cgroups,
        "--policy": complete.policies,
        "--set": complete.settings,
    }
    for param in COMMANDS[path].command.params:
        for name in set(param.opts) & set(wanted):
            assert param._custom_shell_complete is wanted[name], f"{path} {name}"
