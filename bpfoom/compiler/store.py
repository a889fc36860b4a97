# SPDX-License-Identifier: Apache-2.0
"""The compiler's cache entries: JSON documents, sealed to the key they were made for.

Root trusts only what root alone can have written, and under the key it was written for; anything
else is as good as absent.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

from bpfoom import cache
from bpfoom.compiler import trust


def load(kind: str, key: str) -> dict[str, Any] | None:
    """The entry's content, or None when there is none that can be trusted."""
    try:
        with open(cache.path_of(kind, key), "rb") as entry:
            if not trust.may_be_loaded(os.fstat(entry.fileno())):
                return None
            document = json.loads(entry.read())
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    content = document.get("content")
    if not isinstance(content, dict) or document.get("seal") != _seal(key, content):
        return None
    return content


def save(kind: str, key: str, content: dict[str, Any]) -> None:
    """Keep ``content``. A full disk costs the next run its time, and this one nothing."""
    with suppress(OSError):
        document = {"seal": _seal(key, content), "content": content}
        cache.write_file(kind, key, json.dumps(document).encode())


def _seal(key: str, content: dict[str, Any]) -> str:
    """Finds damage, and entries that were moved to another name; it is no signature."""
    return cache.key_of(key, json.dumps(content, sort_keys=True))
