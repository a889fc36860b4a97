# SPDX-License-Identifier: Apache-2.0
"""Magic constants: how rendered C names what only the kernel can resolve.

A kfunc is called through a constant address; a map, a constant string, or the address of a function
that the kernel is to call, is a 64-bit constant. Rendering hands them out in order;
:mod:`bpfoom.compiler.decode` finds them in the instructions.
"""

from __future__ import annotations

KFUNC_BASE = 0x7F000001
KFUNC_LIMIT = 0x7F00FFFF
MAP_HIGH = 0x7F0A00F0
STRING_HIGH = 0x7F0B00F0
CALLBACK_HIGH = 0x7F0C00F0
HIGHS = (MAP_HIGH, STRING_HIGH, CALLBACK_HIGH)


def kfunc(index: int) -> int:
    """The address that stands for the n-th kfunc, from 0; it becomes a call's immediate."""
    return KFUNC_BASE + index


def map_pointer(index: int) -> int:
    """The constant that stands for the n-th map, from 0."""
    return MAP_HIGH << 32 | index


def string_pointer(offset: int) -> int:
    """The constant that stands for the string at that byte of the strings map."""
    return STRING_HIGH << 32 | offset


def callback_pointer(index: int) -> int:
    """The constant that stands for the address of the n-th callback, from 0."""
    return CALLBACK_HIGH << 32 | index
