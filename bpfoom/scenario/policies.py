# SPDX-License-Identifier: Apache-2.0
"""The policies that scenarios attach, compiled once each, while others are already being played."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Self

from bpfoom.compiler.build import compile_policy
from bpfoom.compiler.object import HandlerObject
from bpfoom.scenario.model import Attachment, Scenario


class Policies:
    """``with Policies() as policies:`` what was asked for is compiled in the background.

    Each compiler is a process of its own; there are as many at a time as there are CPUs.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._found: dict[str, Future[HandlerObject]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def want(self, scenarios: Iterable[Scenario]) -> None:
        """Begin to compile what these scenarios attach."""
        for scenario in scenarios:
            for attachment in scenario.attachments:
                self._begin(attachment)

    def of(self, scenario: Scenario) -> list[tuple[Attachment, HandlerObject]]:
        """What a scenario attaches. Raises what :func:`compile_policy` does."""
        return [(it, self._begin(it).result()) for it in scenario.attachments]

    def rest(self) -> None:
        """Wait until no compiler runs: an OOM of the whole machine could choose it."""
        wait(self._found.values())

    def _begin(self, attachment: Attachment) -> Future[HandlerObject]:
        settings = sorted(attachment.settings.items())
        key = repr((attachment.policy, settings, attachment.dry_run))
        if key not in self._found:
            self._found[key] = self._pool.submit(
                compile_policy, attachment.policy, attachment.settings, dry_run=attachment.dry_run
            )
        return self._found[key]
