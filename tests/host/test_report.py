# SPDX-License-Identifier: Apache-2.0
"""The page of ``bpfoom report`` in a real browser: it renders, fits, can be read and is quiet."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfoom.observe.result import write_file
from tests import results
from tests.host.browser import Browser, chromium, is_local
from tests.host.test_vm_command import BPFOOM
from tests.unit.test_report import contrast, luminance

PAGES = ("demo", "single", "many", "hostile", "bare")
PHONE, DESK = 360, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind of document, and one of all of them, made by the command."""
    made = tmp_path_factory.mktemp("pages")
    for name in PAGES:
        write_file(made / f"{name}.json", getattr(results, name)())
    of = {name: [made / f"{name}.json"] for name in PAGES}
    of["all"] = [made / f"{name}.json" for name in PAGES]
    for name, given in of.items():
        argv = [*BPFOOM, "report", *given, "-o", made / f"{name}.html"]
        subprocess.run(argv, check=True, capture_output=True)
    return {name: made / f"{name}.html" for name in of}


def rgb(colour: str) -> str:
    """A computed colour, which must be opaque, as #rrggbb."""
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert found, colour
    return "#" + "".join(f"{int(channel):02x}" for channel in found.groups())


@pytest.mark.parametrize("name", [*PAGES, "all"])
def test_it_renders_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name], width=DESK)
    assert browser.run("return document.readyState") == "complete"
    assert browser.complaints() == []
    asked = browser.requested()
    assert pages[name].as_uri() in asked and [url for url in asked if not is_local(url)] == []
    assert browser.run("return document.compatMode") == "CSS1Compat"
    plots = browser.run(
        "return [...document.querySelectorAll('.plot svg')].filter(one => one.checkVisibility())"
        ".map(one => one.getBoundingClientRect()).map(box => [box.width, box.height])"
    )
    assert len(plots) == {"demo": 2, "bare": 0, "all": 5}.get(name, 1)
    assert all(width > 300 and height > 200 for width, height in plots)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [PHONE, 700, DESK])
def test_it_fits_and_can_be_read(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    assert browser.too_wide() == []
    assert browser.run("return document.documentElement.scrollWidth") == width
    small = [(one["text"], one["pixels"]) for one in browser.texts() if one["pixels"] < 11]
    assert small == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_there_is_contrast_in_both_modes(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool
) -> None:
    browser.open(pages[name], width=PHONE, dark=dark)
    ground = luminance(rgb(browser.run("return getComputedStyle(document.body).backgroundColor")))
    assert ground < 0.02 if dark else ground > 0.9
    for one in browser.texts():
        assert contrast(rgb(one["colour"]), rgb(one["behind"])) >= 4.5, one


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_drawn_changes_with_the_mode(
    browser: Browser, pages: dict[str, Path], dark: bool
) -> None:
    """Every colour of a drawing is one of the palette's, of the mode that holds."""
    browser.open(pages["demo"], width=DESK, dark=dark)
    used = browser.run(
        "return [...new Set([...document.querySelectorAll('svg *')].flatMap(one =>"
        " [getComputedStyle(one).fill, getComputedStyle(one).stroke]))]"
    )
    known = browser.run(
        "const style = getComputedStyle(document.documentElement);"
        "return [...style].filter(name => name.startsWith('--'))"
        ".map(name => style.getPropertyValue(name))"
    )
    # Groups have SVG's initial fill, which is black and paints nothing.
    drawn = {rgb(colour) for colour in used if colour not in ("none", "rgb(0, 0, 0)")}
    assert len(drawn) > 8 and drawn <= set(known)


def test_names_stay_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], width=DESK)
    assert browser.run("return document.title") == "farm/many · Out of memory: a bpfoom report"
    assert browser.run("return document.querySelectorAll('script, img').length") == 0
    told = browser.run("return document.body.textContent")
    assert "<script>document.title='owned'</script>" in told and "{{ 7 * 7 }}" in told
    assert "\\xff\\x80 no UTF-8" in told and "nul\\x00and" in told and "�" not in told


def test_each_plot_is_drawn_for_the_width_that_it_has(
    browser: Browser, pages: dict[str, Path]
) -> None:
    seen = {}
    for width in (PHONE, DESK):
        browser.open(pages["single"], width=width)
        seen[width] = browser.run(
            "return [...document.querySelectorAll('.plot svg')]"
            ".filter(one => one.checkVisibility()).map(one => one.viewBox.baseVal.width)"
        )
    assert seen[PHONE] == [340] and seen[DESK] == [920]


def test_it_can_be_read_without_css(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub("<style>.*?</style>", "", pages["demo"].read_text(), flags=re.DOTALL))
    browser.open(bare, width=DESK)
    shown = browser.run(
        "return [...document.querySelectorAll('.plot svg')]"
        ".filter(one => one.checkVisibility()).length"
    )
    assert shown == 2  # each plot once
    told = browser.run("return document.body.innerText")
    assert re.search(r"api-server 65\s*, killed", told) and re.search(r"lived", told)


def test_printed_it_is_black_on_white(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["demo"], width=700, dark=True, media="print")
    for one in browser.texts():
        assert luminance(rgb(one["colour"])) < 0.3, one


def test_it_can_be_found_one_s_way_in(browser: Browser, pages: dict[str, Path]) -> None:
    """Headings go down one level at a time, every drawing is named or hidden, and links lead on."""
    browser.open(pages["all"], width=DESK)
    levels = browser.run(
        "return [...document.querySelectorAll('h1, h2, h3, h4, h5')].map(one => +one.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    unnamed = browser.run(
        "return [...document.querySelectorAll('svg')].filter(one => one.ariaHidden !== 'true')"
        ".concat([...document.querySelectorAll('[role=img]')].filter(one => !one.ariaLabel)).length"
    )
    assert unnamed == 0
    links = browser.run("return [...document.querySelectorAll('nav a')].map(one => one.hash)")
    assert len(links) == 3
    for link in links:
        assert browser.run(f"return document.querySelector('{link}') !== null")
