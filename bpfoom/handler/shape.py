# SPDX-License-Identifier: Apache-2.0
"""Whether this kernel's types are what policies are written for: members with sizes, enums, kfuncs.

Looked up as rendering a policy does it, so what is fine here renders.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError, MissingFeatureError
from bpfoom.handler.features import GUEST, KFUNCS, MISSING, OK, WARN, Finding
from bpfoom.handler.load import OPS
from bpfoom.policy import needs
from bpfoom.policy.functions import Functions
from bpfoom.policy.needs import ENUM, KFUNC, STRUCT, Need, Needs


def shape(btf: Btf) -> list[Finding]:
    """A finding for each struct and enum that policies look into, and one for their kfuncs."""
    asked = needs.shipped()
    lacking = _lacking(btf, asked)
    groups: dict[tuple[str, str], list[Need]] = {}
    for need in asked.of:
        if need.kind != KFUNC and need.name != OPS:
            groups.setdefault((need.kind, need.name), []).append(need)
    found = [_type(btf, group, asked, lacking) for group in groups.values()]
    kfuncs = [need for need in asked.of if need.kind == KFUNC and need.name not in KFUNCS]
    seen = f"all {len(kfuncs)} that policies call"
    return [*found, _finding("other kfuncs", seen, kfuncs, asked, lacking)]


def _lacking(btf: Btf, asked: Needs) -> dict[Need, str]:
    """The needs that are not met: what is not there by its name, else what is wrong with it."""
    functions = Functions(btf, ())
    calls = {STRUCT: functions.struct, ENUM: functions.constants}
    lacking = {}
    for need in asked.of:
        try:
            if need.kind == KFUNC:
                functions.kfunc(need.name)
            else:
                calls[need.kind](need.name, need.member)
        except MissingFeatureError:
            lacking[need] = f"no {need.member or need.name}"
        except BpfoomError as error:
            lacking[need] = error.message
    return lacking


def _type(btf: Btf, group: list[Need], asked: Needs, lacking: dict[Need, str]) -> Finding:
    kind, name = group[0].kind, group[0].name
    there = [need for need in group if need not in lacking]
    if kind == STRUCT:
        sizes = (f"{need.member} {btf.place(name, need.member).size // 8}" for need in there)
        return _finding(f"struct {name}", f"bytes: {', '.join(sizes)}", group, asked, lacking)
    values = (f"{need.member} {btf.enum_value(name, need.member)}" for need in there)
    return _finding(f"enum {name}", ", ".join(values), group, asked, lacking)


def _finding(
    name: str, seen: str, group: Iterable[Need], asked: Needs, lacking: dict[Need, str]
) -> Finding:
    missing = [need for need in group if need in lacking]
    if not missing:
        return Finding(name, OK, seen, required=False)
    required = any(asked.everybody(need) for need in missing)
    policies = sorted({policy for need in missing for policy in asked.of[need]})
    return Finding(
        name,
        MISSING if required else WARN,
        ", ".join(dict.fromkeys(lacking[need] for need in missing)),
        GUEST if required else f"do without {', '.join(policies)}; or {GUEST}",
        required,
    )
