# SPDX-License-Identifier: Apache-2.0
"""HandlerObject to loaded struct_ops map: compare, make maps, relocate, load, fill the ops.

Every descriptor belongs to the :class:`Loaded` that :func:`load` returns, so leaving its block
without a pinned link leaves nothing behind. Linking and pinning are the attach module's.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType

from bpfoom.btf.program import Function, describe
from bpfoom.btf.types import Btf, Kind
from bpfoom.compiler.object import HandlerObject, MapSpec, Program
from bpfoom.compiler.programs import SAMPLER
from bpfoom.errors import BpfoomError, LintError, MissingFeatureError, PolicyError
from bpfoom.handler import compare, info, syscalls, verifier
from bpfoom.handler.pins import Pins
from bpfoom.handler.relocate import relocate
from bpfoom.handler.syscalls import Fd, ProgFd
from bpfoom.timings import stage

OPS = "bpf_oom_ops"
OPS_VALUE = f"bpf_struct_ops_{OPS}"
CALLBACK = "handle_out_of_memory"
PROVENANCE_MAP = "bpfoom_prov"

_KEY = bytes(4)


@dataclass(frozen=True)
class OpsLayout:
    """Where things are in the value of a bpf_oom_ops map; offsets and sizes in bytes."""

    type_id: int
    value_type_id: int
    value_size: int
    callback: int
    callback_index: int
    name: int
    name_size: int

    @classmethod
    def read(cls, btf: Btf) -> OpsLayout:
        """Ask BTF. Raises MissingFeatureError on a kernel without bpf_oom_ops."""
        require_ops(btf)
        data = btf.place(OPS_VALUE, "data").offset // 8
        name = btf.place(OPS, "name")
        value_type_id, type_id = btf.struct_id(OPS_VALUE), btf.struct_id(OPS)
        members = [member.name for member in btf.members(btf.type(type_id))]
        return cls(
            type_id=type_id,
            value_type_id=value_type_id,
            value_size=btf.size_of(value_type_id),
            callback=data + btf.place(OPS, CALLBACK).offset // 8,
            callback_index=members.index(CALLBACK),
            name=data + name.offset // 8,
            name_size=name.size // 8,
        )


def require_ops(btf: Btf) -> None:
    """Raise MissingFeatureError, with the way out, on a kernel that has no OOM handlers."""
    if not btf.has_struct(OPS_VALUE):
        raise MissingFeatureError(
            f"this kernel cannot run OOM handlers: {btf.source} has no struct {OPS}",
            hint="try it in the guest, whose kernel has it: `bpfoom vm shell`, or `./run demo`; "
            "`bpfoom kernel build` builds that kernel, `bpfoom doctor` says what else is missing",
            struct=OPS,
        )


@dataclass(frozen=True)
class Loaded:
    """A filled struct_ops map, ready to be linked, the layout that it was filled by, and the
    object's programs by name."""

    ops_map: Fd
    layout: OpsLayout
    programs: Mapping[str, ProgFd]

    @property
    def map_id(self) -> int:
        """The kernel's id of the struct_ops map."""
        return info.map_info(self.ops_map).id

    @property
    def sampler(self) -> ProgFd | None:
        """The policy's sampler, if it has one."""
        return self.programs.get(SAMPLER)


@contextmanager
def load(
    obj: HandlerObject,
    btf: Btf,
    pins: Pins,
    *,
    note: Mapping[str, object],
    kept: Mapping[str, Fd] = MappingProxyType({}),
    statistics: bool = False,
) -> Iterator[Loaded]:
    """Load the object into the kernel for the length of the block.

    ``note`` is added to the provenance that is bound to the program (dry_run, cgroup). ``kept`` are
    the caller's maps, by name, that stand in for fresh ones of the handler's own. With
    ``statistics`` the programs' logs say what the verifier had to do. Raises StaleObjectError,
    MissingFeatureError, VerifierError, PermissionDeniedError.
    """
    with stage("compare"):
        layout = OpsLayout.read(btf)
        compare.check(obj, btf)
    handler = _handler(obj)
    with ExitStack() as owned:
        with stage("maps"):
            maps = {
                spec.name: kept.get(spec.name) or owned.enter_context(_map(spec, pins))
                for spec in obj.maps
            }
            provenance = owned.enter_context(make_map(provenance_map(obj, note)))
        with stage("relocate"):
            kfuncs = {kfunc.name: function_id(btf, kfunc.name) for kfunc in obj.kfuncs}
            numbers = {name: fd.fileno() for name, fd in maps.items()}
            insns = {p.name: relocate(p, kfuncs, numbers) for p in obj.programs}
        with stage("load and verify"):
            programs = {
                p.name: owned.enter_context(
                    _load_program(p, insns[p.name], _target(p, layout, btf), statistics=statistics)
                )
                for p in obj.programs
            }
            program = programs[handler.name]
            syscalls.prog_bind_map(program, provenance)
            ops_map = owned.enter_context(_ops_map(layout, program, obj.provenance.policy))
        yield Loaded(ops_map, layout, programs)


def _map(spec: MapSpec, pins: Pins) -> Fd:
    return pins.ensure_shared(spec, make_map) if spec.shared else make_map(spec)


def make_map(spec: MapSpec) -> Fd:
    """Make one map, filled and frozen as it asks for."""
    flags = syscalls.F_RDONLY_PROG if spec.frozen else 0
    made = syscalls.map_create(
        spec.type, spec.name, spec.key_size, spec.value_size, spec.max_entries, flags=flags
    )
    try:
        if spec.initial:
            syscalls.map_update(
                made, bytes(spec.key_size), spec.initial.ljust(spec.value_size, b"\0")
            )
        if spec.frozen:
            syscalls.map_freeze(made)
    except BpfoomError:
        made.close()
        raise
    return made


def _handler(obj: HandlerObject) -> Program:
    found = [p for p in obj.programs if p.type == "struct_ops" and p.member == CALLBACK]
    if len(found) != 1:
        raise LintError(
            f"the object holds {len(found)} programs for {OPS}.{CALLBACK}, expected one",
            object=obj.provenance.policy,
        )
    return found[0]


def function_id(btf: Btf, name: str) -> int:
    """A kfunc's BTF id. Raises MissingFeatureError."""
    found = btf.find(name, Kind.FUNC)
    if found is None:
        raise MissingFeatureError(f"this kernel has no kfunc {name}", function=name)
    return found


def _target(program: Program, layout: OpsLayout, btf: Btf) -> tuple[int, int]:
    """What the program is for, as BTF id and attach type. Raises MissingFeatureError."""
    if program.type == "struct_ops":
        return layout.type_id, layout.callback_index
    return tracepoint_of(program, btf)


def tracepoint_of(program: Program, btf: Btf) -> tuple[int, int]:
    """The tracepoint of a tracing program, the same way. Raises MissingFeatureError."""
    tracepoint = btf.find(f"btf_trace_{program.member}", Kind.TYPEDEF)
    if tracepoint is None:
        raise MissingFeatureError(
            f"this kernel has no tracepoint {program.member}",
            hint="the patched kernel has it: `bpfoom kernel build`",
            object=program.name,
        )
    return tracepoint, btf.enum_value("bpf_attach_type", "BPF_TRACE_RAW_TP")


def _load_program(
    program: Program, insns: bytes, target: tuple[int, int], *, statistics: bool
) -> ProgFd:
    lines = [(line.insn, line.path, line.line, line.text) for line in program.lines]
    try:
        return syscalls.prog_load(
            program.name,
            insns,
            kind=program.type,
            attach_btf_id=target[0],
            attach_type=target[1],
            sleepable=program.sleepable,
            described=describe([Function(program.name, 0, lines)]) if lines else None,
            statistics=statistics,
        )
    except BpfoomError as error:
        if not error.detail.strip():
            raise
        raise verifier.refused(program, error) from error


def provenance_map(obj: HandlerObject, note: Mapping[str, object]) -> MapSpec:
    """A frozen one-element map that holds where the program comes from, as JSON."""
    document = {
        **asdict(obj.provenance),
        "parameters": [asdict(parameter) for parameter in obj.parameters],
        "attached_at": round(time.time(), 3),
        **note,
    }
    text = json.dumps(document, sort_keys=True).encode()
    return MapSpec(PROVENANCE_MAP, "array", 4, len(text), 1, frozen=True, initial=text)


def _ops_map(layout: OpsLayout, program: Fd, policy: str) -> Fd:
    """The struct_ops map with its callback and name set."""
    name = policy.encode()
    if len(name) >= layout.name_size or not name.isascii() or not policy.isprintable():
        raise PolicyError(
            f"a policy's name must be printable ASCII, shorter than {layout.name_size}: {policy!r}",
            object=policy,
        )
    value = bytearray(layout.value_size)
    struct.pack_into("<Q", value, layout.callback, program.fileno())
    value[layout.name : layout.name + len(name)] = name
    with syscalls.btf_load_tiny() as tiny:
        ops_map = syscalls.map_create(
            "struct_ops",
            OPS,
            4,
            layout.value_size,
            1,
            flags=syscalls.F_LINK,
            btf_fd=tiny.fileno(),
            vmlinux_value_type_id=layout.value_type_id,
        )
    try:
        syscalls.map_update(ops_map, _KEY, bytes(value))
    except BpfoomError:
        ops_map.close()
        raise
    return ops_map
