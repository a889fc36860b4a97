# SPDX-License-Identifier: Apache-2.0
"""HandlerObject: what the compiler makes and the loader takes. Plain data, no kernel, no root.

It holds everything that must be true of the kernel it is loaded into: each member access and enum
value that was compiled in, each kfunc with its prototype. It serialises to one JSON file.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1


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
    name) or "string" (target: the map's name, ``offset`` bytes into its only value)."""

    insn: int
    kind: str
    target: str
    offset: int = 0


@dataclass(frozen=True)
class Program:
    """One BPF program: its instructions (8 bytes each) before relocation.

    ``type`` is "struct_ops" (then ``member`` names the callback of bpf_oom_ops); ``sleepable``
    as it must be loaded.
    """

    name: str
    type: str
    member: str
    sleepable: bool
    insns: bytes
    relocations: tuple[Relocation, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter as it was compiled in; live ones are at ``offset`` of the params map's value."""

    name: str
    type: str
    value: str
    live: bool
    offset: int = -1
    size: int = 0


@dataclass(frozen=True)
class Provenance:
    """Where the object comes from. ``policy_hash``: hex SHA-256 of the rendered C text."""

    policy: str
    path: str
    policy_hash: str
    bpfoom_version: str
    bcc_version: str
    llvm_version: str


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
            return cls(
                programs=tuple(_program(p) for p in document.pop("programs")),
                maps=tuple(
                    MapSpec(**{**m, "initial": _decode(m["initial"])}) for m in document.pop("maps")
                ),
                accesses=tuple(MemberAccess(**a) for a in document.pop("accesses")),
                enums=tuple(EnumValue(**e) for e in document.pop("enums")),
                kfuncs=tuple(Kfunc(**k) for k in document.pop("kfuncs")),
                parameters=tuple(Parameter(**p) for p in document.pop("parameters")),
                provenance=Provenance(**document.pop("provenance")),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a bpfoom object: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"not serialisable: {type(value).__name__}")


def _decode(value: Any) -> bytes:
    return base64.b64decode(value["base64"], validate=True)


def _program(fields: dict[str, Any]) -> Program:
    relocations = tuple(Relocation(**r) for r in fields["relocations"])
    return Program(**{**fields, "insns": _decode(fields["insns"]), "relocations": relocations})
