# SPDX-License-Identifier: Apache-2.0
"""The traps of bcc once more, compiled by the guest's bcc 0.31 and LLVM 19."""

from __future__ import annotations

import pytest

from tests.unit.test_lint import *  # noqa: F403

# bcc alone, which does not call the kernel.
pytestmark = pytest.mark.flavours("plain")
