# SPDX-License-Identifier: Apache-2.0
"""What the user wants to have attached: a policy to compile, or an object that was compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bpfoom.errors import UsageError
from bpfoom.timings import IMPORTS, stage

if TYPE_CHECKING:
    from bpfoom.compiler.object import HandlerObject


@dataclass(frozen=True)
class Wanted:
    """A policy or an object, how it is to be set, and whether it is only to record.

    ``dry_run`` is compiled in: None leaves that to the object, and is no for a policy.
    """

    policy: str | None
    file: Path | None
    settings: Mapping[str, str]
    dry_run: bool | None

    @classmethod
    def of(
        cls,
        policy: str | None,
        file: Path | None,
        settings: Mapping[str, str],
        dry_run: bool | None,
    ) -> Wanted:
        """One of the two, from the command line. Raises UsageError."""
        if (policy is None) == (file is None):
            raise UsageError("name a policy with --policy, or an object with --object")
        if policy is not None and is_path(policy):
            # It is looked up again at an update, which may be run from anywhere.
            policy = os.path.abspath(policy)
        return cls(policy, file, settings, dry_run)

    def check(self) -> None:
        """Complain about the policy and its parameters before anything else is looked at."""
        if self.policy is None:
            self.compile()
            return
        with stage(IMPORTS):
            from bpfoom.policy.compose import plan

        with stage("find policy"):
            plan(self.policy, self.settings)

    def compile(self) -> HandlerObject:
        """What is to be loaded. Raises what compiling and reading do, and UsageError."""
        if self.policy is not None:
            with stage(IMPORTS):
                from bpfoom.compiler.build import compile_policy

            return compile_policy(self.policy, self.settings, dry_run=bool(self.dry_run))
        with stage(IMPORTS):
            from bpfoom.compiler.object import read_file
            from bpfoom.handler.params import set_live

        assert self.file is not None
        with stage("read object"):
            obj = read_file(self.file)
        if self.dry_run not in (None, obj.provenance.dry_run):
            raise UsageError(
                f"{self.file} was compiled {'to act' if self.dry_run else 'for a dry run'}",
                hint=f"compile it {'with' if self.dry_run else 'without'} --dry-run",
                path=str(self.file),
            )
        return set_live(obj, self.settings)

    def note(self) -> dict[str, object]:
        """What the provenance says of it beyond the object's own."""
        return {"object": str(self.file.absolute())} if self.file else {}


def is_path(policy: str) -> bool:
    """Whether a policy is named by its file, as :func:`bpfoom.policy.find.find_policy` has it."""
    from bpfoom.policy.find import SUFFIX

    return "/" in policy or policy.endswith(SUFFIX)
