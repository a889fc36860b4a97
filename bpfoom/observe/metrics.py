# SPDX-License-Identifier: Apache-2.0
"""What handlers and triggers have done, counted: read from the kernel, and as Prometheus has it.

Reading and presenting are apart: :func:`read` knows the kernel's objects, :func:`families` and
:class:`Collector` only what was read. Serving either is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bpfoom.btf.types import Btf
from bpfoom.errors import SyscallError
from bpfoom.handler import describe, info, maps, syscalls, trigger
from bpfoom.handler.describe import Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.trigger import Trigger
from bpfoom.policy import latency
from bpfoom.policy.latency import Histogram

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily

_STATE_MAP = "bpfoom_state"
_VERDICTS = ("handled", "passed", "kernel", "unproven", "invalid")
_NS = 1e-9


@dataclass(frozen=True)
class HandlerStats:
    """One handler: ``own`` are the counters of its policy (those of the kernel are the handler's),
    ``latency`` how long its decisions took."""

    cgroup: str
    handler: Handler
    own: Mapping[str, int] = field(default_factory=dict)
    latency: Sequence[Histogram] = ()


@dataclass(frozen=True)
class Stats:
    """All handlers, all triggers with the names of their cgroups, and how many decisions were
    recorded on this machine; None if none could be yet."""

    handlers: Sequence[HandlerStats] = ()
    triggers: Sequence[tuple[str, Trigger]] = ()
    recorded: int | None = None


def read(where: Pins | None, btf: Btf, name: Callable[[int], str]) -> Stats:
    """Count everything of ours. ``name`` says what a cgroup is called.

    Raises PermissionDeniedError.
    """
    if where is None:
        return Stats()
    return Stats(
        [_handler(found, name) for found in describe.handlers(where, btf)],
        [(name(found.cgroup_id), found) for found in trigger.triggers(where)],
        _recorded(where),
    )


def _handler(handler: Handler, name: Callable[[int], str]) -> HandlerStats:
    """A handler's numbers; without those of the policy if it was exchanged meanwhile."""
    cgroup = name(handler.cgroup_id)
    try:
        own = maps.elements(handler.map_ids, maps.COUNTERS)
        rows = maps.elements(handler.map_ids, latency.MAP)
    except SyscallError:
        return HandlerStats(cgroup, handler)
    counters = dict(zip(maps.COUNTER_NAMES, maps.words(own[0]), strict=False)) if own else {}
    known = len(rows) == latency.ROWS and len(rows[0]) == latency.SIZE
    return HandlerStats(cgroup, handler, counters, latency.decode(rows) if known else ())


def _recorded(where: Pins) -> int | None:
    shared = where.open_shared(_STATE_MAP)
    if shared is None:
        return None
    with shared:
        size = info.map_info(shared).value_size
        return maps.words(syscalls.map_lookup(shared, bytes(4), size))[0]


class Collector:
    """What a Prometheus registry collects from: ``source`` reads anew, or None if it cannot."""

    def __init__(self, source: Callable[[], Stats | None]) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """The families of this moment."""
        from prometheus_client.core import GaugeMetricFamily

        stats = self._source()
        yield GaugeMetricFamily(
            "bpfoom_up", "Whether what is attached could be read", stats is not None
        )
        if stats is not None:
            yield from families(stats)


def families(stats: Stats) -> Iterator[Metric]:
    """Everything that was counted, as Prometheus' metric families."""
    yield from _handler_families(stats.handlers)
    yield _histograms(stats.handlers)
    yield from _trigger_families(stats.triggers)
    if stats.recorded is not None:
        from prometheus_client.core import CounterMetricFamily

        yield CounterMetricFamily(
            "bpfoom_decisions_recorded", "Decision records written", stats.recorded
        )


# Family, what it says, and the counter of the handler that it shows.
_KERNEL = (
    ("bpfoom_kills", "Processes that handlers had killed", "kills"),
    ("bpfoom_promises", "Promises of memory that the kernel took", "promised"),
    ("bpfoom_promises_broken", "Promises that were not kept", "promises_broken"),
    ("bpfoom_slow_calls", "Calls of more than a second", "slow"),
)
_OWN = (
    ("bpfoom_refused_actions", "Actions of policies that the kernel refused", "failed"),
    ("bpfoom_victims_awaited", "Calls that left it at a victim on its way out", "in_flight"),
    ("bpfoom_samples", "Measurements by policies' samplers", "samples"),
)


def _handler_families(handlers: Sequence[HandlerStats]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    about = InfoMetricFamily("bpfoom_handler", "Attached handlers", labels=["cgroup"])
    calls = _counter("bpfoom_calls", "Calls of handlers, as the kernel took them", ("verdict",))
    longest = GaugeMetricFamily(
        "bpfoom_call_duration_max_seconds", "The longest call", labels=["cgroup"]
    )
    for one in handlers:
        cgroup, kernel = _label(one.cgroup), one.handler.counters
        provenance = one.handler.provenance
        about.add_metric(
            [cgroup],
            {
                "policy": one.handler.policy,
                "policy_hash": str(provenance.get("policy_hash", "")),
                "dry_run": "true" if one.handler.dry_run else "false",
            },
        )
        for verdict in _VERDICTS:
            if verdict in kernel:
                calls.add_metric([cgroup, verdict], kernel[verdict])
        if "max_ns" in kernel:
            longest.add_metric([cgroup], kernel["max_ns"] * _NS)
    yield from (about, calls, longest)
    for named, numbers in (
        (_KERNEL, [(one.cgroup, one.handler.counters) for one in handlers]),
        (_OWN, [(one.cgroup, one.own) for one in handlers]),
    ):
        for name, says, key in named:
            family = _counter(name, says, ())
            for cgroup, counters in numbers:
                if key in counters:
                    family.add_metric([_label(cgroup)], counters[key])
            yield family


def _histograms(handlers: Sequence[HandlerStats]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(
        "bpfoom_decision_duration_seconds",
        "Time spent in a handler, by what it did and why there was an OOM",
        labels=["cgroup", "action", "reason"],
    )
    ends = [str(limit / 1e6) for limit in latency.limits_us()] + ["+Inf"]
    for one in handlers:
        for histogram in one.latency:
            seen, buckets = 0, []
            for end, count in zip(ends, histogram.buckets, strict=True):
                seen += count
                buckets.append((end, float(seen)))
            labels = [_label(one.cgroup), histogram.action, histogram.reason]
            family.add_metric(labels, buckets, histogram.sum_ns * _NS)
    return family


def _trigger_families(triggers: Sequence[tuple[str, Trigger]]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    def gauge(name: str, says: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, says, labels=["cgroup"])

    about = InfoMetricFamily("bpfoom_trigger", "Triggers on pressure", labels=["cgroup"])
    fired = _counter("bpfoom_trigger_declared", "OOMs that triggers declared", ())
    relieved = _counter("bpfoom_trigger_relieved", "Those that led to a victim or to memory", ())
    armed = gauge("bpfoom_trigger_armed", "Whether pressure was below the threshold since")
    stall = gauge("bpfoom_trigger_stall_seconds", "Stalled in the last window")
    threshold = gauge("bpfoom_trigger_threshold_seconds", "The stall that it waits for")
    for name, found in triggers:
        labels = [_label(name)]
        about.add_metric(labels, {"psi": found.settings.psi})
        fired.add_metric(labels, found.state.fired)
        relieved.add_metric(labels, found.state.relieved)
        armed.add_metric(labels, found.state.armed)
        stall.add_metric(labels, found.state.stall_us / 1e6)
        threshold.add_metric(labels, found.settings.threshold_us / 1e6)
    yield from (about, fired, relieved, armed, stall, threshold)


def _counter(name: str, says: str, labels: Sequence[str]) -> CounterMetricFamily:
    """A counter per cgroup, and what else there are labels for."""
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(name, says, labels=["cgroup", *labels])


def _label(name: str) -> str:
    """A cgroup's name as a label: bytes that are no text are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
