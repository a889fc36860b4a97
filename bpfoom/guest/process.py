# SPDX-License-Identifier: Apache-2.0
"""Run the long external commands of the guest room: apt, mmdebstrap, make.

Output goes line by line to a log and to whoever shows progress; a failure carries its last lines.
Commands are argument lists. What they mean is the callers' affair.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bpfoom.errors import BuildError, PreflightError

OnLine = Callable[[str], None]
TAIL_LINES = 30


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True)
class Progress:
    """Whom long work tells: ``stage`` what begins now, ``line`` every line of output below it."""

    stage: OnLine = _ignore
    line: OnLine = _ignore


SILENT = Progress()

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")


def as_root(argv: Sequence[str]) -> list[str]:
    """``argv`` as root runs it, through sudo for anybody else; proxy settings survive sudo."""
    if os.geteuid() == 0:
        return list(argv)
    kept = [f"{name}={os.environ[name]}" for name in _PROXIES if os.environ.get(name)]
    return ["sudo", "--", *(["env", *kept] if kept else []), *argv]


def stream(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    on_line: OnLine | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run ``argv`` and return its exit status and the last lines of stdout and stderr together.

    ``log`` is appended to. ``env`` replaces the environment. Raises PreflightError when the
    program is not installed.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with open(log if log else os.devnull, "a", encoding="utf-8") as out:
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except FileNotFoundError as error:
            raise _missing(argv[0], error) from error
        with child:
            assert child.stdout is not None
            _pump(child.stdout, out, tail, on_line)
    return child.returncode, list(tail)


def must(
    argv: Sequence[str],
    what: str,
    *,
    log: Path | None = None,
    on_line: OnLine | None = None,
    cwd: Path | None = None,
) -> list[str]:
    """Like :func:`stream`, but a failure is a BuildError that says ``what`` and shows the tail."""
    status, tail = stream(argv, log=log, on_line=on_line, cwd=cwd)
    if status:
        raise BuildError(
            f"{what} failed with exit status {status}",
            detail="\n".join(tail),
            hint=f"the whole log is {log}" if log else "",
            log=str(log) if log else "",
            argv=list(argv),
        )
    return tail


def capture(argv: Sequence[str], what: str, *, cwd: Path | None = None) -> str:
    """Stdout of a short command. BuildError, with its stderr, when it fails."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise _missing(argv[0], error) from error
    if done.returncode:
        raise BuildError(
            f"{what} failed: {argv[0]} exited with {done.returncode}",
            detail=done.stderr,
            argv=list(argv),
        )
    return done.stdout


def _missing(program: str, error: OSError) -> PreflightError:
    return PreflightError(
        f"{program} is not installed",
        hint="./run installs what is needed; or install it with apt",
        path=str(error.filename),
    )


def _pump(stream: IO[str], out: IO[str], tail: deque[str], on_line: OnLine | None) -> None:
    """Copy lines until end of file. Flushed per line: people follow the log of a long build."""
    for raw in stream:
        line = raw.rstrip("\n")
        out.write(line + "\n")
        out.flush()
        tail.append(line)
        if on_line:
            on_line(line)
