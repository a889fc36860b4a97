# SPDX-License-Identifier: Apache-2.0
"""New code on trial: what it is held to, going back to the code before it, and settling for it.

The code before stays pinned until one of the two is done, and the new code's provenance says how
long it may fail: whoever looks can watch, also after a watcher has died. Watching itself, that is
reading the decisions, is the callers' (:mod:`bpfoom.observe.trial`); what is made of them is here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import BpfoomError, ForeignPinError, NotThereError, SyscallError, UsageError
from bpfoom.handler import describe, info, samplers, syscalls
from bpfoom.handler.describe import Handler
from bpfoom.handler.load import OpsLayout
from bpfoom.handler.pins import AGENT, PREVIOUS, PREVIOUS_SAMPLER, SAMPLER, Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.policy import record

HISTORY_MAP, STATE_MAP = "bpfoom_history", "bpfoom_state"
LIMIT, SINCE = "rollback_after", "trial_since"

# Who only asks whether somebody watches is in the way of who wants to, for a moment.
_MOMENT_S, _TRIES = 0.01, 10

_IN_FLIGHT = next(bit for bit, name in record.FLAGS.items() if name == "in-flight")
_NONE = next(code for code, name in record.ACTIONS.items() if name == "none")
_PROMISES = {code for code, name in record.ACTIONS.items() if name.endswith("promise")}
_HANDLED = next(code for code, name in record.VERDICTS.items() if name == "HANDLED")


@dataclass(frozen=True)
class Trial:
    """New code on a cgroup, and the code before it, which is still pinned.

    ``limit`` is how often running the new code may decline or fail. Its decisions are those after
    ``since`` (a sequence number) with its ``policy_hash``, as decision records have it.
    """

    cgroup_id: int
    limit: int
    since: int
    policy_hash: int
    map_id: int
    previous_map_id: int
    previous_policy: str

    def concerns(self, fields: Mapping[str, Any]) -> bool:
        """Whether a decision record is one of the code on trial."""
        told = fields["handler_cgroup_id"], fields["policy_hash"]
        ours = told == (self.cgroup_id, self.policy_hash)
        return ours and int(fields["sequence"]) > self.since


class Outcome(Enum):
    UNSETTLED = "unsettled"
    SETTLED = "settled"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True)
class Progress:
    """How often the new code has acted so far, and declined or failed since it last did."""

    acted: int = 0
    running: int = 0

    def outcome(self, limit: int) -> Outcome:
        """What is to be done about it."""
        if self.running >= limit:
            return Outcome.ROLLED_BACK
        return Outcome.SETTLED if self.acted >= limit else Outcome.UNSETTLED


def judged(fields: Mapping[str, Any]) -> bool | None:
    """Whether a decision was one: True if it acted, False if it declined or failed.

    None where it says nothing about the code: a victim was on its way out already, or memory was
    promised, and whether it comes is not known yet. A dry run acts by saying what it would do.
    """
    if fields["flags"] & _IN_FLIGHT:
        return None
    done = fields["action"] != _NONE and fields["kfunc_result"] >= 0
    if not fields["flags"] & record.FLAG_DRY_RUN:
        done = done and fields["verdict"] == _HANDLED
    return None if done and fields["action"] in _PROMISES else done


def step(progress: Progress, limit: int, decisions: Iterable[Mapping[str, Any]]) -> Progress:
    """What has come of a trial after further decisions of its code, given in their order.

    Those after the one that decided it do not count any more.
    """
    for fields in decisions:
        if progress.outcome(limit) is not Outcome.UNSETTLED:
            break
        verdict = judged(fields)
        if verdict is True:
            progress = Progress(progress.acted + 1, 0)
        elif verdict is False:
            progress = replace(progress, running=progress.running + 1)
    return progress


def note(obj: HandlerObject, limit: int, where: Pins) -> dict[str, object]:
    """What the provenance of code on trial says. Raises UsageError where nobody could watch it."""
    if not any(spec.name == HISTORY_MAP for spec in obj.maps):
        raise UsageError(
            f"{obj.provenance.policy} keeps no record of its decisions: nobody can tell whether "
            "it fails",
            hint="extend include/tasks.bpf.c.j2 or include/cgroups.bpf.c.j2, or leave out "
            "--rollback-after",
        )
    return {LIMIT: limit, SINCE: _last_sequence(where)}


def trial_of(handler: Handler, where: Pins, btf: Btf) -> Trial | None:
    """The trial that a handler's code is on; None if it is settled."""
    limit = handler.provenance.get(LIMIT)
    if limit is None:
        return None
    previous = where.open_beside(PREVIOUS, handler.cgroup_id, handler.map_id)
    if previous is None:
        return None
    with previous:
        map_id = info.map_info(previous).id
        before = describe.code_of(previous, OpsLayout.read(btf))
    return Trial(
        cgroup_id=handler.cgroup_id,
        limit=int(limit),
        since=int(handler.provenance.get(SINCE, 0)),
        policy_hash=int(str(handler.provenance.get("policy_hash", "0"))[:16], 16),
        map_id=handler.map_id,
        previous_map_id=map_id,
        previous_policy=str(before.provenance.get("policy", before.name)),
    )


def on_trial(where: Pins, btf: Btf) -> list[tuple[Handler, Trial]]:
    """Every handler whose code is on trial. Raises PermissionDeniedError.

    What others have put in the place of the code before is passed over.
    """
    found = []
    for handler in describe.handlers(where, btf, among=where.with_previous()):
        with suppress(ForeignPinError):
            trial = trial_of(handler, where, btf)
            if trial is not None:
                found.append((handler, trial))
    return found


def go_back(trial: Trial, name: str, cgroup: Path, btf: Btf, where: Pins) -> Handler:
    """Put the code before the one on trial in force again; the handler then.

    ``cgroup`` is the directory, ``name`` for people. Raises NotThereError, and BpfoomError if the
    trial is over meanwhile.
    """
    with where.writing():
        _still_on(trial, name, where, btf)
        link = where.open_link(trial.cgroup_id)
        if link is None:
            raise over(name)
        with (
            link,
            previous_code(trial, where) as (previous, program),
            samplers.started(program, cgroup, btf) as sampler,
        ):
            if sampler is not None:
                where.pin_beside(SAMPLER, trial.cgroup_id, trial.previous_map_id, sampler)
            try:
                syscalls.link_update(link, previous)
            except SyscallError as error:
                if error.data["errno"] == errno.ENOLINK:
                    raise describe.not_attached(name, trial.cgroup_id) from error
                raise
            where.tidy(trial.cgroup_id, trial.previous_map_id)
    return describe.handler_of(trial.cgroup_id, name, where, btf)


def settle(trial: Trial, name: str, btf: Btf, where: Pins) -> None:
    """Let the code before the one on trial go. Raises as :func:`go_back` does."""
    with where.writing():
        _still_on(trial, name, where, btf)
        where.drop_previous(trial.cgroup_id, trial.map_id)


@contextmanager
def previous_code(trial: Trial, where: Pins) -> Iterator[tuple[Fd, Fd | None]]:
    """The map of the code before the one on trial, and its sampler's program. In a writer only."""
    place = trial.cgroup_id, trial.map_id
    ops_map = where.open_beside(PREVIOUS, *place)
    if ops_map is None:
        raise over(f"cgroup {trial.cgroup_id}")
    with ops_map:
        sampler = where.open_beside(PREVIOUS_SAMPLER, *place)
        with sampler or nullcontext():
            yield ops_map, sampler


@contextmanager
def watching(cgroup_id: int, where: Pins) -> Iterator[bool]:
    """Be the one who watches a cgroup's trial; False if somebody else is.

    The kernel gives it up for us, should we die. The agent leaves such trials alone.
    """
    with _taken(where.directory(cgroup_id)) as mine:
        yield mine


def is_watched(cgroup_id: int, where: Pins) -> bool:
    """Whether somebody watches a cgroup's trial now."""
    return _is_taken(where.directory(cgroup_id))


@contextmanager
def being_agent(where: Pins) -> Iterator[bool]:
    """Be the machine's agent, to whom trials are left; False if there is one."""
    with where.writing():
        where.make_agent_directory()
    with _taken(where.base / AGENT) as mine:
        yield mine


def agent_runs(where: Pins) -> bool:
    """Whether there is an agent that watches trials."""
    return _is_taken(where.base / AGENT)


@contextmanager
def _taken(directory: Path) -> Iterator[bool]:
    """Hold a directory's flock; False if somebody else does, or it is not there."""
    held = _lock(directory, fcntl.LOCK_EX)
    for _ in range(_TRIES if directory.is_dir() else 0):
        if held is not None:
            break
        time.sleep(_MOMENT_S)
        held = _lock(directory, fcntl.LOCK_EX)
    with held or nullcontext():
        yield held is not None


def _is_taken(directory: Path) -> bool:
    """Whether somebody holds a directory's flock. Any number may ask at a time."""
    held = _lock(directory, fcntl.LOCK_SH)
    if held is None:
        return directory.is_dir()
    held.close()
    return False


def _lock(directory: Path, how: int) -> Fd | None:
    try:
        held = Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return None
    try:
        fcntl.flock(held.fileno(), how | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    return held


def _last_sequence(where: Pins) -> int:
    """The number of the machine's last decision; 0 if there was none."""
    state = where.open_shared(STATE_MAP)
    if state is None:
        return 0
    with state:
        return int.from_bytes(syscalls.map_lookup(state, bytes(4), 8), "little")


def _still_on(trial: Trial, name: str, where: Pins, btf: Btf) -> None:
    present = describe.handler_of(trial.cgroup_id, name, where, btf)
    found = trial_of(present, where, btf)
    if found is None or found.map_id != trial.map_id:
        raise over(name)


def over(name: str) -> BpfoomError:
    """The error for who finds a trial ended by somebody else."""
    return BpfoomError(
        f"the trial on {name} is over: somebody else has ended it",
        hint=f"`bpfoom show --cgroup {name}` says what is attached",
        path=name,
    )


def no_trial(name: str) -> NotThereError:
    """The error where there is nothing to go back to, or to settle."""
    return NotThereError(
        f"the handler of {name} is settled: there is no code before it to go back to",
        hint="`bpfoom update --rollback-after N` keeps it until the new code has proved itself",
        path=name,
    )
