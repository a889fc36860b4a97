# SPDX-License-Identifier: Apache-2.0
"""What the templates of ``bpf/`` say of their own structs, for tests that read maps."""

from __future__ import annotations

import re

from bpfoom import resources


def words_of(file: str, struct: str) -> list[str]:
    """The members of a struct that is made of 64-bit numbers, in their order."""
    text = (resources.room("bpf") / file).read_text()
    body = re.search(rf"struct {struct} \{{(.*?)\}};", text, re.S)
    assert body, f"{file} has no struct {struct}"
    return re.findall(r"u64 (\w+);", body[1])
