# SPDX-License-Identifier: Apache-2.0
"""What does the series cost where nobody uses it? The OOM path against the base kernel's.

``python -m tests.compare.unused [--boots N] [--ooms N] [--json FILE]`` boots both kernels in turn,
runs OOMs that no handler sees, and gives the ratio of the medians with its spread. A figure never
fails; the exit status is not 0 only if there is none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bpfoom.errors import BpfoomError
from bpfoom.guest import process, session
from bpfoom.guest.flavour import BASE, PLAIN, Flavour

BOOTS = 5
OOMS = 60


@dataclass(frozen=True)
class Figures:
    """Times in ns of the OOMs of each boot, and what they come to.

    ``ratios`` are of the medians of a boot of the series and the boot of the base kernel before it;
    ``ratio`` is of the medians over all boots. ``noise`` is the ratio of the largest to the
    smallest median among the boots of the base kernel alone.
    """

    accelerator: str
    base: list[list[int]]
    series: list[list[int]]
    ratio: float
    ratios: list[float]
    noise: float


def measure(boots: int, ooms: int, progress: process.Progress) -> Figures:
    """Boot base and series in turn, ``boots`` times each, with ``ooms`` OOMs in every boot."""
    taken: dict[str, list[list[int]]] = {BASE.name: [], PLAIN.name: []}
    accelerator = ""
    for number in range(boots):
        for flavour in (BASE, PLAIN):
            progress.stage(f"boot {number + 1} of {boots}: {flavour.name}")
            accelerator, times = _boot(flavour, ooms, progress)
            taken[flavour.name].append(times)
    base, series = taken[BASE.name], taken[PLAIN.name]
    medians = [statistics.median(times) for times in base]
    return Figures(
        accelerator,
        base,
        series,
        ratio=statistics.median(sum(series, [])) / statistics.median(sum(base, [])),
        ratios=[
            statistics.median(ours) / theirs for ours, theirs in zip(series, medians, strict=True)
        ],
        noise=max(medians) / min(medians),
    )


def _boot(flavour: Flavour, ooms: int, progress: process.Progress) -> tuple[str, list[int]]:
    booted = session.Session(*session.prepared(progress, flavour), memory_mib=PLAIN.memory_mib)
    with booted as guest:
        argv = ["python3", "-m", "tests.compare.oom_path", str(ooms)]
        result = guest.run(argv, timeout=3600)
        if result.exit_status:
            said = result.stderr.decode("utf-8", "replace")
            raise BpfoomError(f"no figures from the {flavour.name} kernel", detail=said)
        return guest.info.accelerator, json.loads(result.stdout)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compare.unused")
    parser.add_argument("--boots", type=int, default=BOOTS, help=f"of each; default {BOOTS}")
    parser.add_argument("--ooms", type=int, default=OOMS, help=f"in each boot; default {OOMS}")
    parser.add_argument("--json", type=Path, help="write all times there")
    options = parser.parse_args(argv)
    progress = process.Progress(stage=lambda text: print(text, file=sys.stderr, flush=True))
    try:
        found = measure(options.boots, options.ooms, progress)
    except BpfoomError as error:
        print(error.message, error.detail, sep="\n", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    low, high = min(found.ratios), max(found.ratios)
    print(
        f"accelerator {found.accelerator}, {options.boots} boots of each, {options.ooms} OOMs each"
    )
    print(f"series / base: {found.ratio:.3f} (by pair of boots {low:.3f} to {high:.3f})")
    print(f"base / base: up to {found.noise:.3f} between boots")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
