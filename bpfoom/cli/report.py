# SPDX-License-Identifier: Apache-2.0
"""``bpfoom report``: result documents as one HTML page to look at and to pass on."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bpfoom.cli.output import say
from bpfoom.errors import UsageError

_PATH = click.Path(path_type=Path)


@click.command("report")
@click.argument("results", nargs=-1, required=True, metavar="RESULT...", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="The file to write; without it, stdout.")
def report_command(results: tuple[Path, ...], output: Path | None) -> None:
    """Write one HTML page about runs: who was chosen and why, memory and pressure over time.

    RESULT is what --result of `bpfoom demo`, `scenario run` and `events --follow` wrote. Runs of
    one scenario are put side by side, whatever files they are in. The page needs no network.

    \b
    Example:
      bpfoom report demo.json -o demo.html
      bpfoom report stock.json mine.json > both.html
    """
    if output is None and sys.stdout.isatty():
        raise UsageError("a page is nothing for a terminal", hint="name a file: -o report.html")
    from bpfoom.files import write_whole
    from bpfoom.observe import result
    from bpfoom.report import page
    from bpfoom.report.groups import Source

    sources = [Source(path.name, result.read_file(path)) for path in results]
    html = page.render(sources).encode()
    if output is None:
        sys.stdout.buffer.write(html)
        return
    write_whole(output, html)
    number = sum(len(source.document.runs) for source in sources)
    say(f"{output}: {number} run{'' if number == 1 else 's'}")
