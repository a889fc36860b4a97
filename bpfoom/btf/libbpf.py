# SPDX-License-Identifier: Apache-2.0
"""The few libbpf entry points that read type information, bound once through ctypes.

Only the shapes of the C functions live here; what the types mean is in :mod:`bpfoom.btf.types`.
"""

from __future__ import annotations

import ctypes
import functools

from bpfoom.errors import MissingFeatureError

SONAME = "libbpf.so.1"

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "btf__new": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_uint32]),
    "btf__free": (None, [ctypes.c_void_p]),
    "btf__type_cnt": (ctypes.c_uint32, [ctypes.c_void_p]),
    "btf__type_by_id": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_uint32]),
    "btf__name_by_offset": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_uint32]),
    "btf__find_by_name_kind": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32],
    ),
    "btf__resolve_size": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_uint32]),
    "btf__align_of": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32]),
}

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
# Kept alive for as long as libbpf may call it; our errors say what libbpf would have printed.
_silent = _PRINT(lambda _level, _format, _args: 0)


@functools.cache
def load() -> ctypes.CDLL:
    """libbpf with its signatures set. Raises MissingFeatureError when it is not installed."""
    try:
        library = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise MissingFeatureError(
            f"{SONAME} cannot be loaded: {error}",
            hint="install the distribution's libbpf1 (python3-bpfcc depends on it)",
        ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    library.libbpf_set_print(_silent)
    return library
