# SPDX-License-Identifier: Apache-2.0
"""Where policies are: shipped with bpfoom, the administrator's, the user's, or named by path."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bpfoom import near, resources
from bpfoom.errors import CardError, NotThereError
from bpfoom.policy import card
from bpfoom.policy.card import Card

SUFFIX = ".bpf.c.j2"
# It becomes the handler's name in the kernel, which has 64 bytes for it.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
SYSTEM = Path("/etc/bpfoom/policies")


@dataclass(frozen=True)
class Policy:
    """A policy file that was read: its name, path, text, and card."""

    name: str
    path: Path
    text: str
    card: Card


def is_name(name: str) -> bool:
    """Whether a policy can be called that."""
    return bool(_NAME.match(name))


def directories() -> list[Path]:
    """Where names are looked up, the first that has one wins."""
    found = [resources.room("bpf") / "policies", SYSTEM]
    base = os.environ.get("XDG_CONFIG_HOME", "")
    with suppress(RuntimeError):  # a user without a home
        config = Path(base) if os.path.isabs(base) else Path.home() / ".config"
        found.append(config / "bpfoom" / "policies")
    return found


def includes() -> dict[str, str]:
    """The shared templates that any policy may extend or include, by template name."""
    room = resources.room("bpf") / "include"
    return {f"include/{p.name}": p.read_text() for p in sorted(room.glob("*.j2"))}


def read(path: Path) -> Policy:
    """The policy in a file. Raises NotThereError, CardError."""
    name = path.name.removesuffix(SUFFIX)
    if not is_name(name):
        raise CardError(
            f"{path}: a policy's file name is its name",
            hint=f"call it NAME{SUFFIX}, NAME of a-z, 0-9 and -, at most 63",
            path=str(path),
        )
    if not str(path).isprintable():
        raise CardError(
            f"a policy's path cannot be printed: {str(path)!r}",
            hint="messages and `bpfoom show` name policies by their paths",
            path=str(path),
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotThereError(
            f"cannot read policy {path}: {error.strerror}",
            hint=_beside(path) or "`bpfoom policies` lists the ones that can be named",
            path=str(path),
            errno=error.errno,
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CardError(
            f"{path}:{line}: not UTF-8 text",
            hint="a policy is a text file",
            path=str(path),
            line=line,
        ) from error
    return Policy(name, path, text, card.parse(text, str(path)))


def _beside(path: Path) -> str:
    """Policies in the same directory whose names are near, as a hint."""
    names = [file.name.removesuffix(SUFFIX) for file in path.parent.glob(f"*{SUFFIX}")]
    close = near.nearest(path.name.removesuffix(SUFFIX), names)
    files = ", ".join(str(path.with_name(f"{name}{SUFFIX}")) for name in close)
    return f"did you mean: {files}?" if files else ""


def find_policies() -> list[Policy]:
    """Every policy that can be named, sorted by name. Raises CardError for a broken one."""
    found: dict[str, Path] = {}
    for directory in directories():
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            found.setdefault(path.name.removesuffix(SUFFIX), path)
    return [read(found[name]) for name in sorted(found)]


def is_path(name_or_path: str) -> bool:
    """Whether a policy is named by its file."""
    return "/" in name_or_path or name_or_path.endswith(SUFFIX)


def find_policy(name_or_path: str) -> Policy:
    """One policy, by name or by path. Raises NotThereError with the nearest names."""
    if is_path(name_or_path):
        return read(Path(name_or_path))
    for directory in directories() if is_name(name_or_path) else ():
        path = directory / f"{name_or_path}{SUFFIX}"
        if path.is_file():
            return read(path)
    file = Path(f"{name_or_path}{SUFFIX}")
    here = is_name(name_or_path) and file.is_file()
    names = sorted({p.name.removesuffix(SUFFIX) for d in directories() for p in d.glob("*.j2")})
    raise NotThereError(
        f"no policy named {name_or_path!r}",
        hint=f"a file is named by its path: ./{file}"
        if here
        else near.hint(name_or_path, names) or f"there are: {', '.join(names)}",
        policy=name_or_path,
        searched=[str(d) for d in directories()],
    )
