# SPDX-License-Identifier: Apache-2.0
"""The decision record, version 1: what one handler call saw and did.

One table describes it. Rendering turns the table into the C struct that handlers fill, observing
turns it into the decoder; offsets follow from the order, every field naturally aligned.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

VERSION = 1
COMM_LEN = 16

_FORMATS = {"u32": "I", "s32": "i", "u64": "Q", "comm": f"{COMM_LEN}s"}
_SIZES = {"u32": 4, "s32": 4, "u64": 8, "comm": COMM_LEN}


@dataclass(frozen=True)
class Field:
    """One field: its C name, its type (u32, s32, u64, comm) and what it holds."""

    name: str
    type: str
    doc: str

    @property
    def size(self) -> int:
        """Bytes."""
        return _SIZES[self.type]


FIELDS = (
    Field("version", "u32", "version of this layout"),
    Field("size", "u32", "bytes of this record"),
    Field("sequence", "u64", "number of the decision since the history was made, from 1"),
    Field("time_ns", "u64", "when the handler was entered, CLOCK_BOOTTIME"),
    Field("duration_ns", "u64", "time spent in the handler"),
    Field("policy_hash", "u64", "first 8 bytes of the SHA-256 of the rendered C text"),
    Field("handler_cgroup_id", "u64", "cgroup the handler is attached to"),
    Field("oom_memcg_id", "u64", "cgroup id of the memcg out of memory, 0 = system-wide"),
    Field("gfp_mask", "u32", "of the failed allocation"),
    Field("order", "s32", "of the failed allocation"),
    Field("alloc_pid", "u32", "thread group that allocated"),
    Field("constraint", "u32", "0 none, 1 cpuset, 2 mempolicy, 3 memcg"),
    Field("alloc_comm", "comm", "name of the task that allocated"),
    Field("seen", "u32", "candidates looked at"),
    Field("skipped_protected", "u32", "skipped: marked as protected"),
    Field("skipped_unkillable", "u32", "skipped: init, kernel thread or oom_score_adj -1000"),
    Field("skipped_dying", "u32", "skipped: already on the way out"),
    Field("skipped_foreign", "u32", "reserved: outside the memcg out of memory"),
    Field("skipped_empty", "u32", "skipped: nothing to free"),
    Field("skipped_cpuset", "u32", "reserved: no memory on the allowed nodes"),
    Field("action", "u32", "one of ACTIONS"),
    Field("best_score", "u64", "the victim's score, in the policy's unit"),
    Field("runner_up_score", "u64", "the second best score"),
    Field("victim_cgroup_id", "u64", "the victim's cgroup, 0 = none"),
    Field("victim_usage", "u64", "the victim's memory, bytes"),
    Field("victim_pid", "u32", "the victim's thread group, 0 = none or a whole cgroup"),
    Field("kfunc_result", "s32", "what the acting kfunc returned"),
    Field("victim_comm", "comm", "the victim's name"),
    Field("verdict", "s32", "what the handler returned: 0 PASS, 1 HANDLED, 2 KERNEL"),
    Field(
        "flags",
        "u32",
        "bits: 0 dry run, 1 asked by the kernel's dry run, 2 victim in flight, 3 scan failed, "
        "4 declared",
    ),
)

# What a handler that the kernel's dry run asks says of each candidate.
CANDIDATE_FIELDS = (
    Field("handler_cgroup_id", "u64", "cgroup the handler is attached to"),
    Field("cgroup_id", "u64", "the candidate's cgroup"),
    Field("rank", "u64", "preference (the upper half) and tier: what stands before the score"),
    Field("score", "u64", "in the policy's unit"),
    Field("tie", "u64", "what stands after the score"),
    Field("usage", "u64", "the candidate's memory, bytes"),
    Field("pid", "u32", "its thread group, 0 = a whole cgroup"),
    Field("reason", "u32", "why it was skipped, one of REASONS"),
    Field("comm", "comm", "a process's name"),
)

ACTIONS = {
    0: "none",
    1: "kill",
    2: "kill-cgroup",
    3: "promise",
    4: "raise",
    17: "would-kill",
    18: "would-kill-cgroup",
    19: "would-promise",
    20: "would-raise",
}
VERDICTS = {0: "PASS", 1: "HANDLED", 2: "KERNEL"}
CONSTRAINTS = {0: "none", 1: "cpuset", 2: "mempolicy", 3: "memcg"}
REASONS = {
    0: "none",
    1: "protected",
    2: "unkillable",
    3: "dying",
    4: "foreign",
    5: "empty",
    6: "cpuset",
}
FLAGS = {
    1: "dry-run",
    2: "asked",  # by the kernel's dry run
    4: "in-flight",  # a victim was on its way out
    8: "incomplete",  # a scan failed: what it found is no answer
    16: "declared",  # by a program, such as a trigger: no allocation has failed
}
FLAG_DRY_RUN = 1
FLAG_DECLARED = 16


def _layout(fields: tuple[Field, ...]) -> struct.Struct:
    return struct.Struct("<" + "".join(_FORMATS[field.type] for field in fields))


_LAYOUT, _CANDIDATE = _layout(FIELDS), _layout(CANDIDATE_FIELDS)
SIZE, CANDIDATE_SIZE = _LAYOUT.size, _CANDIDATE.size


def offsets(fields: tuple[Field, ...] = FIELDS) -> dict[str, int]:
    """Byte offset of each field. Raises ValueError if the table would need padding."""
    at, found = 0, {}
    for field in fields:
        align = min(field.size, 8)
        if field.type != "comm" and at % align:
            raise ValueError(f"{field.name} is not naturally aligned at {at}")
        found[field.name] = at
        at += field.size
    if at % 8:
        raise ValueError("the record's size is not a multiple of 8")
    return found


def decode(raw: bytes) -> dict[str, Any]:
    """One record's fields by name; comms as text. Raises ValueError on another version or size."""
    if len(raw) < SIZE:
        raise ValueError(f"a decision record has {SIZE} bytes, not {len(raw)}")
    values = _named(FIELDS, _LAYOUT, raw)
    if values["version"] != VERSION:
        raise ValueError(f"decision record version {values['version']}, expected {VERSION}")
    return values


def decode_candidate(raw: bytes) -> dict[str, Any]:
    """One candidate's fields by name; its comm as text."""
    return _named(CANDIDATE_FIELDS, _CANDIDATE, raw)


def _named(fields: tuple[Field, ...], layout: struct.Struct, raw: bytes) -> dict[str, Any]:
    values = dict(zip((field.name for field in fields), layout.unpack_from(raw), strict=True))
    for field in fields:
        if field.type == "comm":
            values[field.name] = values[field.name].split(b"\0", 1)[0].decode("utf-8", "replace")
    return values
