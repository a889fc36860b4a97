# SPDX-License-Identifier: Apache-2.0
"""The parent's side of the compiler's child process: start it, feed it, outlive it.

The child is the system's Python, because virtual environments do not see bcc; it runs
:mod:`bpfoom.compiler.worker` from this very package. One call is one child.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfoom import errors, files, resources
from bpfoom.errors import BpfoomError, CompileError, MissingFeatureError, TemplateError

PYTHON = "/usr/bin/python3"
_BOOT = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[1])['path']; "
    "from bpfoom.compiler.worker import main; main()"
)
_PREFIX = "bpfoom-compile-"
KEPT = 64 << 10  # bytes of diagnostics that are of use to anybody


@dataclass(frozen=True)
class Mode:
    """What one kind of child may use. The deadline is wall-clock seconds, import included."""

    name: str
    cpu_seconds: int
    memory_bytes: int
    deadline: float
    failure: type[BpfoomError]


RENDER = Mode("render", 30, 1 << 30, 120.0, TemplateError)
COMPILE = Mode("compile", 120, 2 << 30, 300.0, CompileError)


@dataclass(frozen=True)
class Reply:
    """A child's answer, and all that it wrote to stderr."""

    answer: dict[str, Any]
    diagnostics: str


def ask(mode: Mode, request: dict[str, Any], descriptors: Sequence[int] = ()) -> Reply:
    """Send one request to a fresh child that inherits ``descriptors``.

    Raises the error that the child reports, ``mode.failure`` when it dies or is late, and
    MissingFeatureError when it cannot even start.
    """
    with _directory() as directory:
        order = {
            "mode": mode.name,
            "directory": directory,
            "limits": {"cpu_seconds": mode.cpu_seconds, "memory_bytes": mode.memory_bytes},
            "path": _import_path(),
        }
        stdout, diagnostics, status = _run(mode, order, json.dumps(request), descriptors)
    if status != 0 or not stdout:
        raise _died(mode, status, diagnostics)
    answer = json.loads(stdout)
    if "error" in answer:
        raise _rebuilt(answer["error"])
    return Reply(answer["ok"], diagnostics)


def _run(
    mode: Mode, order: dict[str, Any], request: str, descriptors: Sequence[int]
) -> tuple[str, str, int]:
    environment = {
        "BCC_LINUX_VERSION_CODE": str(7 << 16 | 3 << 8),
        "LC_ALL": "C.UTF-8",
        "PATH": "/nonexistent",
    }
    try:
        child = subprocess.Popen(
            [PYTHON, "-I", "-B", *_bytecode(), "-c", _BOOT, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            pass_fds=tuple(descriptors),
            start_new_session=True,
        )
    except OSError as error:
        raise MissingFeatureError(
            f"cannot start {PYTHON}: {error.strerror}", hint="install python3 and python3-bpfcc"
        ) from error
    with child:
        try:
            stdout, stderr = child.communicate(request, timeout=mode.deadline)
        except subprocess.TimeoutExpired:
            child.kill()
            _, stderr = child.communicate()
            raise mode.failure(
                f"the {mode.name} child did not answer within {mode.deadline:.0f} s",
                hint="look for a loop without an end, or a machine that is overloaded",
                detail=stderr[-KEPT:],
            ) from None
    return stdout, stderr, child.returncode


def _bytecode() -> list[str]:
    """Where this process has its bytecode, if not beside the sources; -I hides it."""
    prefix = sys.pycache_prefix
    return ["-X", f"pycache_prefix={prefix}"] if prefix else []


def _died(mode: Mode, status: int, diagnostics: str) -> BpfoomError:
    if "ModuleNotFoundError: No module named 'bcc'" in diagnostics:
        return MissingFeatureError(
            f"{PYTHON} has no bcc", hint="apt-get install python3-bpfcc", detail=diagnostics
        )
    how = f"exited with {status}"
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    diagnostics = diagnostics[-KEPT:]
    last_words = diagnostics.strip().rpartition("\n")[2]
    return mode.failure(
        f"the {mode.name} child {how}{': ' if last_words else ''}{last_words}",
        hint=_cause(mode, status, diagnostics),
        detail=diagnostics,
        status=status,
    )


def _cause(mode: Mode, status: int, diagnostics: str) -> str:
    """What to look for when a child died so."""
    if -status == signal.SIGXCPU:
        return f"it took more than {mode.cpu_seconds} s of CPU: look for a loop without an end"
    if "MemoryError" in diagnostics or "bad_alloc" in diagnostics:
        return f"it needed more than {mode.memory_bytes >> 20} MiB: look for what is that large"
    if -status == signal.SIGKILL:
        return "somebody killed it: look for this machine's own OOM killer in dmesg"
    return "its last words say what it complains of; a template alone should not end it so"


def _rebuilt(fields: dict[str, Any]) -> BpfoomError:
    """The child's exception as ours; its type must be one that bpfoom.errors defines."""
    kind = getattr(errors, str(fields["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, BpfoomError)):
        kind = CompileError
    data = {k: v for k, v in fields["data"].items() if k not in ("message", "hint", "detail")}
    return kind(fields["message"], hint=fields["hint"], detail=fields["detail"], **data)


@contextmanager
def _directory() -> Iterator[str]:
    """The child's whole world: a directory with the stub headers, readable by nobody.

    Those that killed processes have left are swept. Raises BpfoomError where there is no room.
    """
    with ExitStack() as owned:
        try:
            parent = Path(tempfile.gettempdir())
            files.sweep(parent, _PREFIX)
            made, _ = owned.enter_context(files.making(parent, _PREFIX, directory=True))
            owned.callback(files.delete, made)
            _fill(made)
        except OSError as error:
            raise BpfoomError(
                f"no directory can be made for the compiler: {error.strerror}",
                hint="it needs some kilobytes where temporary files are: TMPDIR says where",
                errno=error.errno,
            ) from error
        yield str(made)


def _fill(directory: Path) -> None:
    shutil.copytree(
        resources.room("bpf") / "stubs", directory / "stubs", copy_function=shutil.copyfile
    )
    for top, _, names in os.walk(directory):
        os.chmod(top, 0o755)
        for name in names:
            os.chmod(os.path.join(top, name), 0o644)


def _import_path() -> list[str]:
    """Where the child finds this package and Jinja: exactly what this process uses."""
    found = [str(Path(__file__).resolve().parents[2])]
    for module in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise MissingFeatureError(f"{module} is not installed", hint="install bpfoom anew")
        found.append(str(Path(spec.origin).resolve().parents[1]))
    return list(dict.fromkeys(found))
