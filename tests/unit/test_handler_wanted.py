# SPDX-License-Identifier: Apache-2.0
"""From the words of attach and update to the object that is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.compiler import build, child
from bpfoom.errors import ParameterError, UsageError
from bpfoom.handler import params
from bpfoom.handler.wanted import Wanted
from bpfoom.policy.functions import PARAMS

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"


@pytest.fixture(autouse=True)
def patched_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if on the patched kernel, with nothing in the cache."""
    monkeypatch.setattr(build, "RUNNING", KERNEL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def wanted(**settings: str) -> Wanted:
    return Wanted.of("priority", None, settings, None)


def test_live_parameters_need_no_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    first = wanted(min="1M", unit="task").compile()
    with monkeypatch.context() as patch:
        patch.setattr(child, "ask", lambda *_: pytest.fail("rendered or compiled again"))
        second = wanted(min="2M", unit="task").compile()
    assert first.programs == second.programs
    for obj, value in ((first, "1M"), (second, "2M")):
        (spec,) = (spec for spec in obj.maps if spec.name == PARAMS)
        assert params.shown(obj.parameters, spec.initial) == {"min": value}
        assert {p.name: p.value for p in obj.parameters} == {"min": value, "unit": "task"}


def test_every_parameter_is_checked_before() -> None:
    for settings in ({"min": "x"}, {"unit": "x"}, {"nope": "1"}):
        with pytest.raises(ParameterError):
            wanted(**settings).check()


def test_one_of_the_two() -> None:
    for policy, file in ((None, None), ("swap", Path("x"))):
        with pytest.raises(UsageError, match="--object"):
            Wanted.of(policy, file, {}, None)


def test_a_file_is_found_again_from_anywhere() -> None:
    assert Wanted.of("x.bpf.c.j2", None, {}, None).policy == str(Path.cwd() / "x.bpf.c.j2")
    assert Wanted.of("swap", None, {}, None).policy == "swap"


@pytest.mark.parametrize(("dry", "option"), [(True, False), (False, True)])
def test_an_object_is_a_dry_run_or_not(dry: bool, option: bool, tmp_path: Path) -> None:
    file = tmp_path / "object"
    file.write_bytes(build.compile_policy("swap", {}, dry_run=dry).to_bytes())
    file.chmod(0o600)
    with pytest.raises(UsageError, match="was compiled"):
        Wanted.of(None, file, {}, option).check()
    for same in (None, dry):
        assert Wanted.of(None, file, {}, same).compile().provenance.dry_run is dry
