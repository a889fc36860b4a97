# SPDX-License-Identifier: Apache-2.0
"""Which files root may take programs from: those that nobody else can have written."""

from __future__ import annotations

import os


def may_be_loaded(status: os.stat_result) -> bool:
    """True unless this is root and somebody else owns the (open) file, or may write to it.

    To be asked of an open descriptor, so that what was looked at is what is read. The group's bits
    cover access control lists, too: they show their mask.
    """
    return os.geteuid() != 0 or (status.st_uid == 0 and not status.st_mode & 0o022)
