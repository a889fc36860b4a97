# SPDX-License-Identifier: Apache-2.0
"""Who of several agents has the trials; what becomes of them is tried in tests/guest."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from bpfoom.agent.trials import Trials
from bpfoom.btf.types import Btf
from bpfoom.handler import rollback
from bpfoom.handler.pins import Pins

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"


def _be_the_first(base: Path, begun: multiprocessing.synchronize.Event) -> None:
    with Btf.from_file(KERNEL) as btf, Trials(btf, Pins(base)):
        begun.set()
        multiprocessing.Event().wait()


def test_when_an_agent_dies_the_next_one_has_them(tmp_path: Path) -> None:
    where = Pins(tmp_path / "bpfoom")
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    first = context.Process(target=_be_the_first, args=(where.base, begun))
    first.start()
    assert begun.wait(60)
    with Btf.from_file(KERNEL) as btf, Trials(btf, where) as second:
        assert list(second.look()) == []
        first.kill()
        first.join()
        assert not rollback.agent_runs(where)
        assert list(second.look()) == []
        assert rollback.agent_runs(where)
    assert not rollback.agent_runs(where)


def test_a_history_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    where = Pins(tmp_path)
    where.shared_path("bpfoom_history").mkdir(parents=True)
    with Btf.from_file(KERNEL) as btf, Trials(btf, where) as trials:
        (told,) = trials.look()
        assert "not bpfoom's" in told.message  # type: ignore[union-attr]
        assert list(trials.look()) == []
