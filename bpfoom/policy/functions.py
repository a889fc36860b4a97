# SPDX-License-Identifier: Apache-2.0
"""What a template can call: the kernel's types, kfuncs, maps, strings and its parameters.

Each call writes C text and notes what that text now depends on. The notes (:class:`Facts`) become
the handler object's list of things that must be true of a kernel that loads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpfoom.btf.types import Btf
from bpfoom.errors import TemplateError
from bpfoom.policy import latency, magic, record, trigger
from bpfoom.policy.cgen import Declarations
from bpfoom.policy.params import Value
from bpfoom.policy.values import Parameters, ParamText, Setting

STRINGS = "bpfoom_strings"
PARAMS, PARAMS_SET = "bpfoom_params", "bpfoom_set"
# Where a struct will stand once all of its members have been asked for; no template has these.
_SLICE = re.compile("\x03([^\x04]*)\x04")
# Decision records kept for readers that were not listening.
HISTORY_ENTRIES = 1024
# What one dry run of the kernel can leave: a handler's decision each, and their candidates.
ASKED_ENTRIES = 64
RANKED_ENTRIES = 4096
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MAP_NAME = re.compile(r"[a-z_][a-z0-9_]{0,14}\Z")
_PRINTABLE = re.compile(r"[\x20-\x7e]*\Z")
_MAP_TYPES = ("array", "hash", "lru_hash", "percpu_array", "ringbuf")


@dataclass(frozen=True)
class Scope:
    """A policy's template, and the parameters that ``param`` stands for in it."""

    template: str
    settings: tuple[Setting, ...] = ()


@dataclass
class Facts:
    """What the rendered text depends on, JSON-ready, in the order it was asked for.

    ``accesses``, ``enums``, ``kfuncs`` and ``maps`` hold the fields of the handler object's
    records of these names (a map's initial bytes in hex); kfuncs, maps and callbacks (names of
    functions) stand at the index of their magic constant.
    """

    accesses: list[dict[str, Any]] = field(default_factory=list)
    enums: list[dict[str, Any]] = field(default_factory=list)
    kfuncs: list[dict[str, str]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    callbacks: list[str] = field(default_factory=list)
    strings: bytes = b""


class Functions:
    """The template's functions, bound to one BTF and collecting one set of facts."""

    def __init__(self, btf: Btf, scopes: Sequence[Scope]) -> None:
        self.facts = Facts()
        self._btf = btf
        self._declarations = Declarations(btf)
        self._slices: dict[str, list[str]] = {}
        self._offsets: dict[str, int] = {}
        self._scopes = scopes
        self._live = [s for scope in scopes for s in scope.settings if s.live]

    def names(self) -> dict[str, Any]:
        """Everything that is visible in a template, by name."""
        calls: dict[str, Callable[..., Any]] = {
            "struct": self.struct,
            "constants": self.constants,
            "kfunc": self.kfunc,
            "has_kfunc": self._btf.has_function,
            "has_struct": self._btf.has_struct,
            "has_member": self._btf.has_member,
            "map": self.map,
            "string": self.string,
            "callback": self.callback,
            "record_layout": record_layout,
            "trigger_layout": trigger_layout,
            "latency_layout": self.latency_layout,
            "params_layout": self.params_layout,
            "fail": _fail,
        }
        numbers = {
            "record_size": record.SIZE,
            "candidate_size": record.CANDIDATE_SIZE,
            "trigger_size": trigger.SIZE,
            "history_entries": HISTORY_ENTRIES,
            "asked_entries": ASKED_ENTRIES,
            "ranked_entries": RANKED_ENTRIES,
            "live_params": bool(self._live),
        }
        params = {
            scope_name(number): Parameters(scope.settings)
            for number, scope in enumerate(self._scopes)
        }
        return {**calls, **numbers, **params}

    def struct(self, name: str, *members: str) -> str:
        """``struct name`` with these members ("a", or "a.b" for one inside a struct).

        Where it is asked for again, with other members, the first place has them all.
        """
        known = self._slices.get(_identifier(name), [])
        wanted = [*known, *(member for member in dict.fromkeys(members) if member not in known)]
        self._declarations.check(name, tuple(wanted))
        self._slices[name] = wanted
        return "" if known else f"\x03{name}\x04"

    def finish(self, text: str) -> str:
        """The rendered text with every struct in its place."""
        return _SLICE.sub(lambda found: self._slice(found[1]), text)

    def _slice(self, name: str) -> str:
        text, places = self._declarations.slice(name, tuple(self._slices[name]))
        for member, place in places.items():
            self.facts.accesses.append(
                {
                    "struct": name,
                    "member": member,
                    "offset": place.offset,
                    "size": place.size,
                    "type": place.type,
                }
            )
        return text

    def constants(self, enum: str, *names: str) -> str:
        """``#define`` lines for values of an enum: macros, as bcc's headers have some of them."""
        defines = []
        for name in names:
            value = self._btf.enum_value(enum, _identifier(name))
            fact = {"enum": enum, "name": name, "value": value}
            if fact not in self.facts.enums:
                self.facts.enums.append(fact)
                defines.append(f"#define {name} {value}\n")
        return "".join(defines)

    def kfunc(self, *names: str) -> str:
        """Declarations of kfuncs, after which they are called by their names."""
        text = []
        known = {kfunc["name"] for kfunc in self.facts.kfuncs}
        for name in names:
            if name in known:
                continue
            address = magic.kfunc(len(self.facts.kfuncs))
            text.append(self._declarations.kfunc(_identifier(name), address))
            self.facts.kfuncs.append({"name": name, "prototype": self._btf.prototype(name)})
        return "".join(text)

    def map(
        self,
        name: str,
        type: str,
        *,
        value_size: int,
        entries: int,
        key_size: int = 4,
        shared: bool = False,
    ) -> str:
        """A map; afterwards its name is an expression to pass to helpers."""
        return self._map(name, type, key_size, value_size, entries, shared)

    def _map(
        self, name: str, type: str, key: int, value: int, entries: int, shared: bool, **more: Any
    ) -> str:
        if not _MAP_NAME.match(name):
            raise TemplateError(f"{name!r} is no name for a map", hint="at most 15 of a-z, 0-9, _")
        if type not in _MAP_TYPES:
            raise TemplateError(f"no type of map: {type!r}", hint=f"types: {', '.join(_MAP_TYPES)}")
        if not all(isinstance(n, int) and 0 <= n < 1 << 32 for n in (key, value, entries)):
            raise TemplateError(f"map {name}: sizes and entries are whole numbers of 32 bits")
        pointer = magic.map_pointer(len(self.facts.maps))
        self.facts.maps.append(
            {
                "name": name,
                "type": type,
                "key_size": key,
                "value_size": value,
                "max_entries": entries,
                "shared": shared,
                **more,
            }
        )
        return f"#define {name} ((void *){pointer:#x}ULL)\n"

    def string(self, text: str | ParamText) -> str:
        """A constant string, as an expression of type ``const char *``."""
        given = text._text if isinstance(text, ParamText) else text
        if not isinstance(given, str) or not _PRINTABLE.match(given):
            raise TemplateError("a constant string is printable ASCII", text=repr(given))
        if given not in self._offsets:
            self._offsets[given] = len(self.facts.strings)
            self.facts.strings += given.encode() + b"\0"
        return f"((const char *){magic.string_pointer(self._offsets[given]):#x}ULL)"

    def callback(self, name: str) -> str:
        """The address of another function of the same object, for a kfunc that is to call it."""
        if _identifier(name) not in self.facts.callbacks:
            self.facts.callbacks.append(name)
        return f"((void *){magic.callback_pointer(self.facts.callbacks.index(name)):#x}ULL)"

    def latency_layout(self) -> str:
        """The histograms of decision times: their struct and map."""
        made = self._map(latency.MAP, "array", 4, latency.SIZE, latency.ROWS, False)
        return (
            f"{made}#define LATENCY_SLOTS {latency.SLOTS}\n"
            f"#define LATENCY_MOST_US {latency.limits_us()[-1]}ULL\n"
            f"struct latency {{\n\tu64 sum_ns;\n\tu64 buckets[{latency.SLOTS}];\n}};\n"
        )

    def params_layout(self) -> str:
        """The live parameters' struct and maps; empty when there are none.

        Two sets, and the number of the one in force: a writer fills the other, then changes the
        number.
        """
        if not self._live:
            return ""
        members = "".join(f"\tu64 {s.identifier};\n" for s in self._live)
        initial = b"".join(_word(s.value) for s in self._live).hex()
        size = 8 * len(self._live)
        sets = self._map(PARAMS, "array", 4, size, 2, False, initial=initial)
        chosen = self._map(PARAMS_SET, "array", 4, 8, 1, False)
        return f"struct params {{\n{members}}};\n{sets}{chosen}"


def scope_name(number: int) -> str:
    """What ``param`` is called in the template of the n-th scope."""
    return f"param_{number}"


def _word(value: Value) -> bytes:
    """A scalar as it lies in the params map."""
    assert isinstance(value, int)
    return (value & (1 << 64) - 1).to_bytes(8, "little")


def _identifier(name: str) -> str:
    if not (isinstance(name, str) and _IDENTIFIER.match(name)):
        raise TemplateError(f"{name!r} is not an identifier")
    return name


def _fail(message: str) -> str:
    raise TemplateError(str(message), hint="the policy itself refuses to be rendered like this")


def record_layout() -> str:
    """The decision record and the candidate as C: structs, and the numbers that go into them."""
    codes = {
        "ACTION": record.ACTIONS,
        "VERDICT": record.VERDICTS,
        "REASON": record.REASONS,
        "RECORD_FLAG": record.FLAGS,
    }
    defines = [
        f"#define {kind}_{name.upper().replace('-', '_')} {number}\n"
        for kind, names in codes.items()
        for number, name in names.items()
    ]
    return (
        _as_struct("bpfoom_record", record.FIELDS, record.SIZE)
        + _as_struct("bpfoom_candidate", record.CANDIDATE_FIELDS, record.CANDIDATE_SIZE)
        + f"#define RECORD_VERSION {record.VERSION}\n"
        + "".join(defines)
    )


def trigger_layout() -> str:
    """What a trigger is set to and has seen, as C."""
    return _as_struct("trigger", trigger.FIELDS, trigger.SIZE)


def _as_struct(name: str, fields: tuple[record.Field, ...], size: int) -> str:
    types = {"comm": "char", "u32": "u32", "s32": "s32", "u64": "u64"}
    members = "".join(
        f"\t{types[f.type]} {f.name}{f'[{record.COMM_LEN}]' if f.type == 'comm' else ''};"
        f"\t/* {f.doc} */\n"
        for f in fields
    )
    check = f'_Static_assert(sizeof(struct {name}) == {size}, "struct {name}");'
    return f"struct {name} {{\n{members}}};\n{check}\n"
