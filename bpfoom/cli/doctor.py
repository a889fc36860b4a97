# SPDX-License-Identifier: Apache-2.0
"""``bpfoom doctor``: what this machine has for OOM handlers, line by line, and what to do."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path

import click

from bpfoom.cli import output
from bpfoom.errors import MissingFeatureError, PermissionDeniedError, PreflightError
from bpfoom.handler import features
from bpfoom.handler.features import MISSING, OK, WARN, Finding
from bpfoom.observe import cgroupfs

_COLUMNS = {"status": "STATUS", "name": "WHAT", "seen": "SEEN", "advice": "WHAT TO DO"}
_SYSTEM_PYTHON = Path("/usr/bin/python3")


@click.command(name="doctor")
@click.option("--kvm", is_flag=True, help="Try whether KVM carries a guest, if nobody has yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def doctor_command(ctx: click.Context, kvm: bool, as_json: bool) -> None:
    """Check whether handlers can be attached here. Exits 3 if not, 5 if only root is missing.

    Nothing is changed. Whether KVM carries a guest only a trial can tell, which takes up to 20
    seconds; it is made with --kvm, or by the first guest, and its answer kept until the next boot.

    \b
    Examples:
      bpfoom doctor
      bpfoom doctor --kvm --json
    """
    compiler = _compiler()
    found = [
        *_kernel(),
        *features.config(),
        features.jit(),
        features.pressure(),
        *_cgroups(),
        features.bpffs(),
        features.pinned(),
        features.rights(),
        compiler,
        *features.sysctls(),
        features.sysrq(),
        _kvm(kvm),
    ]
    blocked = [finding.name for finding in found if finding.blocks]
    if as_json:
        output.emit_json({"ok": not blocked, "findings": [asdict(finding) for finding in found]})
    else:
        output.emit_table(_COLUMNS, [asdict(finding) for finding in found])
        how = "" if compiler.status == OK else ", with --object: there is no compiler"
        missing = f"attach cannot work here: {', '.join(blocked)}"
        click.echo(missing if blocked else f"attach can work here{how}")
    if blocked:
        only_rights = blocked == [features.RIGHTS]
        kind = PermissionDeniedError if only_rights else MissingFeatureError
        ctx.exit(kind.exit_code)


def _kernel() -> list[Finding]:
    from bpfoom.btf.types import Btf
    from bpfoom.handler.shape import shape

    try:
        with Btf.from_file() as btf:
            types = Finding("kernel BTF", OK, f"{btf.count()} types")
            return [types, *features.kernel(btf), *shape(btf)]
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

    advice = "apt install python3-bpfcc; or compile elsewhere, and attach with --object"
    found = tools.find()
    # Looked for, not imported: that would load LLVM.
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('bcc') is None)"
    try:
        asked = subprocess.run([str(_SYSTEM_PYTHON), "-c", look], capture_output=True, text=True)
    except OSError as error:
        return Finding(
            "bcc", MISSING, f"{_SYSTEM_PYTHON}: {error.strerror}", advice, required=False
        )
    if asked.returncode or not found.bcc:
        return Finding("bcc", MISSING, f"not found by {_SYSTEM_PYTHON}", advice, required=False)
    seen = f"bcc {found.bcc}, LLVM {found.llvm or 'unknown'}"
    return Finding("bcc", OK, seen, required=False)


def _kvm(try_it: bool) -> Finding:
    """Whether guests are quick here. The trial boots the guest's kernel, if that is built."""
    from bpfoom.guest import accel, kernel
    from bpfoom.guest.flavour import PLAIN

    slow = "guests run under TCG, which is slow"
    if not accel.usable():
        advice = "load kvm_intel or kvm_amd, or let this machine's hypervisor nest"
        return Finding("KVM", WARN, f"no /dev/kvm to open: {slow}", advice, required=False)
    try:
        answer = accel.remembered()
        if answer is None and try_it:
            plan = kernel.known_plan(None, PLAIN)
            built = plan.find() if plan else None
            if built is None:
                advice = "bpfoom kernel build, then this again"
                return Finding("KVM", WARN, "no kernel to try it with", advice, required=False)
            answer = accel.choose(built.image)
    except PreflightError as error:
        return Finding("KVM", WARN, error.message, error.hint, required=False)
    if answer is None:
        advice = "`bpfoom doctor --kvm` tries it, in up to 20 s"
        return Finding(
            "KVM", WARN, "/dev/kvm is there, and was not tried yet", advice, required=False
        )
    if answer == "kvm":
        return Finding(
            "KVM", OK, "carries a guest: tried since this machine's start", required=False
        )
    seen = f"does not carry a guest, though /dev/kvm opens (tried): {slow}"
    return Finding("KVM", WARN, seen, "ask whoever runs this machine's hypervisor", required=False)
