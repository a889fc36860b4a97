# SPDX-License-Identifier: Apache-2.0
"""Every tracked file says its licence, in itself or in REUSE.toml, and it is its room's."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# In pieces, so that this line is not taken for this file's own.
TAG = re.compile("SPDX-License-" + r"Identifier: ([\w.-]+)")
GPL, APACHE = "GPL-2.0-only", "Apache-2.0"


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (CHECKOUT / name).is_file()]


def annotated() -> dict[str, str]:
    table = tomllib.loads((CHECKOUT / "REUSE.toml").read_text())
    return {item["path"]: item["SPDX-License-Identifier"] for item in table["annotations"]}


def licence_of(name: str) -> str | None:
    for pattern, licence in annotated().items():
        if fnmatch.fnmatch(name, pattern):
            return licence
    head = (CHECKOUT / name).read_bytes()[:2000].decode("utf-8", "replace")
    found = TAG.search(head)
    return found[1] if found else None


def test_every_file_has_its_rooms_licence() -> None:
    wrong = {}
    for name in tracked():
        if name.startswith("LICENSES/"):
            continue
        of_kernel = name.startswith(("kernel-patches/", "bpf/")) or name.endswith(".btf")
        # Scenarios stand beside their policies; no kernel reads them.
        of_kernel = of_kernel and not name.endswith(".toml")
        kernel_side = of_kernel or (name.startswith("vm/") and name.endswith((".c", ".h")))
        expected = GPL if kernel_side else APACHE
        if licence_of(name) != expected:
            wrong[name] = licence_of(name)
    assert wrong == {}


def test_files_that_patches_create_have_a_licence() -> None:
    """In the kernel an SPDX line is the first of a file."""
    for patch in (CHECKOUT / "kernel-patches").glob("*.patch"):
        created = re.findall(
            r"^--- /dev/null\n\+\+\+ b/(\S+)\n@@ [^\n]+\n\+(.*)$", patch.read_text(), re.MULTILINE
        )
        for path, first in created:
            assert TAG.search(first), f"{patch.name}: {path}"
