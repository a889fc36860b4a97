# SPDX-License-Identifier: Apache-2.0
"""Writes small BTF blobs, so that a test can say exactly what a kernel looks like.

Only what the tests need: int, pointer, struct, enum and function records.
"""

from __future__ import annotations

import struct

_INT, _PTR, _STRUCT, _ENUM, _FUNC, _FUNC_PROTO = 1, 2, 4, 6, 12, 13


class TinyBtf:
    """Add types, each answered with its id, then take :meth:`blob`."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self._count = 0

    def int(self, name: str, size: int) -> int:
        return self._add(name, _INT, 0, size, struct.pack("<I", size * 8))

    def pointer(self, target: int) -> int:
        return self._add("", _PTR, 0, target, b"")

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        """``members``: name, type id, offset in bits."""
        tail = b"".join(struct.pack("<III", self._string(n), t, at) for n, t, at in members)
        return self._add(name, _STRUCT, len(members), size, tail)

    def enum(self, name: str, **values: int) -> int:
        tail = b"".join(struct.pack("<II", self._string(n), v) for n, v in values.items())
        return self._add(name, _ENUM, len(values), 4, tail)

    def function(self, name: str, result: int, *params: tuple[str, int]) -> int:
        tail = b"".join(struct.pack("<II", self._string(n), t) for n, t in params)
        proto = self._add("", _FUNC_PROTO, len(params), result, tail)
        return self._add(name, _FUNC, 1, proto, b"")

    def blob(self) -> bytes:
        """The finished BTF."""
        sizes = (0, len(self._types), len(self._types), len(self._strings))
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes)
        return header + self._types + self._strings

    def _add(self, name: str, kind: int, vlen: int, size_or_type: int, tail: bytes) -> int:
        at = self._string(name) if name else 0
        self._types += struct.pack("<III", at, kind << 24 | vlen, size_or_type) + tail
        self._count += 1
        return self._count

    def _string(self, text: str) -> int:
        at = len(self._strings)
        self._strings += text.encode() + b"\0"
        return at


def kernel(*, member_at: int = 64, verdict: int = 1, second_param: str = "int") -> bytes:
    """A kernel with one struct, one enum and one kfunc; the arguments move them about."""
    btf = TinyBtf()
    types = {"int": btf.int("int", 4), "long": btf.int("long", 8)}
    oom = btf.struct(
        "oom_control", 16, ("order", types["int"], 0), ("totalpages", types["long"], member_at)
    )
    btf.enum("bpf_oom_verdict", BPF_OOM_PASS=0, BPF_OOM_HANDLED=verdict)
    btf.function(
        "bpf_oom_kill_process", types["int"], ("oc", btf.pointer(oom)), ("n", types[second_param])
    )
    return btf.blob()
