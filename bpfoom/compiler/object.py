# SPDX-License-Identifier: Apache-2.0
"""HandlerObject: what the compiler makes and the loader takes. Plain data, no kernel, no root.

It holds everything that must be true of the kernel it is loaded into: each member access and enum
value that was compiled in, each kfunc with its prototype. It serialises to one JSON file.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bpfoom.compiler import trust
from bpfoom.errors import NotThereError, PolicyError
from bpfoom.files import write_whole

FORMAT = 2
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1
MAX_FILE = 16 << 20  # bytes; the largest policy makes some 100 KiB

T = TypeVar("T")
_PLAIN = {"str": str, "int": int, "bool": bool, "bytes": bytes}


@dataclass(frozen=True)
class MemberAccess:
    """A struct member at the place it was compiled for. Offset and size in bits; type as in C."""

    struct: str
    member: str
    offset: int
    size: int
    type: str


@dataclass(frozen=True)
class EnumValue:
    enum: str
    name: str
    value: int


@dataclass(frozen=True)
class Kfunc:
    """A kfunc and the C prototype it was called with."""

    name: str
    prototype: str


@dataclass(frozen=True)
class MapSpec:
    """A map that a program refers to by name.

    ``type`` is the bpf_map_type in lower case ("array", "ringbuf", "hash"); sizes in bytes.
    ``shared`` maps are made once per machine and pinned (marks, history, ring); the others belong
    to the handler. ``initial`` fills element 0; ``frozen`` makes the map read-only for programs
    and, after filling, for user space.
    """

    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    shared: bool = False
    frozen: bool = False
    initial: bytes = b""


@dataclass(frozen=True)
class Relocation:
    """An instruction to patch: ``kind`` is "kfunc" (target: its name), "map" (target: the map's
    name), "string" (target: the map's name, ``offset`` bytes into its only value) or "callback"
    (target: another program of the object)."""

    insn: int
    kind: str
    target: str
    offset: int = 0


@dataclass(frozen=True)
class Line:
    """Where the instructions from ``insn`` on come from: a template's path and line (from 1), and
    the C text there."""

    insn: int
    path: str
    line: int
    text: str


def line_of(lines: Sequence[Line], insn: int) -> Line | None:
    """The line that an instruction belongs to; None where nothing is known."""
    before = [line for line in lines if line.insn <= insn]
    return before[-1] if before else None


@dataclass(frozen=True)
class Program:
    """One BPF program: its instructions (8 bytes each) before relocation.

    ``type`` is "struct_ops" (then ``member`` names the callback of bpf_oom_ops); ``sleepable``
    as it must be loaded. ``lines`` ascend by instruction.
    """

    name: str
    type: str
    member: str
    sleepable: bool
    insns: bytes
    relocations: tuple[Relocation, ...]
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter as it was compiled in; live ones are at ``offset`` of a set of the params map.

    ``least`` and ``most`` bound the number that a live one may become: who changes it may have
    neither the policy's file nor the one that this object was compiled from.
    """

    name: str
    type: str
    value: str
    live: bool
    offset: int = -1
    size: int = 0
    least: int = LOWEST
    most: int = HIGHEST
    help: str = ""
    default: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where the object comes from. ``policy_hash``: hex SHA-256 of the rendered C text.

    With ``dry_run`` it records what it would do, and never acts.
    """

    policy: str
    path: str
    policy_hash: str
    bpfoom_version: str
    bcc_version: str
    llvm_version: str
    dry_run: bool = False


@dataclass(frozen=True)
class HandlerObject:
    programs: tuple[Program, ...]
    maps: tuple[MapSpec, ...]
    accesses: tuple[MemberAccess, ...]
    enums: tuple[EnumValue, ...]
    kfuncs: tuple[Kfunc, ...]
    parameters: tuple[Parameter, ...]
    provenance: Provenance

    def to_bytes(self) -> bytes:
        """The object as one JSON document, bytes in base64."""
        document = {"bpfoom-object": FORMAT, **asdict(self)}
        return json.dumps(document, default=_encode, sort_keys=True, indent=1).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> HandlerObject:
        """Read :meth:`to_bytes` back. Raises ValueError when it is not such a document."""
        try:
            document = json.loads(raw)
            if document.pop("bpfoom-object") != FORMAT:
                raise ValueError("another format version")
            made = cls(
                programs=tuple(_program(p) for p in document.pop("programs")),
                maps=tuple(
                    _made(MapSpec, {**m, "initial": _decode(m["initial"])})
                    for m in document.pop("maps")
                ),
                accesses=tuple(_made(MemberAccess, a) for a in document.pop("accesses")),
                enums=tuple(_made(EnumValue, e) for e in document.pop("enums")),
                kfuncs=tuple(_made(Kfunc, k) for k in document.pop("kfuncs")),
                parameters=tuple(_made(Parameter, p) for p in document.pop("parameters")),
                provenance=_made(Provenance, document.pop("provenance")),
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a bpfoom object: {error}") from error
        for problem in _problems(made):
            raise ValueError(f"not a bpfoom object: {problem}")
        return made


def read_file(path: Path) -> HandlerObject:
    """The object that `bpfoom compile -o` wrote.

    As root only from a file that root alone can have written: whoever can change it chooses what
    runs in the kernel. Raises NotThereError, PolicyError.
    """
    try:
        # Not blocking: a FIFO must not hold us up before it is refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotThereError(
            f"cannot read object {path}: {error.strerror}",
            hint="`bpfoom compile POLICY -o FILE` writes one",
            path=str(path),
            errno=error.errno,
        ) from error
    with os.fdopen(descriptor, "rb") as source:
        _check_file(path, os.fstat(descriptor))
        raw = source.read(MAX_FILE + 1)
    try:
        return HandlerObject.from_bytes(raw)
    except ValueError as error:
        raise PolicyError(
            f"{path}: {error}",
            hint="`bpfoom compile POLICY -o FILE` with this version of bpfoom writes one",
            path=str(path),
        ) from error


def write_file(path: Path, obj: HandlerObject) -> None:
    """Write an object so that :func:`read_file` sees all of it or none. Raises BpfoomError."""
    write_whole(path, obj.to_bytes())


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        raise PolicyError(f"{path} is not a file with an object", path=str(path))
    if not trust.may_be_loaded(status):
        raise PolicyError(
            f"{path} can be written by others than root",
            # A copy: a descriptor that somebody holds on the old file cannot write to it.
            hint=f"if you trust what is in it: `install -m 644 {path} COPY` as root, then use COPY",
            path=str(path),
            owner=status.st_uid,
            mode=f"{stat.S_IMODE(status.st_mode):04o}",
        )


def _problems(made: HandlerObject) -> Iterator[str]:
    """What the loader takes for granted, and does not hold."""
    targets = {"kfunc": {k.name for k in made.kfuncs}, "map": {m.name for m in made.maps}}
    targets["string"] = targets["map"]
    targets["callback"] = {p.name for p in made.programs if p.type == "callback"}
    for program in made.programs:
        if not program.insns or len(program.insns) % 8:
            yield f"{program.name} has {len(program.insns)} bytes, not whole instructions"
        for relocation in program.relocations:
            if relocation.target not in targets.get(relocation.kind, ()):
                yield f"{program.name} refers to {relocation.kind} {relocation.target}, not in it"


def _made(kind: type[T], given: dict[str, Any]) -> T:
    """An instance of a dataclass, each plain field checked for its type."""
    made = kind(**given)
    for field in fields(kind):  # type: ignore[arg-type] # every T is a dataclass
        plain = _PLAIN.get(str(field.type))
        if plain and type(getattr(made, field.name)) is not plain:
            raise ValueError(f"{kind.__name__}.{field.name} is no {field.type}")
    return made


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"not serialisable: {type(value).__name__}")


def _decode(value: Any) -> bytes:
    return base64.b64decode(value["base64"], validate=True)


def _program(given: dict[str, Any]) -> Program:
    relocations = tuple(_made(Relocation, r) for r in given["relocations"])
    lines = tuple(_made(Line, line) for line in given["lines"])
    insns = _decode(given["insns"])
    return _made(Program, {**given, "insns": insns, "relocations": relocations, "lines": lines})
