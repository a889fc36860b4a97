# SPDX-License-Identifier: Apache-2.0
"""Policies with a sampler: it runs while the handler is attached, feeds it, and ends with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.build import compile_policy
from bpfoom.handler import describe, info, maps, pins, syscalls
from bpfoom.handler.attach import attach, detach
from bpfoom.handler.describe import Handler
from bpfoom.handler.update import exchange
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.scenario.run import BASELINE
from tests.guest.byhand import Trees, cli_json, wait_for
from tests.guest.memory import hog, make
from tests.templates import words_of

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

MEMBERS = words_of("include/baseline.bpf.c.j2", "baseline")


@pytest.fixture
def busy(trees: Trees) -> Iterator[Cgroup]:
    """A cgroup in which something runs, so that its pressure averages are looked at."""
    script = f"echo 0 > {trees.box.path}/cgroup.procs && while :; do :; done"
    spinner = subprocess.Popen(["sh", "-c", script])
    yield trees.box
    spinner.kill()
    spinner.wait()


def samples(handler: Handler) -> int:
    (raw,) = maps.elements(handler.map_ids, maps.COUNTERS)
    return dict(zip(maps.COUNTER_NAMES, maps.words(raw), strict=True))["samples"]


def pinned_beside(cgroup: Cgroup) -> list[str]:
    """All that is pinned for a cgroup's handler."""
    return sorted(path.name for path in pins.require().directory(cgroup.id).iterdir())


def baseline(handler: Handler) -> dict[int, int]:
    """What was measured last of each cgroup, by its id."""
    found = maps.find(handler.map_ids, BASELINE)
    assert found is not None
    with found:
        about = info.map_info(found)
        samples = {
            key: maps.words(syscalls.map_lookup(found, key, about.value_size))
            for key in list(syscalls.map_keys(found, about.key_size))
        }
    newer = MEMBERS.index("newer")
    return {int.from_bytes(key, "little"): words[newer] for key, words in samples.items()}


@pytest.mark.parametrize("policy", ["fastest-growing", "pgscan"])
def test_a_sampler_runs_as_long_as_its_handler(busy: Cgroup, btf: Btf, policy: str) -> None:
    where = pins.require()
    handler = attach(compile_policy(policy, {}), busy.path, btf, where, name=busy.name)
    try:
        wait_for(lambda: samples(handler) >= 2, "two samples")
        assert pinned_beside(busy) == ["link", f"sampler-{handler.map_id}"]
    finally:
        assert detach(busy.id, where)
    assert not where.link_path(busy.id).parent.exists()


def test_an_update_takes_the_baseline_along(busy: Cgroup, btf: Btf) -> None:
    where = pins.require()
    first = attach(compile_policy("fastest-growing", {}), busy.path, btf, where, name=busy.name)
    try:
        wait_for(lambda: busy.id in baseline(first), "a sample")
        before, known = samples(first), set(baseline(first))
        changed = compile_policy("fastest-growing", {"window": "2s"})
        second = exchange(changed, first, busy.path, btf, where, note={})
        assert second.prog_id != first.prog_id
        assert pinned_beside(busy) == ["link", f"sampler-{second.map_id}"]
        assert known <= set(baseline(second))
        wait_for(lambda: samples(second) > before, "a sample of the new program")
        third = exchange(
            compile_policy("largest-cgroup", {}), second, busy.path, btf, where, note={}
        )
        assert pinned_beside(busy) == ["link"]
        assert describe.handler_of(busy.id, busy.name, where, btf).prog_id == third.prog_id
    finally:
        assert detach(busy.id, where)


@pytest.mark.parametrize(
    ("first", "second"), [("pgscan", "fastest-growing"), ("fastest-growing", "pgscan")]
)
def test_another_inner_policy_has_a_baseline_of_its_own(
    busy: Cgroup, btf: Btf, first: str, second: str
) -> None:
    """Pages scanned, none of them yet, taken for bytes would be growth by all that there is."""
    where = pins.require()
    attaching = ("attach", "--cgroup", busy.name, "--policy", "protect")
    with hog(busy, 16):
        cli_json(*attaching, "--set", f"inner={first}")
        before = describe.handler_of(busy.id, busy.name, where, btf)
        wait_for(lambda: busy.id in baseline(before), "a sample")
        assert (baseline(before)[busy.id] > 16 << 20) == (first == "fastest-growing")
        cli_json("update", "--cgroup", busy.name, "--set", f"inner={second}")
        after = describe.handler_of(busy.id, busy.name, where, btf)
        (link,) = cli_json("explain", "--cgroup", busy.name)["chain"]
        wait_for(lambda: busy.id in baseline(after), "a sample of the other policy")
        assert (baseline(after)[busy.id] > 16 << 20) == (second == "fastest-growing")
    (candidate,) = link["candidates"]
    assert candidate["score"] < 1 << 20


def test_a_sampler_whose_cgroup_is_gone_is_swept(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    gone = make(trees.box.path.parent / "gone")
    attach(compile_policy("pgscan", {}), gone.path, btf, where, name=gone.name)
    gone.path.rmdir()
    wait_for(lambda: where.sweep() == [gone.id], "the handler to go with its cgroup")
    assert not where.link_path(gone.id).parent.exists()


def test_a_cgroup_younger_than_the_sampler_has_grown_from_nothing(trees: Trees, btf: Btf) -> None:
    """old has more, was there before and is idle; young is not even sampled yet."""
    where = pins.require()
    top = make(trees.box.path.parent / "grown", parent=True)
    with hog(make(top.path / "old"), 24):
        attach(compile_policy("fastest-growing", {}), top.path, btf, where, name=top.name)
        try:
            with hog(make(top.path / "young"), 4):
                (link,) = cli_json("explain", "--cgroup", top.name)["chain"]
        finally:
            assert detach(top.id, where)
    first, second = link["candidates"]
    assert (first["cgroup"], second["cgroup"]) == (f"{top.name}/young", f"{top.name}/old")
    assert first["score"] > 4 << 20
    assert first["usage"] < second["usage"]
