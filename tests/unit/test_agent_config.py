# SPDX-License-Identifier: Apache-2.0
"""The configuration's format: what it means, and what is refused by name of file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.agent import config, recipes
from bpfoom.agent.config import Config, Entry
from bpfoom.compiler import build
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import NotThereError, UsageError
from bpfoom.handler.marks import Mark, Rule
from bpfoom.handler.wanted import Wanted
from bpfoom.policy.trigger import Settings

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
FILE = Path("/etc/bpfoom/x.toml")
FULL = """
[marks]
"/system.slice/sshd.service" = "omit"
"batch/*" = "priority:-10"

[[attach]]
cgroup = ["shop/*", "/other"]
policy = "protect"
set.inner = "largest-cgroup"
marks = { api = "avoid", "/elsewhere" = "omit" }

[[attach]]
unit = ["web", "machine.slice"]
policy = "largest-task"
set = { min = "16M" }
dry_run = true
trigger = "full:50ms/1s"

[[attach]]
cgroup = "/shop/api"
object = "there/api.bpfo"
"""


@pytest.fixture
def full() -> Config:
    return config.parse(FULL, FILE)


def test_entries(full: Config) -> None:
    globs, services, file = full.entries
    assert full.owner == str(FILE)
    assert globs == Entry(
        "attach[0]", ("/shop/*", "/other"), (),
        Wanted("protect", None, {"inner": "largest-cgroup"}, None), True,
    )  # fmt: skip
    assert services == Entry(
        "attach[1]", (), ("web.service", "machine.slice"),
        Wanted("largest-task", None, {"min": "16M"}, True),
        trigger=Settings("full", 50_000, 1_000_000, 10_000_000),
    )  # fmt: skip
    assert file.wanted == Wanted(None, Path("/etc/bpfoom/there/api.bpfo"), {}, None)


def test_marks_come_from_the_root_or_from_what_the_entry_matches(full: Config) -> None:
    assert full.rules == (
        Rule("/", "/system.slice/sshd.service", Mark("omit"), str(FILE)),
        Rule("/", "/batch/*", Mark(None, -10), str(FILE)),
        Rule("/", "/shop/*/api", Mark("avoid"), str(FILE)),
        Rule("/", "/other/api", Mark("avoid"), str(FILE)),
        Rule("/", "/elsewhere", Mark("omit"), str(FILE)),
    )


def test_what_an_entry_means(full: Config) -> None:
    globs, services, file = full.entries
    in_units = {"web.service": "/system.slice/web.service"}
    assert list(globs.matching("/shop/api", {})) == ["/shop/*"]
    assert list(globs.matching("/shop/api/x", {})) == []
    assert list(services.matching("/system.slice/web.service", in_units)) == ["web.service"]
    assert list(services.matching("/user.slice/web.service", in_units)) == []
    assert globs.names("/other") and not globs.names("/shop/api")
    assert services.names("/system.slice/web.service") and file.names("/shop/api")


def test_a_relative_policy_begins_at_the_file(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "bpf" / "policies" / "largest-task.bpf.c.j2"
    (tmp_path / shipped.name).write_text(shipped.read_text())
    file = tmp_path / "x.toml"
    file.write_text(f'[[attach]]\ncgroup = "a"\npolicy = "./{shipped.name}"\n')
    (entry,) = config.read(file).entries
    assert entry.wanted.policy == str(tmp_path / shipped.name)


def test_a_relative_wrapped_policy_begins_at_the_file(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "bpf" / "policies" / "largest-task.bpf.c.j2"
    copy = tmp_path / shipped.name
    copy.write_text(shipped.read_text())
    file = tmp_path / "bpfoom.toml"
    file.write_text(
        '[[attach]]\ncgroup = "a"\npolicy = "grace"\n'
        f'set = {{ inner = "./{shipped.name}", "inner.min" = "4K" }}\n'
    )
    (entry,) = config.read(file).entries
    assert entry.wanted.settings == {"inner": str(copy), "inner.min": "4K"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "x: no such key"),
        ("x =", "Invalid value"),
        ("[attach]\n", "attach: expected [[attach]]"),
        ('[[attach]]\npolicy = "newest"', "attach[0].cgroup: is missing"),
        ('[[attach]]\ncgroup = "a"', "attach[0]: name a policy, or an object"),
        (
            '[[attach]]\ncgroup = "a"\npolicy = "newest"\nobject = "x"',
            "attach[0]: name a policy, or an object",
        ),
        ('[[attach]]\ncgroup = "a**"\npolicy = "newest"', "attach[0]: the glob 'a**'"),
        ('[[attach]]\nunit = "a/b"\npolicy = "newest"', "attach[0]: 'a/b' is no name of a unit"),
        ('[[attach]]\ncgroup = "a"\npolicy = "nwest"', "did you mean: newest?"),
        (
            '[[attach]]\ncgroup = "a"\npolicy = "largest-task"\nset.min = "x"',
            "attach[0]: parameter min: expected bytes",
        ),
        (
            '[[attach]]\ncgroup = "a"\npolicy = "largest-task"\nset.least = "1"',
            "attach[0]: unknown parameter 'least'",
        ),
        ('[[attach]]\ncgroup = "a"\npolicy = "newest"\nwhy = 1', "attach[0].why: no such key"),
        (
            '[[attach]]\ncgroup = "a"\npolicy = "newest"\ndry_run = "yes"',
            "attach[0].dry_run: expected true or false",
        ),
        (
            '[[attach]]\ncgroup = "a"\npolicy = "newest"\ntrigger = "full"',
            "attach[0].trigger: 'full' is no pressure",
        ),
        (
            '[[attach]]\ncgroup = "a"\npolicy = "newest"\ncooldown = "1s"',
            "attach[0].cooldown: no such key",
        ),
        (
            '[[attach]]\ncgroup = [1]\npolicy = "newest"',
            f"{FILE}: attach[0].cgroup: expected a list",
        ),
        ('[[attach]]\ncgroup = "a"\nobject = "a\\u0000b"', "attach[0].object: no file has"),
        (f"x = {'[' * 100_000}", "recursion"),
        ('[marks]\na = "worst"', "marks: the mark 'worst' cannot be understood"),
        ('[marks]\n"../a" = "omit"', "marks: the glob '../a' has . or .. for a name"),
    ],
)
def test_what_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.parse(text, FILE)
    assert refused.value.message.startswith(f"{FILE}: ") and complaint in refused.value.message
    assert refused.value.message.count(str(FILE)) == 1
    assert refused.value.hint == "the format is in docs/agent.md"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="No such file"):
        config.read(tmp_path / "none.toml")
    (tmp_path / "latin").write_bytes(b"# caf\xe9")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        config.read(tmp_path / "latin")


# What is compiled


@pytest.fixture
def patched_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if on the patched kernel, with nothing in the cache."""
    monkeypatch.setattr(build, "RUNNING", KERNEL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("patched_kernel")
def test_each_policy_with_its_settings_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(
        f'[[attach]]\ncgroup = "{name}"\npolicy = "largest-task"\nset.min = "{least}"\n'
        for name, least in (("a", "1M"), ("b", "1M"), ("c", "2M"), ("d", "1M"))
    )
    asked = []
    compile_it = Wanted.compile

    def counting(wanted: Wanted) -> HandlerObject:
        asked.append(dict(wanted.settings))
        return compile_it(wanted)

    monkeypatch.setattr(Wanted, "compile", counting)
    found = recipes.compiled(config.parse(text, FILE))
    assert asked == [{"min": "1M"}, {"min": "2M"}]
    assert found["attach[0]"] is found["attach[1]"] is found["attach[3]"]
    assert found["attach[0]"] != found["attach[2]"]


@pytest.mark.usefixtures("patched_kernel")
def test_an_entry_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.bpfo").write_text("no object")
    text = f"""
        [[attach]]
        cgroup = "a"
        object = "{tmp_path}/bad.bpfo"
        [[attach]]
        cgroup = "b"
        policy = "largest-task"
        marks = {{ x = "omit" }}
        [[attach]]
        cgroup = "c"
        policy = "largest-task"
    """
    bad, marked, good = recipes.compiled(config.parse(text, FILE)).values()
    assert "not a bpfoom object" in str(bad)
    assert "largest-task does not look at marks" in str(marked)
    assert isinstance(good, HandlerObject)
