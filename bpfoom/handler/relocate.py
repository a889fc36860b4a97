# SPDX-License-Identifier: Apache-2.0
"""Relocation: the magic constants in a program become this kernel's BTF ids and our descriptors.

Pure bytes to bytes. Where the ids and descriptors come from is the loader's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

from bpfoom.compiler.object import Program, Relocation
from bpfoom.errors import LintError

_INSN = struct.Struct("<BBhi")  # opcode, dst | src << 4, offset, immediate
_CALL = 0x85
_LDDW = 0x18
_PSEUDO_MAP_FD = 1
_PSEUDO_MAP_VALUE = 2
_PSEUDO_KFUNC_CALL = 2
_PSEUDO_FUNC = 4


def relocate(
    program: Program,
    kfuncs: Mapping[str, int],
    maps: Mapping[str, int],
    callbacks: Mapping[str, int] = MappingProxyType({}),
) -> bytes:
    """The program's instructions with every relocation applied.

    ``kfuncs`` are BTF ids of vmlinux functions by name, ``maps`` descriptors by map name,
    ``callbacks`` the instructions where functions begin, of the same program. Raises
    LintError if a relocation does not point at an instruction of its kind, KeyError for a target
    that is not given.
    """
    insns = bytearray(program.insns)
    for relocation in program.relocations:
        if relocation.kind == "kfunc":
            _patch_call(program, insns, relocation, kfuncs[relocation.target])
        elif relocation.kind == "map":
            _patch_lddw(program, insns, relocation, _PSEUDO_MAP_FD, maps[relocation.target], 0)
        elif relocation.kind == "string":
            number = maps[relocation.target]
            _patch_lddw(program, insns, relocation, _PSEUDO_MAP_VALUE, number, relocation.offset)
        elif relocation.kind == "callback":
            away = callbacks[relocation.target] - relocation.insn - 1
            _patch_lddw(program, insns, relocation, _PSEUDO_FUNC, away, 0)
        else:
            raise LintError(f"{program.name}: unknown relocation kind {relocation.kind!r}")
    return bytes(insns)


def _patch_call(program: Program, insns: bytearray, relocation: Relocation, btf_id: int) -> None:
    # The offset field selects a module's BTF; 0 is vmlinux, where all of our kfuncs live.
    _expect(program, insns, relocation, _CALL, slots=1)
    _INSN.pack_into(insns, relocation.insn * 8, _CALL, _PSEUDO_KFUNC_CALL << 4, 0, btf_id)


def _patch_lddw(
    program: Program, insns: bytearray, relocation: Relocation, source: int, low: int, high: int
) -> None:
    registers = _expect(program, insns, relocation, _LDDW, slots=2)
    at = relocation.insn * 8
    _INSN.pack_into(insns, at, _LDDW, registers & 0x0F | source << 4, 0, low)
    _INSN.pack_into(insns, at + 8, 0, 0, 0, high)


def _expect(
    program: Program, insns: bytearray, relocation: Relocation, opcode: int, *, slots: int
) -> int:
    """Check what is to be patched; its register byte."""
    at = relocation.insn * 8
    if not 0 <= at <= len(insns) - 8 * slots or insns[at] != opcode:
        raise LintError(
            f"{program.name}: relocation of {relocation.target} points at instruction "
            f"{relocation.insn}, which is not a {'call' if opcode == _CALL else 'lddw'}",
            object=relocation.target,
        )
    return insns[at + 1]
