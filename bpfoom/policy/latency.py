# SPDX-License-Identifier: Apache-2.0
"""How long decisions took: a histogram for each action and cause, in a map of the handler's own.

Bucket N counts what took less than 2^N microseconds and at least half of that; the last one, all
that took longer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from bpfoom.policy import record

MAP = "bpfoom_latency"
# By powers of two up to 16.8 s, and above.
BUCKETS = 26
# A power of two: an index that is masked with it is one that the verifier believes.
SLOTS = 32
_LAYOUT = struct.Struct(f"<{1 + SLOTS}Q")
SIZE = _LAYOUT.size
# Actions have 0 to 4, what would be done 8 more, declared OOMs another 16 more.
ROWS = 32
ALLOCATION, DECLARED = "allocation", "declared"


@dataclass(frozen=True)
class Histogram:
    """The decisions that ended with one action: how many, how long together, and by bucket.

    ``reason`` is why there was an OOM: an allocation had failed, or it was declared.
    """

    action: str
    reason: str
    sum_ns: int
    buckets: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.buckets)


def quantile_us(histograms: Iterable[Histogram], part: float) -> int | None:
    """Microseconds that this part of the decisions stayed below, by the end of a bucket.

    None if there was no decision, or if that is in the last bucket, which has no end.
    """
    buckets = [sum(counts) for counts in zip(*(h.buckets for h in histograms), strict=True)]
    wanted, seen = part * sum(buckets), 0
    for number, count in enumerate(buckets[:-1]):
        seen += count
        if seen and seen >= wanted:
            return 1 << number
    return None


def limits_us() -> list[int]:
    """Where the buckets end, in microseconds; the last one does not."""
    return [1 << number for number in range(BUCKETS - 1)]


def row_of(action: int, flags: int) -> int:
    """The row of an action's code and a record's flags, as bpf/include/record.bpf.c.j2 has it."""
    return action & 7 | action >> 1 & 8 | flags & record.FLAG_DECLARED


def decode(rows: list[bytes]) -> list[Histogram]:
    """The histograms of all rows in which something was counted, those of allocations first."""
    found = []
    for flags, reason in ((0, ALLOCATION), (record.FLAG_DECLARED, DECLARED)):
        for code, action in record.ACTIONS.items():
            sum_ns, *buckets = _LAYOUT.unpack(rows[row_of(code, flags)])
            if any(buckets):
                found.append(Histogram(action, reason, sum_ns, tuple(buckets[:BUCKETS])))
    return found
