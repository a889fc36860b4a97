# SPDX-License-Identifier: Apache-2.0
"""``bpfoom update``: change what is attached to a cgroup, with no moment in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import attach, options, output, raised, trial, view
from bpfoom.cli.marks import marked_for
from bpfoom.cli.timings import TIMINGS_OPTION
from bpfoom.cli.trial import Place
from bpfoom.errors import UsageError
from bpfoom.handler import raises, rollback, update
from bpfoom.handler.describe import Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.rollback import Outcome
from bpfoom.handler.wanted import Wanted
from bpfoom.observe import cgroupfs
from bpfoom.observe.trial import progress_of

LIVE, PROGRAM, ROLLBACK, NOTHING = "live", "program", "rollback", "nothing"


@click.command(name="update")
@options.CGROUP_OPTION
@options.POLICY_OPTION
@options.OBJECT_OPTION
@options.SET_OPTION
@click.option(
    "--dry-run/--no-dry-run", default=None, help="Only record from now on, or act from now on."
)
@click.option(
    "--rollback-after",
    metavar="N",
    type=click.IntRange(min=1),
    help="Back to the code of now, should the new one decline or fail N times running.",
)
@click.option("--watch", "by_hand", flag_value="watch", help="Go on watching code on trial.")
@click.option("--settle", "by_hand", flag_value="settle", help="Let the code before it go.")
@click.option("--rollback", "by_hand", flag_value="rollback", help="Go back to the code before it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was changed as JSON.")
@TIMINGS_OPTION
@click.pass_context
def update_command(
    ctx: click.Context,
    cgroup: str,
    policy: str | None,
    object_file: Path | None,
    settings: tuple[str, ...],
    dry_run: bool | None,
    rollback_after: int | None,
    by_hand: str | None,
    as_json: bool,
) -> None:
    """Change the handler of a cgroup while it is attached.

    Parameters that are not named stay as they are. Live ones change together, for the next OOM;
    anything else is compiled and takes the old program's place. A policy that is named begins
    with its defaults.

    With --rollback-after the old program stays at hand until the new one has acted N times. The
    agent watches if one runs, else this command does, in the foreground, and exits with 1 if it
    had to go back. --watch, --settle and --rollback are for a trial that nobody watches.

    \b
    Examples:
      bpfoom update --cgroup shop --set min=16M
      bpfoom update --cgroup shop --policy swap
      bpfoom update --cgroup shop --policy swap --rollback-after 3
      bpfoom update --cgroup shop --rollback
    """
    asked = Asked(policy, object_file, options.parse_settings(settings), dry_run, rollback_after)
    asked.check(by_hand)
    target = cgroupfs.resolve(cgroup)
    with attach.ready(target) as (btf, where):
        document = _update(asked, by_hand, trial.Place(target, btf, where), as_json)
    if document["how"] == ROLLBACK and by_hand != "rollback":
        ctx.exit(1)


def _update(asked: Asked, by_hand: str | None, place: Place, as_json: bool) -> dict[str, Any]:
    """Do what is asked and tell of it; what was told, JSON-ready."""
    before = place.handler()
    begun = rollback.trial_of(before, place.where, place.btf)
    with raises.held(before.map_ids) as limits:
        made = _by_hand(by_hand, place, as_json) if by_hand else _change(asked, place, as_json)
        after = place.handler()
        document = {
            **_document(before, after),
            "raised": raised.document(limits(after.map_ids)),
            "trial": made or trial.present(after, place.where, place.btf),
        }
    if made is not None and made["outcome"] == Outcome.ROLLED_BACK.value:
        document["how"] = ROLLBACK
    if as_json:
        output.emit_json(document)
        return document
    _tell(document, begun=made is not None and made["watched_by"] is None)
    if begun and document["trial"] is None:
        output.say(f"the trial before is over: {begun.previous_policy} is let go")
    return document


def _change(asked: Asked, place: Place, quiet: bool) -> dict[str, Any] | None:
    """Change the handler, and watch what is new if nobody else will; the trial if it was watched.

    What is on trial then, and unwatched, the caller sees for itself.
    """
    before = place.handler()
    after = asked.apply(before, place.target.path, place.btf, place.where)
    found = rollback.trial_of(after, place.where, place.btf)
    if found is None or asked.rollback_after is None:
        return None
    if rollback.agent_runs(place.where):
        unsettled = (rollback.Progress(), Outcome.UNSETTLED, trial.AGENT)
        return trial.document(found, *unsettled)
    if not quiet:
        output.say(_sentence(_document(before, after)))
    return trial.watch(place, found, quiet=quiet)


def _by_hand(what: str, place: Place, quiet: bool) -> dict[str, Any]:
    """Go on with a trial, or end it; it as it is then."""
    found = place.trial()
    if what == "watch":
        return trial.watch(place, found, quiet=quiet)
    progress = progress_of(found, place.where)
    if what == "settle":
        place.settle(found)
        return trial.document(found, progress, Outcome.SETTLED, None)
    place.go_back(found)
    return trial.document(found, progress, Outcome.ROLLED_BACK, None)


@dataclass(frozen=True)
class Asked:
    """What is to be changed; None and empty stand for: leave it as it is."""

    policy: str | None
    file: Path | None
    settings: dict[str, str]
    dry_run: bool | None
    rollback_after: int | None = None

    def check(self, by_hand: str | None = None) -> None:
        """Complain about what can be known without looking at what is attached."""
        if by_hand is not None:
            if self != Asked(None, None, {}, None):
                raise UsageError(
                    f"--{by_hand} changes nothing else",
                    hint="give it alone, with --cgroup",
                )
        elif self.policy is not None or self.file is not None:
            Wanted.of(self.policy, self.file, self.settings, self.dry_run).check()
        elif not self.settings and self.dry_run is None:
            raise UsageError(
                "nothing to change", hint="name a parameter with --set, or another policy"
            )

    def apply(self, handler: Handler, cgroup: Path, btf: Btf, where: Pins) -> Handler:
        """Change the handler; it, as it is afterwards."""
        same_code = self.policy is None and self.file is None
        acts_alike = self.dry_run in (None, handler.dry_run)
        live = same_code and acts_alike and update.is_live(handler, self.settings)
        # Values are no code, but a program of their own is what they can be taken back with.
        if live and self.rollback_after is None:
            return update.set_live(handler, self.settings, btf, where)
        wanted = self._present(handler) if same_code else self._other(handler)
        obj = wanted.compile()
        with marked_for(obj, (), where):
            return update.exchange(
                obj,
                handler,
                cgroup,
                btf,
                where,
                note=wanted.note(),
                rollback_after=self.rollback_after,
            )

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


def _tell(document: dict[str, Any], *, begun: bool) -> None:
    """All of it for people, but for what was said already when watching begun."""
    if not begun:
        output.say(_sentence(document))
    raised.tell(document["raised"])
    if document["trial"] is not None:
        output.say(trial.sentence(document["trial"], document["cgroup"]))


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
    elif document["dry_run"] and document["how"] != NOTHING:
        changes.append("it still only records (--no-dry-run has it act)")
    if document["how"] == NOTHING:
        return f"{document['policy']} of {document['cgroup']} is set like that already"
    program = ", another program" if document["how"] == PROGRAM else ""
    said = ", ".join(changes) or "compiled and loaded again"
    return f"updated {document['policy']} of {document['cgroup']}: {said}{program}"
