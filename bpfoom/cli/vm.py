# SPDX-License-Identifier: Apache-2.0
"""``bpfoom vm``: run commands in the QEMU guest, open a shell there, keep one running."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli.flavour import chosen, flavour_options
from bpfoom.errors import InfrastructureError, NotThereError, UsageError
from bpfoom.guest.recipe import PLAIN, RECIPES

if TYPE_CHECKING:
    from bpfoom.guest.console import Splat
    from bpfoom.guest.running import CommandResult, Guest
    from bpfoom.guest.session import Session


@dataclass(frozen=True)
class Asked:
    """What the options say of the guest to boot; None is for the usual."""

    flavour: str | None = None
    image: str | None = None
    memory: int | None = None
    cpus: int | None = None
    accel: str | None = None


def _guest_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that describe a guest to boot; the command takes them as one ``Asked``."""

    @wraps(command)
    def collected(
        flavour: str | None,
        image: str | None,
        memory: int | None,
        cpus: int | None,
        accel: str | None,
        **others: Any,
    ) -> None:
        command(Asked(flavour, image, memory, cpus, accel), **others)

    wrapped = flavour_options(collected)
    for option in (
        click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default=None),
        click.option("--cpus", type=click.IntRange(1, 16), default=None),
        click.option("--memory", type=click.IntRange(128), default=None, metavar="MIB"),
        click.option("--image", type=click.Choice(list(RECIPES)), default=None, help=_images()),
    ):
        wrapped = option(wrapped)
    return wrapped


def _images() -> str:
    """The help of ``--image``."""
    return "The root file system: " + "; ".join(f"{r.name}, {r.purpose}" for r in RECIPES.values())


@click.group("vm")
def vm_command() -> None:
    """A QEMU guest with the patched kernel; what it writes to its root file system is not kept.

    \b
    Examples:
      bpfoom vm run -- uname -r
      bpfoom vm shell
    """


# Options end where CMD begins: what follows is CMD's.
@vm_command.command("run", context_settings={"allow_interspersed_args": False})
@_guest_options
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill the command after this long.")
@click.option("--stdin", "with_stdin", is_flag=True, help="Hand our standard input over.")
@click.option("--show-command", is_flag=True, help="Print QEMU's command line and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with the outcome.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def run_command(
    asked: Asked,
    timeout: float | None,
    with_stdin: bool,
    show_command: bool,
    as_json: bool,
    argv: tuple[str, ...],
) -> None:
    """Run CMD as root in the guest and exit with its status.

    Boots a guest for it, unless one was started with `bpfoom vm start` and nothing is asked of it.
    Exits with 69 when the guest is lost or its kernel prints a splat.

    \b
    Examples:
      bpfoom vm run -- uname -r
      bpfoom vm run --image systemd -- systemctl status
      bpfoom vm run --memory 4096 --debug -- bpfoom doctor
    """
    if show_command:
        click.echo(shlex.join(_session(asked, build=False).command()))
        return
    stdin = sys.stdin.buffer.read() if with_stdin else b""
    # As Ctrl-C does: whoever has ended us does not want the command to go on in the guest.
    signal.signal(signal.SIGTERM, _leave)
    with _guest(asked) as guest:
        result = guest.run(
            argv, timeout=timeout, stdin=stdin, on_output=None if as_json else _pass_on
        )
        if as_json:
            click.echo(json.dumps(_described(guest, result), indent=2))
        _fail_on_splats(result.splats)
    sys.exit(result.exit_status)


@vm_command.command("shell")
@_guest_options
def shell_command(asked: Asked) -> None:
    """Open a shell in the guest on this terminal; Ctrl-] leaves it whatever it does.

    \b
    Examples:
      bpfoom vm shell
      bpfoom vm shell --debug
    """
    from bpfoom.guest import shell

    with _guest(asked) as guest:
        click.echo("Ctrl-] leaves", err=True)
        status = shell.interact(guest)
    sys.exit(status)


@vm_command.command("start")
@_guest_options
def start_command(asked: Asked) -> None:
    """Boot a guest that stays for later `vm run` and `vm shell`, until `vm stop`.

    It also ends when nobody used it for half an hour.

    \b
    Example:
      bpfoom vm start --memory 2048
    """
    from bpfoom.guest import session

    if session.started():
        raise UsageError("a guest is running already", hint="bpfoom vm stop")
    booted = _session(asked, stays=True)
    guest = booted.boot()
    session.keep(guest)
    booted.detach()
    click.echo(_facts(guest))


@vm_command.command("stop")
def stop_command() -> None:
    """Power off the guest of `vm start`.

    \b
    Example:
      bpfoom vm stop
    """
    from bpfoom.guest import session

    guest = session.started()
    if guest is None:
        raise NotThereError("no guest is running", hint="bpfoom vm start")
    guest.power_off()


@contextmanager
def _guest(asked: Asked) -> Iterator[Guest]:
    """The started guest if there is one and nothing particular is asked for, else a fresh one."""
    from bpfoom.guest import session

    running = session.started() if asked == Asked() else None
    if running:
        yield running
        return
    booted = _session(asked)
    with booted as guest:
        # Scripts read stderr; they ask with --json.
        if sys.stderr.isatty():
            click.echo(_facts(guest), err=True)
        yield guest
    # What the kernel said while it powered off counts as well.
    _fail_on_splats(booted.last_splats)


def _session(asked: Asked, *, stays: bool = False, build: bool = True) -> Session:
    from bpfoom.cli.progress import progress
    from bpfoom.guest import accel as accelerators
    from bpfoom.guest import session

    flavour, recipe = chosen(asked.flavour), RECIPES[asked.image or PLAIN.name]
    with progress() as shown:
        if build:
            kernel, image = session.prepared(shown, flavour, recipe)
        else:
            kernel, image = session.made(flavour, recipe)
        accelerator = accelerators.choose(kernel, asked.accel or "auto", shown)
    return session.Session(
        kernel,
        image,
        memory_mib=asked.memory or flavour.memory_mib,
        cpus=asked.cpus or session.CPUS,
        accelerator=accelerator,
        stays=stays,
    )


def _facts(guest: Guest) -> str:
    info = guest.info
    size = f"{info.memory_mib} MiB, {info.cpus} CPUs"
    return f"guest: {size}, {info.accelerator}, booted in {info.boot_seconds:.1f} s"


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _pass_on(stream: str, data: bytes) -> None:
    to = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
    to.write(data)
    to.flush()


def _fail_on_splats(splats: Sequence[Splat]) -> None:
    if splats:
        raise InfrastructureError(
            f"the guest's kernel printed {len(splats)} splat(s): {splats[0].title}",
            detail="\n".join(line for splat in splats for line in splat.lines),
            hint="a kernel defect; one that is not ours goes into vm/splat-allow.toml",
            splats=[splat.title for splat in splats],
        )


def _described(guest: Guest, result: CommandResult) -> dict[str, Any]:
    """One JSON document: the command's outcome and the guest it ran in; output as text."""
    return {
        "argv": list(result.argv),
        "exit_status": result.exit_status,
        "stdout": result.stdout.decode("utf-8", "replace"),
        "stderr": result.stderr.decode("utf-8", "replace"),
        "seconds": round(result.seconds, 3),
        "splats": [asdict(splat) for splat in result.splats],
        "guest": asdict(guest.info),
    }
