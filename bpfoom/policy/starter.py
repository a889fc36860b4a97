# SPDX-License-Identifier: Apache-2.0
"""A policy to begin with, and the scenario that shows it at work: two files, to be changed."""

from __future__ import annotations

from pathlib import Path

from bpfoom import resources
from bpfoom.errors import BpfoomError, NotThereError, UsageError
from bpfoom.policy import find

_NAME = "@NAME@"


def kinds() -> list[str]:
    """What a starter can choose among."""
    return sorted(path.name.removesuffix(find.SUFFIX) for path in _room().glob(f"*{find.SUFFIX}"))


def write(name: str, kind: str, directory: Path) -> tuple[Path, Path]:
    """Write a policy of that name and its scenario; never over a file that is there.

    Raises UsageError for a name that no policy can have, BpfoomError.
    """
    if not find.is_name(name):
        raise UsageError(
            f"{name!r} is no name for a policy", hint="use a-z, 0-9 and -, at most 63", policy=name
        )
    if not directory.is_dir():
        raise NotThereError(f"no directory {directory}", hint="make it first", path=str(directory))
    policy, scenario = directory / f"{name}{find.SUFFIX}", directory / f"{name}.toml"
    _create(policy, _text(f"{kind}{find.SUFFIX}", name))
    try:
        _create(scenario, _text(f"{kind}.toml", name))
    except BpfoomError:
        policy.unlink()
        raise
    return policy, scenario


def _create(path: Path, text: str) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BpfoomError(
            f"cannot write {path}: {error.strerror}",
            hint="choose another name, or another directory with -o",
            path=str(path),
            errno=error.errno,
        ) from error


def _text(file: str, name: str) -> str:
    return (_room() / file).read_text(encoding="utf-8").replace(_NAME, name)


def _room() -> Path:
    return resources.room("bpf") / "starters"
