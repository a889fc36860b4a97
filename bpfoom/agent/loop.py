# SPDX-License-Identifier: Apache-2.0
"""The agent: keeps the machine what the configuration says, as cgroups come and go.

It sleeps until a cgroup stirs, a signal comes, or its service manager wants to hear from it. It
holds nothing that matters: what it has attached stays when it dies, and the next one goes on.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping, Sequence

from bpfoom.agent import converge, plan
from bpfoom.agent.config import Config
from bpfoom.agent.converge import Converger, Result
from bpfoom.agent.plan import Broken
from bpfoom.agent.service import Service, Signals
from bpfoom.agent.trials import Ended, Trials
from bpfoom.errors import BpfoomError
from bpfoom.handler import links
from bpfoom.observe.follow import Follower, Seen
from bpfoom.observe.marks import Change
from bpfoom.observe.tree import Node

# What there is to be told: what came of a step, a mark that was changed, a trial that is over, an
# entry or the file that cannot be followed, or a state in words.
Told = Result | Change | Broken | Ended | BpfoomError | str

# How often, and how many times, pins of cgroups that are gone are looked at until they go.
_DYING_S, _DYING_TRIES = 1.0, 30
_COME_OR_GO = (plan.ATTACH, plan.DETACH)


class Agent:
    """``read`` gives the configuration, again at each reload; ``tell`` is called with all news."""

    def __init__(
        self,
        read: Callable[[], Config],
        converger: Converger,
        follower: Follower,
        trials: Trials,
        tell: Callable[[Told], None],
    ) -> None:
        self._read = read
        self._converger = converger
        self._where = converger.where
        self._follower = follower
        self._trials = trials
        self._tell = tell
        self._service = Service()
        self._signals = Signals()
        self._failed: set[int] = set()
        self._dying: set[int] = set()
        self._tries = 0

    def run(self) -> None:
        """Go on until asked to stop. Raises as ``read`` does, for the first time only."""
        with self._service, self._signals as signals, select.epoll() as woken:
            woken.register(signals, select.EPOLLIN)
            woken.register(self._follower.watcher, select.EPOLLIN)
            self._load(self._read())
            self._service.ready(self._state())
            self._tell(self._state())
            while not signals.stop:
                self._trials.wait(self._patience(), woken.fileno())
                ready = {fd for fd, _ in woken.poll(0)}
                signals.heard()
                self._service.alive()
                self._turn(stirred=self._follower.watcher.fileno() in ready)
            self._service.stopping()

    def _patience(self) -> float | None:
        """How many seconds may pass without anything happening."""
        limits = [self._service.patience, _DYING_S if self._dying else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def _turn(self, *, stirred: bool) -> None:
        """Do what there is to do."""
        for ended in self._trials.look():
            self._tell(ended)
        if self._signals.reload:
            self._signals.reload = False
            self._reload()
        elif stirred:
            self._converge(self._follower.settle(), {})
            self._service.status(self._state())
        elif self._dying:
            self._sweep()
            self._tries += 1
            if self._tries >= _DYING_TRIES:
                self._dying.clear()  # what is left is not ours to remove

    def _load(self, config: Config) -> None:
        """Go by this configuration from now on, everywhere."""
        self._converger.adopt(config, self._service.alive)
        try:
            for change in self._converger.sync_marks().changes:
                self._tell(change)
        except BpfoomError as error:
            self._tell(error)
        self._converger.sweep()
        self._failed.clear()
        self._converge(self._follower.start(), links.attached(), news=True)

    def _reload(self) -> None:
        self._service.reloading()
        try:
            config = self._read()
        except BpfoomError as error:
            self._tell(error)
            self._tell("the file cannot be followed: everything stays as it is")
        else:
            self._load(config)
            self._tell(self._state())
        self._service.ready(self._state())

    def _converge(self, seen: Seen, foreign: Mapping[int, int], *, news: bool = False) -> None:
        """Do what is to be done on the cgroups that were seen. ``news``: tell of what is not done,
        too, because it is looked at for the first time."""
        waiting = [seen]
        while waiting:
            seen = waiting.pop()
            if seen.gone:
                self._let_go(seen.gone)
            self._tell_of_marks(seen)
            results = self._carry_out(seen.nodes, foreign, news)
            touched = [
                r.step.cgroup for r in results if r.step.action in (plan.ATTACH, plan.DETACH)
            ]
            # Whose attributes are believed depends on who watches, where others own cgroups.
            if touched and any(node.uid for node in seen.nodes):
                waiting.append(self._follower.look(touched))

    def _carry_out(
        self, nodes: Sequence[Node], foreign: Mapping[int, int], news: bool
    ) -> list[Result]:
        """The steps that were done on these cgroups."""
        planned = self._converger.plan(nodes, foreign)
        steps = planned.steps
        if planned.waiting:
            for name in planned.waiting:
                self._follower.watcher.await_controllers(name)
            # They may have come before anybody was waiting for them.
            again = [node for node in nodes if node.name in planned.waiting]
            fresh = {step.cgroup_id: step for step in self._converger.plan(again, {}).steps}
            steps = [step for step in steps if step.cgroup_id not in fresh] + list(fresh.values())
        for broken in planned.broken:
            if news or broken.cgroups:
                self._tell(broken)
        results = []
        for step in steps:
            if self._signals.stop:
                break
            self._service.alive()
            result = self._converger.carry_out(step)
            self._note(result)
            if result.outcome == converge.DONE:
                results.append(result)
            if news or result.outcome in (converge.DONE, converge.FAILED):
                self._tell(result)
        return results

    def _note(self, result: Result) -> None:
        if result.outcome == converge.FAILED:
            self._failed.add(result.step.cgroup_id)
        else:
            self._failed.discard(result.step.cgroup_id)

    def _let_go(self, gone: set[int]) -> None:
        """Take away the pins of cgroups that are gone.

        Also of those that nobody has ever seen: between a look and an attach, one cgroup can take
        the place of another of the same name, and go.
        """
        self._failed -= gone
        self._dying |= gone | (set(self._where.cgroup_ids()) - self._follower.watcher.ids())
        self._tries = 0
        self._sweep()

    def _sweep(self) -> None:
        """Some may still be on their way: the kernel detaches a link soon after its cgroup goes."""
        self._converger.sweep(self._dying)
        self._dying &= set(self._where.cgroup_ids())

    def _tell_of_marks(self, seen: Seen) -> None:
        for change in seen.changes:
            self._tell(change)
        if seen.error:
            self._tell(seen.error)

    def _state(self) -> str:
        handlers = len(self._where.with_handlers())
        failed = f", {len(self._failed)} failed" if self._failed else ""
        return f"{self._converger.config.owner}: handlers: {handlers} attached{failed}"
