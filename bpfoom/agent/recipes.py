# SPDX-License-Identifier: Apache-2.0
"""What a configuration's entries attach, compiled: once for each policy with its settings."""

from __future__ import annotations

from collections.abc import Callable

from bpfoom.agent.config import Config, Entry
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import BpfoomError, UsageError
from bpfoom.handler import marks
from bpfoom.handler.wanted import Wanted

Recipes = dict[str, HandlerObject | BpfoomError]
# In the place of an entry's: the trigger, which is one for all.
TRIGGER = "trigger"


def compiled(config: Config, tick: Callable[[], object] = lambda: None) -> Recipes:
    """The object of each entry by its place, or why there is none: one does not stop the others.

    ``tick`` is called before each compilation, which takes a second, or many under emulation.
    """
    made: dict[object, HandlerObject | BpfoomError] = {}
    found: Recipes = {}
    if any(entry.trigger for entry in config.entries):
        tick()
        found[TRIGGER] = _compiled_trigger()
    for entry in config.entries:
        key = _key(entry.wanted)
        if key not in made:
            tick()
            made[key] = _compiled(entry.wanted)
        found[entry.place] = _fit(entry, made[key])
    return found


def _compiled_trigger() -> HandlerObject | BpfoomError:
    from bpfoom.compiler.build import compile_trigger

    try:
        return compile_trigger()
    except BpfoomError as error:
        return error


def _key(wanted: Wanted) -> object:
    return wanted.policy, wanted.file, tuple(sorted(wanted.settings.items())), wanted.dry_run


def _compiled(wanted: Wanted) -> HandlerObject | BpfoomError:
    try:
        return wanted.compile()
    except BpfoomError as error:
        return error


def _fit(entry: Entry, made: HandlerObject | BpfoomError) -> HandlerObject | BpfoomError:
    """Refuse marks for a policy that does not look at them, as `bpfoom attach --mark` does."""
    if isinstance(made, BpfoomError) or not entry.marked or marks.used_by(made):
        return made
    policy = made.provenance.policy
    return UsageError(
        f"{policy} does not look at marks",
        hint=f'have protect do it: policy = "protect", set.inner = "{policy}"; or set marks for '
        "all policies, in a table of their own",
    )
