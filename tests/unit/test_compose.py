# SPDX-License-Identifier: Apache-2.0
"""Policies that wrap others: how a chain is found, named, refused, and what it renders to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.compiler import build
from bpfoom.errors import CardError, NotThereError, ParameterError
from bpfoom.policy import card, compose, find

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"


def test_a_policy_that_wraps_none_is_a_plan_of_one():
    made = compose.plan("largest-task", {"min": "4K"})
    assert [layer.policy.name for layer in made.layers] == ["largest-task"]
    assert made.values == {"min": 4096}


def test_inner_parameters_are_dotted_and_keep_their_order():
    made = compose.plan(
        "grace", {"inner": "protect", "inner.inner": "largest-task", "inner.inner.min": "1M"}
    )
    assert [policy.name for policy in made.policies] == ["grace", "protect", "largest-task"]
    assert list(made.values) == [
        *("inner", "rounds", "wait"),
        *("inner.inner", "inner.omit", "inner.avoid"),
        "inner.inner.min",
    ]
    assert made.layers[2].values == {"min": 1 << 20}
    assert [layer.prefix for layer in made.layers] == ["", "inner.", "inner.inner."]


def test_scopes_name_templates_by_number_and_identifiers_differ():
    made = compose.plan("protect", {"inner": "priority"})
    outer, inner = made.scopes()
    assert outer.settings[0].value == inner.template == "policy 1"
    assert {s.identifier for s in inner.settings} == {"inner__unit", "inner__min"}


@pytest.mark.parametrize(
    ("settings", "parameter"),
    [
        ({"inner": "grace"}, "inner"),
        ({"inner": "protect", "inner.inner": "monitor", "inner.inner.inner": "protect"},
         "inner.inner.inner"),
    ],
)  # fmt: skip
def test_circles_are_refused(settings, parameter):
    with pytest.raises(ParameterError, match="would wrap itself: grace > ") as caught:
        compose.plan("grace", settings)
    assert caught.value.data["parameter"] == parameter


def test_a_parameter_of_another_inner_policy_is_unknown():
    with pytest.raises(ParameterError, match=r"unknown parameter 'inner\.unit'") as caught:
        compose.plan("grace", {"inner": "largest-task", "inner.unit": "task"})
    assert "inner.min" in caught.value.data["known"]


def test_a_parameter_out_of_range_is_named_with_its_dots():
    with pytest.raises(ParameterError, match=r"parameter inner\.rounds: 9 is above"):
        compose.plan("monitor", {"inner": "grace", "inner.rounds": "9"})


@pytest.mark.parametrize("name", ["no-such", "a b", "", "largest-task\n{{ x }}"])
def test_an_inner_policy_that_is_none(name):
    with pytest.raises((NotThereError, ParameterError)):
        compose.plan("monitor", {"inner": name})


def test_a_card_wraps_one_other_at_most():
    text = """{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "stable"
[params.a]
type = "policy"
default = "x"
help = "h"
[params.b]
type = "policy"
default = "x"
help = "h"
---#}"""
    with pytest.raises(CardError, match="wraps one other at most"):
        card.parse(text, "p")


def test_an_inner_policy_can_be_a_file(tmp_path):
    own = tmp_path / "mine.bpf.c.j2"
    text = find.find_policy("largest-task").text
    own.write_text(text.replace("params.min", "params.floor").replace("param.min", "param.floor"))
    made = compose.plan("monitor", {"inner": str(own), "inner.floor": "8K"})
    assert made.values["inner.floor"] == 8192


def test_monitor_renders_its_inner_policy_as_a_dry_run():
    watched = build.render_policy("monitor", {"inner": "largest-task"}, btf=KERNEL).text
    assert "ACTION_WOULD_KILL, 0" in watched
    assert "bpf_oom_kill_process(call" not in watched


def test_a_wrapper_stands_before_what_it_wraps():
    text = build.render_policy(
        "grace", {"inner": "raise-limit", "inner.inner": "largest-task"}, btf=KERNEL
    ).text
    body = text[text.index("static __always_inline int before(") :]
    assert body.index("give_grace(call)") < body.index("raise_limit(call)") < body.index("GO_ON;")
