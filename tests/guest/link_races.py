# SPDX-License-Identifier: Apache-2.0
"""Races between OOMs and what becomes of handlers: detached, updated, their cgroup removed."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path

from bpfoom.handler import info, syscalls
from bpfoom.handler.load import Loaded
from bpfoom.handler.syscalls import Fd
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.arena import (
    MS,
    ROOT,
    Arena,
    Helper,
    Pace,
    Tally,
    begins,
    consistent,
    ends,
    kill_from_outside,
    kills,
    ooms_go_on,
    spin,
    until,
    update_refused,
)
from tests.guest.asm import HANDLED, KERNEL, Asm


def detach(it: Arena, pace: Pace) -> Tally:
    """Detach a handler that is being called: nobody calls it any more, and OOMs go on."""
    tally = Tally()
    handler = it.killer(5 * MS)
    with Helper("oom", 0, 0, it.box.path) as ooms:
        for number in pace:
            with tally.round(), it.link(handler, it.box) as link:
                # Called once before in every other round: then the counters have something to say.
                for _ in range(number % 2):
                    it.window.finish(it.window.wait())
                call = it.window.wait()
                tally.add(consistent(link))
                if number % 4 < 2:
                    syscalls.link_detach(link)
                else:
                    link.close()
                begun, under_way = it.window.begun()
                tally.hits += under_way and begun == call
                ooms_go_on(ooms)
                # An OOM may have seen the handler just before, and call it now.
                assert it.window.begun()[0] <= begun + (not under_way)
        tally.add_ooms(ooms.stop())
    return tally


def update(it: Arena, pace: Pace) -> Tally:
    """Exchange a handler that is being called: every OOM sees one of the two, and nothing else."""
    tally = Tally()
    handlers = it.killer(MS), it.load(_killer_and_kernel(it))
    with Helper("oom", 0, 0, it.box.path) as ooms, it.link(handlers[1], it.box) as link:
        for number in pace:
            with tally.round():
                call = it.window.wait()
                syscalls.link_update(link, handlers[number % 2].ops_map)
                tally.hits += it.window.call() == call
                it.window.finish(call)
        tally.add_ooms(ooms.stop())
        tally.add(consistent(link))
        # Whoever was killed was killed by a handler: none was without.
        assert tally.facts["kills"] == it.box.memory_events()["oom_kill"]
        assert tally.facts["invocations"] == it.window.begun()[0]
    return tally


def _killer_and_kernel(it: Arena) -> Asm:
    """Like the killer, but with another verdict; what counts is what was done."""
    return ends(spin(kills(begins(), it.btf), MS), KERNEL)


def rmdir_attached(it: Arena, pace: Pace) -> Tally:
    """Remove a cgroup whose handler is being called, its last task killed from outside."""
    return _rmdir(it, pace, it.answers(HANDLED, 20 * MS), on_box=True)


def rmdir_dying(it: Arena, pace: Pace) -> Tally:
    """Remove a cgroup whose tasks the parent's handler has just killed, and is still called."""
    with it.link(it.killer(20 * MS), it.root) as link:
        tally = _rmdir(it, pace, it.answers(HANDLED, 0), on_box=False)
        tally.add(consistent(link))
    assert tally.facts["kills"] >= tally.rounds
    return tally


def _rmdir(it: Arena, pace: Pace, handler: Loaded, *, on_box: bool) -> Tally:
    """Remove a box in each round; ``handler`` is the one that is attached to it, if any is."""
    tally = Tally()
    path = ROOT / "brief"
    with Helper("remote", path, it.other.path, talks=True) as remote:
        for _ in pace:
            with tally.round(), ExitStack() as links:
                brief = it.make("brief")
                if on_box:
                    link = links.enter_context(it.link(handler, brief))
                before = it.window.begun()[0]
                remote.tell()
                owner = int(remote.line())
                call = it.window.wait(before)
                if on_box:
                    kill_from_outside(owner)
                tally.add({"busy": _rmdir_until_gone(path)})
                tally.hits += it.window.call() == call
                if on_box:
                    _must_hang_up(link, handler, brief)
                remote.line()
    return tally


def _rmdir_until_gone(path: Path) -> int:
    """Remove a cgroup as soon as it can be; how often it could not be."""
    refused = 0

    def removed() -> bool:
        nonlocal refused
        try:
            path.rmdir()
        except OSError as error:
            assert error.errno == errno.EBUSY
            refused += 1
            return False
        return True

    until(removed, f"{path} to be empty", nap_s=0)
    return refused


def _must_hang_up(link: Fd, other: Loaded, was: Cgroup) -> None:
    """The link of a removed cgroup is detached, and stays what it was."""
    assert update_refused(link, other) == errno.ENOLINK
    until(lambda: info.link_info(link).map_id == 0, "the link to be detached")
    assert update_refused(link, other) == errno.ENOLINK
    assert info.link_info(link).cgroup_id == was.id


def attach(it: Arena, pace: Pace) -> Tally:
    """Attach two handlers to one cgroup at once while it has OOMs: one wins, the other: EEXIST."""
    tally = Tally()
    maps = [it.killer(1).ops_map.fileno() for _ in range(2)]
    with Helper("oom", 0, 0, it.box.path) as ooms:
        for chunk in pace.chunks(50):
            with Helper("attach", chunk, it.box.path, *maps, fds=maps) as two:
                rounds, overlaps, *wins = (int(word) for word in two.end()[0].split())
            tally.rounds += rounds
            tally.hits += overlaps
            tally.add({"first won": wins[0], "second won": wins[1]})
            ooms_go_on(ooms)
        tally.add_ooms(ooms.stop())
        tally.add({"calls": it.window.begun()[0]})
    return tally
