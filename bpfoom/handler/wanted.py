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
    from bpfoom.policy.compose import Plan


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
        from bpfoom.policy.find import is_path

        if policy is not None and is_path(policy):
            # It is looked up again at an update, which may be run from anywhere.
            policy = os.path.abspath(policy)
        return cls(policy, file, settings, dry_run)

    def check(self) -> None:
        """Complain about the policy and its parameters before anything else is looked at."""
        if self.policy is not None:
            self._plan(self.policy)
        else:
            self.compile()

    def compile(self) -> HandlerObject:
        """What is to be loaded. Raises what compiling and reading do, and UsageError."""
        with stage(IMPORTS):
            from bpfoom.handler.params import set_live

        if self.policy is None:
            return set_live(self._read(), self.settings)
        # Live parameters are set afterwards: whatever they are, the text is rendered once.
        live = {spec.name for spec in self._plan(self.policy).specs if spec.live}
        with stage(IMPORTS):
            from bpfoom.compiler.build import compile_policy

        fixed = {name: text for name, text in self.settings.items() if name not in live}
        obj = compile_policy(self.policy, fixed, dry_run=bool(self.dry_run))
        return set_live(obj, {name: self.settings[name] for name in self.settings.keys() - fixed})

    def _plan(self, policy: str) -> Plan:
        with stage(IMPORTS):
            from bpfoom.policy.compose import plan

        with stage("find policy"):
            return plan(policy, self.settings)

    def _read(self) -> HandlerObject:
        with stage(IMPORTS):
            from bpfoom.compiler.object import read_file

        assert self.file is not None
        with stage("read object"):
            obj = read_file(self.file)
        if self.dry_run not in (None, obj.provenance.dry_run):
            raise UsageError(
                f"{self.file} was compiled {'to act' if self.dry_run else 'for a dry run'}",
                hint=f"compile it {'with' if self.dry_run else 'without'} --dry-run",
                path=str(self.file),
            )
        return obj

    def note(self) -> dict[str, object]:
        """What the provenance says of it beyond the object's own."""
        return {"object": str(self.file.absolute())} if self.file else {}
