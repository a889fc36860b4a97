# SPDX-License-Identifier: Apache-2.0
"""``bpfoom cache``: what is kept between runs, and throwing it away."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from bpfoom import cache
from bpfoom.cli.output import emit_json
from bpfoom.errors import NotThereError


@click.group(name="cache", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def cache_command(ctx: click.Context, as_json: bool) -> None:
    """List what is cached; `bpfoom cache clear` removes it.

    \b
    Examples:
      bpfoom cache
      bpfoom cache clear objects
    """
    if ctx.invoked_subcommand is not None:
        return
    entries = cache.entries()
    if as_json:
        listed = [
            {"kind": e.kind, "key": e.key, "path": str(e.path), "bytes": e.size, "mtime": e.mtime}
            for e in entries
        ]
        emit_json({"root": str(cache.root()), "entries": listed})
        return
    for entry in entries:
        when = datetime.fromtimestamp(entry.mtime, UTC).strftime("%Y-%m-%d %H:%M")
        click.echo(f"{entry.kind:10} {entry.key:34} {entry.size >> 10:>10} KiB  {when}")
    total = sum(entry.size for entry in entries)
    click.echo(f"{len(entries)} entries, {total >> 20} MiB in {cache.root()}")


@cache_command.command(name="clear")
@click.argument("kind", required=False)
def clear_command(kind: str | None) -> None:
    """Remove all entries, or those of one KIND (such as objects).

    \b
    Example:
      bpfoom cache clear objects
    """
    entries = cache.entries()
    chosen = [entry for entry in entries if kind is None or entry.kind == kind]
    if kind is not None and not chosen:
        kinds = sorted({entry.kind for entry in entries})
        raise NotThereError(
            f"nothing of kind {kind!r} is cached",
            hint=f"cached kinds: {', '.join(kinds) or 'none'}",
            kind=kind,
        )
    for entry in chosen:
        cache.remove(entry)
    for directory in cache.kinds():
        if kind in (None, directory.name):
            cache.sweep(directory)
    click.echo(f"removed {len(chosen)} entries, {sum(e.size for e in chosen) >> 20} MiB")
