# SPDX-License-Identifier: Apache-2.0
"""Who exits, as the kernel tells it: the proc connector and the exit messages of taskstats.

pyroute2 opens the sockets and decodes; reading is left to whoever waits for several things at once.
Its import takes seconds in a guest, so it waits until somebody listens. Both sources are there for
root in the first pid and user namespaces only.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bpfoom.errors import PermissionDeniedError

if TYPE_CHECKING:
    from pyroute2.netlink.marshal import Marshal

# From the kernel's headers; Python's socket module has neither.
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55
_MEMINFO = struct.Struct("9I")
_DROPS = 8
# A machine where a thousand threads exit at once fills this with half of it left.
_ROOM = 8 << 20
_DATAGRAM = 1 << 16


@dataclass(frozen=True)
class Exit:
    """A thread that has exited; if it was its process's last, the memory is given back.

    ``time_ns`` is CLOCK_MONOTONIC, ``code`` as wait(2) has it.
    """

    pid: int
    tgid: int
    time_ns: int
    code: int


@dataclass(frozen=True)
class Account:
    """What a thread leaves in the books when it exits, before its memory is given back.

    ``peak_rss`` is its process's so far, bytes, ``cpu_ns`` its own; of the last thread of several
    ``tgid`` is the process, and ``cpu_ns`` that of all. ``tgid`` is None for any other.
    """

    pid: int
    tgid: int | None
    comm: str
    peak_rss: int
    cpu_ns: int


class Exits:
    """``with Exits() as exits:`` two descriptors to wait for, each to be read when it is ready.

    ``room`` is for messages that were not read yet, bytes. ``missing`` names what this kernel
    lacks; its descriptor is not there then. Raises PermissionDeniedError.
    """

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room

    def __enter__(self) -> Self:
        self.missing: list[str] = []
        self._sources: dict[int, tuple[socket.socket, Marshal]] = {}
        self._dropped_before = 0
        if os.geteuid() != 0:
            raise PermissionDeniedError("listening to exits needs root", hint="sudo")
        with ExitStack() as owned:
            for name, opened in (("proc connector", _proc_events), ("taskstats", _taskstats)):
                netlink = opened(owned)
                if netlink is None:
                    self.missing.append(name)
                else:
                    self._listen(owned, netlink)
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def filenos(self) -> list[int]:
        """The descriptors to wait for."""
        return list(self._sources)

    @property
    def lost(self) -> int:
        """Messages that the kernel had to drop since :meth:`forget`, for want of room."""
        return self._dropped() - self._dropped_before

    def forget(self) -> None:
        """Drop all that came so far."""
        for fileno in self._sources:
            for _ in self._datagrams(fileno):
                pass
        self._dropped_before = self._dropped()

    def read(self, fileno: int) -> Iterator[Exit | Account]:
        """What has come on one of the descriptors, without waiting."""
        for raw in self._datagrams(fileno):
            yield from decoded(self._sources[fileno][1].parse(raw))

    def _listen(self, owned: ExitStack, netlink: Any) -> None:
        """Take over a socket for reading: pyroute2 has an event loop of its own for that."""
        reader = owned.enter_context(socket.socket(fileno=os.dup(netlink.fileno())))
        reader.setblocking(False)
        reader.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._room)
        self._sources[reader.fileno()] = (reader, netlink.marshal)

    def _datagrams(self, fileno: int) -> Iterator[bytes]:
        reader = self._sources[fileno][0]
        while True:
            try:
                yield reader.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # that some were dropped, which is counted
                    raise

    def _dropped(self) -> int:
        total = 0
        for reader, _ in self._sources.values():
            raw = reader.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            total += _MEMINFO.unpack(raw)[_DROPS]
        return total


def decoded(messages: Iterable[Any]) -> Iterator[Exit | Account]:
    """What pyroute2's messages say; those that are about something else are passed over."""
    for message in messages:
        found = _exit(message) if "what" in message else _account(message)
        if found is not None:
            yield found


def _proc_events(owned: ExitStack) -> Any:
    """A socket that is told of exits; None where the kernel has no proc connector."""
    from pyroute2 import ProcEventSocket
    from pyroute2.netlink import NLMSG_DONE
    from pyroute2.netlink.connector import cn_proc

    class Control(cn_proc.proc_event_control):  # type: ignore[misc] # untyped
        """With the kinds of events that are wanted; pyroute2's asks for all."""

        fields = (*cn_proc.proc_event_control.fields, ("event_type", "I"))

    netlink = ProcEventSocket()
    owned.callback(netlink.close)
    try:
        netlink.bind()
    except (OSError, KeyError):  # the latter once it has tried every port
        return None
    order = Control()
    order["idx"], order["val"], order["len"] = cn_proc.CN_IDX_PROC, cn_proc.CN_VAL_PROC, 8
    order["action"], order["event_type"] = cn_proc.PROC_CN_MCAST_LISTEN, cn_proc.PROC_EVENT_EXIT
    netlink.put(order, NLMSG_DONE, msg_flags=0, msg_seq=0)
    return netlink


def _taskstats(owned: ExitStack) -> Any:
    """A socket that is told what exiting threads have used; None where the kernel has none."""
    from pyroute2 import TaskStats
    from pyroute2.netlink.exceptions import NetlinkError

    netlink = TaskStats()
    owned.callback(netlink.close)
    try:
        netlink.bind()
    except (OSError, NetlinkError):
        return None
    cpus = Path("/sys/devices/system/cpu/possible").read_text().strip()
    netlink.register_mask(cpus)
    owned.callback(netlink.deregister_mask, cpus)
    return netlink


def _exit(message: Any) -> Exit | None:
    if message.get("event") != "PROC_EVENT_EXIT":
        return None
    return Exit(
        message["process_pid"],
        message["process_tgid"],
        message["timestamp_ns"],
        message["exit_code"],
    )


def _account(message: Any) -> Account | None:
    thread = message.get_attr("TASKSTATS_TYPE_AGGR_PID")
    if thread is None:
        return None
    pid, stats = thread.get_attr("TASKSTATS_TYPE_PID"), thread.get_attr("TASKSTATS_TYPE_STATS")
    process = message.get_attr("TASKSTATS_TYPE_AGGR_TGID")
    all_of_it = process.get_attr("TASKSTATS_TYPE_STATS") if process else stats
    return Account(
        pid,
        process.get_attr("TASKSTATS_TYPE_TGID") if process else None,
        stats["ac_comm"].split(b"\0", 1)[0].decode("utf-8", "replace"),
        stats["hiwater_rss"] << 10,
        _cpu_ns(all_of_it),
    )


def _cpu_ns(stats: Any) -> int:
    """Exactly where the kernel counts that, else by its ticks."""
    return int(stats["cpu_run_virtual_total"] or (stats["ac_utime"] + stats["ac_stime"]) * 1000)
