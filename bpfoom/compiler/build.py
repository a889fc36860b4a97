# SPDX-License-Identifier: Apache-2.0
"""The front door: a policy and its settings in, a handler object out.

Owns the order of the steps and the cache. Needs no privilege, no patched kernel and no guest; as
root it trusts only cache entries that root owns.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from bpfoom import __version__, cache, resources, timings
from bpfoom.btf.types import RUNNING
from bpfoom.compiler import child, clang, decode, lineinfo, lint, source, store, tools
from bpfoom.compiler.clang import CFLAGS
from bpfoom.compiler.object import (
    HIGHEST,
    LOWEST,
    EnumValue,
    HandlerObject,
    Kfunc,
    MapSpec,
    MemberAccess,
    Parameter,
    Program,
    Provenance,
)
from bpfoom.compiler.programs import HANDLER, KINDS, POLICY, TRIGGER
from bpfoom.compiler.tools import Tools
from bpfoom.errors import CompileError, LintError, MissingFeatureError, UsageError
from bpfoom.policy import compose, params
from bpfoom.policy.compose import Plan
from bpfoom.policy.find import includes
from bpfoom.policy.functions import STRINGS
from bpfoom.timings import stage

RENDERS, OBJECTS = "renders", "objects"


@dataclass(frozen=True)
class RenderedPolicy:
    """A policy's C text with everything that went into it."""

    plan: Plan
    text: str
    origins: list[tuple[str, int]]
    facts: dict[str, Any]
    dry_run: bool = False

    @property
    def hash(self) -> str:
        """Hex SHA-256 of the text; it identifies the policy in decision records."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def render_policy(
    name_or_path: str,
    settings: Mapping[str, str],
    *,
    btf: Path | None = None,
    dry_run: bool = False,
) -> RenderedPolicy:
    """Render a policy for the kernel whose BTF is given, by default the running one.

    Raises NotThereError, CardError, ParameterError, TemplateError, MissingFeatureError.
    """
    with stage("find policy"):
        made = compose.plan(name_or_path, settings)
    shared = {name: {"text": text, "path": f"bpf/{name}"} for name, text in includes().items()}
    scopes = made.scopes()
    own = {
        scope.template: {"text": policy.text, "path": str(policy.path)}
        for scope, policy in zip(scopes, made.policies, strict=True)
    }
    request = {
        "templates": shared | own,
        "scopes": [asdict(scope) for scope in scopes],
        "dry_run": dry_run,
    }
    with stage("render"):
        answer = _rendered(request, btf)
    origins = [(path, line) for path, line in answer["origins"]]
    return RenderedPolicy(made, answer["text"], origins, answer["facts"], dry_run)


def _rendered(request: dict[str, Any], btf: Path | None) -> dict[str, Any]:
    """The render child's answer to a request, or the one it gave to the same before."""
    with _open_btf(btf) as source_file:
        types = source_file.read()
        key = cache.key_of(json.dumps(request, sort_keys=True), types, _code())
        known = store.load(RENDERS, key)
        if known is not None:
            timings.note("cached")
            return known
        source_file.seek(0)
        descriptor = source_file.fileno()
        name = str(btf) if btf else "the running kernel"
        more = {"btf_fd": descriptor, "btf_name": name, "btf_file": str(btf or RUNNING)}
        answer = child.ask(child.RENDER, request | more, (descriptor,)).answer
    store.save(RENDERS, key, answer)
    return answer


@dataclass(frozen=True)
class Compiled:
    """A program as bcc made it: its instructions, and the lines of the C text they are from."""

    insns: bytes
    numbers: lineinfo.Numbers

    @classmethod
    def known(cls, insns: str, numbers: list[list[int]]) -> Compiled:
        """From a cache entry."""
        return cls(bytes.fromhex(insns), [(insn, line) for insn, line in numbers])

    def to_be_known(self) -> dict[str, Any]:
        """For a cache entry."""
        return {"insns": self.insns.hex(), "numbers": self.numbers}


def compile_policy(
    name_or_path: str,
    settings: Mapping[str, str],
    *,
    btf: Path | None = None,
    dry_run: bool = False,
) -> HandlerObject:
    """Render, compile and lint a policy, or take it from the cache.

    Raises what :func:`render_policy` raises, CompileError and LintError.
    """
    rendered = render_policy(name_or_path, settings, btf=btf, dry_run=dry_run)
    with stage("compile"):
        return _compiled(rendered)


def compile_trigger() -> HandlerObject:
    """The trigger on pressure, the same way: one for all cgroups, settings are not compiled in."""
    template = resources.room("bpf") / "triggers" / "pressure.bpf.c.j2"
    return compile_policy(str(template), {})


def _compiled(rendered: RenderedPolicy) -> HandlerObject:
    """The object of a rendered policy, compiled now or before."""
    used = tools.find()
    key = _key(rendered, used)
    known = store.load(OBJECTS, key)
    if known is not None:
        timings.note("cached")
        return assemble(rendered, {name: Compiled.known(**c) for name, c in known.items()}, used)
    compiled = compile_text(
        rendered.text, rendered.origins, {"BPFOOM_POLICY_HASH": f"0x{rendered.hash[:16]}ULL"}
    )
    made = assemble(rendered, compiled, used)
    store.save(OBJECTS, key, {name: c.to_be_known() for name, c in compiled.items()})
    return made


def compile_text(
    text: str,
    origins: Sequence[tuple[str, int]],
    defines: Mapping[str, str],
    cflags: Sequence[str] = CFLAGS,
) -> dict[str, Compiled]:
    """Every entry function in ``text``, by name, not yet linted.

    Raises CompileError with clang's words, their places translated by ``origins``.
    """
    source.check(text, origins)
    flags = [*cflags, *(f"-D{name}={value}" for name, value in defines.items())]
    request = {"text": source.numbered(text), "cflags": flags}
    try:
        reply = child.ask(child.COMPILE, request)
    except CompileError as error:
        raise clang.refusal(error.message, error.detail, text, origins, hint=error.hint) from error
    if "failed" in reply.answer:
        raise clang.refusal("clang refused the policy", reply.diagnostics, text, origins)
    programs = {name: bytes.fromhex(raw) for name, raw in reply.answer["programs"].items()}
    source.check_entries(text, list(programs))
    _, numbers = lineinfo.split(reply.diagnostics)
    return {name: Compiled(raw, numbers.get(name, ())) for name, raw in programs.items()}


def assemble(
    rendered: RenderedPolicy, programs: Mapping[str, Compiled], used: Tools
) -> HandlerObject:
    """Decode, lint and put together what the loader needs. Raises LintError."""
    facts = rendered.facts
    strings = bytes.fromhex(facts["strings"])
    maps = [MapSpec(**{**m, "initial": bytes.fromhex(m.get("initial", ""))}) for m in facts["maps"]]
    _check_entries(list(programs))
    made = [_program(name, compiled, rendered) for name, compiled in programs.items()]
    if strings:
        size = (len(strings) + 7) & ~7
        maps.append(MapSpec(STRINGS, "array", 4, size, 1, frozen=True, initial=strings))
    called = {r.target for p in made for r in p.relocations if r.kind == "kfunc"}
    return HandlerObject(
        programs=tuple(made),
        maps=tuple(maps),
        accesses=tuple(MemberAccess(**a) for a in facts["accesses"]),
        enums=tuple(EnumValue(**e) for e in facts["enums"]),
        kfuncs=tuple(Kfunc(**k) for k in facts["kfuncs"] if k["name"] in called),
        parameters=_parameters(rendered),
        provenance=Provenance(
            policy=rendered.plan.policy.name,
            path=str(rendered.plan.policy.path),
            policy_hash=rendered.hash,
            bpfoom_version=__version__,
            bcc_version=used.bcc,
            llvm_version=used.llvm,
            dry_run=rendered.dry_run,
        ),
    )


def _check_entries(names: list[str]) -> None:
    """A handler must be there, and perhaps what a policy may have besides; or it is a trigger."""
    if set(names) == set(TRIGGER):
        return
    if HANDLER not in names or set(names) - set(POLICY):
        raise LintError(
            f"the policy defines {', '.join(names) or 'no function'}, not {HANDLER}"
            + "".join(f" and perhaps {name}" for name in POLICY if name != HANDLER),
            hint="extend include/tasks.bpf.c.j2 or include/cgroups.bpf.c.j2; make other functions "
            "static __always_inline",
        )


def _program(name: str, compiled: Compiled, rendered: RenderedPolicy) -> Program:
    try:
        insns = decode.instructions(compiled.insns)
    except ValueError as error:
        raise LintError(f"{name} is no BPF program: {error}") from error
    facts = rendered.facts
    kfuncs = [k["name"] for k in facts["kfuncs"]]
    maps = [m["name"] for m in facts["maps"]]
    strings = len(facts["strings"]) // 2
    callbacks = facts["callbacks"]
    relocations = decode.relocations(insns, kfuncs, maps, STRINGS, strings, callbacks)
    starts = [insn.index for insn in insns]
    lines = lineinfo.located(compiled.numbers, rendered.text, rendered.origins, starts)
    kind = KINDS[name]
    lint.check(name, insns, relocations, lines, kind.helpers)
    return Program(
        name,
        kind.type,
        kind.member,
        kind.sleepable,
        compiled.insns,
        tuple(relocations),
        lines,
    )


def _parameters(rendered: RenderedPolicy) -> tuple[Parameter, ...]:
    found, at = [], 0
    for spec in rendered.plan.specs:
        shown = params.show(spec, rendered.plan.values[spec.name])
        place = (at, 8) if spec.live else (-1, 0)
        least = LOWEST if spec.min is None else spec.min
        most = HIGHEST if spec.max is None else spec.max
        made = Parameter(spec.name, spec.type, shown, spec.live, *place, least, most, spec.help)
        found.append(replace(made, default=params.show(spec, spec.default)))
        at += place[1]
    return tuple(found)


@functools.cache
def _code() -> str:
    """What this program does to a template, lint rules included, as a content key."""
    package = Path(__file__).resolve().parents[1]
    rooms = (package / room for room in ("btf", "policy", "compiler"))
    return cache.key_of(*(p.read_bytes() for room in rooms for p in sorted(room.glob("*.py"))))


def _key(rendered: RenderedPolicy, used: Tools) -> str:
    """What the instructions depend on, and nothing else."""
    stubs = resources.room("bpf") / "stubs"
    headers = [p.read_bytes() for p in sorted(stubs.rglob("*.h"))]
    versions = [used.bcc, used.llvm, _code(), *CFLAGS]
    return cache.key_of(rendered.text, *versions, *headers)


@contextmanager
def _open_btf(path: Path | None) -> Iterator[BinaryIO]:
    try:
        opened = open(path or RUNNING, "rb", buffering=0)  # noqa: SIM115 - yielded below
    except OSError as error:
        if path is not None:
            raise UsageError(
                f"cannot read {path}: {error.strerror}",
                hint="--btf names a file with the type information of a kernel",
                path=str(path),
                errno=error.errno,
            ) from error
        raise MissingFeatureError(
            f"cannot read type information from {RUNNING}: {error.strerror}",
            hint="the kernel must be built with CONFIG_DEBUG_INFO_BTF=y; or name another file "
            "with --btf",
            path=str(RUNNING),
            errno=error.errno,
        ) from error
    with opened:
        yield opened
