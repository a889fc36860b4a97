# SPDX-License-Identifier: Apache-2.0
"""In the guest: run a command with a handler at the root cgroup that passes every OOM.

``python3 -m tests.compare.passing COMMAND...``; the exit status is the command's, or 3 if no OOM
met the handler, which then proves nothing.
"""

from __future__ import annotations

import subprocess
import sys

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from tests.guest.asm import PASS, attached, of_handler


def main(argv: list[str]) -> int:
    with (
        Btf.from_file() as btf,
        attached(of_handler().exit(PASS), cgroupfs.resolve("/"), btf) as it,
    ):
        status = subprocess.run(argv, check=False).returncode
        counters = it.counters()
    print(f"# asked {counters['invocations']} times, passed {counters['passed']}", flush=True)
    assert counters["passed"] == counters["invocations"]
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
