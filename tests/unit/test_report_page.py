# SPDX-License-Identifier: Apache-2.0
"""The page as text, and ``bpfoom report`` as typed: what it escapes, refuses and says."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bpfoom.cli.main import main
from bpfoom.observe.result import Document, from_dict, write_file
from bpfoom.report import page, palette
from bpfoom.report.groups import Source
from tests import results

_VOID = {"meta", "link", "br", "img"}


class Outline(HTMLParser):
    """The page's elements with their attributes, its text, and the ends that fit no start."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        found = (attributes.get(attribute) for _, attributes in self.elements)
        return [value for value in found if value is not None]


@functools.cache
def rendered(name: str, file: str = "result.json") -> str:
    document: Document = getattr(results, name)()
    return page.render([Source(file, document)])


@pytest.fixture
def hostile() -> str:
    return rendered("hostile", "<b>\udcff.json")


def test_the_same_documents_make_the_same_bytes() -> None:
    first = rendered("demo")
    code = (
        "from tests import results\nfrom bpfoom.report import page\n"
        "from bpfoom.report.groups import Source\nimport sys\n"
        "text = page.render([Source('result.json', results.demo())])\n"
        "sys.stdout.buffer.write(text.encode())\n"
    )
    env = {**os.environ, "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7"}
    again = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert again.stdout.decode() == first


@pytest.mark.parametrize("name", ["demo", "single", "bare", "hostile"])
def test_the_page_is_well_formed(name: str) -> None:
    html = rendered(name)
    outline = Outline(html)
    assert outline.wrong == [] and outline.open == []
    assert [i for i, count in Counter(outline.values("id")).items() if count > 1] == []
    targets = [value[1:] for value in outline.values("href") if value.startswith("#")]
    assert set(targets) <= set(outline.values("id"))
    assert re.findall("#00[0-9a-f]{2}ef", html) == []  # colours that only the drawing knows


def test_nothing_is_loaded_and_nothing_runs(hostile: str) -> None:
    outline = Outline(hostile)
    tags = {tag for tag, _ in outline.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, found in outline.elements for name in found if name.startswith("on")]
    loaded = [*outline.values("src"), *outline.values("href"), *outline.values("xlink:href")]
    assert all(value.startswith("#") or value == "data:," for value in loaded)
    assert "@import" not in hostile and not re.search(r"url\((?!#)", hostile)
    (policy,) = [a["content"] for _, a in outline.elements if "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_names_are_text(hostile: str) -> None:
    outline = Outline(hostile)
    for name in (
        "<script>document.title='owned'</script>",
        "{{ 7 * 7 }}",
        "$\\frac{a}{b}$ &amp; 日本 😀",
    ):
        assert name in outline.text
    assert "nul\\x00and\\x1b[31m" in outline.text and "\\xff\\x80 no UTF-8" in outline.text
    assert "\\u202eright to left" in outline.text and "<b>\\xff.json" in outline.text
    assert all(char.isprintable() or char == "\n" for char in hostile)


def test_a_plot_says_in_words_what_it_shows() -> None:
    words = Outline(rendered("demo")).values("aria-label")
    (stock, handled) = [
        label for label in words if label.startswith("Memory and pressure of shop ")
    ]
    assert "from −1.4 s to +1.6 s" in stock and "118 MiB in the end" in stock
    assert "255 MiB at the decision" in handled and "Its limit was 256 MiB." in handled
    assert "some tasks were stalled 90% of the time" in handled


def test_what_is_told_of_a_decision() -> None:
    told = " ".join(Outline(rendered("demo")).text.split())
    assert "Decision 1 of largest-cgroup: killed everybody in shop/batch" in told
    assert "worker-4 (69) needed memory and shop had none left." in told
    assert "looked at 2 candidates and returned HANDLED after 4.5 ms" in told
    assert "The stock killer killed 2 processes: api-server and worker-4. 3 processes lived" in told


def test_what_is_missing_is_said() -> None:
    told = " ".join(Outline(rendered("bare")).text.split())
    assert "No samples of memory were taken." in told and "not seen" in told
    told = " ".join(Outline(rendered("hostile", "<b>\udcff.json")).text.split())
    assert "Lost while watching: 2 decisions and 0 events." in told
    assert "The documents hold no run" in Outline(rendered("document")).text


def test_all_colours_are_set_for_both_modes() -> None:
    html = rendered("bare")
    for mode in (0, 1):
        assert palette.style(mode) in html


# As typed


@pytest.fixture
def typed(capsysbinary):
    def run(*words: str) -> tuple[int, bytes, str]:
        with pytest.raises(SystemExit) as ended:
            main(["report", *words])
        shown = capsysbinary.readouterr()
        return ended.value.code or 0, shown.out, shown.err.decode()

    return run


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Small, as most of these tests make a page of it."""
    write_file(tmp_path / "result.json", results.single())
    return tmp_path / "result.json"


def test_a_page_is_written(typed, result: Path, tmp_path: Path) -> None:
    made = tmp_path / "page.html"
    assert typed(str(result), "-o", str(made)) == (0, f"{made}: 1 run\n".encode(), "")
    assert made.read_text() == rendered("single")
    assert typed(str(result)) == (0, made.read_bytes(), "")


def test_several_results_are_one_page(typed, result: Path, tmp_path: Path) -> None:
    write_file(tmp_path / "other.json", results.bare())
    code, out, _ = typed(str(result), str(tmp_path / "other.json"))
    told = Outline(out.decode()).text
    assert code == 0 and "result.json: kernel" in told and "other.json: kernel" in told


def test_not_to_a_terminal(typed, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = typed(str(result))
    assert (code, out) == (2, b"") and "-o report.html" in err


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, 4, "No such file"),
        (b"", 1, "no result"),
        (b'{"version": 1, "kernel": "7', 1, "no result"),
        (b'{"version": 2}', 1, "version 2"),
        (b"\x7fELF\xff\xfe\0\0", 1, "no result"),
        (b'[{"a": 1}]', 1, "no result"),
        (b"[" * 100_000, 1, "no result"),
    ],
)
def test_what_is_no_result_is_named(
    typed, tmp_path: Path, content: bytes | None, code: int, said: str
) -> None:
    file = tmp_path / "given.json"
    if content is not None:
        file.write_bytes(content)
    made = tmp_path / "page.html"
    ended, out, err = typed(str(file), "-o", str(made))
    assert (ended, out) == (code, b"") and said in err and str(file) in err
    assert "Traceback" not in err and not made.exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runs", 0, "started"), 1e300),
        (("runs", 0, "timeline", 3, "time"), 1e999),
        (("runs", 0, "timeline", 3, "cgroups", "/box", "current"), 10**400),
        (("runs", 0, "timeline", 3, "cgroups", "/box", "current"), -5),
        (("runs", 0, "decisions", 0, "seen"), None),
        (("runs", 0, "decisions", 0, "oom_cgroup"), 3),
        (("runs", 0, "decisions", 0, "time"), float("nan")),
        (("runs", 0, "deaths", 0, "peak_rss"), 10**400),
        (("runs", 0, "limits", "/box", "max"), 0),
    ],
    ids=lambda given: f"{given}"[:60],
)
def test_no_number_is_too_odd(
    typed, result: Path, path: tuple[str | int, ...], value: object
) -> None:
    document = json.loads(result.read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    result.write_text(json.dumps(document))
    code, out, err = typed(str(result))
    assert code in (0, 1) and "Traceback" not in err
    assert (b"<html" in out) == (code == 0) and (str(result) in err) == (code == 1)


def test_without_matplotlib_it_is_said_what_to_install(
    typed, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = typed(str(result))
    assert (code, out) == (3, b"") and "pip install 'bpfoom[report]'" in err


@pytest.mark.parametrize("most", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_numbers_of_64_bits_are_drawn(most: int) -> None:
    """Nothing holds so much; a document may say so all the same."""
    document = results.single().as_dict()
    for sample in document["runs"][0]["timeline"]:
        for usage in sample["cgroups"].values():
            usage["current"] = most
    html = page.render([Source("a.json", from_dict(json.loads(json.dumps(document))))])
    assert Outline(html).wrong == []
