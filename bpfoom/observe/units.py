# SPDX-License-Identifier: Apache-2.0
"""systemd's units as cgroups: which one a unit has now, as systemd itself says.

A unit that stops loses its cgroup; when it starts again there is another one, of the same name as a
rule. Only ``systemctl`` is asked, so this works wherever systemd runs, and nothing is parsed.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from bpfoom.errors import BpfoomError, MissingFeatureError, NotThereError, UsageError
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup

TIMEOUT_S = 30.0
# sd_booted(3): where it is, systemd is what runs the machine.
_BOOTED = Path("/run/systemd/system")
# The kinds of units that have cgroups; a name without a kind is a service's, as in systemctl.
_KINDS = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")
_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\Z")


def full_name(unit: str) -> str:
    """``web`` is ``web.service``. Raises UsageError for what no unit is called."""
    if not _NAME.match(unit):
        raise UsageError(
            f"{unit[:80]!r} is no name of a unit", hint="such as web.service or machine.slice"
        )
    return unit if unit.endswith(_KINDS) else f"{unit}.service"


def owner(unit: str) -> str:
    """What a handler that was attached to a unit is said to be attached by."""
    return f"unit {unit}"


def is_cgroup_of(name: str, unit: str) -> bool:
    """Whether a cgroup is called like a unit: systemd escapes some names with an underscore."""
    return name.rpartition("/")[2] in (unit, f"_{unit}")


def control_group(unit: str) -> str | None:
    """The name of a unit's cgroup; None while it has none.

    Raises MissingFeatureError where systemd does not run, and BpfoomError if it does not answer.
    """
    if not _BOOTED.is_dir():
        raise MissingFeatureError(
            "systemd does not run here: units are its own",
            hint="name the cgroup instead",
            path=str(_BOOTED),
        )
    argv = ["systemctl", "show", "--property=ControlGroup", "--value", "--", unit]
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=TIMEOUT_S, env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise MissingFeatureError(
            f"systemctl cannot be run, which knows the cgroup of {unit}: {error.strerror}",
            hint="install systemctl, or name the cgroup instead",
            object=unit,
            errno=error.errno,
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BpfoomError(
            f"systemd did not say within {TIMEOUT_S:.0f} s which cgroup {unit} has",
            hint="`systemctl is-system-running` says how it is",
            object=unit,
        ) from error
    if done.returncode:
        reason = os.fsdecode(done.stderr).strip()
        raise BpfoomError(
            f"systemd does not say which cgroup {unit} has: {reason}",
            hint="`systemctl status` says whether it runs here",
            object=unit,
        )
    return os.fsdecode(done.stdout).strip() or None


def resolve(unit: str) -> Cgroup:
    """The cgroup of a unit that runs. Raises NotThereError, and as :func:`control_group` does."""
    name = control_group(unit)
    if name is None:
        raise NotThereError(
            f"the unit {unit} has no cgroup: it does not run, or there is none of that name",
            hint=f"`systemctl start {unit}`; or have `bpfoom agent` wait for it",
            object=unit,
        )
    return cgroupfs.resolve(f"{cgroupfs.mount().path}{name}")
