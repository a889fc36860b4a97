# SPDX-License-Identifier: Apache-2.0
"""What task iterators give a handler: tasks that it must hold to keep, and no dying ones.

The tree is byhand's; the box has no limit of its own here, OOMs are declared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest import callers
from tests.guest.asm import (
    HANDLED,
    PASS,
    R0,
    R1,
    R2,
    R3,
    R6,
    R8,
    R9,
    R10,
    Asm,
    attached,
    forget_seen,
    leave,
    loaded_handler,
    loaded_program,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, wait_for
from tests.guest.memory import hog

ITERATOR, BEST = -8, -16  # on the stack
MM_ANONPAGES = 1
VICTIM_MIB = 200


def each_task(code: Asm, btf: Btf, body: Callable[[Asm], Asm]) -> Asm:
    """Do ``body`` with every task of oc->memcg in r0; it may go to "next". Changes r9."""
    code.member(R9, R6, btf, "oom_control", "memcg").jump_if(R9, "==", 0, "done")
    code.copy(R1, R10).add(R1, ITERATOR).copy(R2, R9).const(R3, 0).kfunc("bpf_iter_css_task_new")
    code.place("next").copy(R1, R10).add(R1, ITERATOR).kfunc("bpf_iter_css_task_next")
    code.jump_if(R0, "==", 0, "all seen")
    body(code).jump("next").place("all seen")
    code.copy(R1, R10).add(R1, ITERATOR).kfunc("bpf_iter_css_task_destroy")
    return code.place("done")


def if_larger(code: Asm, btf: Btf) -> Asm:
    """Go on only if the task in r0 has more anonymous memory than all before it."""
    counters = btf.place("mm_struct", "rss_stat")
    element, _ = btf.element(btf.resolve(counters.type_id))
    count = btf.place("percpu_counter", "count").offset // 8
    at = counters.offset // 8 + MM_ANONPAGES * btf.size_of(element) + count
    code.member(R1, R0, btf, "task_struct", "mm").jump_if(R1, "==", 0, "next")
    code.load(R1, R1, at).load(R2, R10, BEST).jump_if_reg(R1, "s>", R2, "larger").jump("next")
    return code.place("larger").store(R10, BEST, R1)


def kill_best(code: Asm, *, held: bool) -> Asm:
    """Kill the task in r8, if there is one, and end."""
    code.jump_if(R8, "==", 0, "nobody")
    code.copy(R1, R6).copy(R2, R8).string(R3, "The largest").kfunc("bpf_oom_kill_process").note(0)
    if held:
        code.copy(R1, R8).kfunc("bpf_task_release")
    return code.exit(HANDLED).place("nobody").exit(PASS)


def largest(btf: Btf, *, held: bool) -> Asm:
    """A handler that kills the largest task, which it has held since it saw it, or has not."""

    def keep(code: Asm) -> Asm:
        if_larger(code, btf)
        if not held:
            return code.copy(R8, R0)
        code.copy(R1, R0).kfunc("bpf_task_acquire").jump_if(R0, "==", 0, "next").copy(R9, R0)
        code.jump_if(R8, "==", 0, "first").copy(R1, R8).kfunc("bpf_task_release")
        return code.place("first").copy(R8, R9)

    code = of_handler().const(R8, 0).store(R10, BEST, R8)
    return kill_best(each_task(code, btf, keep), held=held)


def test_section_8_the_best_task_is_held_over_the_iteration(trees: Trees, btf: Btf) -> None:
    """10, 30 and 20 MiB, in this order: the second is kept while the third is looked at."""
    forget_seen()
    (trees.box.path / "memory.max").write_text("max")
    with ExitStack() as stack:
        hogs = [stack.enter_context(hog(trees.box, size)) for size in (10, 30, 20)]
        handler = stack.enter_context(attached(largest(btf, held=True), trees.box, btf))
        assert callers.declare(btf, trees.box) == 1
        assert seen()[0] == 0
        wait_for(hogs[1].ended, "the largest to be gone")
        assert [one.ended() for one in hogs] == [False, True, False]
        counters = handler.counters()
    assert (counters["invocations"], counters["handled"], counters["kills"]) == (1, 1, 1)


def test_section_8_the_verifier_does_not_ask_for_it(btf: Btf) -> None:
    """Not to be run: the iterator drops its task at next(), and the verifier trusts it for ever.

    It is for whoever writes a handler to hold it. A kernel that begins to refuse this is welcome.
    """
    with loaded_handler(largest(btf, held=False), btf):
        pass


PID, SHOWN, VICTIMS = range(3)


@dataclass(frozen=True)
class Sample:
    """What a handler saw ``ms`` after the kill: threads of the victim, victims in flight."""

    ms: float
    shown: int
    victims: int


def watcher(btf: Btf) -> Asm:
    """A handler that looks for the process in PID, and kills it unless it is a dry run."""

    def look(code: Asm) -> Asm:
        code.slot(R1, PID).load(R2, R1, 0).member(R3, R0, btf, "task_struct", "tgid")
        code.jump_if_reg(R2, "!=", R3, "next").copy(R8, R0).count(SHOWN)
        code.member(R1, R6, btf, "oom_control", "bpf_dry_run").jump_if(R1, "!=", 0, "next")
        code.copy(R1, R6).copy(R2, R8).string(R3, "Watched").kfunc("bpf_oom_kill_process")
        return code

    code = of_handler().const(R1, 0).slot(R2, SHOWN).store(R2, 0, R1)
    each_task(code, btf, look)
    return code.copy(R1, R6).kfunc("bpf_oom_victims").note(VICTIMS).exit(HANDLED)


def test_section_8_an_iterator_walks_what_is_charged(trees: Trees, btf: Btf) -> None:
    """Tasks of descendants without a memory css are charged above; others have their own."""
    top, bare = (cgroupfs.resolve(str(path)) for path in (ROOT, trees.child.path.parent))
    for home, walked, shown in (
        (trees.box, trees.box, 1),
        (trees.child, bare, 1),
        (trees.box, top, 0),
        (trees.child, top, 0),
    ):
        forget_seen()
        with hog(home, 4) as there, attached(watcher(btf), walked, btf):
            leave(PID, there.pid)
            assert callers.dry_run(btf, walked).cgroup_id == walked.id
        assert seen()[SHOWN] == shown, (home.name, walked.name)


def watch(btf: Btf, cgroup: Cgroup) -> list[Sample]:
    """Kill the victim, then ask again and again until it does not count any more."""
    samples: list[Sample] = []
    with loaded_program(callers.trial(btf), btf) as trial:
        asked = callers.context(cgroup) + bytes(128)
        assert callers.declare(btf, cgroup) == 1
        killed = time.monotonic()
        while not samples or samples[-1].victims:
            assert callers.run(trial, asked) == 0
            slots, ms = seen(), 1000 * (time.monotonic() - killed)
            samples.append(Sample(ms, slots[SHOWN], slots[VICTIMS]))
            assert ms < 1000 * DEADLINE_S
    return samples


def test_section_5_a_victim_is_hidden_before_its_memory_is_back(trees: Trees, btf: Btf) -> None:
    """Why bpf_oom_victims() exists: for most of its end no iterator shows a victim."""
    forget_seen()
    (trees.box.path / "memory.max").write_text("max")
    with (
        hog(trees.box, VICTIM_MIB) as victim,
        attached(watcher(btf), trees.box, btf),
    ):
        leave(PID, victim.pid)
        samples = watch(btf, trees.box)
    hidden = next(sample for sample in samples if not sample.shown)
    print(
        f"hidden after {hidden.ms:.1f} ms, counted until {samples[-1].ms:.1f} ms, "
        f"{len(samples)} samples"
    )
    assert hidden.victims == 1, "hidden while it still counts"
    assert not any(sample.shown for sample in samples[samples.index(hidden) :])
    assert {sample.victims for sample in samples} == {0, 1}
