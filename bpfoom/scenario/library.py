# SPDX-License-Identifier: Apache-2.0
"""Where scenarios are: shipped with bpfoom and named "area/name", or anybody's files.

A :class:`Bundle` carries them, with the policies that this machine has of its own, into a guest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bpfoom import near, resources
from bpfoom.errors import NotThereError, ParameterError, UsageError
from bpfoom.policy import compose, find
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
        raise NotThereError(
            f"no scenario named {word!r}",
            hint=near.hint(word, names) or "`bpfoom scenario list`",
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


def check_policies(scenarios: Iterable[Scenario]) -> None:
    """Raise UsageError, with file and key, for a policy or parameter that there is not."""
    for scenario in scenarios:
        for number, attachment in enumerate(scenario.attachments):
            try:
                compose.plan(attachment.policy, attachment.settings)
            except (NotThereError, ParameterError) as error:
                key = f"attach[{number}].policy"
                if isinstance(error, ParameterError):
                    key = f"attach[{number}].set.{error.data['parameter']}"
                raise UsageError(
                    f"{scenario.file}: {key}: {error.message}",
                    hint=error.hint,
                    path=str(scenario.file),
                    key=key,
                ) from error


@dataclass(frozen=True)
class Bundle:
    """Scenario files and policies by path, as text, and the policies that this machine can name.

    ``library`` has those that can be named and that bpfoom does not ship; ``instead`` is the
    policy that all scenarios get, whatever they say, if not None.
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
            library={str(path): _text(path) for path in own},
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
        (directory / "bpfoom" / "policies").mkdir(parents=True)
        for path, text in self.library.items():
            _named_at(directory, path).write_text(text)
        placed = self._placed(directory)
        for path, text in self.policies.items():
            target = Path(placed[path])
            target.parent.mkdir()
            target.write_text(text)
        found = [_scenario(Path(path), text) for path, text in self.scenarios.items()]
        if self.instead:
            found = [scenario.with_policy(self.instead) for scenario in found]
        return [_placed(scenario, placed) for scenario in found]

    def as_written(self, document: Any, directory: Path) -> Any:
        """What came of it, with the author's paths for those below the directory."""
        authors = {place: path for path, place in self._placed(directory).items()}
        authors |= {str(_named_at(directory, path)): path for path in self.library}
        return _renamed(document, authors)

    def _placed(self, directory: Path) -> dict[str, str]:
        """Where the policies with a path are written."""
        return {
            path: str(directory / str(number) / Path(path).name)
            for number, path in enumerate(self.policies)
        }


def _named_at(directory: Path, path: str) -> Path:
    return directory / "bpfoom" / "policies" / Path(path).name


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """JSON with parts of its texts replaced."""
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    if isinstance(value, str):
        for name, instead in names.items():
            value = value.replace(name, instead)
    return value


def _placed(scenario: Scenario, placed: dict[str, str]) -> Scenario:
    attachments = (replace(a, policy=placed.get(a.policy, a.policy)) for a in scenario.attachments)
    return replace(scenario, attachments=tuple(attachments))
