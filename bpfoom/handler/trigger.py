# SPDX-License-Identifier: Apache-2.0
"""Triggers: programs that declare an OOM of a cgroup when its memory pressure passes a threshold.

Pinned, so that no process has to stay. The program is two functions: what watches must not sleep
and hands the declaration to a work queue of the kernel's, which lives in a map. That map the kernel
lets go unless somebody holds it, so it is pinned, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bpfoom.btf.program import Function, describe, work_queue
from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject, MapSpec, Program
from bpfoom.compiler.programs import TRIGGER
from bpfoom.errors import (
    BpfoomError,
    ForeignPinError,
    LintError,
    MissingFeatureError,
    NotThereError,
)
from bpfoom.handler import compare, info, maps, pinned, pins, samplers, syscalls, verifier
from bpfoom.handler.describe import provenance_of
from bpfoom.handler.load import function_id, make_map, provenance_map, tracepoint_of
from bpfoom.handler.pins import Pins
from bpfoom.handler.relocate import relocate
from bpfoom.handler.syscalls import Fd, ProgFd
from bpfoom.policy import trigger
from bpfoom.policy.trigger import Settings, State

WORK_MAP = "bpfoom_work"
# The root's pressure is the system's, which is no cgroup's in the kernel.
_ROOT_ID, _SYSTEM = 1, 0
_INSN = 8


@dataclass(frozen=True)
class Trigger:
    """A trigger as it is now; ``provenance`` is what was bound to its program when it was set."""

    cgroup_id: int
    settings: Settings
    state: State
    link_id: int
    prog_id: int
    provenance: dict[str, Any] = field(default_factory=dict)


def set_trigger(
    obj: HandlerObject,
    cgroup: Path,
    settings: Settings,
    btf: Btf,
    where: Pins,
    *,
    note: Mapping[str, object] = MappingProxyType({}),
) -> Trigger:
    """Give the cgroup at that directory a trigger, in the place of the one it has.

    What that one has declared is carried over, and so its cooldown goes on. Raises what
    :func:`bpfoom.handler.load.load` and :func:`require_pressure` do.
    """
    require_pressure(cgroup, str(note.get("cgroup", cgroup)))
    compare.check(obj, btf)
    cgroup_id = _id_of(cgroup)
    attach_type = btf.enum_value("bpf_attach_type", "BPF_TRACE_RAW_TP")
    with where.writing():
        where.require_trigger_room(cgroup_id)
        present = trigger_of(cgroup_id, where)
        state = present.state if present else State()
        psi_id = _SYSTEM if cgroup_id == _ROOT_ID else cgroup_id
        initial = trigger.encode(psi_id, settings, state)
        with _loaded(obj, btf, initial, note) as (program, work):
            # Two at once would declare twice.
            where.unpin_trigger(cgroup_id)
            with syscalls.link_create(program, 0, attach_type=attach_type, flags=0) as link:
                where.pin_trigger(cgroup_id, link, work)
        made = trigger_of(cgroup_id, where)
    assert made is not None
    return made


def require_pressure(cgroup: Path, name: str) -> None:
    """Raise MissingFeatureError where nobody watches the pressure of a directory's cgroup.

    ``name`` is for people.
    """
    samplers.require_pressure("a trigger looks at pressure")
    file = cgroup / "cgroup.pressure"
    with suppress(OSError):  # an older kernel always watches; so does the root
        if file.read_text().strip() == "0":
            raise MissingFeatureError(
                f"the pressure of {name} is not watched", hint=f"echo 1 > {file}", path=name
            )


def _id_of(cgroup: Path) -> int:
    try:
        return os.stat(cgroup).st_ino
    except OSError as error:
        raise NotThereError(f"there is no cgroup {cgroup} any more", path=str(cgroup)) from error


def remove(cgroup_id: int, where: Pins) -> Trigger | None:
    """Take a cgroup's trigger away; what it was, None if there was none."""
    with where.writing():
        present = trigger_of(cgroup_id, where)
        if present is not None:
            where.unpin_trigger(cgroup_id)
    return present


def sweep(
    where: Pins, exists: Callable[[int], bool], among: Container[int] | None = None
) -> list[int]:
    """Remove the triggers of cgroups that are gone, and what killed commands left of them.

    ``among`` are ids of the only cgroups to look at. What others have put there stays:
    :mod:`bpfoom.handler.foreign` names it.
    """
    gone = []
    with where.writing():
        for cgroup_id in where.cgroup_ids():
            if among is None or cgroup_id in among:
                with suppress(ForeignPinError):
                    if _sweep(cgroup_id, where, exists):
                        gone.append(cgroup_id)
    return gone


def _sweep(cgroup_id: int, where: Pins, exists: Callable[[int], bool]) -> bool:
    """Whether a trigger was removed."""
    link = where.open_trigger(cgroup_id)
    if link is not None:
        link.close()
        if exists(cgroup_id):
            return False
    where.unpin_trigger(cgroup_id)
    return link is not None


def triggers(where: Pins) -> list[Trigger]:
    """All triggers, by cgroup id. Raises PermissionDeniedError."""
    found = []
    for cgroup_id in where.cgroup_ids():
        # What others have put there is for bpfoom.handler.foreign to name.
        with suppress(ForeignPinError):
            found.append(trigger_of(cgroup_id, where))
    return [one for one in found if one is not None]


def trigger_of(cgroup_id: int, where: Pins) -> Trigger | None:
    """A cgroup's trigger, or None. Raises ForeignPinError if something else is in its place."""
    link = where.open_trigger(cgroup_id)
    if link is None:
        return None
    with link:
        about = info.link_info(link)
        map_ids = _maps(about.prog_id)
        # The link keeps the program, and that its maps, for as long as we hold it.
        elements = maps.elements(map_ids, trigger.MAP)
        if [len(raw) for raw in elements] != [trigger.SIZE]:
            path = where.directory(cgroup_id) / pins.TRIGGER
            raise pinned.foreign(path, "another link", "not a trigger's")
        settings, state = trigger.decode(elements[0])
        return Trigger(cgroup_id, settings, state, about.id, about.prog_id, provenance_of(map_ids))


def _maps(prog_id: int) -> tuple[int, ...]:
    """The ids of a program's maps; none for a link that has no program."""
    if not prog_id:
        return ()
    with syscalls.prog_by_id(prog_id) as program:
        return info.prog_info(program).map_ids


@contextmanager
def _loaded(
    obj: HandlerObject, btf: Btf, initial: bytes, note: Mapping[str, object]
) -> Iterator[tuple[ProgFd, Fd]]:
    """The program, loaded, and the map of its work."""
    with ExitStack() as owned:
        made = {spec.name: owned.enter_context(_map(spec, initial)) for spec in obj.maps}
        provenance = owned.enter_context(make_map(provenance_map(obj, note)))
        program = owned.enter_context(_program(obj, btf, made))
        syscalls.prog_bind_map(program, provenance)
        yield program, made[WORK_MAP]


def _map(spec: MapSpec, initial: bytes) -> Fd:
    if spec.name == trigger.MAP:
        return make_map(replace(spec, initial=initial))
    if spec.name != WORK_MAP:
        return make_map(spec)
    types = work_queue()
    with syscalls.btf_load(types.btf) as known:
        return syscalls.map_create(
            spec.type,
            spec.name,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            btf_fd=known.fileno(),
            key_value_types=(types.key, types.value),
        )


def _program(obj: HandlerObject, btf: Btf, made: Mapping[str, Fd]) -> ProgFd:
    functions = _functions(obj)
    whole, starts = _joined(functions)
    kfuncs = {kfunc.name: function_id(btf, kfunc.name) for kfunc in obj.kfuncs}
    numbers = {name: fd.fileno() for name, fd in made.items()}
    attach_btf_id, attach_type = tracepoint_of(whole, btf)
    try:
        return syscalls.prog_load(
            whole.name,
            relocate(whole, kfuncs, numbers, starts),
            kind=whole.type,
            attach_btf_id=attach_btf_id,
            attach_type=attach_type,
            sleepable=whole.sleepable,
            described=describe(Function(f.name, starts[f.name], _lines(f)) for f in functions),
        )
    except BpfoomError as error:
        if not error.detail.strip():
            raise
        raise verifier.refused(whole, error) from error


def _functions(obj: HandlerObject) -> list[Program]:
    """The object's functions, what watches first. Raises LintError if it is no trigger."""
    parts = {program.name: program for program in obj.programs}
    if set(parts) != set(TRIGGER):
        raise LintError(
            f"{obj.provenance.policy} is no trigger but a policy",
            hint="`bpfoom attach` takes it",
            object=obj.provenance.policy,
        )
    return [parts[name] for name in TRIGGER]


def _joined(functions: list[Program]) -> tuple[Program, dict[str, int]]:
    """Functions as one program, called as its first one, and where each of them begins."""
    starts: dict[str, int] = {}
    insns, relocations, lines = b"", [], []
    for function in functions:
        start = starts[function.name] = len(insns) // _INSN
        insns += function.insns
        relocations += [replace(r, insn=r.insn + start) for r in function.relocations]
        lines += [replace(line, insn=line.insn + start) for line in function.lines]
    whole = replace(functions[0], insns=insns, relocations=tuple(relocations), lines=tuple(lines))
    return whole, starts


def _lines(function: Program) -> list[tuple[int, str, int, str]]:
    return [(line.insn, line.path, line.line, line.text) for line in function.lines]
