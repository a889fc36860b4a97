# SPDX-License-Identifier: Apache-2.0
"""``bpfoom man``: a manual page for each command, from what its --help says.

click-man knows what a page looks like; here is what it does not: commands that are imported when
they are asked for, text that roff would take for its own, and paragraphs that keep their lines.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from bpfoom import __version__
from bpfoom.errors import MissingFeatureError

_KEPT = "\b\n"
# What roff would make typographic, or take for an escape.
_GLYPHS = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
)


@click.command(name="man")
@click.option(
    "-o",
    "--output",
    "directory",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write the pages; made if it is not there.",
)
@click.pass_context
def man_command(ctx: click.Context, directory: Path) -> None:
    """Write a manual page for each command: bpfoom.1, bpfoom-attach.1, and so on.

    The date in them is SOURCE_DATE_EPOCH's, if that is set. Needs the Python package click-man.

    \b
    Example:
      bpfoom man -o ~/.local/share/man/man1
    """
    directory.mkdir(parents=True, exist_ok=True)
    pages = {found.command_path: page(found) for found in walk(ctx.find_root().command, "bpfoom")}
    for path, text in pages.items():
        (directory / f"{path.replace(' ', '-')}.1").write_text(text)
    click.echo(f"wrote {len(pages)} pages to {directory}")


def walk(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A context for the command and for every one below it, those that are hidden left out."""
    ctx = click.Context(command, info_name=name, parent=parent)
    yield ctx
    if isinstance(command, click.Group):
        for below in command.list_commands(ctx):
            found = command.get_command(ctx, below)
            if found is not None and not found.hidden:
                yield from walk(found, below, ctx)


def page(ctx: click.Context) -> str:
    """One command's page, as roff. Raises MissingFeatureError without click-man."""
    try:
        from click_man.man import ManPage  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingFeatureError(
            "manual pages are made by click-man, which is not installed",
            hint="pip install click-man",
            object="click-man",
        ) from error
    command = ctx.command
    made = ManPage(ctx.command_path)
    made.version = __version__
    made.short_help = _escaped(_first_sentence(command))
    # ManPage itself escapes hyphens there.
    made.synopsis = " ".join(command.collect_usage_pieces(ctx))
    made.description = _description(command)
    made.options = [
        (names, _escaped(text))
        for option in command.params
        if isinstance(option, click.Option)
        for names, text in [option.get_help_record(ctx) or ("", "")]
        if names
    ]
    if isinstance(command, click.Group):
        found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        made.commands = [
            (name, _escaped(_first_sentence(below)))
            for name, below in found.items()
            if below is not None and not below.hidden
        ]
    return str(made)


def _first_sentence(command: click.Command) -> str:
    return command.get_short_help_str(limit=200).removesuffix(".")


def _description(command: click.Command) -> str:
    """The help's paragraphs; those after a backspace keep their lines, as click has it."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n.PP\n".join(
        f".nf\n{_escaped(text.removeprefix(_KEPT))}\n.fi"
        if text.startswith(_KEPT)
        else _escaped(text)
        for text in paragraphs
    )


def _escaped(text: str) -> str:
    """Text that roff shows as it is: no escapes, no requests, characters that can be copied."""
    plain = text.translate(_GLYPHS)
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in plain.split("\n"))
