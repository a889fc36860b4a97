# SPDX-License-Identifier: Apache-2.0
"""The manual pages, as man shows them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click
import pytest

from bpfoom.cli import man
from bpfoom.cli.main import cli, main

COMMANDS = {ctx.command_path: ctx for ctx in man.walk(cli, "bpfoom")}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that bpfoom man wrote."""
    directory = tmp_path_factory.mktemp("man") / "man1"
    with pytest.raises(SystemExit) as ended:
        main(["man", "-o", str(directory)])
    assert not ended.value.code
    return directory


def shown(page: Path) -> str:
    """What a reader sees on a wide terminal; fails for whatever man has to complain about."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "1000", "MANPAGER": "cat"}
    asked = subprocess.run(
        ["man", "--warnings=w", "-l", str(page)], capture_output=True, text=True, env=environment
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    return asked.stdout


def words(text: str) -> list[str]:
    return text.split()


def test_there_is_a_page_for_each_command(pages: Path) -> None:
    names = {f"{path.replace(' ', '-')}.1" for path in COMMANDS}
    assert {page.name for page in pages.iterdir()} == names
    assert "bpfoom-marks-set.1" in names


@pytest.mark.parametrize("path", COMMANDS)
def test_a_page_says_what_help_says(path: str, pages: Path) -> None:
    ctx = COMMANDS[path]
    text = shown(pages / f"{path.replace(' ', '-')}.1")
    assert f"{path.replace(' ', '-')} - " in text
    for paragraph in (ctx.command.help or "").replace("\b", "").split("\n\n"):
        assert " ".join(words(paragraph)) in " ".join(words(text))
    for option in ctx.command.params:
        if isinstance(option, click.Option) and not option.hidden:
            names, about = option.get_help_record(ctx) or ("", "")
            assert " ".join([*words(names), *words(about)]) in " ".join(words(text))


def test_examples_keep_their_lines(pages: Path) -> None:
    lines = shown(pages / "bpfoom-attach.1").split("\n")
    examples = [line.strip() for line in lines if line.startswith(" " * 9 + "bpfoom attach --")]
    assert len(examples) >= 2
    assert all(example in (COMMANDS["bpfoom attach"].command.help or "") for example in examples)


def test_a_group_names_its_commands(pages: Path) -> None:
    text = shown(pages / "bpfoom.1")
    assert all(f"bpfoom-{name}(1)" in text for name in cli.list_commands(COMMANDS["bpfoom"]))


@pytest.mark.parametrize("text", [".TH x", "'tis", r"a\fBb \n(.g \*[x]", "--x `y` ^~", "a\n.b\n'c"])
def test_no_text_is_taken_for_roff(text: str, tmp_path: Path) -> None:
    @click.command(help=f"Says:\n\n\b\n{text}")
    def strange() -> None:
        pass

    page = tmp_path / "strange.1"
    page.write_text(man.page(click.Context(strange, info_name="strange")))
    _, description = shown(page).split("DESCRIPTION")
    assert words(description)[1 : 1 + len(words(text))] == words(text)


def test_the_date_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in man.page(COMMANDS["bpfoom"])
