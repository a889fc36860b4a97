# SPDX-License-Identifier: Apache-2.0
"""``bpfoom doctor``: what this machine has for OOM handlers, line by line, and what to do."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path

import click

from bpfoom.cli import output
from bpfoom.errors import MissingFeatureError, PermissionDeniedError
from bpfoom.handler import features
from bpfoom.handler.features import MISSING, OK, Finding
from bpfoom.observe import cgroupfs

_COLUMNS = {"status": "STATUS", "name": "WHAT", "seen": "SEEN", "advice": "WHAT TO DO"}
_SYSTEM_PYTHON = Path("/usr/bin/python3")


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def doctor_command(ctx: click.Context, as_json: bool) -> None:
    """Check whether handlers can be attached here. Exits 3 if not, 5 if only root is missing.

    \b
    Example:
      bpfoom doctor
    """
    found = [
        *_kernel(),
        *features.config(),
        *_cgroups(),
        features.bpffs(),
        features.rights(),
        _compiler(),
        *features.sysctls(),
    ]
    blocked = any(finding.blocks for finding in found)
    if as_json:
        output.emit_json({"ok": not blocked, "findings": [asdict(finding) for finding in found]})
    else:
        output.emit_table(_COLUMNS, [asdict(finding) for finding in found])
        click.echo("attach cannot work here" if blocked else "attach can work here")
    if blocked:
        only_rights = all(finding.name == features.RIGHTS for finding in found if finding.blocks)
        kind = PermissionDeniedError if only_rights else MissingFeatureError
        ctx.exit(kind.exit_code)


def _kernel() -> list[Finding]:
    from bpfoom.btf.types import Btf

    try:
        with Btf.from_file() as btf:
            return [Finding("kernel BTF", OK, f"{btf.count()} types"), *features.kernel(btf)]
    except MissingFeatureError as error:
        return [Finding("kernel BTF", MISSING, error.message, error.hint)]


def _cgroups() -> list[Finding]:
    try:
        top = cgroupfs.mount()
    except MissingFeatureError as error:
        return [Finding("cgroup2", MISSING, error.message, error.hint)]
    found = [Finding("cgroup2", OK, str(top.path))]
    try:
        cgroupfs.require_memory(cgroupfs.resolve("/"))
        found.append(Finding("memory controller", OK, "on cgroup2"))
    except MissingFeatureError as error:
        found.append(Finding("memory controller", MISSING, "not on cgroup2", error.hint))
    return found


def _compiler() -> Finding:
    """bcc's library, and its module as the system's Python sees it."""
    from bpfoom.compiler import tools

    advice = "apt install python3-bpfcc"
    found = tools.find()
    # Looked for, not imported: that would load LLVM.
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('bcc') is None)"
    try:
        asked = subprocess.run([str(_SYSTEM_PYTHON), "-c", look], capture_output=True, text=True)
    except OSError as error:
        return Finding("bcc", MISSING, f"{_SYSTEM_PYTHON}: {error.strerror}", advice)
    if asked.returncode or not found.bcc:
        return Finding("bcc", MISSING, f"not found by {_SYSTEM_PYTHON}", advice)
    return Finding("bcc", OK, f"bcc {found.bcc}, LLVM {found.llvm or 'unknown'}")
