# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through libbpf: the calls that bpfoom makes, as typed functions on owned descriptors.

Every object comes back as an :class:`Fd`, every failure as an exception that carries the call and
its errno. What the objects mean, and what to tell the user, is left to the callers.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Self

from bpfoom.btf import libbpf, program
from bpfoom.btf.program import FUNC_INFO, LINE_INFO, ProgramInfo
from bpfoom.errors import BpfoomError, PermissionDeniedError, SyscallError

# UAPI numbers that are not looked up in BTF: frozen parts of the bpf(2) interface.
MAP_TYPES = {
    "hash": 1,
    "array": 2,
    "percpu_array": 6,
    "lru_hash": 9,
    "struct_ops": 26,
    "ringbuf": 27,
}
PROG_TYPES = {"tracepoint": 5, "tracing": 26, "struct_ops": 27, "syscall": 31}
F_RDONLY_PROG = 1 << 7
F_LINK = 1 << 13
F_SLEEPABLE = 1 << 4
F_CGROUP_FD = 1 << 7

_LOG_INSNS, _LOG_STATS = 1, 4
# The kernel keeps the end of a log that does not fit, which says why.
_LOG_BYTES = 1 << 20


class Fd:
    """An owned file descriptor: closed by ``close()`` or at the end of its ``with`` block."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The number. Raises ValueError once closed."""
        if self._number < 0:
            raise ValueError("the descriptor is closed")
        return self._number

    def close(self) -> None:
        """Give it back; a second call does nothing."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProgFd(Fd):
    """A program, and what the verifier said about its work if that was asked for."""

    def __init__(self, number: int, log: str = "") -> None:
        super().__init__(number)
        self.log = log


class _MapCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


class _ProgLoadOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    ]


class _TestRunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
    ]


def fail(call: str, number: int, **facts: Any) -> NoReturn:
    """Raise what a failed call means in general: EPERM is a missing right, the rest a failure."""
    kind: type[BpfoomError] = PermissionDeniedError if number == errno.EPERM else SyscallError
    hint = "run it as root" if number == errno.EPERM and os.geteuid() != 0 else ""
    raise kind(
        f"{call}: {os.strerror(number)} ({errno.errorcode.get(number, number)})",
        hint=hint,
        call=call,
        errno=number,
        **facts,
    )


def _check(call: str, result: int, **facts: Any) -> int:
    """Pass a good result on; libbpf 1.x answers -errno."""
    if result < 0:
        fail(call, -result, **facts)
    return int(result)


def btf_load(raw: bytes) -> Fd:
    """A BTF object of our own."""
    return Fd(_check("BPF_BTF_LOAD", libbpf.load().bpf_btf_load(raw, len(raw), None)))


def btf_load_tiny() -> Fd:
    """A BTF object with nothing but ``int`` in it."""
    return btf_load(program.tiny())


def map_create(
    kind: str,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    btf_fd: int = 0,
    vmlinux_value_type_id: int = 0,
    key_value_types: tuple[int, int] = (0, 0),
) -> Fd:
    """Make a map; ``kind`` is one of :data:`MAP_TYPES`, the name is cut to 15 characters.

    ``key_value_types`` are ids in the BTF, for values that the kernel knows the members of.
    """
    opts = _MapCreateOpts(
        sz=ctypes.sizeof(_MapCreateOpts),
        btf_fd=btf_fd,
        btf_key_type_id=key_value_types[0],
        btf_value_type_id=key_value_types[1],
        btf_vmlinux_value_type_id=vmlinux_value_type_id,
        map_flags=flags,
    )
    result = libbpf.load().bpf_map_create(
        MAP_TYPES[kind], name.encode()[:15], key_size, value_size, max_entries, ctypes.byref(opts)
    )
    return Fd(_check("BPF_MAP_CREATE", result, object=name))


def map_update(map_fd: Fd, key: bytes, value: bytes) -> None:
    """Set one element; both must have the map's sizes."""
    result = libbpf.load().bpf_map_update_elem(map_fd.fileno(), key, value, ctypes.c_uint64(0))
    _check("BPF_MAP_UPDATE_ELEM", result)


def map_lookup(map_fd: Fd, key: bytes, value_size: int) -> bytes:
    """One element's value. ``value_size`` must be the map's."""
    value = ctypes.create_string_buffer(value_size)
    _check("BPF_MAP_LOOKUP_ELEM", libbpf.load().bpf_map_lookup_elem(map_fd.fileno(), key, value))
    return value.raw


def map_delete(map_fd: Fd, key: bytes) -> None:
    """Remove one element."""
    _check("BPF_MAP_DELETE_ELEM", libbpf.load().bpf_map_delete_elem(map_fd.fileno(), key))


def map_keys(map_fd: Fd, key_size: int) -> Iterator[bytes]:
    """The keys of a hash map. One that is removed meanwhile may make others come twice."""
    key = None
    following = ctypes.create_string_buffer(key_size)
    while True:
        result = libbpf.load().bpf_map_get_next_key(map_fd.fileno(), key, following)
        if result == -errno.ENOENT:
            return
        _check("BPF_MAP_GET_NEXT_KEY", result)
        key = following.raw
        yield key


def map_freeze(map_fd: Fd) -> None:
    """Make the map read-only for user space, for good."""
    _check("BPF_MAP_FREEZE", libbpf.load().bpf_map_freeze(map_fd.fileno()))


def prog_load(
    name: str,
    insns: bytes,
    *,
    kind: str = "struct_ops",
    attach_btf_id: int = 0,
    attach_type: int = 0,
    sleepable: bool = True,
    described: ProgramInfo | None = None,
    statistics: bool = False,
) -> ProgFd:
    """Load a program; ``kind`` is one of :data:`PROG_TYPES`.

    ``attach_type`` is for struct_ops the index of the member; ``described`` is what the program
    says of itself. With ``statistics`` the result's log is what the verifier says of its work. If
    the program is refused, the error's detail is the verifier's log, or the end of a long one.
    """
    opts = _ProgLoadOpts(
        sz=ctypes.sizeof(_ProgLoadOpts),
        expected_attach_type=attach_type,
        prog_flags=F_SLEEPABLE if sleepable else 0,
        attach_btf_id=attach_btf_id,
    )
    with _described(opts, described):
        return _prog_load_or_tell(kind, name, insns, opts, statistics)


@contextmanager
def _described(opts: _ProgLoadOpts, described: ProgramInfo | None) -> Iterator[None]:
    """Let the options refer to what a program says of itself, for the length of the block."""
    if described is None:
        yield
        return
    func_info = ctypes.create_string_buffer(described.func_info, len(described.func_info))
    line_info = ctypes.create_string_buffer(described.line_info, len(described.line_info))
    with btf_load(described.btf) as btf:
        opts.prog_btf_fd = btf.fileno()
        opts.func_info, opts.func_info_rec_size = ctypes.addressof(func_info), FUNC_INFO.size
        opts.func_info_cnt = len(described.func_info) // FUNC_INFO.size
        opts.line_info, opts.line_info_rec_size = ctypes.addressof(line_info), LINE_INFO.size
        opts.line_info_cnt = len(described.line_info) // LINE_INFO.size
        yield


def _prog_load_or_tell(
    kind: str, name: str, insns: bytes, opts: _ProgLoadOpts, statistics: bool
) -> ProgFd:
    # Writing the log can take longer than verifying: it is asked for only after a refusal, and not
    # instruction by instruction where the verifier gave up after a million of them.
    level = _LOG_STATS if statistics else 0
    result, log = _prog_load(kind, name, insns, opts, level)
    wanted = _LOG_STATS if result == -errno.E2BIG else _LOG_INSNS
    if result < 0 and result != -errno.EPERM and wanted != level:
        again, log = _prog_load(kind, name, insns, opts, wanted)
        result = again if again >= 0 else result  # a full log has an errno of its own
    if result >= 0:
        return ProgFd(result, log)
    try:
        fail("BPF_PROG_LOAD", -result, object=name)
    except BpfoomError as error:
        error.detail = log
        raise


def _prog_load(
    kind: str, name: str, insns: bytes, opts: _ProgLoadOpts, level: int
) -> tuple[int, str]:
    """Load once; the kernel's answer, and what fits of the log from its end."""
    log = ctypes.create_string_buffer(_LOG_BYTES if level else 1)
    opts.log_level, opts.log_size = level, _LOG_BYTES if level else 0
    opts.log_buf = ctypes.cast(log, ctypes.c_char_p) if level else None
    result = libbpf.load().bpf_prog_load(
        PROG_TYPES[kind],
        name.encode()[:15],
        b"GPL",
        insns,
        ctypes.c_size_t(len(insns) // 8),
        ctypes.byref(opts),
    )
    return int(result), log.value.decode("utf-8", "replace")


def prog_run(prog_fd: Fd, context: bytes) -> tuple[int, bytes]:
    """Run a syscall program once: its return value, and the context as it left it."""
    buffer = ctypes.create_string_buffer(context, len(context))
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        ctx_in=ctypes.addressof(buffer),
        ctx_size_in=len(context),
    )
    result = libbpf.load().bpf_prog_test_run_opts(prog_fd.fileno(), ctypes.byref(opts))
    _check("BPF_PROG_TEST_RUN", result)
    return ctypes.c_int32(opts.retval).value, buffer.raw


def prog_bind_map(prog_fd: Fd, map_fd: Fd) -> None:
    """Make the map live as long as the program, without the program using it."""
    result = libbpf.load().bpf_prog_bind_map(prog_fd.fileno(), map_fd.fileno(), None)
    _check("BPF_PROG_BIND_MAP", result)


def link_create(what: Fd, target_fd: int, *, attach_type: int, flags: int) -> Fd:
    """Link a struct_ops map, or a program, to a target; 0 where the program knows its own."""
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=flags)
    result = libbpf.load().bpf_link_create(
        what.fileno(), target_fd, attach_type, ctypes.byref(opts)
    )
    return Fd(_check("BPF_LINK_CREATE", result))


def link_update(link_fd: Fd, map_fd: Fd) -> None:
    """Exchange the link's struct_ops map, with no moment in between."""
    result = libbpf.load().bpf_link_update(link_fd.fileno(), map_fd.fileno(), None)
    _check("BPF_LINK_UPDATE", result)


def link_detach(link_fd: Fd) -> None:
    """Undo the link now, whoever else still holds it."""
    _check("BPF_LINK_DETACH", libbpf.load().bpf_link_detach(link_fd.fileno()))


def obj_pin(fd: Fd, path: str) -> None:
    """Pin an object at a path of a bpffs whose directory exists."""
    result = libbpf.load().bpf_obj_pin(fd.fileno(), os.fsencode(path))
    _check("BPF_OBJ_PIN", result, path=path)


def obj_get(path: str) -> Fd:
    """Open a pinned object."""
    return Fd(_check("BPF_OBJ_GET", libbpf.load().bpf_obj_get(os.fsencode(path)), path=path))


def map_by_id(number: int) -> Fd:
    return Fd(_check("BPF_MAP_GET_FD_BY_ID", libbpf.load().bpf_map_get_fd_by_id(number)))


def prog_by_id(number: int) -> Fd:
    return Fd(_check("BPF_PROG_GET_FD_BY_ID", libbpf.load().bpf_prog_get_fd_by_id(number)))


def link_by_id(number: int) -> Fd:
    return Fd(_check("BPF_LINK_GET_FD_BY_ID", libbpf.load().bpf_link_get_fd_by_id(number)))


def link_ids() -> Iterator[int]:
    """The ids of all BPF links of the machine, ascending."""
    number = ctypes.c_uint32(0)
    while True:
        result = libbpf.load().bpf_link_get_next_id(number, ctypes.byref(number))
        if result == -errno.ENOENT:
            return
        _check("BPF_LINK_GET_NEXT_ID", result)
        yield number.value


def object_info(fd: Fd, info: ctypes.Structure) -> None:
    """Fill one of the bpf_*_info structures, as far as the kernel knows its fields."""
    size = ctypes.c_uint32(ctypes.sizeof(info))
    result = libbpf.load().bpf_obj_get_info_by_fd(
        fd.fileno(), ctypes.byref(info), ctypes.byref(size)
    )
    _check("BPF_OBJ_GET_INFO_BY_FD", result)
