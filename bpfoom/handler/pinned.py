# SPDX-License-Identifier: Apache-2.0
"""What is pinned at a path, looked at before it is believed.

bpffs is everybody's who is root: in our places may be things that others have made. They are
recognised and named, and left to whoever put them there.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from bpfoom.errors import ForeignPinError, PermissionDeniedError, SyscallError
from bpfoom.handler import info, syscalls
from bpfoom.handler.info import LinkInfo
from bpfoom.handler.syscalls import Fd

LINK, MAP, PROGRAM = "link", "map", "program"
_ARTICLE = {LINK: "a link", MAP: "a map", PROGRAM: "a program"}


def open_object(path: Path, kind: str) -> Fd | None:
    """The object of that kind pinned at the path; None where nothing is.

    Raises ForeignPinError for anything else, and PermissionDeniedError.
    """
    try:
        if path.parent.is_symlink():
            raise foreign(path.parent, "a symbolic link")
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise foreign(path.parent, "no directory") from None
    except PermissionError as error:
        raise denied(path) from error
    if not stat.S_ISREG(mode):
        raise foreign(path, "a directory" if stat.S_ISDIR(mode) else "no BPF object")
    found = _get(path)
    if found is None:
        return None
    seen = info.kind(found)
    if seen != kind:
        found.close()
        raise foreign(
            path, _ARTICLE.get(seen, "an object of another kind"), f"not {_ARTICLE[kind]}"
        )
    return found


def open_map(path: Path, name: str) -> Fd | None:
    """The pinned map of that name. Raises as :func:`open_object` does."""
    found = open_object(path, MAP)
    if found is not None and (called := info.map_info(found).name) != name[:15]:
        found.close()
        raise foreign(path, f"a map called {called!r}", f"not {name}")
    return found


def open_link_of(path: Path, cgroup_id: int) -> tuple[Fd, LinkInfo] | None:
    """The pinned link, alive or dead, of a handler of that cgroup."""
    found = open_object(path, LINK)
    if found is None:
        return None
    about = info.link_info(found)
    if about.type != info.LINK_TYPE_STRUCT_OPS:
        found.close()
        raise foreign(path, "a link of another type", "not a handler's")
    if about.cgroup_id != cgroup_id:
        found.close()
        where = f"cgroup {about.cgroup_id}" if about.cgroup_id else "no cgroup"
        raise foreign(path, f"a struct_ops link on {where}", f"not on {cgroup_id}")
    return found, about


def foreign(path: Path, what: str, but: str = "") -> ForeignPinError:
    """The error for something of others' in a place of ours."""
    return ForeignPinError(
        f"{path} is not bpfoom's: it is {what}{f', {but}' if but else ''}",
        hint=f"nothing was changed; if nobody needs it, `rm -r {path}`, then try again",
        path=str(path),
    )


def denied(path: Path) -> PermissionDeniedError:
    """The error for who may not look."""
    return PermissionDeniedError(
        f"what is pinned under {path} is for root only", hint="run it as root", path=str(path)
    )


def _get(path: Path) -> Fd | None:
    """Whatever object is pinned there; None if it is gone meanwhile."""
    try:
        return syscalls.obj_get(str(path))
    except PermissionDeniedError as error:
        raise denied(path) from error
    except SyscallError as error:
        number = error.data["errno"]
        if number == errno.ENOENT:
            return None
        if number == errno.EACCES and os.geteuid() != 0:
            raise denied(path) from error
        if number in (errno.EACCES, errno.EINVAL):
            raise foreign(path, "no BPF object") from error
        raise
