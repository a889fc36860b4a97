# SPDX-License-Identifier: Apache-2.0
"""Attached handlers, read back from the kernel: link to map to program to provenance, all by id.

Reads only. Names of cgroups are left to the caller, who has the file system; here they are ids.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import Parameter
from bpfoom.errors import BpfoomError, ForeignPinError, NotThereError, SyscallError
from bpfoom.handler import info, maps, params, syscalls
from bpfoom.handler.info import LinkInfo, ProgInfo
from bpfoom.handler.load import PROVENANCE_MAP, OpsLayout
from bpfoom.handler.params import LiveSets
from bpfoom.handler.pins import Pins
from bpfoom.handler.syscalls import Fd

# In the provenance: the configuration, or the unit, for which it was attached; absent for what a
# person has attached.
ATTACHED_BY = "attached_by"

# What every link's fdinfo has; the rest are the handler's counters.
_LINK_FIELDS = frozenset(
    (
        *("pos", "flags", "mnt_id", "ino"),
        *("link_type", "link_id", "prog_tag", "prog_id", "map_id", "cgroup_id"),
    )
)


@dataclass(frozen=True)
class Handler:
    """One attached handler.

    ``name`` is what the kernel calls it in its reports. ``provenance`` is what was bound to the
    program when it was attached (policy, hashes, versions, parameters, dry_run, attached_at and
    perhaps updated_at as epoch seconds); empty for a handler that bpfoom did not load.
    ``loaded_ns`` is boot time. ``values`` are the parameters as they are now, by name; ``live`` is
    the set in force that those of the live ones were read from.
    """

    cgroup_id: int
    link_id: int
    map_id: int
    prog_id: int
    prog_tag: str
    name: str
    loaded_ns: int
    map_ids: tuple[int, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    live: bytes = b""

    @property
    def policy(self) -> str:
        return str(self.provenance.get("policy", ""))

    def has_code(self, policy_hash: int) -> bool:
        """Whether its code is what a decision record's ``policy_hash`` says."""
        return str(self.provenance.get("policy_hash", ""))[:16] == f"{policy_hash:016x}"

    @property
    def dry_run(self) -> bool:
        return bool(self.provenance.get("dry_run", False))

    @property
    def attached_at(self) -> float | None:
        """Epoch seconds, or None if unknown."""
        return self._time("attached_at")

    @property
    def updated_at(self) -> float | None:
        """When its program was exchanged last, epoch seconds; None if it never was."""
        return self._time("updated_at")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, with the values that they had when the program was loaded."""
        return params.parameters(self.provenance.get("parameters"))

    def _time(self, key: str) -> float | None:
        value = self.provenance.get(key)
        return float(value) if value is not None else None


def handlers(pins: Pins, btf: Btf, among: Iterable[int] | None = None) -> list[Handler]:
    """All handlers attached by bpfoom, or those of some cgroups, by id of the cgroup.

    Raises PermissionDeniedError.

    Pins of dead links are passed over: they are litter that the next writing command sweeps. So is
    what others have put in the place of a link: :mod:`bpfoom.handler.foreign` names that.
    """
    found = []
    layout: OpsLayout | None = None
    for cgroup_id in pins.cgroup_ids() if among is None else among:
        try:
            link = pins.open_link(cgroup_id)
        except ForeignPinError:
            continue
        if link is None:
            continue
        layout = layout or OpsLayout.read(btf)
        with link:
            handler = _describe(link, layout)
        if handler is not None:
            found.append(handler)
    return found


def finder(pins: Pins, btf: Btf) -> Callable[[int], Handler | None]:
    """What answers with the handler of a cgroup, each looked up once; None where none can be
    described."""

    @cache
    def find(cgroup_id: int) -> Handler | None:
        with suppress(BpfoomError):
            return next(iter(handlers(pins, btf, [cgroup_id])), None)
        return None

    return find


def handler_of(cgroup_id: int, name: str, pins: Pins, btf: Btf) -> Handler:
    """The handler that bpfoom attached to one cgroup. Raises NotThereError; ``name`` is for it."""
    link = pins.open_link(cgroup_id)
    if link is not None:
        with link:
            handler = _describe(link, OpsLayout.read(btf))
        if handler is not None:
            return handler
    raise not_attached(name, cgroup_id)


def not_attached(name: str, cgroup_id: int) -> NotThereError:
    """The error for a cgroup that has no handler of ours."""
    return NotThereError(
        f"no handler of ours is attached to {name}",
        hint="`bpfoom list` shows what is attached",
        path=name,
        cgroup_id=cgroup_id,
    )


def _describe(link: Fd, layout: OpsLayout) -> Handler | None:
    """Follow the ids from a link; None once it is detached."""
    while True:
        about = info.link_info(link)
        if about.map_id == 0:
            return None
        try:
            return _follow(link, about, layout)
        except SyscallError as error:
            # Detached or exchanged while we looked: the map and the program were let go.
            if info.link_info(link).map_id != about.map_id:
                continue
            raise BpfoomError(
                f"link {about.id} cannot be followed to its program: {error.message}",
                hint="`bpfoom detach` removes it",
                object=f"link {about.id}",
                errno=error.data.get("errno"),
            ) from error


@dataclass(frozen=True)
class Code:
    """What is in a struct_ops map: its program, what the kernel calls it, where it comes from."""

    prog_id: int
    name: str
    program: ProgInfo
    provenance: dict[str, Any]


def code_of(ops_map: Fd, layout: OpsLayout) -> Code:
    """Follow the ids from a struct_ops map that we hold. Raises SyscallError."""
    value = syscalls.map_lookup(ops_map, bytes(4), layout.value_size)
    (prog_id,) = struct.unpack_from("<Q", value, layout.callback)
    name = value[layout.name : layout.name + layout.name_size].split(b"\0", 1)[0]
    # The program keeps its maps for as long as we hold it.
    with syscalls.prog_by_id(prog_id) as program:
        about = info.prog_info(program)
        return Code(prog_id, name.decode("ascii", "replace"), about, provenance_of(about.map_ids))


def _follow(link: Fd, about: LinkInfo, layout: OpsLayout) -> Handler:
    with syscalls.map_by_id(about.map_id) as ops_map:
        code = code_of(ops_map, layout)
        return _with_values(
            Handler(
                cgroup_id=about.cgroup_id,
                link_id=about.id,
                map_id=about.map_id,
                prog_id=code.prog_id,
                prog_tag=code.program.tag,
                name=code.name,
                loaded_ns=code.program.load_time_ns,
                map_ids=code.program.map_ids,
                provenance=code.provenance,
                counters=_counters(info.fdinfo(link)),
            )
        )


def _with_values(handler: Handler) -> Handler:
    """The same with its parameters' present values."""
    given = handler.parameters
    values = {parameter.name: parameter.value for parameter in given}
    sets = LiveSets.of_program(handler.map_ids)
    if sets is None:
        return replace(handler, values=values)
    with sets:
        live = sets.read()
    return replace(handler, values=values | params.shown(given, live), live=live)


def _counters(fields: dict[str, str]) -> dict[str, int]:
    """The handler's own numbers among the lines of its link's fdinfo."""
    return {
        key: int(value)
        for key, value in fields.items()
        if key not in _LINK_FIELDS and value.isdecimal()
    }


def provenance_of(map_ids: tuple[int, ...]) -> dict[str, Any]:
    """What was bound to the program with these maps when it was loaded; empty if nothing was."""
    found = maps.find(map_ids, PROVENANCE_MAP)
    if found is None:
        return {}
    with found:
        raw = syscalls.map_lookup(found, bytes(4), info.map_info(found).value_size)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):  # somebody else's map of that name
        return {}
    return document if isinstance(document, dict) else {}
