# SPDX-License-Identifier: Apache-2.0
"""The programs that a policy may hold. The name of an entry function says what it is."""

from __future__ import annotations

from dataclasses import dataclass

_MAP_UPDATE_ELEM = 2


@dataclass(frozen=True)
class Kind:
    """What becomes of an entry function.

    ``type`` is the program's type, or "callback" for a function of the program before it, which
    the kernel calls later. ``member`` is the callback of bpf_oom_ops that it fills ("struct_ops"),
    or the tracepoint that it runs at ("tracing"). ``helpers`` may be called besides those that are
    open to handlers.
    """

    type: str
    member: str
    sleepable: bool
    helpers: frozenset[int] = frozenset()


HANDLER, SAMPLER = "handle_out_of_memory", "sample"
WATCHER, DECLARER = "watch_pressure", "declare_oom"
KINDS = {
    HANDLER: Kind("struct_ops", HANDLER, sleepable=True),
    # It runs where memory may be allocated, so it can fill a map that the handler only reads.
    SAMPLER: Kind(
        "tracing", "psi_avgs_work", sleepable=False, helpers=frozenset({_MAP_UPDATE_ELEM})
    ),
    WATCHER: Kind("tracing", "psi_avgs_work", sleepable=False),
    DECLARER: Kind("callback", "", sleepable=True),
}
# What an object is made of: a policy, or a trigger.
POLICY, TRIGGER = (HANDLER, SAMPLER), (WATCHER, DECLARER)
