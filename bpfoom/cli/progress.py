# SPDX-License-Identifier: Apache-2.0
"""Progress of long guest work on stderr: a live line on a terminal, plain lines elsewhere.

The guest room reports stages and lines of output; this decides what people see of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bpfoom.guest.process import Progress

# Where nothing redraws, long work says every so often that it is alive.
_PLAIN_EVERY_S = 30.0


@contextmanager
def progress() -> Iterator[Progress]:
    """A :class:`Progress` that shows itself while the block runs."""
    if not sys.stderr.isatty():
        yield Progress(_say, _Pulse())
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    lines = 0
    with console.status("") as live:

        def stage(text: str) -> None:
            console.print(text, markup=False, highlight=False)

        def line(text: str) -> None:
            nonlocal lines
            lines += 1
            live.update(f"{lines:5} {escape(' '.join(text.split())[:70])}")

        yield Progress(stage, line)


class _Pulse:
    """Says now and then how many lines of output there have been."""

    def __init__(self) -> None:
        self.lines = 0
        self.said = time.monotonic()

    def __call__(self, text: str) -> None:
        self.lines += 1
        now = time.monotonic()
        if now - self.said >= _PLAIN_EVERY_S:
            self.said = now
            _say(f"  ... {self.lines} lines, now: {' '.join(text.split())}")


def _say(text: str) -> None:
    click.echo(text, err=True)
