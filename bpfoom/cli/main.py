# SPDX-License-Identifier: Apache-2.0
"""The top command: which verbs there are, loaded only when called, and how errors end."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from bpfoom import __version__
from bpfoom.errors import BpfoomError
from bpfoom.report.text import clean

# Set by the shell's part of completion, see bpfoom.cli.complete.
COMPLETE = "_BPFOOM_COMPLETE"

# verb -> module that holds a click command of the same name. Imported on use: start-up stays cheap.
VERBS = {
    "attach": "bpfoom.cli.attach",
    "update": "bpfoom.cli.update",
    "detach": "bpfoom.cli.attach",
    "apply": "bpfoom.cli.apply",
    "agent": "bpfoom.cli.agent",
    "marks": "bpfoom.cli.marks",
    "list": "bpfoom.cli.inspect",
    "show": "bpfoom.cli.inspect",
    "status": "bpfoom.cli.inspect",
    "events": "bpfoom.cli.events",
    "explain": "bpfoom.cli.explain",
    "trigger": "bpfoom.cli.trigger",
    "stats": "bpfoom.cli.stats",
    "report": "bpfoom.cli.report",
    "policies": "bpfoom.cli.policies",
    "render": "bpfoom.cli.policies",
    "check": "bpfoom.cli.compile",
    "compile": "bpfoom.cli.compile",
    "new": "bpfoom.cli.new",
    "completion": "bpfoom.cli.complete",
    "man": "bpfoom.cli.man",
    "doctor": "bpfoom.cli.doctor",
    "cache": "bpfoom.cli.cache",
    "kernel": "bpfoom.cli.kernel",
    "vm": "bpfoom.cli.vm",
    "demo": "bpfoom.cli.demo",
    "scenario": "bpfoom.cli.scenario",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(VERBS[cmd_name])
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs by name: with what they say of themselves, all would have to be imported."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(verb) for verb in VERBS if verb.startswith(incomplete)]


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(__version__, prog_name="bpfoom")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Decide per cgroup, inside the kernel, what happens when memory runs out.

    Without a command: the same as `bpfoom status`.

    \b
    Examples:
      bpfoom doctor                  # can handlers be attached here?
      bpfoom policies                # what there is to attach
      bpfoom attach --cgroup shop --policy largest-cgroup
      bpfoom events --follow
    """
    if ctx.invoked_subcommand is None:
        status = cli.get_command(ctx, "status")
        assert status is not None
        ctx.invoke(status)


def report(error: BpfoomError, as_json: bool) -> None:
    """Print one error to stderr: what failed, the long text, and last what to do next."""
    if as_json:
        click.echo(json.dumps(error.as_dict(), default=str), err=True)
        return
    click.echo(f"bpfoom: {clean(error.message)}", err=True)
    if error.shown:
        click.echo(error.shown.rstrip("\n"), err=True)
    if error.hint:
        click.echo(f"hint: {clean(error.hint)}", err=True)


def _drop_output() -> None:
    """What could not be written is not to be tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the codes of README's table."""
    args: list[Any] = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of cgroups are bytes: one that is no text in this locale is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if COMPLETE in os.environ:
        importlib.import_module("bpfoom.cli.complete")  # it adds our bash to click's shells
    try:
        cli.main(args=args, prog_name="bpfoom", standalone_mode=True)
    except BpfoomError as error:
        report(error, "--json" in args)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a file that may not be written
        where = f"{error.filename}: " if error.filename else ""
        report(
            BpfoomError(f"{where}{error.strerror or error}", errno=error.errno), "--json" in args
        )
        _drop_output()
        sys.exit(BpfoomError.exit_code)


if __name__ == "__main__":
    main()
