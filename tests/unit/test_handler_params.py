# SPDX-License-Identifier: Apache-2.0
"""Live parameters: what people type to words in a set and back, and what an update carries over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfoom.compiler.object import HandlerObject, MapSpec, Parameter, Provenance
from bpfoom.errors import ParameterError
from bpfoom.handler import params, update
from bpfoom.handler.describe import Handler
from bpfoom.policy.functions import PARAMS

LEAST = Parameter("least", "bytes", "1M", True, 0, 8, least=4096, help="at least this")
SHIFT = Parameter("shift", "int", "-3", True, 8, 8, most=10)
WAIT = Parameter("inner.wait", "duration", "250ms", True, 16, 8)
LOUD = Parameter("loud", "bool", "true", True, 24, 8)
INNER = Parameter("inner", "policy", "largest-task", False)
FIXED = Parameter("inner.min", "bytes", "2M", False)
ALL = (LEAST, SHIFT, INNER, WAIT, FIXED, LOUD)
VALUES = b"".join(
    number.to_bytes(8, "little", signed=True) for number in (1 << 20, -3, 250_000_000, 1)
)


def handler(**fields: object) -> Handler:
    provenance = {"parameters": [vars(parameter) for parameter in ALL], "policy": "p"}
    made: dict[str, object] = {
        **{"cgroup_id": 7, "link_id": 1, "map_id": 2, "prog_id": 3, "prog_tag": "", "name": "p"},
        **{"loaded_ns": 0, "provenance": provenance, "live": VALUES},
        "values": {parameter.name: parameter.value for parameter in ALL},
    }
    return Handler(**(made | fields))  # type: ignore[arg-type]


def test_a_set_is_shown_as_it_would_be_typed() -> None:
    expected = {"least": "1M", "shift": "-3", "inner.wait": "250ms", "loud": "true"}
    assert params.shown(ALL, VALUES) == expected


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"least": "1G"}, {"least": "1G"}),
        ({"shift": "-9", "loud": "no"}, {"shift": "-9", "loud": "false"}),
        ({"inner.wait": "2s"}, {"inner.wait": "2s"}),
        ({}, {}),
    ],
)
def test_named_parameters_change_and_no_other(
    settings: dict[str, str], shown: dict[str, str]
) -> None:
    before = params.shown(ALL, VALUES)
    assert params.shown(ALL, params.changed(ALL, VALUES, settings)) == before | shown


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"laest": "1M"}, "unknown parameter 'laest'"),
        ({"least": "4095"}, "below the least, 4K"),
        ({"shift": "11"}, "above the most, 10"),
        ({"shift": "-9223372036854775809"}, "parameter shift"),
        ({"least": "1M", "loud": "perhaps"}, "expected true or false"),
        ({"inner.min": "1M"}, "inner.min is not live"),
        ({"inner": "swap"}, "inner is not live"),
        ({"least": "1M; }} x"}, "expected bytes"),
        ({"least": "1\0"}, "expected bytes"),
    ],
)
def test_what_cannot_be_set(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        params.changed(ALL, VALUES, settings)


@given(st.integers(4096, (1 << 63) - 1), st.integers(-(1 << 63), 10), st.integers(0, (1 << 63) - 1))
def test_every_number_comes_back(least: int, shift: int, wait: int) -> None:
    settings = {"least": str(least), "shift": str(shift), "inner.wait": f"{wait}ns"}
    values = params.changed(ALL, VALUES, settings)
    assert len(values) == len(VALUES)
    typed = params.shown(ALL, values)
    assert params.changed(ALL, VALUES, typed) == values
    assert int.from_bytes(values[:8], "little") == least
    assert int.from_bytes(values[8:16], "little", signed=True) == shift
    assert int.from_bytes(values[16:24], "little") == wait


def test_the_hint_has_the_range_and_the_help() -> None:
    with pytest.raises(ParameterError) as raised:
        params.changed(ALL, VALUES, {"least": "1"})
    assert "4K.." in raised.value.hint and "at least this" in raised.value.hint


def test_a_provenance_of_another_version_is_read() -> None:
    given = {"name": "a", "type": "bytes", "value": "1", "live": False, "colour": "red"}
    assert params.parameter(given) == Parameter("a", "bytes", "1", False)


def test_an_object_begins_with_other_values() -> None:
    maps = (MapSpec(PARAMS, "array", 4, 32, 2, initial=VALUES),)
    obj = HandlerObject((), maps, (), (), (), ALL, Provenance("p", "", "", "", "", ""))
    made = params.set_live(obj, {"least": "8K"})
    assert params.shown(ALL, made.maps[0].initial)["least"] == "8K"
    assert [p.value for p in made.parameters] == ["8K", *(p.value for p in ALL[1:])]
    assert params.set_live(obj, {}) is obj
    with pytest.raises(ParameterError, match="not live"):
        params.set_live(obj, {"inner.min": "8K"})


@pytest.mark.parametrize(
    ("settings", "live"),
    [
        ({"least": "1M", "inner.wait": "1s"}, True),
        ({"least": "1M", "inner.min": "1M"}, False),
        ({"nope": "1"}, False),
    ],
)
def test_only_live_parameters_change_without_another_program(
    settings: dict[str, str], live: bool
) -> None:
    assert update.is_live(handler(), settings) is live
    assert update.is_live(handler(live=b""), settings) is False


def test_parameters_that_are_not_named_are_carried() -> None:
    now = handler().values | {"least": "3M"}
    assert update.carried(handler(values=now), {"shift": "2"}) == now | {"shift": "2"}


def test_another_inner_policy_begins_with_its_defaults() -> None:
    made = update.carried(handler(), {"inner": "swap", "inner.deep": "1"})
    assert made == {
        "least": "1M", "shift": "-3", "loud": "true", "inner": "swap", "inner.deep": "1",
    }  # fmt: skip
    assert "inner.min" in update.carried(handler(), {"inner": "largest-task"})


def test_the_hint_names_the_default_of_the_card():
    with pytest.raises(ParameterError) as caught:
        params.changed([replace(LEAST, default="4M")], bytes(8), {"least": "lots"})
    assert "default 4M" in caught.value.hint
