# SPDX-License-Identifier: Apache-2.0
"""Pressure as a reason to declare an OOM: the tracepoint that programs watch, and a PSI trigger.

The pressure is a process that waits for memory which a handler has promised.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfoom.btf.types import Btf, Kind
from bpfoom.handler import syscalls
from tests.guest.asm import R1, R2, R6, Asm, attached, forget_seen, loaded_program, seen
from tests.guest.byhand import DEADLINE_S, Trees, wait_for
from tests.guest.callers import context, declaration, run
from tests.guest.handlers import promiser
from tests.guest.memory import Hog, hog, kills, take, wait_until_waiting

TRACING = Path("/sys/kernel/tracing")
WATCHED, PRESSED_NS = range(2)


@contextmanager
def pressure(trees: Trees, btf: Btf) -> Iterator[Hog]:
    """In the block a process of the box waits for a promise that nobody keeps."""
    with attached(promiser(5000), trees.box, btf), hog(trees.box) as taker:
        take(taker, 40)
        wait_until_waiting(taker)
        yield taker


def test_section_6_the_tracepoint_names_the_cgroup(trees: Trees, btf: Btf) -> None:
    """The whole system's has no cgroup."""
    instance = TRACING / "instances" / "bpfoom-psi"
    instance.mkdir()
    seen_full: dict[int, int] = {}

    def watched() -> bool:
        for line in re.findall(r"psi_avgs_work: (.*)", (instance / "trace").read_text()):
            fields = {key: int(value) for key, value in (p.split("=") for p in line.split())}
            assert fields["memory_some_ns"] >= fields["memory_full_ns"]
            seen_full[fields["cgroup_id"]] = fields["memory_full_ns"]
        return seen_full.get(trees.box.id, 0) > 0 and 0 in seen_full

    try:
        (instance / "events/psi/psi_avgs_work/enable").write_text("1")
        with pressure(trees, btf):
            wait_for(watched, "the box and the system in the trace")
    finally:
        instance.rmdir()


def test_section_6_a_program_watches_the_averages(trees: Trees, btf: Btf) -> None:
    """Of the box alone, by the group's cgroup_id."""
    forget_seen()
    full = btf.enum_value("psi_states", "PSI_MEM_FULL")
    totals = btf.place("psi_group", "total").offset // 8
    code = Asm().load(R6, R1, 0).load(R2, R6, btf.place("psi_group", "cgroup_id").offset // 8)
    code.jump_if(R2, "!=", trees.box.id, "end").keep(WATCHED, R2)
    code.load(R2, R6, totals + 8 * full).keep(PRESSED_NS, R2).place("end").exit(0)
    where = btf.find("btf_trace_psi_avgs_work", Kind.TYPEDEF)
    attach_type = btf.enum_value("bpf_attach_type", "BPF_TRACE_RAW_TP")
    assert where is not None
    with (
        loaded_program(
            code, btf, "tracing", sleepable=False, attach_btf_id=where, attach_type=attach_type
        ) as program,
        syscalls.link_create(program, 0, attach_type=attach_type, flags=0),
        pressure(trees, btf),
    ):
        wait_for(lambda: seen()[PRESSED_NS] > 0, "the program to see pressure")
    assert seen()[WATCHED] == trees.box.id


def test_section_6_a_waiter_on_pressure_declares_an_oom(trees: Trees, btf: Btf) -> None:
    """As user space can: poll a PSI trigger, then run a program."""
    trigger = os.open(trees.box.path / "memory.pressure", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(trigger, b"full 200000 1000000\0")
        poll = select.poll()
        poll.register(trigger, select.POLLPRI)
        with loaded_program(declaration(btf), btf) as program, pressure(trees, btf) as taker:
            assert poll.poll(DEADLINE_S * 1000) == [(trigger, select.POLLPRI)]
            assert run(program, context(trees.box)) == 1
            wait_for(taker.ended, "the victim to die")
    finally:
        os.close(trigger)
    assert kills(trees.box) == 1
