# SPDX-License-Identifier: Apache-2.0
"""Is an object still true of this kernel? Everything it was compiled with, against live BTF.

A wrong offset can pass the verifier, so nothing is loaded before this has found no difference.
"""

from __future__ import annotations

from typing import NoReturn

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import EnumValue, HandlerObject, Kfunc, MemberAccess
from bpfoom.errors import MissingFeatureError, StaleObjectError


def check(obj: HandlerObject, btf: Btf) -> None:
    """Raise StaleObjectError for the first difference, MissingFeatureError for an absent kfunc."""
    for access in obj.accesses:
        _check_member(access, btf)
    for value in obj.enums:
        _check_enum(value, btf)
    for kfunc in obj.kfuncs:
        _check_kfunc(kfunc, btf)


def _check_member(access: MemberAccess, btf: Btf) -> None:
    what = f"struct {access.struct}, member {access.member}"
    compiled = f"at bit {access.offset}, {access.size} bits, {access.type}"
    try:
        place = btf.place(access.struct, access.member)
    except MissingFeatureError:
        _stale(what, compiled, "absent", struct=access.struct, member=access.member)
    if (place.offset, place.size, place.type) != (access.offset, access.size, access.type):
        running = f"at bit {place.offset}, {place.size} bits, {place.type}"
        _stale(what, compiled, running, struct=access.struct, member=access.member)


def _check_enum(value: EnumValue, btf: Btf) -> None:
    what = f"enum {value.enum}, value {value.name}"
    try:
        running = btf.enum_value(value.enum, value.name)
    except MissingFeatureError:
        _stale(what, str(value.value), "absent", enum=value.enum, member=value.name)
    if running != value.value:
        _stale(what, str(value.value), str(running), enum=value.enum, member=value.name)


def _check_kfunc(kfunc: Kfunc, btf: Btf) -> None:
    running = btf.prototype(kfunc.name)
    if running != kfunc.prototype:
        _stale(f"kfunc {kfunc.name}", kfunc.prototype, running, function=kfunc.name)


def _stale(what: str, compiled: str, running: str, **facts: str) -> NoReturn:
    raise StaleObjectError(
        f"compiled for another kernel: {what}: {compiled} in the object, {running} here",
        hint="compile the policy again on this kernel, or for it with --btf",
        compiled=compiled,
        running=running,
        **facts,
    )
