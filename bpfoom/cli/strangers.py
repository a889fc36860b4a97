# SPDX-License-Identifier: Apache-2.0
"""What is in bpfoom's places and cannot be used, told beside what a command is about."""

from __future__ import annotations

from bpfoom.cli import output
from bpfoom.errors import BpfoomError, PermissionDeniedError
from bpfoom.handler import foreign
from bpfoom.handler.pins import Pins
from bpfoom.observe.records import Tail


def tell(where: Pins | None) -> None:
    """A line on stderr for each pin of others', and for a history that cannot be read."""
    if where is None:
        return
    told = [stranger.message for stranger in foreign.everywhere(where)]
    try:
        with Tail(where):
            pass
    except PermissionDeniedError:
        raise
    except BpfoomError as error:
        told.append(error.message)
    for message in dict.fromkeys(told):
        output.say(f"bpfoom: {message}", err=True)
