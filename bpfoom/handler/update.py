# SPDX-License-Identifier: Apache-2.0
"""Change what is attached: live parameters as one set, anything else by exchanging the program.

Both are one step for the kernel: an OOM meets the old or the new, never none and never a mix.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject, Parameter
from bpfoom.errors import BpfoomError, NotThereError, SyscallError
from bpfoom.handler import describe, info, maps, params, rollback, samplers, syscalls
from bpfoom.handler.describe import Handler
from bpfoom.handler.load import Loaded, load
from bpfoom.handler.params import LiveSets
from bpfoom.handler.pins import PREVIOUS, PREVIOUS_SAMPLER, SAMPLER, Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.timings import stage


def is_live(handler: Handler, settings: Mapping[str, str]) -> bool:
    """Whether these settings can be changed without another program."""
    live = {parameter.name for parameter in handler.parameters if parameter.live}
    return bool(handler.live) and live.issuperset(settings)


def carried(handler: Handler, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of the next program: these, and for the others what they are now.

    Where the policy that a wrapper takes is another one, its parameters begin with their defaults.
    """
    wrapped = [
        f"{parameter.name}."
        for parameter in handler.parameters
        if parameter.type == "policy"
        and settings.get(parameter.name, parameter.value) != parameter.value
    ]
    kept = {
        name: value
        for name, value in handler.values.items()
        if not any(name.startswith(prefix) for prefix in wrapped)
    }
    return kept | dict(settings)


def set_live(handler: Handler, settings: Mapping[str, str], btf: Btf, where: Pins) -> Handler:
    """Change live parameters, all of them at once; the handler as it is afterwards.

    Raises NotThereError (detached meanwhile), ParameterError, and BpfoomError if a call of the
    handler does not come to its end.
    """
    name = _name(handler)
    with where.writing():
        present = describe.handler_of(handler.cgroup_id, name, where, btf)
        values = params.changed(present.parameters, present.live, settings)
        if values != present.live:
            _write(present, values)
    return describe.handler_of(handler.cgroup_id, name, where, btf)


def _write(handler: Handler, values: bytes) -> None:
    sets = LiveSets.of_program(handler.map_ids)
    if sets is None:
        raise _meanwhile(handler)
    with sets:
        sets.write(values)


def exchange(
    obj: HandlerObject,
    handler: Handler,
    cgroup: Path,
    btf: Btf,
    where: Pins,
    *,
    note: Mapping[str, object],
    rollback_after: int | None = None,
) -> Handler:
    """Exchange the program of the handler of a directory's cgroup by an object's; the handler then.

    The link stays, and with it the kernel's counters; :func:`bpfoom.handler.maps.state` says what
    else does. With ``rollback_after`` the new code is on trial: the last code that was settled
    stays pinned. Without, it is settled at once. Raises what :func:`bpfoom.handler.load.load`
    does, NotThereError if the cgroup is gone, and BpfoomError if somebody else has changed the
    handler since ``handler`` was read.
    """
    told = {
        "attached_at": handler.attached_at,
        "updated_at": round(time.time(), 3),
        "cgroup": _name(handler),
        **note,
        **(rollback.note(obj, rollback_after, where) if rollback_after is not None else {}),
    }
    same_policy = _policies(obj.provenance.policy, obj.parameters) == _policies(
        handler.policy, handler.parameters
    )
    try:
        program = syscalls.prog_by_id(handler.prog_id)
    except SyscallError as error:
        raise _meanwhile(handler) from error
    # The program keeps its maps for as long as we hold it.
    with (
        program,
        maps.state(handler.map_ids, obj, same_policy=same_policy) as kept,
        load(obj, btf, where, note=told, kept=kept) as loaded,
        stage("exchange"),
        where.writing(),
    ):
        present = describe.handler_of(handler.cgroup_id, _name(handler), where, btf)
        if (present.map_id, present.live) != (handler.map_id, handler.live):
            raise _meanwhile(handler)
        link = where.open_link(handler.cgroup_id)
        if link is None:
            raise _meanwhile(handler)
        with link, samplers.started(loaded.sampler, cgroup, btf) as sampler:
            _prepare(present, loaded, sampler, where, btf, on_trial=rollback_after is not None)
            try:
                syscalls.link_update(link, loaded.ops_map)
            except SyscallError as error:
                where.tidy(handler.cgroup_id, handler.map_id)
                _explain(error, handler)
            where.tidy(handler.cgroup_id, loaded.map_id)
    return describe.handler_of(handler.cgroup_id, _name(handler), where, btf)


def _prepare(
    present: Handler, loaded: Loaded, sampler: Fd | None, where: Pins, btf: Btf, *, on_trial: bool
) -> None:
    """Pin what the next code needs, and what is needed to go back, before it is put in force."""
    cgroup_id, map_id = present.cgroup_id, loaded.map_id
    if sampler is not None:
        where.pin_beside(SAMPLER, cgroup_id, map_id, sampler)
    if not on_trial:
        return
    with _settled_code(present, where, btf) as (ops_map, program):
        if program is not None:
            where.pin_beside(PREVIOUS_SAMPLER, cgroup_id, map_id, program)
        where.pin_beside(PREVIOUS, cgroup_id, map_id, ops_map)


@contextmanager
def _settled_code(present: Handler, where: Pins, btf: Btf) -> Iterator[tuple[Fd, Fd | None]]:
    """The map of the last code that was settled, and its sampler's program."""
    trial = rollback.trial_of(present, where, btf)
    if trial is not None:
        with rollback.previous_code(trial, where) as found:
            yield found
        return
    link = where.open_beside(SAMPLER, present.cgroup_id, present.map_id)
    with link or nullcontext(), syscalls.map_by_id(present.map_id) as ops_map:
        program = syscalls.prog_by_id(info.link_info(link).prog_id) if link else None
        with program or nullcontext():
            yield ops_map, program


def _policies(outermost: str, parameters: Iterable[Parameter]) -> list[str]:
    """The policies that a handler is made of: what one remembers means nothing to another."""
    return [outermost, *(p.value for p in parameters if p.type == "policy")]


def _name(handler: Handler) -> str:
    return str(handler.provenance.get("cgroup", f"id:{handler.cgroup_id}"))


def _meanwhile(handler: Handler) -> BpfoomError:
    return BpfoomError(
        f"the handler of {_name(handler)} was changed meanwhile by somebody else",
        hint="nothing was changed here: look with `bpfoom show`, then try again",
        path=_name(handler),
        cgroup_id=handler.cgroup_id,
    )


def _explain(error: SyscallError, handler: Handler) -> NoReturn:
    """Say what a refused update of the link means."""
    if error.data["errno"] == errno.ENOLINK:
        raise NotThereError(
            f"the cgroup {_name(handler)} has been removed",
            path=_name(handler),
            cgroup_id=handler.cgroup_id,
            errno=errno.ENOLINK,
        ) from error
    raise error
