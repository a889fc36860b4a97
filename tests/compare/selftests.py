# SPDX-License-Identifier: Apache-2.0
"""Does the series break anything? The kernel's own cgroup selftests, with and without it.

``python -m tests.compare.selftests [--rounds N]`` compiles them from the base tree, runs them on
the base kernel, on the patched one, and on that with a handler at the root that passes, and
compares test by test. A few fail now and then on any kernel: what most rounds say counts.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfoom.errors import BpfoomError
from bpfoom.guest import chroot, kernel, process, qemu, session, toolchain
from bpfoom.guest.flavour import BASE, PLAIN, Flavour
from bpfoom.guest.running import CommandResult, Guest

PROGRAMS = ("test_memcontrol", "test_core", "test_kill")
ROUNDS = 3

_SHARED = "selftests"
_DISK_MIB = 256
# They want page cache that can be reclaimed: files on a real file system, here in a zram disk.
_SCRATCH = "/tmp/scratch"
_MAKE_SCRATCH = f"""
echo {_DISK_MIB}M >/sys/block/zram0/disksize
dd if=/run/bpfoom/{_SHARED}/disk of=/dev/zram0 bs=1M conv=sparse status=none
mkdir {_SCRATCH}
mount -t ext4 /dev/zram0 {_SCRATCH}
"""
_ASKED = re.compile(r"^# asked ([1-9]\d*) times", re.MULTILINE)
_TAP = re.compile(r"^(ok|not ok) \d+ (# SKIP )?(\S+)", re.MULTILINE)
_PASSING = ("python3", "-m", "tests.compare.passing")

Outcomes = dict[str, Counter[str]]
"""By program and test: how often it said ok, not ok, skip; or that the program did not end well."""


@dataclass(frozen=True)
class Column:
    """One of the situations that are compared; whether handlers must be asked in it."""

    title: str
    flavour: Flavour
    prefix: tuple[str, ...] = ()
    asks: bool = False


COLUMNS = (
    Column("base kernel", BASE),
    Column("series", PLAIN),
    Column("series, handler at / passes", PLAIN, _PASSING, asks=True),
)


def compile_programs(target: Path, progress: process.Progress) -> None:
    """Compile :data:`PROGRAMS` of the base tree into ``target``, in the build chroot."""
    plan = kernel.plan(progress=progress, flavour=BASE)
    progress.stage("compiling the selftests")
    argv = ["make", "-C", "/src/tools/testing/selftests/cgroup", "OUTPUT=/obj"]
    binds = [
        chroot.Bind(plan.source.directory, "/src", read_only=True),
        chroot.Bind(target, "/obj"),
    ]
    tools = toolchain.ensure(progress)
    made = [f"/obj/{name}" for name in PROGRAMS]
    process.must(chroot.command(tools.root, [*argv, *made], binds=binds), "compiling selftests")
    disk = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", str(target / "disk"), f"{_DISK_MIB}M"]
    process.must(disk, "making an empty file system")


def run_column(column: Column, programs: Path, rounds: int, progress: process.Progress) -> Outcomes:
    """Boot its kernel and run every program ``rounds`` times."""
    progress.stage(column.title)
    outcomes: Outcomes = {}
    asked = False
    booted = session.Session(
        *session.prepared(progress, column.flavour), memory_mib=column.flavour.memory_mib
    )
    with booted as guest:
        _prepare(guest, programs)
        for _ in range(rounds):
            for name in PROGRAMS:
                argv = [*column.prefix, f"/run/bpfoom/{_SHARED}/{name}"]
                said = guest.run(argv, cwd=_SCRATCH, timeout=1800)
                asked = asked or bool(_ASKED.search(said.stdout.decode("utf-8", "replace")))
                for test, outcome in _outcomes(said).items():
                    outcomes.setdefault(f"{name}: {test}", Counter())[outcome] += 1
    if asked != column.asks:
        raise BpfoomError(f"{column.title}: handlers were {'' if asked else 'not '}asked")
    return outcomes


def _prepare(guest: Guest, programs: Path) -> None:
    shared = guest.run_dir / qemu.SHARE / _SHARED
    shared.mkdir()
    for name in (*PROGRAMS, "disk"):
        shutil.copy(programs / name, shared)
    result = guest.run(["sh", "-euc", _MAKE_SCRATCH])
    if result.exit_status:
        raise BpfoomError("no scratch disk in the guest", detail=result.stderr.decode())


def _outcomes(result: CommandResult) -> dict[str, str]:
    """What one round of one program says of each of its tests."""
    output = result.stdout.decode("utf-8", "replace")
    found = {test: "skip" if skip else said for said, skip, test in _TAP.findall(output)}
    for splat in result.splats:
        found[splat.title] = "splat"
    # 0: all passed, 1: some failed, 4: all skipped; anything else is no result of a selftest.
    if result.exit_status not in (0, 1, 4) or not found:
        found[f"exit status {result.exit_status}"] = result.stderr.decode()[-400:] or "no output"
    return found


def table(columns: Sequence[tuple[Column, Outcomes]]) -> tuple[list[str], bool]:
    """Lines to print, and whether every test says the same in all columns."""
    tests = sorted({test for _, outcomes in columns for test in outcomes})
    lines, same = ["  ".join(f"{column.title:28}" for column, _ in columns) + "  test"], True
    for test in tests:
        counters = [outcomes.get(test, Counter(absent=1)) for _, outcomes in columns]
        usual = {counter.most_common(1)[0][0] for counter in counters}
        same = same and len(usual) == 1
        cells = (", ".join(f"{what} {n}" for what, n in c.most_common()) for c in counters)
        mark = "" if len(usual) == 1 else "   DIFFERS"
        lines.append("  ".join(f"{cell:28}" for cell in cells) + f"  {test}{mark}")
    return lines, same


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compare.selftests")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each; default {ROUNDS}")
    options = parser.parse_args(argv)
    progress = process.Progress(stage=lambda text: print(text, file=sys.stderr, flush=True))
    try:
        with tempfile.TemporaryDirectory() as name:
            compile_programs(Path(name), progress)
            found = [(c, run_column(c, Path(name), options.rounds, progress)) for c in COLUMNS]
    except BpfoomError as error:
        print(error.message, error.detail, sep="\n", file=sys.stderr)
        return 1
    lines, same = table(found)
    print(*lines, sep="\n")
    print("the same with and without the series" if same else "the series makes a difference")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
