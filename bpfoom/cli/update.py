# SPDX-License-Identifier: Apache-2.0
"""``bpfoom update``: change what is attached to a cgroup, with no moment in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import attach, output, view
from bpfoom.cli.marks import marked_for
from bpfoom.cli.timings import TIMINGS_OPTION
from bpfoom.errors import UsageError
from bpfoom.handler import describe, update
from bpfoom.handler.describe import Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.wanted import Wanted
from bpfoom.observe import cgroupfs

LIVE, PROGRAM, NOTHING = "live", "program", "nothing"


@click.command(name="update")
@attach.CGROUP_OPTION
@attach.POLICY_OPTION
@attach.OBJECT_OPTION
@attach.SET_OPTION
@click.option(
    "--dry-run/--no-dry-run", default=None, help="Only record from now on, or act from now on."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was changed as JSON.")
@TIMINGS_OPTION
def update_command(
    cgroup: str,
    policy: str | None,
    object_file: Path | None,
    settings: tuple[str, ...],
    dry_run: bool | None,
    as_json: bool,
) -> None:
    """Change the handler of a cgroup while it is attached.

    Parameters that are not named stay as they are. Live ones change together, for the next OOM;
    anything else is compiled and takes the old program's place. A policy that is named begins
    with its defaults.

    \b
    Examples:
      bpfoom update --cgroup shop --set min=16M
      bpfoom update --cgroup shop --policy swap
    """
    asked = Asked(policy, object_file, attach.parse_settings(settings), dry_run)
    asked.check()
    target = cgroupfs.resolve(cgroup)
    with attach.ready(target) as (btf, where):
        before = describe.handler_of(target.id, target.name, where, btf)
        after = asked.apply(before, target.path, btf, where)
    document = _document(before, after)
    if as_json:
        output.emit_json(document)
    else:
        click.echo(_sentence(document))


@dataclass(frozen=True)
class Asked:
    """What is to be changed; None and empty stand for: leave it as it is."""

    policy: str | None
    file: Path | None
    settings: dict[str, str]
    dry_run: bool | None

    def check(self) -> None:
        """Complain about what can be known without looking at what is attached."""
        if self.policy is not None or self.file is not None:
            Wanted.of(self.policy, self.file, self.settings, self.dry_run).check()
        elif not self.settings and self.dry_run is None:
            raise UsageError(
                "nothing to change", hint="name a parameter with --set, or another policy"
            )

    def apply(self, handler: Handler, cgroup: Path, btf: Btf, where: Pins) -> Handler:
        """Change the handler; it, as it is afterwards."""
        same_code = self.policy is None and self.file is None
        acts_alike = self.dry_run in (None, handler.dry_run)
        if same_code and acts_alike and update.is_live(handler, self.settings):
            return update.set_live(handler, self.settings, btf, where)
        wanted = self._present(handler) if same_code else self._other(handler)
        obj = wanted.compile()
        with marked_for(obj, (), where):
            return update.exchange(obj, handler, cgroup, btf, where, note=wanted.note())

    def _other(self, handler: Handler) -> Wanted:
        """Another policy or object. A policy goes on as a dry run, or goes on acting."""
        dry_run = self.dry_run
        if dry_run is None and self.policy is not None:
            dry_run = handler.dry_run
        return Wanted.of(self.policy, self.file, self.settings, dry_run)

    def _present(self, handler: Handler) -> Wanted:
        """The same policy, compiled again with other values."""
        came_from = handler.provenance.get("object")
        if came_from is not None or "path" not in handler.provenance:
            raise UsageError(
                f"{handler.policy or handler.name} was attached as an object: only its live "
                f"parameters can be set ({self._live(handler)})",
                hint="compile it with the other values, then `bpfoom update --object FILE`",
                object=str(came_from),
            )
        dry_run = handler.dry_run if self.dry_run is None else self.dry_run
        settings = update.carried(handler, self.settings)
        return Wanted.of(str(handler.provenance["path"]), None, settings, dry_run)

    def _live(self, handler: Handler) -> str:
        return ", ".join(p.name for p in handler.parameters if p.live) or "it has none"


def _document(before: Handler, after: Handler) -> dict[str, Any]:
    """What was changed, JSON-ready, beside the handler as it is now."""
    names = dict.fromkeys([*before.values, *after.values])
    changed = [
        {"name": name, "before": before.values.get(name), "after": after.values.get(name)}
        for name in names
        if before.values.get(name) != after.values.get(name)
    ]
    how = PROGRAM if before.prog_id != after.prog_id else LIVE if changed else NOTHING
    return {
        **view.handler(after),
        "how": how,
        "policy_before": before.policy,
        "dry_run_before": before.dry_run,
        "changed": changed,
    }


def _sentence(document: dict[str, Any]) -> str:
    """The same for people, in one line."""
    changes = [
        f"{item['name']} {output.text(item['before'])} -> {output.text(item['after'])}"
        for item in document["changed"]
    ]
    if document["policy"] != document["policy_before"]:
        changes.insert(0, f"{document['policy_before']} -> {document['policy']}")
    if document["dry_run"] != document["dry_run_before"]:
        changes.append("it only records now" if document["dry_run"] else "it acts now")
    if document["how"] == NOTHING:
        return f"{document['policy']} of {document['cgroup']} is set like that already"
    program = ", another program" if document["how"] == PROGRAM else ""
    said = ", ".join(changes) or "compiled and loaded again"
    return f"updated {document['policy']} of {document['cgroup']}: {said}{program}"
