# SPDX-License-Identifier: Apache-2.0
"""Programs written by hand, for what no compiler would write: an assembler and two ways to load.

Handlers become a HandlerObject and go the way of every policy; other programs are loaded as they
are. Both can leave numbers in ``seen``, an array of 64-bit slots that outlives them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Self

from bpfoom.btf.types import Btf, Kind
from bpfoom.compiler.object import HandlerObject, Kfunc, MapSpec, Program, Provenance, Relocation
from bpfoom.handler import info, pins, syscalls
from bpfoom.handler.attach import link_to_cgroup
from bpfoom.handler.load import OpsLayout, load, make_map
from bpfoom.handler.relocate import relocate
from bpfoom.handler.syscalls import Fd
from bpfoom.observe.cgroupfs import Cgroup

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

SLOTS = 32
SEEN = MapSpec("seen", "array", 4, 8 * SLOTS, 1, shared=True)

PASS, HANDLED, KERNEL = 0, 1, 2

# Helpers by their BPF_FUNC number.
KTIME_GET_NS = 5

# Opcodes of 64-bit moves, sums, loads and stores; jumps compare with an immediate.
_MOV_K, _MOV_X, _ADD_K, _LDX, _STX, _LDDW, _CALL, _EXIT, _JA = (
    *(0xB7, 0xBF, 0x07, 0x79, 0x7B, 0x18, 0x85, 0x95, 0x05),
)
_LSH_K, _SUB_X = 0x67, 0x1F
_LDX_SIZES = {1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}
_STX_SIZES = {1: 0x73, 2: 0x6B, 4: 0x63, 8: 0x7B}
# The same, comparing with a register.
_FROM_REGISTER = 0x08
_ATOMIC_ADD = 0xDB
_JUMPS = {"==": 0x15, "!=": 0x55, ">": 0x25, "<": 0xA5, "s<": 0xC5, "s>": 0x65}
# Of the lower half alone: an int that a kfunc returns has no upper one.
_JUMPS |= {"int==": 0x16, "int!=": 0x56}


@dataclass
class Asm:
    """A program under construction. Registers are numbers, places to jump to are names."""

    insns: list[bytes] = field(default_factory=list)
    relocations: list[Relocation] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    jumps: dict[int, str] = field(default_factory=dict)
    message: str = ""

    def insn(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> Self:
        """One instruction, as the kernel's struct bpf_insn has it."""
        self.insns.append(struct.pack("<BBhi", code, dst | src << 4, off, imm))
        return self

    def copy(self, dst: int, src: int) -> Self:
        """dst = src"""
        return self.insn(_MOV_X, dst, src)

    def const(self, dst: int, value: int) -> Self:
        """dst = value, of up to 64 bits."""
        if -(1 << 31) <= value < 1 << 31:
            return self.insn(_MOV_K, dst, imm=value)
        low, high = struct.unpack("<ii", struct.pack("<Q", value & (1 << 64) - 1))
        return self.insn(_LDDW, dst, imm=low).insn(0, imm=high)

    def add(self, dst: int, value: int) -> Self:
        """dst += value"""
        return self.insn(_ADD_K, dst, imm=value)

    def load(self, dst: int, src: int, off: int, size: int = 8) -> Self:
        """dst = *(src + off), ``size`` bytes of it."""
        return self.insn(_LDX_SIZES[size], dst, src, off)

    def store(self, dst: int, off: int, src: int, size: int = 8) -> Self:
        """*(dst + off) = src, ``size`` bytes of it."""
        return self.insn(_STX_SIZES[size], dst, src, off)

    def member(self, dst: int, src: int, btf: Btf, struct_name: str, path: str) -> Self:
        """dst = src->path, as many bytes as the member has."""
        place = btf.place(struct_name, path)
        return self.load(dst, src, place.offset // 8, place.size // 8)

    def jump(self, place: str) -> Self:
        """Go there."""
        self.jumps[len(self.insns)] = place
        return self.insn(_JA)

    def jump_if(self, register: int, relation: str, value: int, place: str) -> Self:
        """Go there if the register is so: one of :data:`_JUMPS`."""
        self.jumps[len(self.insns)] = place
        return self.insn(_JUMPS[relation], register, imm=value)

    def jump_if_reg(self, register: int, relation: str, other: int, place: str) -> Self:
        """The same, compared with another register."""
        self.jumps[len(self.insns)] = place
        return self.insn(_JUMPS[relation] | _FROM_REGISTER, register, other)

    def place(self, name: str) -> Self:
        """Here is ``name``."""
        self.places[name] = len(self.insns)
        return self

    def kfunc(self, name: str) -> Self:
        """r0 = name(r1, ...)"""
        self.relocations.append(Relocation(len(self.insns), "kfunc", name))
        return self.insn(_CALL)

    def helper(self, number: int) -> Self:
        """r0 = the helper with that BPF_FUNC number."""
        return self.insn(_CALL, imm=number)

    def string(self, dst: int, text: str) -> Self:
        """dst = a constant string; one for each program."""
        self.message = text
        self.relocations.append(Relocation(len(self.insns), "string", "message"))
        return self.insn(_LDDW, dst).insn(0)

    def slot(self, dst: int, slot: int) -> Self:
        """dst = where slot number ``slot`` of ``seen`` is."""
        self.relocations.append(Relocation(len(self.insns), "string", "seen", 8 * slot))
        return self.insn(_LDDW, dst).insn(0)

    def note(self, slot: int, register: int = R0) -> Self:
        """Leave an int, as kfuncs return it, in a slot; changes r1 (so not for r1 itself)."""
        self.insn(_MOV_X, register, register, off=32)  # sign-extended from 32 bits
        return self.slot(R1, slot).store(R1, 0, register)

    def keep(self, slot: int, register: int = R0) -> Self:
        """Leave all 64 bits of a register in a slot; changes r1 (so not for r1 itself)."""
        return self.slot(R1, slot).store(R1, 0, register)

    def count(self, slot: int) -> Self:
        """One more in a slot; changes r1 and r2."""
        return self.slot(R1, slot).const(R2, 1).insn(_ATOMIC_ADD, R1, R2)

    def shift_left(self, dst: int, bits: int) -> Self:
        """dst <<= bits"""
        return self.insn(_LSH_K, dst, imm=bits)

    def task(self, dst: int, pid: int, absent: str) -> Self:
        """dst = the task with that pid, held; go to ``absent`` if there is none."""
        self.const(R1, pid).kfunc("bpf_task_from_pid").copy(dst, R0)
        return self.jump_if(dst, "==", 0, absent)

    def memcg(self, dst: int, btf: Btf, absent: str) -> Self:
        """dst = the memcg of the cgroup whose ID is in r1, held; changes r9.

        Go to ``absent`` if there is no such cgroup.
        """
        css = btf.place("cgroup", "self").offset // 8
        self.kfunc("bpf_cgroup_from_id").jump_if(R0, "==", 0, absent)
        self.copy(R9, R0).copy(R1, R0).add(R1, css).kfunc("bpf_get_mem_cgroup")
        self.copy(dst, R0).copy(R1, R9).kfunc("bpf_cgroup_release")
        return self.jump_if(dst, "==", 0, absent)

    def busy(self, milliseconds: int, off: int = -8) -> Self:
        """Do nothing for that long, up to about 2000 ms; changes r8 and r9.

        Needs 8 bytes of stack at r10 + ``off`` for an iterator, without which the verifier would
        walk every turn of the loop.
        """
        again, over = f"busy {len(self.insns)}", f"idle {len(self.insns)}"
        self.helper(KTIME_GET_NS).copy(R8, R0)
        self.copy(R1, R10).add(R1, off).const(R2, 0).const(R3, 8 << 20).kfunc("bpf_iter_num_new")
        self.place(again).copy(R1, R10).add(R1, off).kfunc("bpf_iter_num_next")
        self.jump_if(R0, "==", 0, over).helper(KTIME_GET_NS).copy(R9, R0)
        self.insn(_SUB_X, R9, R8).jump_if(R9, "<", milliseconds * 1_000_000, again)
        return self.place(over).copy(R1, R10).add(R1, off).kfunc("bpf_iter_num_destroy")

    def exit(self, value: int | None = None) -> Self:
        """Return r0, or a number."""
        if value is not None:
            self.const(R0, value)
        return self.insn(_EXIT)

    def assemble(self) -> bytes:
        """The instructions, with their jumps."""
        insns = list(self.insns)
        for at, name in self.jumps.items():
            code, registers, _, imm = struct.unpack("<BBhi", insns[at])
            insns[at] = struct.pack("<BBhi", code, registers, self.places[name] - at - 1, imm)
        return b"".join(insns)

    @property
    def maps(self) -> tuple[MapSpec, ...]:
        """What the program refers to."""
        message = self.message.encode() + b"\0"
        known = (SEEN, MapSpec("message", "array", 4, 64, 1, frozen=True, initial=message))
        used = {relocation.target for relocation in self.relocations}
        return tuple(spec for spec in known if spec.name in used)

    def program(self, kind: str = "struct_ops", *, sleepable: bool = True) -> Program:
        """The program before relocation."""
        member = "handle_out_of_memory" if kind == "struct_ops" else ""
        relocations = tuple(self.relocations)
        return Program("by_hand", kind, member, sleepable, self.assemble(), relocations)

    def handler(self, btf: Btf, name: str = "by-hand") -> HandlerObject:
        """An object that goes the way of every policy."""
        names = {r.target for r in self.relocations if r.kind == "kfunc"}
        kfuncs = tuple(Kfunc(name, btf.prototype(name)) for name in sorted(names))
        provenance = Provenance(name, "", "00" * 32, "0", "", "")
        return HandlerObject((self.program(),), self.maps, (), (), kfuncs, (), provenance)


def of_handler() -> Asm:
    """The beginning of a handler: r6 = oc, r7 = the cgroup it is attached to."""
    return Asm().load(R6, R1, 0).load(R7, R1, 8)


class Attached:
    """A link that we hold; nothing of it is pinned."""

    def __init__(self, link: Fd) -> None:
        self.link = link

    def counters(self) -> dict[str, int]:
        """The numbers of the link's fdinfo."""
        return {key: int(v) for key, v in info.fdinfo(self.link).items() if v.isdigit()}


@contextmanager
def attached(code: Asm, cgroup: Cgroup, btf: Btf, name: str = "by-hand") -> Iterator[Attached]:
    """Attach a handler for the length of the block."""
    with ExitStack() as stack:
        loaded = stack.enter_context(load(code.handler(btf, name), btf, pins.require(), note={}))
        with Fd(os.open(cgroup.path, os.O_RDONLY)) as target:
            yield Attached(stack.enter_context(link_to_cgroup(loaded, target, btf)))


@contextmanager
def loaded_program(
    code: Asm,
    btf: Btf,
    kind: str = "syscall",
    *,
    sleepable: bool = True,
    attach_btf_id: int = 0,
    attach_type: int = 0,
) -> Iterator[Fd]:
    """Load a program that is no handler. The error's detail is the verifier's log."""
    program = code.program(kind, sleepable=sleepable)
    names = {r.target for r in code.relocations if r.kind == "kfunc"}
    with ExitStack() as stack:
        maps = {spec.name: stack.enter_context(_map(spec)) for spec in code.maps}
        insns = relocate(
            program,
            {name: btf.find(name, Kind.FUNC) or 0 for name in names},
            {name: fd.fileno() for name, fd in maps.items()},
        )
        yield stack.enter_context(
            syscalls.prog_load(
                program.name,
                insns,
                kind=kind,
                sleepable=sleepable,
                attach_btf_id=attach_btf_id,
                attach_type=attach_type,
            )
        )


@contextmanager
def loaded_handler(code: Asm, btf: Btf, *, sleepable: bool = True) -> Iterator[Fd]:
    """Load a handler and attach it nowhere. The error's detail is the verifier's log."""
    layout = OpsLayout.read(btf)
    with loaded_program(
        code,
        btf,
        "struct_ops",
        sleepable=sleepable,
        attach_btf_id=layout.type_id,
        attach_type=layout.callback_index,
    ) as program:
        yield program


def seen() -> tuple[int, ...]:
    """What programs have left in their slots, as signed numbers."""
    with _map(SEEN) as values:
        raw = syscalls.map_lookup(values, bytes(4), SEEN.value_size)
    return struct.unpack(f"<{SLOTS}q", raw)


def leave(slot: int, value: int) -> None:
    """Set one slot, which programs may be waiting for. What they set meanwhile may be lost."""
    slots = [*seen()]
    slots[slot] = value
    with _map(SEEN) as values:
        syscalls.map_update(values, bytes(4), struct.pack(f"<{SLOTS}q", *slots))


def forget_seen() -> None:
    """Set every slot to zero."""
    with _map(SEEN) as values:
        syscalls.map_update(values, bytes(4), bytes(SEEN.value_size))


def _map(spec: MapSpec) -> Fd:
    return pins.require().ensure_shared(spec, make_map) if spec.shared else make_map(spec)
