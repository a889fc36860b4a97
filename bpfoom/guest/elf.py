# SPDX-License-Identifier: Apache-2.0
"""Take one section out of an ELF file: the kernel's types out of vmlinux, 200 MB of DWARF left.

objcopy would pad the section with everything that lies before it in memory.
"""

from __future__ import annotations

import struct
from pathlib import Path

from bpfoom.errors import BuildError

# 64-bit little-endian ELF header: e_shoff; then e_shentsize, e_shnum, e_shstrndx.
_OFFSET, _COUNTS = struct.Struct("<40xQ"), struct.Struct("<58xHHH")
# Section header: sh_name, sh_offset, sh_size.
_SECTION = struct.Struct("<I20xQQ")


def section(path: Path, name: str) -> bytes:
    """The content of section ``name`` of a 64-bit little-endian ELF file. BuildError if absent."""
    with open(path, "rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            raise BuildError(f"{path} is not a 64-bit little-endian ELF file", path=str(path))
        (offset,) = _OFFSET.unpack_from(header)
        entry_size, count, names_index = _COUNTS.unpack_from(header)
        file.seek(offset)
        table = file.read(entry_size * count)
        entries = [_SECTION.unpack_from(table, n * entry_size) for n in range(count)]

        def content(entry: tuple[int, int, int]) -> bytes:
            file.seek(entry[1])
            return file.read(entry[2])

        names = content(entries[names_index])
        for entry in entries:
            if names[entry[0] :].split(b"\0", 1)[0] == name.encode():
                return content(entry)
    raise BuildError(f"{path} has no section {name}", path=str(path), section=name)
