# SPDX-License-Identifier: Apache-2.0
"""The build tree: only what changed is rewritten, the source never; git checkouts as sources."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bpfoom.errors import KernelPatchError, UsageError
from bpfoom.guest import series, source
from bpfoom.guest.tree import BuildTree

MAKEFILE = "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\nNAME = Any\n"
FILES = {"Makefile": MAKEFILE, "Kbuild": "", "mm/a.c": "one\ntwo\n", "mm/b.c": "b\n"}


def patch(path: str, old: str, new: str) -> str:
    """A patch that replaces the only line of ``path``; an empty side adds or removes the file."""
    before = f"--- a/{path}\n" if old else "new file mode 100644\n--- /dev/null\n"
    after = f"+++ b/{path}\n" if new else "+++ /dev/null\n"
    mode = "" if new else "deleted file mode 100644\n"
    counts = f"@@ -{int(bool(old))},{int(bool(old))} +{int(bool(new))},{int(bool(new))} @@\n"
    lines = (f"-{old}\n" if old else "") + (f"+{new}\n" if new else "")
    return f"Subject: {path}\n\ndiff --git a/{path} b/{path}\n{mode}{before}{after}{counts}{lines}"


def as_series(*texts: str) -> series.Series:
    return series.Series(
        tuple(
            series.Patch(f"{n}.patch", text, tuple(series.parse(text)))
            for n, text in enumerate(texts, 1)
        )
    )


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    top = tmp_path / "linux"
    for name, text in FILES.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / "link").symlink_to("mm/a.c")
    (top / ".gitignore").write_text("*.o\n")
    git(tmp_path, "init", "-q", str(top))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "base")
    return top


def update(top: Path, *patches: str) -> tuple[BuildTree, int]:
    origin = source.checkout(top)
    tree = BuildTree.of(origin, "plain")
    return tree, tree.update(origin, as_series(*patches))


def times(tree: BuildTree) -> dict[str, int]:
    files = (p for p in tree.src.rglob("*") if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(tree.src)): p.stat().st_mtime_ns for p in files}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_copies_what_git_knows_and_nothing_else(clone: Path) -> None:
    (clone / "mm/a.o").write_text("built in the tree")
    (clone / "mm/new.c").write_text("not added yet\n")
    tree, _ = update(clone)
    assert set(times(tree)) == {*FILES, ".gitignore", "mm/new.c"}
    assert (tree.src / "link").readlink() == Path("mm/a.c")


def test_a_touched_patch_rewrites_only_its_files(clone: Path) -> None:
    tree, _ = update(clone, patch("mm/b.c", "b", "B"), patch("mm/n.c", "", "n"))
    before = times(tree)
    _, count = update(clone, patch("mm/b.c", "b", "BB"), patch("mm/n.c", "", "n"))
    assert count == 1
    assert changed(before, times(tree)) == {"mm/b.c"}
    assert (tree.src / "mm/b.c").read_text() == "BB\n"


def test_nothing_changed_rewrites_nothing(clone: Path) -> None:
    tree, _ = update(clone, patch("mm/b.c", "b", "B"))
    before = times(tree)
    assert update(clone, patch("mm/b.c", "b", "B"))[1] == 0
    assert times(tree) == before


def test_a_dropped_patch_is_undone(clone: Path) -> None:
    tree, _ = update(clone, patch("mm/b.c", "b", "B"), patch("new/n.c", "", "n"))
    _, count = update(clone)
    assert count == 2
    assert (tree.src / "mm/b.c").read_text() == "b\n"
    assert not (tree.src / "new").exists()


def test_a_patch_may_remove_a_file(clone: Path) -> None:
    tree, _ = update(clone, patch("mm/b.c", "b", ""))
    assert not (tree.src / "mm/b.c").exists()
    update(clone)
    assert (tree.src / "mm/b.c").read_text() == "b\n"


def test_follows_the_checkout(clone: Path) -> None:
    """Uncommitted edits, removals and new files count; the patched file's base changes too."""
    edit = patch("mm/b.c", "b", "B")
    tree, _ = update(clone, edit)
    before = times(tree)
    (clone / "mm/a.c").write_text("another\n")
    (clone / "Kbuild").write_text("obj-y := mm/\n")
    (clone / "mm/c.c").write_text("c\n")
    update(clone, edit)
    assert changed(before, times(tree)) == {"mm/a.c", "Kbuild", "mm/c.c"}
    (clone / "mm/a.c").unlink()
    update(clone, edit)
    assert not (tree.src / "mm/a.c").exists()
    assert (tree.src / "mm/b.c").read_text() == "B\n"


def test_the_checkout_is_never_changed(clone: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = (p for p in clone.rglob("*") if p.is_file())
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = state()
    update(clone, patch("mm/b.c", "b", "B"), patch("mm/n.c", "", "n"))
    assert state() == before


def test_a_conflict_leaves_the_tree_as_it_was(clone: Path) -> None:
    tree, _ = update(clone, patch("mm/b.c", "b", "B"))
    before = times(tree)
    with pytest.raises(KernelPatchError) as caught:
        update(clone, patch("mm/b.c", "b", "C"), patch("mm/a.c", "planted", "x"))
    assert caught.value.data["patch"] == "2.patch"
    assert times(tree) == before
    assert (tree.src / "mm/b.c").read_text() == "B\n"


def test_an_interrupted_update_is_finished_by_the_next(clone: Path) -> None:
    """As if the process had died after copying: the state says that the tree is in between."""
    tree, _ = update(clone)
    state = tree.directory / "state.json"
    state.write_text(state.read_text().replace(source.checkout(clone).identity, ""))
    (tree.src / "mm/left-over.c").write_text("from the other source\n")
    (tree.src / "mm/a.c").unlink()
    state.write_text(state.read_text().replace('"mm/a.c"', '"mm/not-yet.c"'))
    update(clone)
    assert not (tree.src / "mm/left-over.c").exists()
    assert (tree.src / "mm/a.c").read_text() == FILES["mm/a.c"]


def test_flavours_share_no_time(clone: Path) -> None:
    """Our own source is linked: filling a second tree must not make the first compile again."""
    origin = replace(source.checkout(clone), ours=True)
    one, other = (BuildTree.of(origin, name) for name in ("plain", "base"))
    one.update(origin, as_series(patch("mm/b.c", "b", "B")))
    before = times(one)
    (one.obj / "vmlinux").touch()
    other.update(origin, as_series())
    assert times(one) == before
    assert (one.src / "mm/a.c").samefile(other.src / "mm/a.c")
    assert ((one.src / "mm/b.c").read_text(), (other.src / "mm/b.c").read_text()) == ("B\n", "b\n")


def test_a_newer_source_is_newer_than_what_is_compiled(clone: Path) -> None:
    """Its files are as old as its release; make has to see that they changed."""
    origin = replace(source.checkout(clone), ours=True)
    tree = BuildTree.of(origin, "plain")
    tree.update(origin, as_series())
    (tree.obj / "vmlinux").touch()
    # A version has its own files: one that is linked never changes in place.
    (clone / "mm/a.c").unlink()
    (clone / "mm/a.c").write_text("of another version\n")
    os.utime(clone / "mm/a.c", (0, 0))
    tree.update(replace(origin, identity="another"), as_series())
    compiled = (tree.obj / "vmlinux").stat().st_mtime_ns
    assert times(tree)["mm/a.c"] >= compiled > times(tree)["mm/b.c"]


def test_identity_follows_content_not_time(clone: Path) -> None:
    first = source.checkout(clone).identity
    (clone / "mm/a.c").touch()
    assert source.checkout(clone).identity == first
    git(clone, "commit", "-q", "--allow-empty", "-m", "nothing new in it")
    assert source.checkout(clone).identity == first
    (clone / "mm/a.c").write_text("edited\n")
    edited = source.checkout(clone).identity
    (clone / "mm/x.c").write_text("new\n")
    assert len({first, edited, source.checkout(clone).identity}) == 3


def test_version_of_a_checkout(clone: Path) -> None:
    assert source.checkout(clone).version == "7.3.4"
    assert source.make_version(MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc2")) == (
        "7.3.4-rc2"
    )


def test_a_directory_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        source.checkout(tmp_path)
