# SPDX-License-Identifier: Apache-2.0
"""Every command's --help ends with examples, which can be typed as they stand."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import click
import pytest

from bpfoom.cli.main import cli, main
from bpfoom.cli.man import walk
from tests import verbs

KERNEL = str(Path(__file__).parents[1] / "data" / "kernel.btf")
COMMANDS = {ctx.command_path: ctx for ctx in walk(cli, "bpfoom")}

# Commands that need neither root nor a guest, and change nothing outside of the working directory.
HARMLESS = (
    *("bpfoom policies", "bpfoom render", "bpfoom check", "bpfoom compile", "bpfoom new"),
    *("bpfoom completion", "bpfoom man", "bpfoom cache", "bpfoom cache clear"),
    *("bpfoom kernel patches", "bpfoom kernel status", "bpfoom scenario list"),
)
# Examples that name a file of their reader's.
NEEDS = ("./mine.bpf.c.j2", "--btf")


def examples(ctx: click.Context) -> list[list[str]]:
    """The words of each example, without the program's name and what a shell does with it."""
    heading, *lines = paragraph(ctx).split("\n")
    assert heading in ("Example:", "Examples:"), f"{ctx.command_path} --help shows no example"
    return [words(line) for line in lines]


def paragraph(ctx: click.Context) -> str:
    """The last one of those that keep their lines."""
    return inspect.cleandoc(ctx.command.help or "").split("\b\n")[-1].rstrip("\n")


def words(line: str) -> list[str]:
    assert line.startswith("  bpfoom"), line
    return shlex.split(re.split(r" > | && ", line)[0], comments=True)[1:]


@pytest.mark.parametrize("path", COMMANDS)
def test_help_ends_with_examples_of_the_command_itself(path: str) -> None:
    shown, own = examples(COMMANDS[path]), path.split()[1:]
    assert shown and all(given[: len(own)] == own for given in shown)


@pytest.mark.parametrize("path", COMMANDS)
def test_examples_are_shown_as_they_are_written(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*path.split()[1:], "--help"])
    assert ended.value.code == 0
    assert paragraph(COMMANDS[path]) in re.sub(r"^  ", "", capsys.readouterr().out, flags=re.M)


@pytest.mark.parametrize("path", COMMANDS)
def test_examples_can_be_parsed(path: str) -> None:
    """By click, as far as it looks: names of commands and options, and the types of values."""
    for given in examples(COMMANDS[path]):
        ctx = cli.make_context("bpfoom", list(given))
        while isinstance(ctx.command, click.Group) and (rest := [*ctx._protected_args, *ctx.args]):
            name, command, left = ctx.command.resolve_command(ctx, rest)
            assert command is not None
            ctx = command.make_context(name, left, parent=ctx)


def test_every_verb_is_tried_without_root() -> None:
    assert COMMANDS.keys() == verbs.REFUSED.keys() | verbs.OPEN


@pytest.mark.parametrize("path", HARMLESS)
def test_examples_work(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "bpfoom" / "objects").mkdir(parents=True)
    (tmp_path / "cache" / "bpfoom" / "objects" / "one").touch()
    shown = [given for given in examples(COMMANDS[path]) if not set(NEEDS) & set(given)]
    options = {name for param in COMMANDS[path].command.params for name in param.opts}
    more = ["--btf", KERNEL] if "--btf" in options else []
    assert shown
    for given in shown:
        with pytest.raises(SystemExit) as ended:
            main([*given, *more])
        assert not ended.value.code
