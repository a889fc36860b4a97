# SPDX-License-Identifier: Apache-2.0
"""Attach a HandlerObject to a cgroup and detach it again: link, pin, and nothing in between.

The pin is the last step of attaching and the detach of the link the first of detaching, so a
command killed anywhere leaves the cgroup either with its handler or without.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import (
    BpfoomError,
    MissingFeatureError,
    NotThereError,
    PermissionDeniedError,
    SyscallError,
)
from bpfoom.handler import describe, info, links, samplers, syscalls
from bpfoom.handler.describe import Handler
from bpfoom.handler.load import Loaded, load
from bpfoom.handler.pins import Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.timings import stage

_ENOTSUPP = 524  # the kernel's own; a few paths let it out


def attach(
    obj: HandlerObject,
    cgroup: Path,
    btf: Btf,
    where: Pins,
    *,
    name: str,
    note: Mapping[str, object] = MappingProxyType({}),
    sweep: bool = True,
) -> Handler:
    """Attach the object to the cgroup at that directory, pinned; ``name`` is for people.

    ``note`` is added to the provenance; who attaches many sweeps the pins itself. Raises what
    :func:`bpfoom.handler.load.load` does, and for the link: NotThereError (cgroup gone),
    MissingFeatureError (no memory controller), BpfoomError (a handler is there).
    """
    with Fd(_open_directory(cgroup, name)) as target:
        cgroup_id = os.fstat(target.fileno()).st_ino
        if sweep:
            where.sweep()
        _require_room(cgroup_id, where)
        with load(obj, btf, where, note={"cgroup": name, **note}) as loaded, stage("link and pin"):
            try:
                link = link_to_cgroup(loaded, target, btf)
            except (SyscallError, PermissionDeniedError) as error:
                _explain(error, cgroup_id, name, where, btf)
            with link, samplers.started(loaded.sampler, cgroup, btf) as sampler:
                where.pin(cgroup_id, link, loaded.map_id, sampler)
    with stage("read back"):
        return describe.handler_of(cgroup_id, name, where, btf)


def detach(cgroup_id: int, where: Pins, *, sweep: bool = True) -> bool:
    """Detach and unpin a cgroup's handler; False if bpfoom has none there."""
    attached = False
    with where.writing():
        link = where.open_link(cgroup_id)
        if link is not None:
            with link:
                attached = info.link_info(link).map_id != 0
                if attached:
                    _detach_link(link)
            where.unpin(cgroup_id)
    if sweep:
        where.sweep()
    return attached


def require_free(cgroup_id: int, name: str, where: Pins, btf: Btf) -> None:
    """Raise BpfoomError if bpfoom has a handler on the cgroup: before anything slow is done.

    Others may come first all the same, and links that are not ours count: the kernel decides.
    """
    try:
        handler = describe.handler_of(cgroup_id, name, where, btf)
    except NotThereError:
        return
    raise _occupied(name, _told(handler), path=name, cgroup_id=cgroup_id, errno=errno.EEXIST)


def _require_room(cgroup_id: int, where: Pins) -> None:
    """Raise ForeignPinError if the link could not be pinned: before anything slow is done."""
    link = where.open_link(cgroup_id)
    if link is not None:
        link.close()


def _open_directory(cgroup: Path, name: str) -> int:
    try:
        return os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotThereError(
            f"the cgroup {name} cannot be opened: {error.strerror}",
            path=str(cgroup),
            errno=error.errno,
        ) from error


def link_to_cgroup(loaded: Loaded, target: Fd, btf: Btf) -> Fd:
    """The bare link, gone with its descriptor. Raises SyscallError, PermissionDeniedError."""
    attach_type = btf.enum_value("bpf_attach_type", "BPF_STRUCT_OPS")
    return syscalls.link_create(
        loaded.ops_map, target.fileno(), attach_type=attach_type, flags=syscalls.F_CGROUP_FD
    )


def _detach_link(link: Fd) -> None:
    """Detach; a link that the kernel has just detached itself (rmdir) is as good."""
    try:
        syscalls.link_detach(link)
    except SyscallError:
        if info.link_info(link).map_id != 0:
            raise


def _explain(error: BpfoomError, cgroup_id: int, name: str, where: Pins, btf: Btf) -> NoReturn:
    """Say what a refused link means for this cgroup."""
    number = int(error.data["errno"])
    facts = {"errno": number, "path": name, "cgroup_id": cgroup_id, "call": error.data["call"]}
    if number == errno.EEXIST:
        raise _occupied(name, _occupant(cgroup_id, name, where, btf), **facts) from error
    kind, message, hint = _MEANINGS.get(
        number, (BpfoomError, "the kernel refused the link: {reason}", "`bpfoom doctor`")
    )
    text = message.format(name=name, reason=os.strerror(number))
    raise kind(text, hint=hint.format(name=name), **facts) from error


_MEANINGS: dict[int, tuple[type[BpfoomError], str, str]] = {
    errno.ENOENT: (
        NotThereError,
        "the cgroup {name} has been removed",
        "make it again, then attach",
    ),
    errno.EBUSY: (
        BpfoomError,
        "the cgroup {name} is being removed",
        "wait until it is gone, make it again, then attach",
    ),
    errno.EBADF: (
        NotThereError,
        "{name} is not a cgroup2 directory for the kernel",
        "name a cgroup of the unified hierarchy",
    ),
    errno.EPERM: (
        PermissionDeniedError,
        "attaching to {name} needs CAP_BPF in the initial user namespace",
        "run it as root, outside of a container",
    ),
    errno.EINVAL: (
        MissingFeatureError,
        "this kernel cannot attach a handler to a cgroup: it does not know the link's flags",
        "`bpfoom kernel status` says which series the kernel was built from",
    ),
    **dict.fromkeys(
        (errno.EOPNOTSUPP, _ENOTSUPP),
        (
            MissingFeatureError,
            "the cgroup {name} has no memory controller of its own",
            "enable it in the parent: echo +memory > .../cgroup.subtree_control (a threaded "
            "cgroup cannot have it)",
        ),
    ),
}


def _occupied(name: str, occupant: str, **facts: Any) -> BpfoomError:
    return BpfoomError(
        f"{name} already has a handler: {occupant}",
        hint=f"`bpfoom detach --cgroup {name}` first, or attach with --replace",
        **facts,
    )


def _occupant(cgroup_id: int, name: str, where: Pins, btf: Btf) -> str:
    """Who holds the cgroup, as far as can be told."""
    try:
        return _told(describe.handler_of(cgroup_id, name, where, btf))
    except BpfoomError:
        numbers = ", ".join(str(number) for number in links.of(cgroup_id))
        return f"link {numbers or 'unknown'}, not pinned by bpfoom"


def _told(handler: Handler) -> str:
    return f"policy {handler.policy or handler.name}, link {handler.link_id}"
