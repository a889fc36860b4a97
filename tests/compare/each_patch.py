# SPDX-License-Identifier: Apache-2.0
"""Does every patch build and boot alone? ``python -m tests.compare.each_patch`` tries.

Builds the kernel with the first patch, the first two, and so on, boots each and runs a command in
it: a bisection through the series must never meet a kernel that does not work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from bpfoom.errors import BpfoomError
from bpfoom.guest import kernel, process, series, session
from bpfoom.guest.flavour import PLAIN, Flavour

# A cgroup runs out of memory a few times, with no handler to see it.
_COMMAND = ("python3", "-m", "tests.compare.oom_path", "3")


def main(argv: Sequence[str]) -> int:
    progress = process.Progress(stage=lambda text: print(text, file=sys.stderr, flush=True))
    failed = 0
    for number, patch in enumerate(series.load().patches, 1):
        flavour = replace(PLAIN, name="each", patches=number)
        try:
            said = _try(flavour, progress)
        except BpfoomError as error:
            said = f"{error.message}\n{error.detail}"
        failed += said != "boots"
        print(f"{said}: {patch.name}", flush=True)
    return 1 if failed else 0


def _try(flavour: Flavour, progress: process.Progress) -> str:
    kernel.build(progress=progress, flavour=flavour)
    booted = session.Session(*session.prepared(progress, flavour))
    with booted as guest:
        result = guest.run(_COMMAND, timeout=600)
    splats = [splat.title for splat in (*result.splats, *booted.last_splats)]
    if result.exit_status or splats:
        return "\n".join(["FAILS", *splats, result.stderr.decode("utf-8", "replace")])
    return "boots"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
