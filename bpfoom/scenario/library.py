# SPDX-License-Identifier: Apache-2.0
"""Where scenarios are: shipped with bpfoom and named "area/name", or anybody's files.

A :class:`Bundle` carries them, with the policies that this machine has of its own, into a guest.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bpfoom import resources
from bpfoom.errors import NotThereError, UsageError
from bpfoom.policy import find
from bpfoom.scenario import parse
from bpfoom.scenario.model import Attachment, Scenario

SUFFIX = ".toml"


def shipped() -> list[Scenario]:
    """Every scenario of the library, by name."""
    return [_read(path) for path in sorted(_room().glob(f"*/*{SUFFIX}"))]


def find_scenarios(words: Iterable[str]) -> list[Scenario]:
    """The scenarios that words name: a file, a directory, an area or "area/name" of the library.

    No word is the whole library. Raises NotThereError, and UsageError for what is wrong in a file.
    """
    found = [scenario for word in words for scenario in _named(word)]
    return found or shipped()


def _named(word: str) -> list[Scenario]:
    path = Path(word)
    if word.endswith(SUFFIX):
        return [_read(path)]
    if path.is_dir():
        paths = sorted(path.rglob(f"*{SUFFIX}"))
        if not paths:
            raise NotThereError(f"{word} holds no *{SUFFIX}", path=word)
        return [_read(file) for file in paths]
    known = shipped()
    chosen = [s for s in known if word in (s.name, s.name.partition("/")[0])]
    if not chosen:
        names = [scenario.name for scenario in known]
        close = difflib.get_close_matches(word, names, n=3)
        raise NotThereError(
            f"no scenario named {word!r}",
            hint=f"did you mean: {', '.join(close)}?" if close else "`bpfoom scenario list`",
            scenario=word,
        )
    return chosen


def _room() -> Path:
    return resources.room("bpf") / "scenarios"


def _read(path: Path) -> Scenario:
    return _scenario(path, _text(path))


def _scenario(path: Path, text: str) -> Scenario:
    """A file's scenario; policies that it names by path are beside it."""
    found = parse.parse(text, name=f"{path.absolute().parent.name}/{path.stem}", file=path)
    attachments = tuple(_beside(path, attachment) for attachment in found.attachments)
    return replace(found, attachments=attachments)


def _beside(path: Path, attachment: Attachment) -> Attachment:
    if not _is_path(attachment.policy):
        return attachment
    return replace(attachment, policy=str(path.absolute().parent / attachment.policy))


def _is_path(policy: str) -> bool:
    return "/" in policy or policy.endswith(find.SUFFIX)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotThereError(
            f"cannot read {path}: {error.strerror}", path=str(path), errno=error.errno
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", path=str(path)) from error


@dataclass(frozen=True)
class Bundle:
    """Scenario files and policies by path, as text, and the policies that this machine can name.

    ``library`` has those that bpfoom does not ship, by file name; ``instead`` is the policy that
    all scenarios get, whatever they say, if not None.
    """

    scenarios: dict[str, str]
    policies: dict[str, str]
    library: dict[str, str]
    instead: str | None

    @classmethod
    def of(cls, scenarios: Sequence[Scenario], instead: str | None) -> Self:
        """All that is needed to run the scenarios elsewhere."""
        paths = {a.policy for s in scenarios for a in s.attachments if _is_path(a.policy)}
        own = [path for d in find.directories()[:0:-1] for path in d.glob(f"*{find.SUFFIX}")]
        return cls(
            scenarios={str(s.file.absolute()): _text(s.file) for s in scenarios},
            policies={path: _text(Path(path)) for path in sorted(paths)},
            library={path.name: _text(path) for path in own},
            instead=instead,
        )

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        return cls(**document)

    def unpack(self, directory: Path) -> list[Scenario]:
        """Write the policies below a directory; the scenarios, with these.

        Sets XDG_CONFIG_HOME, so that names mean what they meant where the bundle was made.
        """
        os.environ["XDG_CONFIG_HOME"] = str(directory)
        library = directory / "bpfoom" / "policies"
        library.mkdir(parents=True)
        for name, text in self.library.items():
            (library / name).write_text(text)
        placed = {}
        for number, (path, text) in enumerate(self.policies.items()):
            target = directory / str(number) / Path(path).name
            target.parent.mkdir()
            target.write_text(text)
            placed[path] = str(target)
        found = [_scenario(Path(path), text) for path, text in self.scenarios.items()]
        if self.instead:
            found = [scenario.with_policy(self.instead) for scenario in found]
        return [_placed(scenario, placed) for scenario in found]


def _placed(scenario: Scenario, placed: dict[str, str]) -> Scenario:
    attachments = (replace(a, policy=placed.get(a.policy, a.policy)) for a in scenario.attachments)
    return replace(scenario, attachments=tuple(attachments))
