# SPDX-License-Identifier: Apache-2.0
"""BTF as bytes: records and strings, put together by who knows what they mean."""

from __future__ import annotations

import struct

from bpfoom.btf.types import Kind

_MAGIC, _VERSION, _HEADER = 0xEB9F, 1, 24


class Writer:
    """Collects types, each under the next id from 1, and strings, each once."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._strings = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def string(self, text: str) -> int:
        """The offset of a string in the string section."""
        if text not in self._offsets:
            self._offsets[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return self._offsets[text]

    def reserve(self) -> int:
        """An id for a type that is put in later: types refer to each other in circles."""
        self._records.append(b"")
        return len(self._records)

    def put(
        self,
        type_id: int,
        kind: Kind,
        name: str = "",
        *,
        vlen: int = 0,
        flag: bool = False,
        value: int = 0,
        tail: bytes = b"",
    ) -> None:
        """Fill a reserved id: ``value`` is a size or type, ``tail`` what follows the record."""
        info = int(flag) << 31 | int(kind) << 24 | vlen
        self._records[type_id - 1] = struct.pack("<III", self.string(name), info, value) + tail

    def add(
        self, kind: Kind, name: str = "", *, vlen: int = 0, value: int = 0, tail: bytes = b""
    ) -> int:
        """A type at once; its id."""
        type_id = self.reserve()
        self.put(type_id, kind, name, vlen=vlen, value=value, tail=tail)
        return type_id

    def integer(self, name: str, size: int, *, signed: bool = False) -> int:
        """An int of so many bytes."""
        encoding = int(signed) << 24 | size * 8
        return self.add(Kind.INT, name, value=size, tail=struct.pack("<I", encoding))

    def to_bytes(self) -> bytes:
        """The whole, header first."""
        types = b"".join(self._records)
        sizes = (_HEADER, 0, len(types), len(types), len(self._strings))
        head = struct.pack("<HBBIIIII", _MAGIC, _VERSION, 0, *sizes)
        return head + types + bytes(self._strings)
