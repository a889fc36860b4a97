# SPDX-License-Identifier: Apache-2.0
"""Which bcc and LLVM a compile would use, found without loading them (that takes seconds)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SONAME = "libbcc.so.0"
_DIRECTORIES = ("/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
_LLVM = re.compile(rb"\0libLLVM(?:-([0-9.]+)\.so[0-9.]*|\.so\.([0-9.]+))\0")


@dataclass(frozen=True)
class Tools:
    """Versions as the libraries' file names have them; empty when not installed."""

    bcc: str
    llvm: str


def find() -> Tools:
    """The versions of the system's libbcc and of the LLVM that it is linked against."""
    for directory in _DIRECTORIES:
        library = Path(directory) / SONAME
        if library.is_file():
            real = library.resolve()
            linked = _LLVM.search(real.read_bytes())
            llvm = (linked[1] or linked[2]).decode() if linked else ""
            return Tools(real.name.removeprefix("libbcc.so."), llvm)
    return Tools("", "")
