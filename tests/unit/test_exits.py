# SPDX-License-Identifier: Apache-2.0
"""Messages about exits as a kernel sent them, decoded. tests/guest/test_results.py listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bpfoom.observe.exits import Account, Exit, decoded

RECORDED = Path(__file__).parents[1] / "data" / "netlink.txt"
FAMILY = 21  # of taskstats, where that was recorded


def recorded(kind: str) -> list[Exit | Account]:
    from pyroute2.netlink.connector.cn_proc import ProcEventMarshal
    from pyroute2.netlink.marshal import Marshal
    from pyroute2.netlink.taskstats import taskstatsmsg

    lines = (line.split() for line in RECORDED.read_text().splitlines() if line[0] != "#")
    raws = [bytes.fromhex(datagram) for its, datagram in lines if its == kind]
    marshal = ProcEventMarshal() if kind == "exit" else Marshal()
    if kind == "taskstats":
        marshal.msg_map[FAMILY] = taskstatsmsg
    return [told for raw in raws for told in decoded(marshal.parse(raw))]


def test_exits() -> None:
    killed = {65: (65, 9), 66: (65, 9), 67: (67, 3 << 8)}
    found = [one for one in recorded("exit") if isinstance(one, Exit)]
    assert {one.pid: (one.tgid, one.code) for one in found} == killed
    times = [one.time_ns for one in found]
    assert max(times) - min(times) < 10**9 and min(times) > 0


def test_accounts() -> None:
    found = {one.pid: one for one in recorded("taskstats") if isinstance(one, Account)}
    leader, thread, shell = (found[pid] for pid in (65, 66, 67))
    assert {one.comm for one in (leader, thread)} == {"python3"} and shell.comm == "sh"
    # The last to go names the process, and has the time of both.
    assert [one.pid for one in (leader, thread) if one.tgid == 65] == [thread.pid]
    assert thread.cpu_ns > leader.cpu_ns > 0
    assert shell.tgid is None
    assert 40 << 20 < thread.peak_rss < 64 << 20 and 0 < shell.peak_rss < 8 << 20


def test_other_messages_are_passed_over() -> None:
    from pyroute2.netlink import nlmsg

    assert list(decoded([nlmsg()])) == []


def test_only_root_may_listen() -> None:
    program = "from bpfoom.observe.exits import Exits\nwith Exits(): pass"
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **nobody)
    assert "PermissionDeniedError" in done.stderr and "pyroute2" not in done.stderr
