# SPDX-License-Identifier: Apache-2.0
"""Which line each instruction is from, once more, as the guest's bcc 0.31 and LLVM 19 have it."""

from __future__ import annotations

import pytest

from tests.unit.test_compiler_lineinfo import *  # noqa: F403

# bcc alone, which does not call the kernel.
pytestmark = pytest.mark.flavours("plain")
