# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process have for OOM handlers: asked, never guessed from a version.

Gives facts with a verdict each; printing them, and deciding what to refuse, is for the callers.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

from bpfoom.btf.types import Btf
from bpfoom.errors import PermissionDeniedError
from bpfoom.handler import load, pins

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


def config(path: Path = Path("/proc/config.gz")) -> list[Finding]:
    """The options that matter, where the kernel shows its configuration."""
    try:
        lines = set(gzip.decompress(path.read_bytes()).decode().splitlines())
    except OSError:
        seen = f"{path} is not there: the kernel does not say"
        return [Finding("kernel config", WARN, seen, required=False)]
    absent = [name for name in CONFIG if f"CONFIG_{name}=y" not in lines]
    if absent:
        seen = "not set: " + ", ".join(f"CONFIG_{name}" for name in absent)
        return [Finding("kernel config", MISSING, seen, "build the kernel with them")]
    return [Finding("kernel config", OK, ", ".join(CONFIG))]


def bpffs() -> Finding:
    """Is there a bpffs to pin in?"""
    where = pins.find_bpffs()
    if where is None:
        return Finding("bpffs", MISSING, "not mounted", f"mount -t bpf bpf {pins.USUAL_BPFFS}")
    return Finding("bpffs", OK, str(where))


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
            found.append(Finding(f"vm.{name}", WARN, f"{error.strerror}", required=False))
            continue
        if value == "0":
            found.append(Finding(f"vm.{name}", OK, value, required=False))
        else:
            seen = f"{value}: {effect}"
            found.append(Finding(f"vm.{name}", WARN, seen, f"sysctl vm.{name}=0", required=False))
    return found


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
