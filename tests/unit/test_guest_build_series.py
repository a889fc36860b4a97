# SPDX-License-Identifier: Apache-2.0
"""The patch series as an object, on small trees: order, content, and what a conflict says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.errors import KernelPatchError
from bpfoom.guest import series

EIGHT = "".join(f"line {n}\n" for n in range(1, 9))

# Changes mm/a.c near its start and near its end: two hunks.
FIRST = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Author <author@example.org>
Subject: [PATCH 1/2] mm: change both ends of a
 file
---
diff --git a/mm/a.c b/mm/a.c
--- a/mm/a.c
+++ b/mm/a.c
@@ -1,2 +1,3 @@
 line 1
+between one and two
 line 2
@@ -7,2 +8,2 @@
 line 7
-line 8
+--- line eight
--\x20
2.47
"""
# Adds a file, and changes a line that FIRST made.
SECOND = """\
Subject: [PATCH 2/2] mm: add a file
---
diff --git a/mm/a.c b/mm/a.c
--- a/mm/a.c
+++ b/mm/a.c
@@ -1,3 +1,3 @@
 line 1
-between one and two
+1.5
 line 2
diff --git a/mm/new/b.c b/mm/new/b.c
new file mode 100644
--- /dev/null
+++ b/mm/new/b.c
@@ -0,0 +1,2 @@
+new
+file
"""
REMOVES = """\
Subject: mm: remove a file
---
diff --git a/mm/a.c b/mm/a.c
deleted file mode 100644
--- a/mm/a.c
+++ /dev/null
@@ -1,8 +0,0 @@
""" + "".join(f"-line {n}\n" for n in range(1, 9))


def write_series(directory: Path, **patches: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, text in patches.items():
        (directory / f"{name}.patch").write_text(text)
    order = "# the order\n\n" + "".join(f"{name}.patch  # why\n" for name in patches)
    (directory / "series").write_text(order)
    return directory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/mm").mkdir(parents=True)
    (tmp_path / "tree/mm/a.c").write_text(EIGHT)
    return tmp_path / "tree"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def contents(tree: Path) -> dict[str, str]:
    return {str(p.relative_to(tree)): p.read_text() for p in tree.rglob("*") if p.is_file()}


def test_no_series_file_is_an_empty_series(tmp_path: Path) -> None:
    assert series.load(tmp_path).patches == ()


def test_order_subjects_and_counts(tmp_path: Path) -> None:
    loaded = series.load(write_series(tmp_path / "s", one=FIRST, two=SECOND))
    assert [patch.name for patch in loaded.patches] == ["one.patch", "two.patch"]
    assert loaded.patches[0].subject == "mm: change both ends of a file"
    assert loaded.files == ["mm/a.c", "mm/new/b.c"]
    (change,) = loaded.patches[0].changes
    # The removed-line marker inside the second hunk must not be taken for a file header.
    assert (change.count("+"), change.count("-")) == (2, 1)
    assert [hunk.old_start for hunk in change.hunks] == [1, 7]


def test_applies_in_order_and_leaves_the_tree_alone(
    tmp_path: Path, tree: Path, scratch: Path
) -> None:
    loaded = series.load(write_series(tmp_path / "s", one=FIRST, two=SECOND))
    loaded.apply(tree, scratch)
    assert contents(tree) == {"mm/a.c": EIGHT}
    assert contents(scratch)["mm/a.c"].splitlines()[:3] == ["line 1", "1.5", "line 2"]
    assert contents(scratch)["mm/a.c"].splitlines()[-1] == "--- line eight"
    assert contents(scratch)["mm/new/b.c"] == "new\nfile\n"


def test_a_removed_file_is_absent(tmp_path: Path, tree: Path, scratch: Path) -> None:
    series.load(write_series(tmp_path / "s", gone=REMOVES)).apply(tree, scratch)
    assert contents(scratch) == {}


def test_lines_that_moved_are_no_conflict(tmp_path: Path, tree: Path, scratch: Path) -> None:
    (tree / "mm/a.c").write_text(EIGHT.replace("line 5\n", "line 5\nthree\nlines\nmore\n"))
    series.load(write_series(tmp_path / "s", one=FIRST)).apply(tree, scratch)
    assert contents(scratch)["mm/a.c"].endswith("line 7\n--- line eight\n")


# What is done to line 7 or to the files -> (patch, file, hunk) that the error must name.
CONFLICTS = [
    pytest.param({"mm/a.c": EIGHT.replace("line 7", "line seven")}, "one.patch", 2, id="context"),
    pytest.param({"mm/a.c": EIGHT.replace("line 2", "line two")}, "one.patch", 1, id="first-hunk"),
    pytest.param({}, "one.patch", None, id="no-such-file"),
]


@pytest.mark.parametrize(("files", "patch", "hunk"), CONFLICTS)
def test_conflict_names_patch_file_and_hunk(
    tmp_path: Path, tree: Path, scratch: Path, files: dict[str, str], patch: str, hunk: int | None
) -> None:
    (tree / "mm/a.c").unlink()
    for name, text in files.items():
        (tree / name).write_text(text)
    loaded = series.load(write_series(tmp_path / "s", one=FIRST, two=SECOND))
    with pytest.raises(KernelPatchError) as caught:
        loaded.apply(tree, scratch)
    assert caught.value.data["patch"] == patch
    assert caught.value.data["file"] == "mm/a.c"
    assert caught.value.data["hunk"] == hunk
    assert patch in caught.value.message and "mm/a.c" in caught.value.message
    assert contents(tree) == files


def test_fuzz_is_refused(tmp_path: Path, tree: Path, scratch: Path) -> None:
    """patch(1) would let the outermost context line differ; the series must not rely on that."""
    (tree / "mm/a.c").write_text(EIGHT.replace("line 1\n", "line one\n"))
    with pytest.raises(KernelPatchError):
        series.load(write_series(tmp_path / "s", one=FIRST)).apply(tree, scratch)


def test_a_repository_around_the_scratch_directory_changes_nothing(
    tmp_path: Path, tree: Path, scratch: Path
) -> None:
    """git apply skips, silently, what lies outside of the directory it runs in."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/objects").mkdir()
    (tmp_path / ".git/refs").mkdir()
    series.load(write_series(tmp_path / "s", one=FIRST)).apply(tree, scratch)
    assert "between one and two" in contents(scratch)["mm/a.c"]


def test_hash_follows_content_and_order(tmp_path: Path) -> None:
    both = series.load(write_series(tmp_path / "a", one=FIRST, two=SECOND)).hash
    swapped = series.load(write_series(tmp_path / "b", two=SECOND, one=FIRST)).hash
    edited = series.load(write_series(tmp_path / "c", one=FIRST, two=SECOND + "\n")).hash
    assert len({both, swapped, edited}) == 3


def test_a_patch_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("missing.patch\n")
    with pytest.raises(KernelPatchError) as caught:
        series.load(tmp_path)
    assert caught.value.data["patch"] == "missing.patch"
