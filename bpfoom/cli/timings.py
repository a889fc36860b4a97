# SPDX-License-Identifier: Apache-2.0
"""``--timings``: after the command, on stderr, where its time went."""

from __future__ import annotations

import click

from bpfoom import timings


def _tell_at_the_end(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.call_on_close(tell)


TIMINGS_OPTION = click.option(
    "--timings",
    is_flag=True,
    expose_value=False,
    callback=_tell_at_the_end,
    help="Say on stderr where the time went.",
)


def tell() -> None:
    """Print the stages so far: wall-clock and CPU seconds, children's included."""
    stages = timings.report()
    total = timings.Stage(
        "total", sum(stage.seconds for stage in stages), sum(stage.cpu for stage in stages)
    )
    width = max(len(stage.name) for stage in stages)
    click.echo(f"{'stage':{width}}  {'seconds':>8}  {'cpu':>8}", err=True)
    for stage in (*stages, total):
        line = f"{stage.name:{width}}  {stage.seconds:8.3f}  {stage.cpu:8.3f}  {stage.note}"
        click.echo(line.rstrip(), err=True)
