# SPDX-License-Identifier: Apache-2.0
"""What a report is made of: time lines, bands, verdicts, groups, marks, colours, drawings.

How the page looks is tested in tests/host/test_report.py, in a browser.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bpfoom.observe.records import Cgroups
from bpfoom.observe.result import Limit, Run, Sample, Usage
from bpfoom.report import axes, bands, groups, palette, svg, text, timeline, verdict
from bpfoom.report.groups import Source
from bpfoom.report.timeline import Mark
from tests import results
from tests.results import MIB, STARTED
from tests.schemas import valid


def samples(*held: dict[str, int | Usage], step: float = 1.0) -> tuple[Sample, ...]:
    """A sample a ``step``: bytes or whole usages by path."""
    return tuple(
        Sample(
            STARTED + number * step,
            {p: v if isinstance(v, Usage) else Usage(v, 0, 0, 0) for p, v in paths.items()},
        )
        for number, paths in enumerate(held)
    )


def a_run(**fields: object) -> Run:
    blank = {"name": "x", "handler": None, "started": STARTED, "victims": (), "survivors": ()}
    return Run(**{**blank, "memory_events": {}, "dmesg": (), "decisions": (), **fields})


@pytest.mark.parametrize("name", ["demo", "single", "many", "hostile", "bare"])
def test_the_documents_of_these_tests_are_documents(name: str) -> None:
    valid("result", getattr(results, name)().as_dict())


# Text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("shop/api", "shop/api"),
        ("日本 😀 é", "日本 😀 é"),
        ("a\0b\n\x1b[0m", "a\\x00b\\n\\x1b[0m"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\ud800", "\\ud800"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("a\u2028b\u00adc", "a\\u2028b\\xadc"),
    ],
)
def test_what_cannot_be_printed_is_escaped(raw: str, shown: str) -> None:
    assert text.clean(raw) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (256 * MIB, "256 MiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_sizes(number: int, shown: str) -> None:
    assert text.size(number) == shown


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [(0, "0 ns"), (850, "850 ns"), (4_500_000, "4.5 ms"), (9e10, "1.5 min"), (36e12, "10 h")],
)
def test_durations(nanoseconds: float, shown: str) -> None:
    assert text.duration(nanoseconds) == shown


def test_lists_and_counts() -> None:
    assert (
        text.listed([]) == "" and text.listed(["a"]) == "a" and text.listed("abc") == "a, b and c"
    )
    assert text.listed("abcdef") == "a, b, c and 3 more"
    assert text.moment(0) == "0 s" and text.moment(-0.25) == "\u2212250 ms"
    assert text.counted(1, "process", "processes") == "1 process"
    assert text.counted(12345, "run") == "12,345 runs"


# Timeline


def test_second_0_is_the_decision_else_the_peak_before_a_death_else_the_start() -> None:
    handled, stock = results.handled(), results.stock()
    assert timeline.of_run(handled).origin == "the decision"
    assert timeline.of_run(handled).zero == pytest.approx(STARTED + 1.4)
    assert timeline.of_run(stock).origin == "the peak"
    assert timeline.of_run(stock).zero == pytest.approx(STARTED + 1.4)
    assert timeline.of_run(replace(stock, timeline=())).origin == "the first death"
    watched = a_run(timeline=samples({"a": 1}, {"a": 2}))
    lines = timeline.of_run(watched)
    assert (lines.origin, lines.times, lines.marks) == ("the start of watching", (0.0, 1.0), ())


def test_marks_are_decisions_by_number_and_deaths_by_cgroup() -> None:
    marks = timeline.of_run(results.handled()).marks
    assert [mark.number for mark in marks if mark.kind == "decision"] == [1, 2]
    deaths = [mark for mark in marks if mark.kind == "death"]
    assert len(deaths) == 4 and {mark.cgroup for mark in deaths} == {"shop/batch"}


def test_a_place_has_its_own_marks() -> None:
    where = Cgroups("top", "top/a", "top/a/x")
    taken = (results.decision(1, where), results.decision(2, Cgroups("top", "top/b", None)))
    deaths = tuple(results.death(replace(results.API, cgroup=c), 3) for c in ("top/a/x", "top/b"))
    run = a_run(timeline=samples({"top/a": 1}), decisions=taken, deaths=deaths)
    lines = timeline.of_run(run)
    assert [(m.kind, m.cgroup) for m in lines.within("/top/a").marks] == [
        *(("decision", "top/a"), ("death", "top/a/x"))
    ]
    assert len(lines.within(None).marks) == len(lines.within("top").marks) == 4
    everywhere = results.decision(1, Cgroups("/", "system", None))
    assert len(timeline.of_run(a_run(decisions=(everywhere,))).within("top/a").marks) == 1


def test_stalls_are_shares_of_the_time_between_samples() -> None:
    totals = (0, 250_000, 250_000, 3_000_000, 100)
    held = [{"a": Usage(1, None, total, total // 2)} for total in totals]
    (one,) = timeline.of_run(a_run(timeline=samples(*held))).series.values()
    # More than all of it is a clock's fault, less than before a cgroup made anew.
    assert one.some == (0, 0.25, 0, 1, 0)
    assert one.full == (0, 0.125, 0, 1, 0)


def test_a_cgroup_that_is_not_there_has_no_value() -> None:
    lines = timeline.of_run(a_run(timeline=samples({"a": 1}, {"a": 1, "a/b": 5}, {"a": 1})))
    assert lines.series["a/b"].current == (None, 5, None)
    assert lines.series["a/b"].peak == 5 and lines.series["a/b"].last is None
    assert lines.series["a"].at(lines.times, 1.5) == 1


def test_long_watches_are_thinned_and_keep_their_peak() -> None:
    held = [{"a": 10 + (90 if number == 1234 else 0)} for number in range(5000)]
    lines = timeline.of_run(a_run(timeline=samples(*held, step=0.1)))
    assert len(lines.times) == timeline.MAX_POINTS
    assert lines.series["a"].peak == 100
    assert (lines.times[0], lines.times[-1]) == pytest.approx((0, 499.9))


def test_what_is_far_from_all_marks_is_left_out() -> None:
    held = [{"a": 1}] * 3600
    one = results.decision(1800.0, sequence=1)
    lines = timeline.of_run(a_run(timeline=samples(*held), decisions=(one,)))
    assert (lines.times[0], lines.times[-1]) == pytest.approx((-10, 10))


def test_paths() -> None:
    assert timeline.is_below("/a/b", "a") and not timeline.is_below("a/bc", "a/b")
    assert timeline.is_below("a", "/") and not timeline.is_below("a", "a")
    assert timeline.leaves(["a", "a/b", "a/b/c", "a/d"]) == ["a/b/c", "a/d"]
    assert timeline.tops(["a/b", "a", "c/d"]) == ["a", "c/d"]


# Bands


def test_the_place_is_the_cgroup_whose_own_limit_was_hit() -> None:
    held = samples({"a": 2, "a/b": 1, "a/b/c": 1}, {"a": 2, "a/b": 1, "a/b/c": 1})
    events = {"a": {"oom": 3}, "a/b": {"oom": 3}, "a/b/c": {"oom": 0}}
    run = a_run(timeline=held, memory_events=events)
    assert bands.places(run, timeline.of_run(run)) == ["a/b"]
    run = replace(run, memory_events={**events, "a": {"oom": 4}})
    assert bands.places(run, timeline.of_run(run)) == ["a", "a/b"]


def test_a_place_is_known_by_its_decision() -> None:
    one = results.decision(1, Cgroups("/", "/a/b", None))
    run = a_run(timeline=samples({"/a": 1, "/a/b": 1}), decisions=(one,))
    assert bands.places(run, timeline.of_run(run)) == ["/a/b"]


def test_without_a_place_it_is_the_top_or_the_whole_system() -> None:
    run = a_run(timeline=samples({"a": 1, "a/b": 1}))
    assert bands.places(run, timeline.of_run(run)) == ["a"]
    run = a_run(timeline=samples({"a": 1, "b": 1}))
    assert bands.places(run, timeline.of_run(run)) == [None]
    whole = bands.stack(timeline.of_run(run), None, [])
    assert whole.totals == (2,) and whole.limit is whole.pressure is None


def test_a_stack_has_who_was_killed_on_top_and_the_rest_below() -> None:
    held = {"a": 100, "a/big": 40, "a/dead": 20, "a/small": 10}
    run = a_run(timeline=samples(held, held), limits={"a": Limit(128)})
    stack = bands.stack(timeline.of_run(run), "a", ["/a/dead"])
    assert [(band.path, band.kind) for band in stack.bands] == [
        *((None, "other"), ("a/small", "lived"), ("a/big", "lived"), ("a/dead", "killed"))
    ]
    assert stack.bands[0].values == (30, 30) and stack.totals == (100, 100)
    assert (stack.limit, stack.peak) == (128, 100)


def test_beyond_some_cgroups_are_summed_up() -> None:
    held = {f"a/{n}": n + 1 for n in range(40)}
    run = a_run(timeline=samples({**held, "a": sum(held.values())}))
    stack = bands.stack(timeline.of_run(run), "a", ["a/0"])
    assert len(stack.bands) == bands.MOST + 1
    assert stack.bands[0].label == f"{40 - bands.MOST} more cgroups"
    assert stack.bands[-1].path == "a/0"  # the smallest, but it was killed
    assert stack.totals == (sum(held.values()),)


def test_a_leaf_is_its_own_band() -> None:
    (run,) = results.single().runs
    stack = bands.stack(timeline.of_run(run), "/box", ["/box"])
    assert [(band.path, band.kind) for band in stack.bands] == [("/box", "killed")]


# Verdicts


def verdicts(run: Run) -> list[verdict.Verdict]:
    return verdict.of_run(run, STARTED)


def test_scores_are_held_against_the_runner_up() -> None:
    chosen, waits = verdicts(results.handled())
    assert [(bar.label, bar.value, bar.kind) for bar in chosen.scores()] == [
        ("chosen", "157 MiB", "killed"),
        ("runner-up", "98 MiB", "lived"),
    ]
    assert chosen.scores()[1].share == pytest.approx(98 / 157)
    assert chosen.acts and not waits.acts and waits.scores() == []
    assert waits.flags() == ["in-flight"]


def test_a_decision_is_its_own_policy_s_where_a_run_had_several() -> None:
    one = results.decision(0)
    told = replace(one, policy="newest")
    for handler, decided, policy in (
        ("swap, newest", told, "newest"),
        ("swap, newest", one, None),
        ("swap", one, "swap"),
    ):
        (found,) = verdicts(a_run(handler=handler, decisions=(decided,)))
        assert found.policy == policy


def test_a_runner_up_may_score_higher_and_stand_behind() -> None:
    one = results.decision(0, **{"best_score": 5, "runner_up_score": 9, "seen": 2, "action": 1})
    (found,) = verdicts(a_run(handler="newest", decisions=(one,)))
    assert found.behind_by_rank and not found.in_bytes
    assert [bar.value for bar in found.scores()] == ["5", "9"]
    assert [bar.share for bar in found.scores()] == [5 / 9, 1]
    assert [bar.label for bar in found.candidates()] == ["chosen", "ranked lower"]


def test_candidates_by_what_came_of_them() -> None:
    (run,) = results.many().runs
    (found,) = verdicts(run)
    counted = {bar.label: bar.value for bar in found.candidates()}
    assert counted == {
        **{"chosen": "1", "scored lower": "21"},
        **{"protected": "5", "unkillable": "2", "empty": "12"},
    }


def test_times_from_the_entry_to_the_recovery() -> None:
    chosen, waits = verdicts(results.handled())
    assert [(bar.label, bar.value) for bar in chosen.times()] == [
        ("deciding", "4.5 ms"),
        ("first death", "10 ms"),
        ("last death", "40 ms"),
        ("memory fell", "48 ms"),
    ]
    assert [bar.label for bar in waits.times()] == ["deciding"]


def test_a_raise_compares_limits() -> None:
    fields = {"action": 4, "verdict": 1, "best_score": 2 * MIB, "runner_up_score": MIB}
    (found,) = verdicts(a_run(handler="raise-limit", decisions=(results.decision(0, **fields),)))
    assert [(bar.label, bar.value) for bar in found.scores()] == [
        ("raised to", "2 MiB"),
        ("before", "1 MiB"),
    ]
    assert found.acts and not found.kills


def test_a_victim_without_a_path_is_known_by_its_deaths() -> None:
    one = results.decision(0, sequence=4, action=2, verdict=1)
    deaths = [results.death(worker, 1, 4, 1) for worker in results.WORKERS]
    (found,) = verdicts(a_run(decisions=(one,), deaths=tuple(deaths)))
    assert (found.victim, found.died, found.handler) == ("shop/batch", 4, None)
    assert found.last_death_ns == 1_000_000_000


# Groups


def test_runs_of_one_scenario_are_one_group_across_files() -> None:
    first = Source("a", results.document(results.handled()))
    second = Source("b", results.document(results.stock()))
    (one,) = groups.group([first, second])
    assert [shown.label for shown in one.runs] == ["stock killer", "largest-cgroup"]
    assert one.compares and len(one.trees) == 1


def test_repetitions_are_numbered_and_other_scenarios_apart() -> None:
    handled = results.handled()
    watched = [replace(handled, name=None), replace(handled, name=None, limits={})]
    made = groups.group([Source("a", results.document(handled, handled, *watched))])
    assert [[shown.label for shown in one.runs] for one in made] == [
        ["largest-cgroup, run 1", "largest-cgroup, run 2"],
        ["largest-cgroup"],
        ["largest-cgroup"],
    ]
    assert [one.title for one in made] == ["largest-cgroup/demo", "shop, watched", "Watched"]
    assert not any(one.compares for one in made)
    keys = [shown.key for one in made for shown in one.runs]
    assert len(set(keys)) == len(keys)


def test_a_group_has_its_own_tree() -> None:
    tree = (
        "x:",
        "    a",
        "    └── b",
        "largest-cgroup/demo:",
        "    shop",
        "    └── api",
        "y:",
        "    c",
    )
    made = results.document(results.stock(), results.handled(), tree=tree)
    (one,) = groups.group([Source("a", made)])
    assert one.trees == [("shop", "└── api")]
    (other,) = groups.group([Source("a", results.document(a_run(), tree=("box", "└── p")))])
    assert other.trees == [("box", "└── p")]


def test_of_many_cgroups_those_without_victims_stand_apart() -> None:
    (shown,) = groups.group([Source("a", results.many())])[0].runs
    hit, spared = shown.people()
    assert [cgroup.path for cgroup in hit] == ["farm/job-03"] and len(spared) == 39
    (shown,) = groups.group([Source("a", results.single())])[0].runs
    assert [cgroup.path for cgroup in shown.people()[0]] == ["/box"]
    assert shown.toll("box") == "1 killed" and shown.toll("/") == shown.toll(None) == ""


def test_what_runs_are_compared_by() -> None:
    (one,) = groups.group([Source("a", results.demo())])
    table = {title: [bar.value for bar in row] for title, row in groups.comparison(one.runs)}
    assert table == {
        "Processes killed": ["2", "4"],
        "Memory of those killed": ["70 MiB", "140 MiB"],
        "From the OOM to the first kill": ["8.7 ms", "4.9 ms"],
        "Until memory had fallen": ["not measured", "48 ms"],
    }


def test_the_decision_that_mattered_is_shown_where_none_acted() -> None:
    passes = [results.decision(n, sequence=n, verdict=0) for n in range(1, 4)]
    (one,) = groups.group([Source("a", results.document(a_run(decisions=tuple(passes))))])
    (shown,) = one.runs
    assert [found.number for found in shown.acting] == [3]
    assert [found.number for found in shown.others] == [1, 2]


# Axes


def test_marks_that_would_overlap_are_one() -> None:
    deaths = [Mark("death", moment / 100) for moment in range(4)]
    decisions = [Mark("decision", moment, number=n) for n, moment in enumerate((0, 0.1, 5), 1)]
    found = axes.clusters([*deaths, *decisions], 0.3)
    assert [(one.kind, one.label) for one in found] == [
        ("decision", "1–2"),
        ("decision", "3"),
        ("death", "×4"),
    ]


@pytest.mark.parametrize("top", [1, 1000, 7 * MIB, 271 * MIB, 3 << 40])
def test_ticks_of_memory_are_round_and_few(top: int) -> None:
    ticks = axes.of_bytes(top)
    assert 2 <= len(ticks.places) <= 6 and ticks.places[-1] <= top
    step = ticks.places[1]
    assert step & (step - 1) == 0 and ticks.labels[1] == text.size(step)


def test_only_corners_are_drawn() -> None:
    assert axes.corners([1, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, None]) == [0, 3, 4, 5, 6]
    assert axes.corners([], []) == [] and axes.corners([7]) == [0]


def test_the_unit_of_time() -> None:
    assert [axes.time_unit(span)[1] for span in (0, 0.01, 3, 300, 1e5)] == [
        *("microseconds", "milliseconds", "seconds", "minutes", "hours")
    ]


# Colours and drawings


def linear(colour: str) -> list[float]:
    """Red, green and blue as amounts of light."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    weights = (0.2126, 0.7152, 0.0722)
    return sum(weight * c for weight, c in zip(weights, linear(colour), strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_can_be_told_from_what_they_stand_on(mode: int) -> None:
    colours = {name: pair[mode] for name, pair in palette.COLOURS.items()}
    for ground in (colours["paper"], colours["card"]):
        for name in ("ink", "muted", "link", "killed"):
            assert contrast(colours[name], ground) >= 4.5, name
        for name in ("lived", "decision", "full", "killed-0", "lived-0"):
            assert contrast(colours[name], ground) >= 3, name
    for name in ("ink", "muted", "killed"):
        assert contrast(colours[name], colours["killed-area"]) >= 4.5, name
    assert contrast(colours["some"], colours["full"]) >= 2


# Linear RGB as it is seen without one kind of cones (Machado, Oliveira and Fernandes, 2009).
BLIND = {
    "protan": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)),
    "deutan": ((0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)),
    "tritan": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
}


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("kind", BLIND)
def test_killed_and_lived_differ_for_every_vision(kind: str, mode: int) -> None:
    def seen(name: str) -> list[float]:
        red, green, blue = linear(palette.COLOURS[name][mode])
        return [r * red + g * green + b * blue for r, g, b in BLIND[kind]]

    for shade in range(palette.SHADES):
        pair = (seen(palette.shade("killed", shade)), seen(palette.shade("lived", shade)))
        assert max(abs(one - other) for one, other in zip(*pair, strict=True)) > 0.08


def test_stand_ins_become_variables() -> None:
    drawn = f"fill: {palette.stand_in('killed')}; stroke: {palette.stand_in('ink')}"
    light = {name: pair[0] for name, pair in palette.COLOURS.items()}
    expected = f"fill: var(--killed, {light['killed']}); stroke: var(--ink, {light['ink']})"
    assert palette.as_variables(drawn) == expected
    assert len({palette.stand_in(name) for name in palette.COLOURS}) == len(palette.COLOURS)


def test_a_drawing_is_tidied() -> None:
    drawn = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="10pt" height="5pt" viewBox="0 0 10 5">
 <metadata>made today</metadata><defs><style>* { color: red }</style><path id="m" d="M 1.23456 2"/>
 </defs><g id="figure_1" clip-path="url(#c)"><use xlink:href="#m" x="1.06" y="2"/>
 <text style="font: bold 12px 'DejaVu Sans', serif; text-anchor: middle">&lt;1</text></g>
 <clipPath id="c"/></svg>"""
    found = svg.inline(drawn, "p1")
    assert found.startswith('<svg viewBox="0 0 10 5" aria-hidden="true">')
    assert (
        'd="M 1.2 2"' in found
        and 'style="font-size: 12px; font-weight: bold; text-anchor: middle">&lt;1' in found
    )
    assert re.findall(r'id="([^"]*)"', found) == ["p1-m", "p1-c"]
    assert 'href="#p1-m"' in found and 'clip-path="url(#p1-c)"' in found
    assert "today" not in found and "color: red" not in found and "xmlns" not in found
