# SPDX-License-Identifier: Apache-2.0
"""The struct_ops links of the machine, whoever made them and wherever they are pinned."""

from __future__ import annotations

from collections.abc import Iterator

from bpfoom.errors import SyscallError
from bpfoom.handler import info, syscalls


def of(cgroup_id: int) -> Iterator[int]:
    """Ids of the struct_ops links on a cgroup, whoever made them."""
    return (link.id for link in _links() if link.cgroup_id == cgroup_id)


def attached() -> dict[int, int]:
    """The link of every cgroup that has a handler, whoever made it: ids by cgroup id."""
    return {link.cgroup_id: link.id for link in _links() if link.map_id and link.cgroup_id}


def _links() -> Iterator[info.LinkInfo]:
    """Every struct_ops link of the machine."""
    for number in syscalls.link_ids():
        try:
            with syscalls.link_by_id(number) as link:
                found = info.link_info(link)
        except SyscallError:  # gone between the two calls
            continue
        if found.type == info.LINK_TYPE_STRUCT_OPS:
            yield found
