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
from bpfoom.errors import BpfoomError, NotThereError, ParameterError, UsageError
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
        file = path.with_name(f"{path.name}{SUFFIX}") if path.name else path
        raise NotThereError(
            f"no scenario named {word!r}",
            hint=f"a file is named by its path: {file}"
            if file.is_file()
            else near.hint(word, names) or "`bpfoom scenario list`",
            scenario=word,
        )
    return chosen


def _room() -> Path:
    return resources.room("bpf") / "scenarios"


def _read(path: Path) -> Scenario:
    found = _scenario(path, _text(path))
    attachments = tuple(_settled(attachment, path) for attachment in found.attachments)
    return replace(found, attachments=attachments)


def _scenario(path: Path, text: str) -> Scenario:
    """A file's scenario; policies that it names by path are beside it."""
    found = parse.parse(text, name=f"{path.absolute().parent.name}/{path.stem}", file=path)
    attachments = tuple(_beside(path, attachment) for attachment in found.attachments)
    return replace(found, attachments=attachments)


def _beside(path: Path, attachment: Attachment) -> Attachment:
    if not find.is_path(attachment.policy):
        return attachment
    return replace(attachment, policy=str(path.absolute().parent / attachment.policy))


def _settled(attachment: Attachment, file: Path) -> Attachment:
    """With the paths of wrapped policies, which are beside the scenario's file, too."""
    try:
        settings = compose.settled(attachment.policy, attachment.settings, file.absolute().parent)
    except BpfoomError:
        return attachment  # check_policies says what is wrong, once the scenario is to be run
    return replace(attachment, settings=settings)


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
                compose.plan(
                    attachment.policy, attachment.settings, scenario.file.absolute().parent
                )
            except (NotThereError, ParameterError) as error:
                parameter = error.data.get("parameter")
                key = f"attach[{number}].{f'set.{parameter}' if parameter else 'policy'}"
                raise UsageError(
                    f"{scenario.file}: {key}: {error.message}",
                    hint=error.hint,
                    path=str(scenario.file),
                    key=key,
                ) from error


@dataclass(frozen=True)
class Bundle:
    """Scenario files and policies by path, as text, and the policies that this machine can name.

    ``wrapped`` has, for each attachment of a scenario, the settings that name one of them;
    ``library`` has those that can be named and that bpfoom does not ship; ``instead`` is the
    policy that all scenarios get, whatever they say, if not None.
    """

    scenarios: dict[str, str]
    wrapped: dict[str, list[dict[str, str]]]
    policies: dict[str, str]
    library: dict[str, str]
    instead: str | None

    @classmethod
    def of(cls, scenarios: Sequence[Scenario], instead: str | None) -> Self:
        """All that is needed to run the scenarios elsewhere."""
        wrapped = {str(s.file.absolute()): [_wrapped(a) for a in s.attachments] for s in scenarios}
        outer = {a.policy for s in scenarios for a in s.attachments if find.is_path(a.policy)}
        inner = {path for each in wrapped.values() for files in each for path in files.values()}
        own = [path for d in find.directories()[:0:-1] for path in d.glob(f"*{find.SUFFIX}")]
        return cls(
            scenarios={str(s.file.absolute()): _text(s.file) for s in scenarios},
            wrapped=wrapped,
            policies={path: _text(Path(path)) for path in sorted(outer | inner)},
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
        found = {path: _scenario(Path(path), text) for path, text in self.scenarios.items()}
        if self.instead:
            found = {path: it.with_policy(self.instead) for path, it in found.items()}
        return [_placed(it, self.wrapped[path], placed) for path, it in found.items()]

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


def _wrapped(attachment: Attachment) -> dict[str, str]:
    return compose.plan(attachment.policy, attachment.settings).files


def _placed(
    scenario: Scenario, wrapped: Iterable[Mapping[str, str]], placed: Mapping[str, str]
) -> Scenario:
    """The scenario with its policies where they were written."""
    attachments = tuple(
        replace(
            it,
            policy=placed.get(it.policy, it.policy),
            settings={**it.settings, **{name: placed[path] for name, path in files.items()}},
        )
        for it, files in zip(scenario.attachments, wrapped, strict=True)
    )
    return replace(scenario, attachments=attachments)
