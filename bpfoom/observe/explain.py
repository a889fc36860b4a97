# SPDX-License-Identifier: Apache-2.0
"""Who would be chosen now, and why: the kernel's dry run, and what handlers said in it.

Handlers that are asked leave their decision and a record of each candidate in shared maps, see
:mod:`bpfoom.policy.record`. Nothing is killed, counted or kept.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpfoom.btf.types import Btf
from bpfoom.handler import ask, describe, links, syscalls
from bpfoom.handler.ask import Answer
from bpfoom.handler.pins import Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import overrides
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.records import HISTORY_MAP, STATE_MAP, Decision
from bpfoom.policy import record
from bpfoom.policy.functions import ASKED_ENTRIES, HISTORY_ENTRIES, RANKED_ENTRIES

RANKED_MAP = "bpfoom_ranked"
# Slots of the state map.
_ASKED, _RANKED = 1, 2
PREFERENCES = {0: "unset", 1: "normal", 2: "avoid", 3: "protect", 4: "omit"}
_OMIT = 4


@dataclass(frozen=True)
class Candidate:
    """One candidate as a handler saw it. ``fields`` has the names of record.CANDIDATE_FIELDS."""

    fields: dict[str, Any]

    @property
    def reason(self) -> str:
        """Why it was skipped, "none" if it was not."""
        number = int(self.fields["reason"])
        return record.REASONS.get(number, str(number))

    @property
    def preference(self) -> str:
        """By marks and names; "" for one that was skipped before that was looked at."""
        upper = int(self.fields["rank"]) >> 32
        return PREFERENCES.get(_OMIT - upper, "") if upper else ""

    @property
    def tier(self) -> int:
        """What stood before the score, higher first."""
        lower = int(self.fields["rank"]) & 0xFFFFFFFF
        return lower - (1 << 31)

    @property
    def order(self) -> tuple[int, ...]:
        """Ascending: who would go first comes first, who was skipped last."""
        fields = self.fields
        ids = (fields["cgroup_id"], fields["pid"])
        if self.reason != "none":
            return (1, fields["reason"], 0, -fields["usage"], *ids)
        return (0, -fields["rank"], -fields["score"], -fields["tie"], *ids)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        ranked = self.reason == "none"
        return {
            **{key: value for key, value in self.fields.items() if key != "rank"},
            "reason": self.reason,
            "preference": self.preference if ranked else None,
            "tier": self.tier if ranked else None,
        }


@dataclass(frozen=True)
class Link:
    """A handler in the chain, nearest first. ``policy`` is "" for one that bpfoom did not attach.

    ``decision`` is what it would have decided, None if it was not asked or tells nothing;
    ``candidates`` whom it looked at.
    """

    cgroup: str
    cgroup_id: int
    link_id: int
    policy: str
    decision: Decision | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Explanation:
    """``lost`` counts candidates for which there was no room; ``sysctls`` holds those of
    ``overrides.SYSCTLS`` that are set."""

    cgroup: str
    order: int
    answer: Answer
    kernel_comm: str
    chain: tuple[Link, ...]
    lost: int
    sysctls: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "cgroup": self.cgroup,
            "order": self.order,
            **asdict(self.answer),
            "kernel_comm": self.kernel_comm,
            "chain": [
                {
                    "cgroup": link.cgroup,
                    "cgroup_id": link.cgroup_id,
                    "link_id": link.link_id,
                    "policy": link.policy,
                    "decision": link.decision.as_dict() if link.decision else None,
                    "candidates": [candidate.as_dict() for candidate in link.candidates],
                }
                for link in self.chain
            ],
            "lost": self.lost,
            "sysctls": self.sysctls,
        }


def explain(target: Cgroup, above: list[Cgroup], order: int, btf: Btf, where: Pins) -> Explanation:
    """Ask about ``target``; ``above`` is itself and its ancestors, nearest first.

    Raises what :func:`bpfoom.handler.ask.dry_run` does, PermissionDeniedError.
    """
    with where.writing():
        _reset(where)
        answer = ask.dry_run(0 if target.is_root else target.id, order, btf)
        decisions, candidates, lost = _told(where)
    return Explanation(
        cgroup=target.name,
        order=order,
        answer=answer,
        kernel_comm=comm_of(answer.kernel_pid),
        chain=tuple(_chain(above, decisions, candidates, btf, where)),
        lost=lost,
        sysctls=overrides.sysctls(),
    )


def _chain(
    above: list[Cgroup],
    decisions: dict[int, Decision],
    candidates: list[Candidate],
    btf: Btf,
    where: Pins,
) -> list[Link]:
    ours = {handler.cgroup_id: handler.policy for handler in describe.handlers(where, btf)}
    present = links.attached()
    return [
        Link(
            cgroup=cgroup.name,
            cgroup_id=cgroup.id,
            link_id=present[cgroup.id],
            policy=ours.get(cgroup.id, ""),
            decision=decisions.get(cgroup.id),
            candidates=tuple(
                sorted(
                    (c for c in candidates if c.fields["handler_cgroup_id"] == cgroup.id),
                    key=lambda candidate: candidate.order,
                )
            ),
        )
        for cgroup in above
        if cgroup.id in present
    ]


def _reset(where: Pins) -> None:
    """Forget what earlier dry runs left. No handler of ours has ever been here: nothing to do."""
    state = where.open_shared(STATE_MAP)
    if state is not None:
        with state:
            for slot in (_ASKED, _RANKED):
                syscalls.map_update(state, slot.to_bytes(4, "little"), bytes(8))


def _told(where: Pins) -> tuple[dict[int, Decision], list[Candidate], int]:
    """Decisions by the cgroup of their handler, candidates, and how many there was no room for."""
    state = where.open_shared(STATE_MAP)
    if state is None:
        return {}, [], 0
    with state:
        asked, ranked = (_number(state, slot) for slot in (_ASKED, _RANKED))
    slots = range(HISTORY_ENTRIES, HISTORY_ENTRIES + min(asked, ASKED_ENTRIES))
    decisions = [
        Decision(record.decode(raw)) for raw in _values(where, HISTORY_MAP, slots, record.SIZE)
    ]
    kept = range(min(ranked, RANKED_ENTRIES))
    candidates = [
        Candidate(record.decode_candidate(raw))
        for raw in _values(where, RANKED_MAP, kept, record.CANDIDATE_SIZE)
    ]
    by_handler = {int(d.fields["handler_cgroup_id"]): d for d in decisions}
    return by_handler, candidates, ranked - len(candidates)


def _values(where: Pins, name: str, slots: range, size: int) -> list[bytes]:
    shared = where.open_shared(name)
    if shared is None:
        return []
    with shared:
        return [syscalls.map_lookup(shared, slot.to_bytes(4, "little"), size) for slot in slots]


def _number(state: Fd, slot: int) -> int:
    (value,) = struct.unpack("<Q", syscalls.map_lookup(state, slot.to_bytes(4, "little"), 8))
    return int(value)


def comm_of(pid: int) -> str:
    """A process's name, "" if there is none."""
    if pid <= 0:
        return ""
    try:
        return Path("/proc", str(pid), "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
