# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process have for OOM handlers: asked, never guessed from a version.

Gives facts with a verdict each; printing them, and deciding what to refuse, is for the callers.
"""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bpfoom.btf.types import Btf
from bpfoom.errors import PermissionDeniedError
from bpfoom.handler import foreign, load, pins

OK, WARN, MISSING = "ok", "warn", "missing"
RIGHTS = "capabilities"

GUEST = "try it in the guest: `bpfoom vm shell`, or `./run demo`"

# name -> (needed to attach at all, what it is for)
KFUNCS = {
    "bpf_oom_kill_process": (True, "kill one process"),
    "bpf_oom_kill_cgroup": (False, "kill a whole cgroup"),
    "bpf_task_is_oom_victim": (False, "see that a victim is on its way out"),
    "bpf_oom_victims": (False, "count the victims on their way out"),
    "bpf_oom_promise": (False, "wait for memory that is about to be freed"),
    "bpf_oom_raise_max": (False, "raise memory.max instead of killing"),
    "bpf_out_of_memory": (False, "declare an OOM from a program"),
    "bpf_oom_dry_run": (False, "ask the handlers without an OOM"),
}
CONFIG = ("BPF_SYSCALL", "BPF_JIT", "DEBUG_INFO_BTF", "CGROUPS", "MEMCG")
# option -> what is to be done without where it is not set
OPTIONS = {
    "PSI": "triggers, and policies that measure growth",
    "PROC_EVENTS": "who really died, in results",
    "TASKSTATS": "what the dead had used, in results",
}

_SYSRQ_SIGNALS = 64
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


@dataclass(frozen=True)
class Finding:
    """One fact: what was looked at, the verdict (ok, warn, missing), what was seen, what to do.

    ``required`` findings that are missing mean that attaching cannot work.
    """

    name: str
    status: str
    seen: str
    advice: str = ""
    required: bool = True

    @property
    def blocks(self) -> bool:
        return self.required and self.status == MISSING


def kernel(btf: Btf) -> list[Finding]:
    """The running kernel's OOM handler support, from its BTF."""
    has_ops = btf.has_struct(load.OPS_VALUE)
    found = [
        Finding(f"struct {load.OPS}", OK, _members(btf))
        if has_ops
        else Finding(f"struct {load.OPS}", MISSING, "not in this kernel's BTF", GUEST)
    ]
    for name, (required, purpose) in KFUNCS.items():
        if btf.has_function(name):
            found.append(Finding(f"kfunc {name}", OK, purpose, required=required))
        else:
            status = MISSING if required else WARN
            advice = GUEST if required else "policies that need it will say so"
            seen = f"absent: cannot {purpose}"
            found.append(Finding(f"kfunc {name}", status, seen, advice, required))
    return found


def support(btf: Btf) -> tuple[bool, str]:
    """Whether handlers can be attached to this kernel, and that in one line."""
    release = os.uname().release
    if not btf.has_struct(load.OPS_VALUE):
        return False, f"kernel {release}: no OOM handlers (struct {load.OPS} is not in its BTF)"
    present = sum(btf.has_function(name) for name in KFUNCS)
    return True, f"kernel {release}: OOM handlers, {present} of {len(KFUNCS)} kfuncs"


def config(places: Iterable[Path] | None = None) -> list[Finding]:
    """The options that matter, where the kernel or its package shows its configuration."""
    usual = (Path("/proc/config.gz"), Path("/boot", f"config-{os.uname().release}"))
    text = _first_text(usual if places is None else places)
    if text is None:
        advice = "CONFIG_IKCONFIG_PROC shows it; the other lines tell what works"
        seen = "not shown by this kernel"
        return [Finding("kernel config", WARN, seen, advice, required=False)]
    lines = set(text.splitlines())
    absent = [f"CONFIG_{name}" for name in CONFIG if f"CONFIG_{name}=y" not in lines]
    found = [
        Finding(
            "kernel config", MISSING, f"not set: {', '.join(absent)}", "build the kernel with them"
        )
        if absent
        else Finding("kernel config", OK, ", ".join(CONFIG))
    ]
    for name, purpose in OPTIONS.items():
        label = f"CONFIG_{name}"
        if f"{label}=y" in lines:
            found.append(Finding(label, OK, purpose, required=False))
        else:
            advice = "build the kernel with it, or do without"
            found.append(Finding(label, WARN, f"not set: no {purpose}", advice, required=False))
    return found


def _first_text(places: Iterable[Path]) -> str | None:
    for path in places:
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return None


def jit(path: Path = Path("/proc/sys/net/core/bpf_jit_enable")) -> Finding:
    """Is BPF compiled? Handlers that are interpreted are refused."""
    try:
        value = path.read_text().strip()
    except OSError:  # without networking there is no such file
        return Finding("BPF JIT", OK, "always on", required=False)
    if value == "0":
        return Finding("BPF JIT", MISSING, "off", "sysctl net.core.bpf_jit_enable=1")
    return Finding("BPF JIT", OK, f"net.core.bpf_jit_enable = {value}")


def pressure(path: Path = Path("/proc/pressure/memory")) -> Finding:
    """Does the kernel watch memory pressure?"""
    if path.exists():
        return Finding("pressure (PSI)", OK, str(path), required=False)
    seen = f"off: no {OPTIONS['PSI']}"
    return Finding("pressure (PSI)", WARN, seen, "boot with psi=1", required=False)


def bpffs() -> Finding:
    """Is there a bpffs to pin in?"""
    where = pins.find_bpffs()
    if where is None:
        return Finding("bpffs", MISSING, "not mounted", f"mount -t bpf bpf {pins.USUAL_BPFFS}")
    return Finding("bpffs", OK, str(where))


def pinned() -> Finding:
    """Is what is pinned only root's?"""
    where = pins.find()
    try:
        about = os.stat(where.base) if where else None
    except FileNotFoundError:
        about = None
    except PermissionError:
        return Finding("pins", OK, "not shown to you", required=False)
    if where is None or about is None:
        return Finding("pins", OK, "none yet", required=False)
    mode = stat.S_IMODE(about.st_mode)
    seen = f"{where.base}, mode {mode:04o}, of uid {about.st_uid}"
    if about.st_uid or mode & 0o077:
        return Finding("pins", MISSING, seen, f"somebody else made it: rm -r {where.base}")
    try:
        strange = foreign.everywhere(where)
    except PermissionDeniedError:
        return Finding("pins", OK, "not shown to you", required=False)
    if strange:
        others = f", and {len(strange) - 1} more" if len(strange) > 1 else ""
        return Finding(
            "pins", WARN, f"{strange[0].message}{others}", strange[0].hint, required=False
        )
    return Finding("pins", OK, seen, required=False)


def sysctls(base: Path = Path("/proc/sys/vm")) -> list[Finding]:
    """Settings that the kernel obeys before it asks any handler."""
    effects = {
        "panic_on_oom": "the machine panics before a handler is asked",
        "oom_kill_allocating_task": "a system-wide OOM kills the allocating task, unasked",
    }
    found = []
    for name, effect in effects.items():
        try:
            value = (base / name).read_text().strip()
        except OSError as error:
            seen = f"{base / name}: {error.strerror}"
            found.append(Finding(f"vm.{name}", WARN, seen, "mount /proc", required=False))
            continue
        if value == "0":
            found.append(Finding(f"vm.{name}", OK, value, required=False))
        else:
            seen = f"{value}: {effect}"
            found.append(Finding(f"vm.{name}", WARN, seen, f"sysctl vm.{name}=0", required=False))
    return found


def sysrq(path: Path = Path("/proc/sys/kernel/sysrq")) -> Finding:
    """Can somebody at the keyboard kill, unasked? Root always can, through /proc/sysrq-trigger."""
    try:
        value = int(path.read_text())
    except OSError:
        return Finding("kernel.sysrq", OK, "not built in", required=False)
    works = value == 1 or bool(value & _SYSRQ_SIGNALS)
    effect = "kills without asking any handler" if works else "does nothing"
    return Finding("kernel.sysrq", OK, f"{value}: sysrq-f at the keyboard {effect}", required=False)


def rights() -> Finding:
    """May this process load programs and pin them?"""
    effective = _effective_capabilities()
    names = {_CAP_SYS_ADMIN: "CAP_SYS_ADMIN", _CAP_PERFMON: "CAP_PERFMON", _CAP_BPF: "CAP_BPF"}
    held = [name for bit, name in names.items() if effective >> bit & 1]
    enough = len(held) == len(names)
    seen = f"uid {os.geteuid()}, {', '.join(held) or 'none of ' + ', '.join(names.values())}"
    return Finding(RIGHTS, OK if enough else MISSING, seen, "" if enough else "run as root")


def require_rights() -> None:
    """Raise PermissionDeniedError unless this process may attach."""
    found = rights()
    if found.blocks:
        raise PermissionDeniedError(
            f"attaching needs root ({found.seen})", hint="run it as root", uid=os.geteuid()
        )


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _members(btf: Btf) -> str:
    record = btf.type(btf.struct_id(load.OPS))
    return ", ".join(member.name for member in btf.members(record))
