# SPDX-License-Identifier: Apache-2.0
"""A guest's kernel messages as records, and the splats among them.

The guest streams ``/dev/kmsg`` to a file on the host; this reads it as it grows. Only what the
kernel itself said counts as a splat: text that user space wrote to the log carries another
facility. Which splats are excused stands in ``vm/splat-allow.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from bpfoom.errors import UsageError

# How the kernel's own alarms begin. 'Call Trace:' alone is none of them: OOM reports print it.
_ALARMS = re.compile(
    r"^(?:\S+: )?(?:"
    r"WARNING: |BUG: |\[ BUG: |kernel BUG at|Oops|UBSAN: |ODEBUG: |KASAN: |DEBUG_LOCKS_WARN_ON"
    r"|general protection fault|stack segment|divide error|invalid opcode|double fault|int3:"
    r"|Unable to handle|Kernel panic - not syncing"
    r"|INFO: task .* blocked(?: in I/O wait)? for more than"
    r"|INFO: rcu\S* .*stall|INFO: trying to register"
    r"|rcu\S* .*(?:self-detected stall|detected stalls|detected expedited stalls)"
    r"|refcount_t: |list_(?:add|del) corruption|[1-9]\d* new suspected memory leaks"
    r"|Voluntary context switch within RCU"
    r")"
)
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
# A report without an end mark (lockdep, stalls) is shown this far.
_REPORT_LINES = 80


@dataclass(frozen=True)
class Record:
    """One kernel log record: its number, time since boot (us), level 0-7, who wrote it, text."""

    sequence: int
    time_us: int
    level: int
    from_kernel: bool
    text: str

    def __str__(self) -> str:
        return f"[{self.time_us / 1e6:12.6f}] {self.text}"


@dataclass(frozen=True)
class Splat:
    """An alarm of the kernel: its first line, its record number, and the whole report."""

    title: str
    sequence: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Exemption:
    """A splat that does not fail a run: pattern of its first line, reason, first day without."""

    match: re.Pattern[str]
    reason: str
    expires: date


def parse_record(line: str) -> Record | None:
    """A line of ``/dev/kmsg``; None for one that continues a record or is not one at all."""
    head, separator, text = line.partition(";")
    fields = head.split(",")
    if not separator or len(fields) < 4 or not all(f.isdigit() for f in fields[:3]):
        return None
    priority, sequence, time_us = (int(field) for field in fields[:3])
    return Record(sequence, time_us, priority & 7, priority >> 3 == 0, text)


class KernelLog:
    """The growing file of a guest's kernel records."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self.records: list[Record] = []
        self.lost = 0
        self._rest = b""
        self._offset = 0
        self._next: int | None = None
        if from_end:
            self.poll()
            self.records.clear()
            self.lost = 0

    def poll(self) -> list[Record]:
        """The records that came since the last poll, in order, none twice."""
        fresh = []
        for line in self._lines():
            record = parse_record(line)
            # The guest's reader starts again at the oldest record after an overrun.
            if record is None or (self._next is not None and record.sequence < self._next):
                continue
            self.lost += record.sequence - (self._next or 0)
            self._next = record.sequence + 1
            fresh.append(record)
        self.records += fresh
        return fresh

    def _lines(self) -> list[str]:
        try:
            with open(self.path, "rb") as log:
                log.seek(self._offset)
                data = log.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]


def find_splats(
    records: Sequence[Record], exempted: Iterable[Exemption] = (), *, today: date | None = None
) -> list[Splat]:
    """The splats among consecutive records, without those that are excused today."""
    day = today or date.today()
    excused = [entry for entry in exempted if day < entry.expires]
    said = [record for record in records if record.from_kernel]
    found, index = [], 0
    while index < len(said):
        if not _ALARMS.search(said[index].text):
            index += 1
            continue
        end = _report_end(said, index)
        title = said[index].text
        if not any(entry.match.search(title) for entry in excused):
            lines = tuple(str(record) for record in said[index:end])
            found.append(Splat(title, said[index].sequence, lines))
        index = end
    return found


def _report_end(said: Sequence[Record], start: int) -> int:
    """One past the last record of the report that begins at ``start``."""
    limit = min(len(said), start + _REPORT_LINES)
    for index in range(start, limit):
        if _END.search(said[index].text):
            return index + 1
        # Without an end mark a pause of a second is one: what follows is another matter.
        if index + 1 < limit and said[index + 1].time_us - said[index].time_us > 1_000_000:
            return index + 1
    return limit


def exemptions(path: Path) -> list[Exemption]:
    """The entries of ``vm/splat-allow.toml``. Raises UsageError where one is incomplete."""
    found = []
    for number, entry in enumerate(tomllib.loads(path.read_text()).get("allow", []), 1):
        expires = entry.get("expires")
        if not entry.get("match") or not entry.get("reason") or not isinstance(expires, date):
            raise UsageError(
                f"{path.name}: entry {number} needs match, reason and expires (a date)",
                path=str(path),
            )
        found.append(Exemption(re.compile(entry["match"]), entry["reason"], expires))
    return found
