# SPDX-License-Identifier: Apache-2.0
"""Play one tree once: stage it, attach the handlers, trigger, and return what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject
from bpfoom.handler import attach as attaching
from bpfoom.handler import pins
from bpfoom.handler.pins import Pins
from bpfoom.observe import kmsg
from bpfoom.observe.latency import KillTrace
from bpfoom.observe.records import read_history
from bpfoom.observe.result import Run
from bpfoom.scenario.stage import Stage
from bpfoom.scenario.tree import Node


def play(tree: Node, handlers: Mapping[str, HandlerObject], btf: Btf) -> Run:
    """Run the tree's OOM with a handler object attached at each path of ``handlers``.

    Raises what attaching does; InfrastructureError when the tree cannot be filled.
    """
    with ExitStack() as stack:
        stage = stack.enter_context(Stage(tree))
        where = pins.require() if handlers else pins.find()
        seen = _last_sequence(where)
        for path, obj in handlers.items():
            _attach(stack, stage, path, obj, btf)
        log = stack.enter_context(kmsg.KernelLog())
        trace = stack.enter_context(KillTrace())
        stage.trigger()
        return Run(
            handler=", ".join(obj.provenance.policy for obj in handlers.values()) or None,
            victims=tuple(hog.process for hog in stage.hogs if hog.ended()),
            survivors=tuple(hog.process for hog in stage.hogs if not hog.ended()),
            memory_events=stage.events(),
            dmesg=tuple(kmsg.about_oom(log.lines())),
            decisions=tuple(d for d in read_history(pins.find()) if d.sequence > seen),
            kill_ns=trace.nanoseconds(),
        )


def _attach(stack: ExitStack, stage: Stage, path: str, obj: HandlerObject, btf: Btf) -> None:
    where = pins.require()
    handler = attaching.attach(obj, stage.directory(path), btf, where, name="/" + path.strip("/"))
    stack.callback(attaching.detach, handler.cgroup_id, where)


def _last_sequence(where: Pins | None) -> int:
    history = read_history(where)
    return history[-1].sequence if history else 0
