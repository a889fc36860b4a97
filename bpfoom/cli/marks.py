# SPDX-License-Identifier: Apache-2.0
"""``bpfoom marks``: who is to go first, last, or never; and ``attach --mark``."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli import complete, output, view
from bpfoom.errors import UsageError
from bpfoom.handler import marks, pins
from bpfoom.handler.marks import Mark, Rule
from bpfoom.handler.pins import Pins
from bpfoom.observe import cgroupfs, globs
from bpfoom.observe import marks as observed
from bpfoom.observe.marks import Change, Synced
from bpfoom.report.text import counted
from bpfoom.timings import stage

if TYPE_CHECKING:
    from bpfoom.compiler.object import HandlerObject

COLUMNS = {
    "cgroup": "CGROUP",
    "preference": "PREFERENCE",
    "preference_from": "FROM",
    "priority": "PRIORITY",
    "priority_from": "FROM",
}
_WAKE_S = 1.0

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
BASE_OPTION = click.option(
    "--cgroup",
    default="/",
    metavar="PATH",
    shell_complete=complete.cgroups,
    help="What the globs are below; default the root.",
)


@click.group(name="marks")
def marks_command() -> None:
    """Mark cgroups: avoid, protect or omit them, or give them a priority.

    Policies that look at marks are `priority`, and any other inside of `protect`. A cgroup without
    a mark has that of the nearest one above it.

    \b
    Examples:
      bpfoom marks set 'batch/*=priority:-5' --cgroup shop
      bpfoom marks show shop/batch/one
    """


@marks_command.command(name="list")
@JSON_OPTION
def list_command(as_json: bool) -> None:
    """List the cgroups that are marked, and where from.

    \b
    Example:
      bpfoom marks list
    """
    where = pins.find()
    document: dict[str, Any] = {"marks": [], "globs": [], "stale": 0}
    if where is not None:
        document = _listed(where)
    if as_json:
        output.emit_json(document)
        return
    if document["marks"]:
        output.emit_table(COLUMNS, document["marks"])
    else:
        click.echo("no cgroup is marked")
    for item in document["globs"]:
        tell_glob(item)
    if document["stale"]:
        output.say(f"out of date: {document['stale']}; `bpfoom marks sync`")


@marks_command.command(name="show")
@click.argument("path", shell_complete=complete.cgroups)
@JSON_OPTION
def show_command(path: str, as_json: bool) -> None:
    """Show what holds for one cgroup, and which cgroup it has that from.

    \b
    Example:
      bpfoom marks show shop/batch/one
    """
    document = _effective(cgroupfs.resolve(path))
    if as_json:
        output.emit_json(document)
    else:
        output.emit_fields({key.replace("_", " "): value for key, value in document.items()})


@marks_command.command(name="set")
@click.argument("given", metavar="GLOB=MARK...", nargs=-1, required=True)
@BASE_OPTION
@JSON_OPTION
def set_command(given: tuple[str, ...], cgroup: str, as_json: bool) -> None:
    """Mark the cgroups that a glob matches, those that come later too.

    A mark is normal, avoid, protect, omit, priority:N, or both as in avoid,priority:5. In a glob
    * is anything in a name, ** any number of names; with a slash at its beginning it is one from
    the root, else below --cgroup.

    \b
    Example:
      bpfoom marks set 'batch/*=priority:-5' 'api=protect' --cgroup shop
    """
    more = [parse(text, cgroupfs.resolve(cgroup).name) for text in given]
    done = observed.sync(pins.require(), lambda rules: observed.added(rules, more))
    _report(done, as_json)
    for rule in more:
        if not as_json and not _matched(rule, done):
            output.say(f"no cgroup matches {rule.pattern} yet: `bpfoom marks sync` marks new ones")


@marks_command.command(name="clear")
@click.argument("given", metavar="GLOB...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every glob; attributes stay.")
@BASE_OPTION
@JSON_OPTION
def clear_command(given: tuple[str, ...], everything: bool, cgroup: str, as_json: bool) -> None:
    """Forget globs, and take away the marks that came from them.

    \b
    Examples:
      bpfoom marks clear 'batch/*' --cgroup shop
      bpfoom marks clear --all
    """
    if bool(given) == everything:
        raise UsageError("name globs, or give --all")
    base = cgroupfs.resolve(cgroup).name if given else "/"
    patterns = [Rule(base, globs.check(glob), Mark()).pattern for glob in given]

    def edit(rules: tuple[Rule, ...]) -> Sequence[Rule]:
        return [] if everything else observed.without(rules, patterns)

    _report(observed.sync(pins.require(), edit), as_json)


@marks_command.command(name="sync")
@click.option("--follow", is_flag=True, help="Go on as cgroups come and go, until interrupted.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, with --follow one line a change."
)
def sync_command(follow: bool, as_json: bool) -> None:
    """Bring the marks up to date: new cgroups, cgroups that are gone, attributes.

    \b
    Examples:
      bpfoom marks sync
      bpfoom marks sync --follow
    """
    where = pins.require()
    if follow:
        _follow(where, as_json)
    else:
        _report(observed.sync(where), as_json)


def parse(text: str, base: str) -> Rule:
    """``GLOB=MARK`` below a cgroup. Raises UsageError."""
    glob, equals, mark = text.rpartition("=")
    if not equals:
        raise UsageError(f"{text!r}: expected GLOB=MARK", hint="such as 'batch/*=priority:-10'")
    return Rule(base, globs.check(glob), Mark.parse(mark))


@contextmanager
def marked_for(obj: HandlerObject, rules: Sequence[Rule], where: Pins) -> Iterator[None]:
    """Have the marks in place before the block attaches the object; as before if it fails."""
    if not marks.used_by(obj):
        if rules:
            policy = obj.provenance.policy
            raise UsageError(
                f"{policy} does not look at marks",
                hint=f"have protect do it: --policy protect --set inner={policy}",
            )
        yield
        return
    before = marks.read_rules(where)
    try:
        with stage("marks"):
            observed.sync(where, lambda present: observed.added(present, rules))
        yield
    except BaseException:
        if rules:
            observed.sync(where, lambda present: observed.undone(present, before, rules))
        raise
    # Whose attributes are believed depends on who watches.
    with stage("marks"):
        observed.sync(where)


def _matched(rule: Rule, done: Synced) -> bool:
    names = (node.name for node, _ in done.marked.values())
    return any(globs.matches(rule.base, rule.glob, name) for name in names)


def _listed(where: Pins) -> dict[str, Any]:
    shared = marks.open_marks(where)
    present = {}
    if shared is not None:
        with shared:
            present = marks.read_all(shared)
    rules = marks.read_rules(where)
    found = observed.survey(where, rules)
    wanted = {number: marked.mark for number, (_, marked) in found.items()}
    stale = sum(present.get(n) != wanted.get(n) for n in present.keys() | wanted.keys())
    rows = []
    for number, mark in present.items():
        node, why = found.get(number, (None, observed.Marked(Mark())))
        rows.append(
            {
                "cgroup": node.name if node else view.cgroup_name(number),
                "cgroup_id": number,
                "preference": mark.preference,
                "preference_from": why.preference_from if mark.preference else None,
                "priority": mark.priority,
                "priority_from": None if mark.priority is None else why.priority_from,
            }
        )
    return {"marks": sorted(rows, key=_by_name), "globs": glob_documents(rules), "stale": stale}


def _by_name(row: dict[str, Any]) -> str:
    return str(row["cgroup"])


def glob_documents(rules: Iterable[Rule]) -> list[dict[str, str | None]]:
    """The globs, JSON-ready; ``by`` is the configuration file that has one, None for people's."""
    return [{"glob": r.pattern, "mark": str(r.mark), "by": r.by or None} for r in rules]


def tell_glob(fields: Mapping[str, str | None]) -> None:
    """The same of one, for people."""
    by = f" (of {fields['by']})" if fields["by"] else ""
    output.say(f"glob {fields['glob']}: {fields['mark']}{by}")


def _effective(target: cgroupfs.Cgroup) -> dict[str, Any]:
    """What handlers find for a cgroup. Those without a memory controller are none for them."""
    lineage = [c for c in cgroupfs.lineage(target) if "memory" in c.controllers()]
    names = {cgroup.id: cgroup.name for cgroup in lineage}
    where = pins.find()
    shared = marks.open_marks(where) if where else None
    found: dict[int, Mark] = {}
    if shared is not None:
        with shared:
            reads = ((number, marks.read(shared, number)) for number in names)
            found = {number: mark for number, mark in reads if mark is not None}
    holds = observed.effective(found, list(names))
    return {
        "cgroup": target.name,
        "cgroup_id": target.id,
        "preference": holds.preference,
        "preference_from": names.get(holds.preference_from or 0),
        "priority": holds.priority,
        "priority_from": names.get(holds.priority_from or 0),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "cgroup": change.name or view.cgroup_name(change.cgroup_id),
        "cgroup_id": change.cgroup_id,
        "before": str(change.before) if change.before else None,
        "after": str(change.after) if change.after else None,
    }


def _tell(change: dict[str, Any]) -> None:
    text = f"marked {change['cgroup']}: {change['after']}"
    if change["after"] is None:
        text = f"unmarked {change['cgroup']}"
    output.say(f"{text} (was {change['before']})" if change["before"] else text)


def _report(done: Synced, as_json: bool) -> None:
    changes = [_change(change) for change in done.changes]
    if as_json:
        output.emit_json({"changes": changes, "marked": len(done.marked)})
        return
    for change in changes:
        _tell(change)
    if not changes:
        click.echo(f"nothing to change: {counted(len(done.marked), 'cgroup')} marked")


def _follow(where: Pins, as_json: bool) -> None:
    from bpfoom.observe.follow import Follower

    interrupted = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with Follower(where) as follower:
        seen = follower.start()
        while True:
            if seen.error:
                raise seen.error
            for change in seen.changes:
                if as_json:
                    output.emit_json_line(_change(change))
                else:
                    _tell(_change(change))
            if interrupted:
                return
            seen = follower.wait(_WAKE_S)
