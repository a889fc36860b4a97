# SPDX-License-Identifier: Apache-2.0
"""Run ``tests/guest`` in the guest and report on the host, one line a test, as it happens.

``python -m tests.guestsuite [--debug] [--guests N] [-k EXPR] [-m EXPR] [PATH...]``. The plugin in
tests/guest/conftest.py streams what happens; this side boots the guests, puts kernel splats to the
test during which they appeared, and goes on in a fresh boot when a guest is lost. Anything but
passed is a failure, and so is what the tests leave behind in the kernel.

Several guests share the work file by file: each asks before it begins one, and this side gives it
to the first. Tests of a file are never apart.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfoom.errors import BpfoomError, LostVMError
from bpfoom.guest import accel, qemu, rootfs, session
from bpfoom.guest.console import Splat
from bpfoom.guest.flavour import FLAVOURS, PLAIN, Flavour
from bpfoom.guest.process import Progress
from bpfoom.guest.running import CommandResult, Guest
from tests import helpers, objects

# Longest silence: no test of ours comes near a tenth of it under TCG.
SILENCE_S = 900.0
LOST = "infrastructure lost"

_STREAM = "suite.jsonl"
_ANSWERS = "suite.answers"
_ARGUMENTS = "suite.arguments"
_PYTEST = [
    *("python3", "-m", "pytest", "-q", "--no-header"),
    # The checkout is read-only.
    *("-p", "no:cacheprovider"),
    # A module that does not import fails by itself; the others are still worth running.
    "--continue-on-collection-errors",
]


@dataclass
class Test:
    """A collected test and, once it ran, its outcome."""

    name: str
    memory: int
    splat: str | None
    loses_guest: bool
    outcome: str = ""
    seconds: float = 0.0
    text: str = ""

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]


@dataclass
class Suite:
    """All that was collected and what came of it. ``extra`` failures belong to no test.

    ``owners`` says which of several guests has a file. ``over`` ends them all.
    """

    tests: dict[str, Test] = field(default_factory=dict)
    extra: list[tuple[str, str]] = field(default_factory=list)
    owners: dict[str, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def collect(self, tests: Sequence[dict[str, Any]]) -> None:
        """Note what there is, once: every guest tells the same."""
        with self._lock:
            for facts in () if self.tests else tests:
                test = Test(**facts)
                self.tests[test.name] = test

    def owns(self, lane: int, file: str) -> bool:
        """Whether a guest runs that file; the first that asks does."""
        with self._lock:
            return self.owners.setdefault(file, lane) == lane

    def waiting(self, memory: int, lane: int) -> list[Test]:
        """The tests for a guest of ``memory`` that have no outcome, and no other guest has."""
        return [
            test
            for test in self.tests.values()
            if test.memory == memory
            and not test.outcome
            and self.owners.get(test.file, lane) == lane
        ]

    def fail(self, what: str, text: str) -> None:
        """Note a failure that belongs to no test."""
        self.extra.append((what, text))
        _say("FAIL", what, None, text)

    def settle(self, test: Test, outcome: str, seconds: float = 0.0, text: str = "") -> None:
        """Give a test its outcome and print its line."""
        test.outcome, test.seconds, test.text = outcome, seconds, text
        good = outcome == "passed"
        shown = test.name if good or outcome == "failed" else f"{test.name}: {outcome}"
        _say("PASS" if good else "FAIL", shown, seconds, "" if good else text)

    def summary(self) -> int:
        """Print the last lines; the exit status."""
        passed = sum(t.outcome == "passed" for t in self.tests.values())
        failed = len(self.tests) - passed + len(self.extra)
        _print(f"{passed} passed, {failed} failed")
        return 0 if passed and not failed else 1


@dataclass(frozen=True)
class Lab:
    """What is booted, again and again."""

    kernel: Path
    image: rootfs.Image
    flavour: Flavour
    accelerator: str


class Boot:
    """One pytest in one guest: reads its stream and the kernel log, settles tests."""

    def __init__(self, suite: Suite, guest: Guest, lane: int) -> None:
        self.suite = suite
        self.guest = guest
        self.lane = lane
        self.running: Test | None = None
        self.began = self.counted = False
        self._stream = guest.run_dir / qemu.SHARE / _STREAM
        self._answers = guest.run_dir / qemu.SHARE / _ANSWERS
        self._offset = 0
        self._heard = time.monotonic()

    def poll(self) -> None:
        """Handle what the guest told since the last time. LostVMError after a long silence."""
        if self.suite.over.is_set():
            raise KeyboardInterrupt
        for event in self._events():
            self._heard = time.monotonic()
            self._handle(event)
        if time.monotonic() - self._heard > SILENCE_S:
            raise self.guest.lost(f"nothing happened for {SILENCE_S:.0f} s")

    def _events(self) -> Iterator[dict[str, Any]]:
        if not self._stream.exists():
            return
        with open(self._stream, "rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                yield json.loads(line)

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "collected":
            self.suite.collect(event["tests"])
        elif kind == "begins":
            self._answer(event["file"])
        elif kind == "not collected":
            self.suite.fail(event["test"], event["text"])
        elif kind == "counted":
            self._counted(event)
        elif kind == "start":
            self.began = True
            self.running = self.suite.tests[event["test"]]
        elif kind == "end":
            self._end(self.suite.tests[event["test"]], event)

    def _answer(self, file: str) -> None:
        answer = {"file": file, "ours": self.suite.owns(self.lane, file)}
        with open(self._answers, "a") as answers:
            answers.write(json.dumps(answer) + "\n")

    def _end(self, test: Test, event: dict[str, Any]) -> None:
        splats = self.guest.splats_until(f"bpfoom: {event['mark']}")
        outcome, text, wanted = event["outcome"], event["text"], test.splat
        if wanted:
            if outcome == "passed" and not any(re.search(wanted, s.title) for s in splats):
                outcome, text = "failed", f"the kernel printed no splat that matches {wanted!r}"
            splats = [s for s in splats if not re.search(wanted, s.title)]
        if splats:
            outcome, text = "failed", "\n".join([_report(splats), text])
        if test.loses_guest and outcome == "passed":
            outcome, text = "failed", "the guest should have died and did not"
        self.suite.settle(test, outcome, event["seconds"], text)
        self.running = None

    def _counted(self, event: dict[str, Any]) -> None:
        self.counted = True
        if event["left"]:
            self.suite.fail("left behind in the kernel", "\n".join(event["left"]))
        else:
            _print(f"nothing left behind in the kernel: {event['before']}, before and after")

    def ended(self, result: CommandResult) -> None:
        """Look at how pytest itself ended."""
        said = (result.stdout + result.stderr).decode("utf-8", "replace")
        how = f"pytest exited with {result.exit_status}"
        if self.running:
            self.suite.settle(self.running, "failed", text=f"{how} meanwhile\n{said}")
        # 1: tests failed, and told so. 5: none left in this guest, all want another one.
        elif result.exit_status not in (0, 1, 5) or not self.suite.tests:
            self.suite.fail(how, said)
        elif self.began and not self.counted:
            self.suite.fail("nobody counted what is left behind in the kernel", said)
        if result.splats:
            self.suite.fail("splat outside of tests", _report(result.splats))

    def lost(self, error: LostVMError) -> None:
        """The guest is gone: settle the test that ran."""
        text = "\n".join([error.message, error.detail])
        # What it told before it died may not be read yet.
        with suppress(LostVMError):
            self.poll()
        # Why it died is in the error's last lines already.
        self.guest.new_splats()
        if self.running is None:
            self.suite.fail(LOST, text)
        elif self.running.loses_guest and not self.guest.alive():
            self.suite.settle(self.running, "passed")
        else:
            self.suite.settle(self.running, LOST, text=text)


def main(argv: list[str]) -> int:
    """Run the suite; the exit status is 0 only if every collected test passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.guestsuite")
    parser.add_argument("-k", metavar="EXPR", help="tests whose names match, as in pytest")
    parser.add_argument("-m", metavar="EXPR", help="tests whose markers match, as in pytest")
    for flavour in FLAVOURS.values():
        if flavour is not PLAIN:
            text = f"the {flavour.name} kernel: {flavour.purpose}"
            parser.add_argument(
                f"--{flavour.name}", dest="flavour", action="store_const", const=flavour, help=text
            )
    parser.set_defaults(flavour=PLAIN)
    parser.add_argument("--guests", type=int, default=1, help="that share the work (1)")
    parser.add_argument("--accel", choices=accel.CHOICES, default="auto")
    parser.add_argument("paths", nargs="*", default=["tests/guest"])
    options = parser.parse_args(argv)
    picks = [
        word for flag in "km" if (value := getattr(options, flag)) for word in (f"-{flag}", value)
    ]
    suite = Suite()
    try:
        progress = Progress(stage=_print)
        kernel, image = session.prepared(progress, options.flavour)
        accelerator = accel.choose(kernel, options.accel, progress)
        helpers.ensure(progress)
        objects.ensure()
        lab = Lab(kernel, image, options.flavour, accelerator)
        run_all(suite, lab, [*picks, *options.paths], options.guests)
    except BpfoomError as error:
        suite.fail(LOST, "\n".join(part for part in (error.message, error.detail) if part))
    return suite.summary()


def run_all(suite: Suite, lab: Lab, selection: list[str], guests: int) -> None:
    """Run the tests of every guest size: most in several guests at once, those of a size alone."""
    with ThreadPoolExecutor(guests) as pool:
        lanes = [pool.submit(run_lane, suite, lab, lane, 0, selection) for lane in range(guests)]
        try:
            for lane in lanes:
                lane.result()
        except BaseException:
            suite.over.set()
            raise
    suite.owners.clear()
    for memory in sorted({test.memory for test in suite.tests.values()}):
        run_lane(suite, lab, 0, memory, [t.name for t in suite.waiting(memory, 0)])


def run_lane(suite: Suite, lab: Lab, lane: int, memory: int, selection: list[str]) -> None:
    """Run tests in one guest, booting again for as long as a boot makes progress."""
    if not selection:
        return
    run_boot(suite, lab, lane, memory, selection)
    while waiting := suite.waiting(memory, lane):
        run_boot(suite, lab, lane, memory, [t.name for t in waiting])
        if suite.waiting(memory, lane) == waiting:
            for test in waiting:
                suite.settle(test, LOST, text="no boot got as far as this test")


def run_boot(suite: Suite, lab: Lab, lane: int, memory: int, selection: list[str]) -> None:
    """One guest, one pytest. A guest that is lost settles the running test and nothing else."""
    chosen = session.Session(
        lab.kernel,
        lab.image,
        memory_mib=memory or lab.flavour.memory_mib,
        accelerator=lab.accelerator,
    )
    try:
        with chosen as guest:
            info = guest.info
            size = f"{info.memory_mib} MiB, {info.cpus} CPUs"
            _print(f"guest: {size}, {info.accelerator}, booted in {info.boot_seconds:.1f} s")
            _run_pytest(Boot(suite, guest, lane), lab.flavour, memory, selection)
    except LostVMError as error:
        suite.fail(LOST, "\n".join([error.message, error.detail]))
    if chosen.last_splats:
        suite.fail("splat outside of tests", _report(chosen.last_splats))


def _run_pytest(boot: Boot, flavour: Flavour, memory: int, selection: list[str]) -> None:
    # From a file: thousands of names do not fit on a command line.
    (boot.guest.run_dir / qemu.SHARE / _ARGUMENTS).write_text("\n".join(selection))
    env = {
        "BPFOOM_SUITE_STREAM": f"/run/bpfoom/{_STREAM}",
        "BPFOOM_SUITE_ANSWERS": f"/run/bpfoom/{_ANSWERS}",
        "BPFOOM_SUITE_LANE": str(boot.lane),
        "BPFOOM_SUITE_MEMORY": str(memory),
        "BPFOOM_SUITE_FLAVOUR": flavour.name,
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    }
    argv = [*_PYTEST, f"@/run/bpfoom/{_ARGUMENTS}"]
    try:
        result = boot.guest.run(argv, env=env, on_poll=boot.poll)
    except LostVMError as error:
        boot.lost(error)
        return
    boot.poll()
    boot.ended(result)


def _report(splats: Sequence[Splat]) -> str:
    return "\n".join(line for splat in splats for line in ("kernel splat:", *splat.lines))


def _say(word: str, what: str, seconds: float | None, text: str) -> None:
    took = "" if seconds is None else f"  {seconds:.1f} s"
    # In one piece: other guests tell, too.
    _print("\n".join([f"{word}  {what}{took}", *(f"      {line}" for line in text.splitlines())]))


def _print(line: str) -> None:
    # Flushed: people and CI follow it live.
    print(line + "\n", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
