# SPDX-License-Identifier: Apache-2.0
"""Commands that go on until they are interrupted, and then finish what they are at."""

from __future__ import annotations

import os
import signal
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """``with Interrupt() as interrupt:`` SIGINT and SIGTERM only set ``interrupt.seen``.

    Its descriptor can be read from then on: wait for it together with whatever else may come.
    """

    def __enter__(self) -> Self:
        self.seen = False
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._event)

    def fileno(self) -> int:
        """To wait for."""
        return self._event

    def _catch(self, _number: int, _frame: object) -> None:
        self.seen = True
        os.eventfd_write(self._event, 1)
