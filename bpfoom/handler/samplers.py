# SPDX-License-Identifier: Apache-2.0
"""Samplers: programs of a policy that run beside its handler and measure cgroups over time.

What a sampler must be told by us is which cgroups there were before it: ids ascend, so the highest
of them says that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfoom.btf.types import Btf
from bpfoom.errors import MissingFeatureError, NotThereError
from bpfoom.handler import info, maps, syscalls
from bpfoom.handler.syscalls import Fd

NEWEST_MAP = "bpfoom_newest"
_PRESSURE = Path("/proc/pressure/memory")


@contextmanager
def started(program: Fd | None, cgroup: Path, btf: Btf) -> Iterator[Fd | None]:
    """The link of a policy's sampler, for the length of the block unless it is pinned; None if the
    policy has none.

    ``program`` is the sampler, ``cgroup`` what the handler is attached to. Raises
    MissingFeatureError where the kernel does not watch pressure: nothing would ever be sampled.
    """
    if program is None:
        yield None
        return
    require_pressure("this policy measures cgroups when their pressure is looked at")
    newest = maps.find(info.prog_info(program).map_ids, NEWEST_MAP)
    if newest is not None:
        with newest:
            syscalls.map_update(newest, bytes(4), _newest_below(cgroup).to_bytes(8, "little"))
    attach_type = btf.enum_value("bpf_attach_type", "BPF_TRACE_RAW_TP")
    with syscalls.link_create(program, 0, attach_type=attach_type, flags=0) as link:
        yield link


def require_pressure(why: str) -> None:
    """Raise MissingFeatureError, which says why, where the kernel does not watch pressure."""
    if not _PRESSURE.exists():
        raise MissingFeatureError(
            f"{why}, and PSI is off", hint="boot with psi=1", path=str(_PRESSURE)
        )


def _newest_below(cgroup: Path) -> int:
    """The highest id of the cgroup and all below it. Raises NotThereError."""
    try:
        found = [os.stat(cgroup).st_ino]
    except OSError as error:
        raise NotThereError(f"there is no cgroup {cgroup} any more", path=str(cgroup)) from error
    for top, directories, _ in os.walk(cgroup):
        for name in directories:
            try:
                found.append(os.stat(os.path.join(top, name)).st_ino)
            except OSError:  # removed meanwhile, or deeper than PATH_MAX
                continue
    return max(found)
