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
_BCC_TIMEOUT_S = 60


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def doctor_command(ctx: click.Context, as_json: bool) -> None:
    """Check whether handlers can be attached here. Exits 3 if not, 5 if only root is missing."""
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
    """bcc as the system's Python sees it: only policies compiled here need it."""
    advice = "apt install python3-bpfcc"
    try:
        asked = subprocess.run(
            [str(_SYSTEM_PYTHON), "-c", "import bcc; print(bcc.__version__)"],
            capture_output=True,
            text=True,
            timeout=_BCC_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("bcc", MISSING, f"{_SYSTEM_PYTHON}: {error}", advice)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding("bcc", MISSING, last, advice)
    from bpfoom.compiler.worker import tool_versions

    llvm = tool_versions()["llvm"] or "of unknown version"
    return Finding("bcc", OK, f"bcc {asked.stdout.strip()}, LLVM {llvm}")
