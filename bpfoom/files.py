# SPDX-License-Identifier: Apache-2.0
"""Files that people name: written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bpfoom.errors import BpfoomError


def write_whole(path: Path, data: bytes) -> None:
    """Make ``data`` the file's content, so that a reader finds the old one or all of the new.

    Raises BpfoomError; what is there but no file (a device, a pipe) is left alone.
    """
    if path.exists() and not path.is_file():
        raise BpfoomError(f"{path} is there and is no file", hint="name a file", path=str(path))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(handle)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BpfoomError(
            f"cannot write {path}: {error.strerror}",
            hint="name a file in a directory that you may write to",
            path=str(path),
            errno=error.errno,
        ) from error
