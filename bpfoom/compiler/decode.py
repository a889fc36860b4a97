# SPDX-License-Identifier: Apache-2.0
"""BPF instructions as data, and the places in them that the loader must patch.

Owns the instruction format and the meaning of magic constants; whether what was found is sound is
for :mod:`bpfoom.compiler.lint` to say.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bpfoom.compiler.object import Relocation
from bpfoom.policy import magic

INSN_BYTES = 8
LDDW = 0x18
CALL, CALLX, EXIT = 0x85, 0x8D, 0x95
CLASS_LD, CLASS_LDX, CLASS_ST, CLASS_STX = 0, 1, 2, 3
CLASS_ALU, CLASS_JMP, CLASS_JMP32, CLASS_ALU64 = 4, 5, 6, 7


@dataclass(frozen=True)
class Insn:
    """One instruction; ``index`` counts 8-byte slots, of which an ``lddw`` takes two.

    ``imm`` is signed, except for an ``lddw``: there it is the whole unsigned 64-bit constant.
    """

    index: int
    code: int
    dst: int
    src: int
    off: int
    imm: int

    @property
    def kind(self) -> int:
        """The instruction class."""
        return self.code & 7

    @property
    def slots(self) -> int:
        return 2 if self.code == LDDW else 1

    @property
    def is_jump(self) -> bool:
        """True for every jump with a target in this program."""
        return self.kind in (CLASS_JMP, CLASS_JMP32) and self.code not in (CALL, CALLX, EXIT)

    @property
    def target(self) -> int:
        """The slot that a jump goes to."""
        far = self.kind == CLASS_JMP32 and self.code & 0xF0 == 0
        return self.index + 1 + (self.imm if far else self.off)

    @property
    def falls_through(self) -> bool:
        return not (self.code == EXIT or (self.is_jump and self.code & 0xF0 == 0))


def instructions(raw: bytes) -> list[Insn]:
    """The instructions in ``raw``. Raises ValueError when it is cut short."""
    if len(raw) % INSN_BYTES:
        raise ValueError(f"{len(raw)} bytes are not whole instructions")
    slots = list(struct.iter_unpack("<BBhi", raw))
    found, at = [], 0
    while at < len(slots):
        code, registers, off, imm = slots[at]
        if code == LDDW:
            if at + 1 == len(slots):
                raise ValueError("the last instruction lacks its second half")
            imm = (imm & 0xFFFFFFFF) | (slots[at + 1][3] & 0xFFFFFFFF) << 32
        found.append(Insn(at, code, registers & 0xF, registers >> 4, off, imm))
        at += found[-1].slots
    return found


def relocations(
    insns: Sequence[Insn],
    kfuncs: Sequence[str],
    maps: Sequence[str],
    strings: str,
    size: int,
    callbacks: Sequence[str] = (),
) -> list[Relocation]:
    """What each known magic constant stands for.

    ``kfuncs``, ``maps`` and ``callbacks`` are names by index; ``strings`` names the map with
    the constant strings, ``size`` bytes of them. Constants that fit none of these are left to
    the lint.
    """
    found = []
    for insn in insns:
        if insn.code == CALL and insn.src == 0:
            index = insn.imm - magic.KFUNC_BASE
            if 0 <= index < len(kfuncs):
                found.append(Relocation(insn.index, "kfunc", kfuncs[index]))
        elif insn.code == LDDW and insn.src == 0:
            high, low = insn.imm >> 32, insn.imm & 0xFFFFFFFF
            if high == magic.MAP_HIGH and low < len(maps):
                found.append(Relocation(insn.index, "map", maps[low]))
            elif high == magic.STRING_HIGH and low < size:
                found.append(Relocation(insn.index, "string", strings, low))
            elif high == magic.CALLBACK_HIGH and low < len(callbacks):
                found.append(Relocation(insn.index, "callback", callbacks[low]))
    return found
