# SPDX-License-Identifier: Apache-2.0
"""The machine's own Debian mirror, asked for suites that the machine itself does not use.

The mirror is the one in apt's configuration, whatever its form (``http:``, ``mirror+file:``, a
proxy); no host is named here. A private apt with its own lists, cache and sources reads trixie and
trixie-backports from it, verified by Debian's archive keys, and leaves the machine's apt alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfoom import cache
from bpfoom.errors import NotThereError, PreflightError
from bpfoom.guest import process

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("trixie", "trixie-backports")
ARCHITECTURE = "amd64"

# How the machine's apt reaches its mirror (proxies, retries), but never a waiver of signatures.
_SETTING = re.compile(
    r'^(Acquire::(?!IndexTargets|Changelogs|cdrom|CompressionTypes|Allow)\S+) "(.+)";$',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mirror:
    """A Debian mirror: the URI as apt writes it, and the apt settings that go with it."""

    uri: str
    settings: tuple[tuple[str, str], ...] = ()

    def sources(self, suites: Sequence[str] = SUITES) -> str:
        """The text of a one-line-style sources list for ``suites``."""
        options = f"[arch={ARCHITECTURE} signed-by={KEYRING}]"
        return "".join(f"deb {options} {self.uri} {suite} main\n" for suite in suites)

    def list_file(self) -> Path | None:
        """The file with the mirrors behind a ``mirror+file:`` (or ``mirror:file:``) URI."""
        found = re.match(r"mirror[+:]file:(/.*)$", self.uri)
        return Path("/" + found[1].strip("/")) if found else None


def find() -> Mirror:
    """The machine's Debian mirror. PreflightError when apt has none."""
    rows = process.capture(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(LABEL)|$(COMPONENT)|$(REPO_URI)",
            "Identifier: Packages",
        ],
        "reading apt's sources",
    )
    uri = pick_uri(rows)
    if uri is None:
        raise PreflightError(
            "apt has no Debian mirror configured",
            hint="add a Debian entry to /etc/apt/sources.list.d and run: apt-get update",
        )
    dump = process.capture(["apt-config", "dump"], "reading apt's settings")
    return Mirror(uri, tuple(pick_settings(dump)))


def pick_uri(rows: str) -> str | None:
    """The first Debian main repository in ``LABEL|COMPONENT|REPO_URI`` rows, or None."""
    for row in rows.splitlines():
        label, _, rest = row.partition("|")
        component, _, uri = rest.partition("|")
        if label == "Debian" and component == "main" and uri:
            return uri
    return None


def pick_settings(dump: str) -> list[tuple[str, str]]:
    """The settings of ``apt-config dump`` that reaching the mirror depends on, in order."""
    found = (_SETTING.match(line) for line in dump.splitlines())
    return [(match[1], match[2]) for match in found if match]


class Archive:
    """A private apt on a mirror. Its directory is in our cache and belongs to the caller."""

    def __init__(self, mirror: Mirror, suites: Sequence[str] = SUITES) -> None:
        self.mirror = mirror
        self.suites = tuple(suites)
        self.directory = cache.path_of("apt", cache.key_of(mirror.uri, *self.suites))

    def update(self, on_line: process.OnLine | None = None) -> None:
        """Fetch the lists and check their signatures. BuildError when that fails."""
        self._prepare()
        process.must(
            [*self._apt("apt-get"), "update", "--error-on=any"],
            "updating the package lists",
            on_line=on_line,
        )

    def names(self, prefix: str) -> list[str]:
        """Package names that start with ``prefix``, from the lists as last updated."""
        found = process.capture([*self._apt("apt-cache"), "pkgnames", prefix], "reading names")
        return sorted(found.split())

    def versions(self, package: str) -> list[str]:
        """The versions of ``package`` that the mirror has, newest first; empty when none."""
        rows = process.capture(
            [*self._apt("apt-cache"), "madison", package], f"reading the versions of {package}"
        )
        columns = [[field.strip() for field in row.split("|")] for row in rows.splitlines()]
        return list(dict.fromkeys(c[1] for c in columns if len(c) > 1 and c[0] == package))

    def download(
        self, package: str, version: str, into: Path, on_line: process.OnLine | None = None
    ) -> Path:
        """Fetch one .deb, verified by apt against the signed lists. Returns its path."""
        process.must(
            [*self._apt("apt-get"), "download", f"{package}={version}"],
            f"downloading {package} {version}",
            on_line=on_line,
            cwd=into,
        )
        found = sorted(into.glob(f"{package}_*.deb"))
        if not found:
            raise NotThereError(f"apt downloaded no {package}", path=str(into))
        return found[-1]

    def _prepare(self) -> None:
        for name in ("lists/partial", "cache/archives/partial", "none"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text(self.mirror.sources(self.suites))
        (self.directory / "apt.conf").write_text(self._configuration())

    def _configuration(self) -> str:
        """A whole apt configuration: everything apt writes is below our directory."""
        here = self.directory
        settings = [
            ("APT::Architecture", ARCHITECTURE),
            ("APT::Architectures", ARCHITECTURE),
            # The sandbox user cannot enter a cache below a 0700 home.
            ("APT::Sandbox::User", "root"),
            # Without the machine's apt.conf.d its hooks do not run either.
            ("Dir::Etc::main", f"{here}/none"),
            ("Dir::Etc::parts", f"{here}/none"),
            ("Dir::Etc::preferences", f"{here}/none"),
            ("Dir::Etc::preferencesparts", f"{here}/none"),
            ("Dir::Etc::sourcelist", f"{here}/sources.list"),
            ("Dir::Etc::sourceparts", f"{here}/none"),
            ("Dir::State::lists", f"{here}/lists"),
            ("Dir::State::status", f"{here}/status"),
            ("Dir::Cache", f"{here}/cache"),
        ]
        return "".join(f'{key} "{value}";\n' for key, value in [*settings, *self.mirror.settings])

    def _apt(self, program: str) -> list[str]:
        return ["env", "LC_ALL=C", f"APT_CONFIG={self.directory}/apt.conf", program, "-q"]


def mmdebstrap_options(mirror: Mirror) -> list[str]:
    """The options that make mmdebstrap reach this mirror as the machine's own apt does."""
    options = [f'--aptopt={key} "{value}"' for key, value in mirror.settings]
    if listed := mirror.list_file():
        parent = shlex.quote(str(listed.parent))
        options += [
            f'--setup-hook=mkdir -p "$1"{parent}',
            f"--setup-hook=copy-in {shlex.quote(str(listed))} {parent}",
        ]
    if re.match(r"(file|copy):", mirror.uri):
        options.append("--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount")
    return options
