# SPDX-License-Identifier: Apache-2.0
"""What runs inside the child process: one request on stdin, one answer on stdout, both JSON.

Imports first, then the lock-down, then the request. A child either renders (it has Jinja) or
compiles (it has bcc), never both. Diagnostics of clang go to stderr and belong to the parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from bpfoom.compiler.jail import Limits, lock_down
from bpfoom.errors import BpfoomError
from bpfoom.policy.functions import Scope
from bpfoom.policy.values import Setting

# Disassemble on stderr, with lines: bpfoom.compiler.lineinfo reads that.
_DEBUG_SOURCE = 0x8

Request = dict[str, Any]
Answer = dict[str, Any]


def prepare_render() -> Callable[[Request], Answer]:
    """Import what rendering needs, and use it once, so that nothing is imported later."""
    from bpfoom.btf import libbpf
    from bpfoom.btf.types import Btf
    from bpfoom.policy.render import Template, render, warm_up

    libbpf.load()
    warm_up()

    def run(request: Request) -> Answer:
        templates = {name: Template(**fields) for name, fields in request["templates"].items()}
        scopes = [_scope(fields) for fields in request["scopes"]]
        raw = _read_all(request["btf_fd"])
        with Btf(raw, request["btf_name"], Path(request["btf_file"])) as btf:
            rendered = render(templates, scopes, btf, dry_run=request["dry_run"])
        facts = asdict(rendered.facts)
        facts["strings"] = facts["strings"].hex()
        origins = [list(origin) for origin in rendered.origins]
        return {"text": rendered.text, "origins": origins, "facts": facts}

    return run


def prepare_compile() -> Callable[[Request], Answer]:
    """Import bcc, and return the function that turns C text into instructions."""
    import bcc

    def run(request: Request) -> Answer:
        try:
            module = bcc.BPF(
                text=request["text"].encode(), cflags=request["cflags"], debug=_DEBUG_SOURCE
            )
        except Exception as error:  # bcc raises nothing more precise; clang's words are on stderr
            return {"failed": str(error)}
        programs = {}
        for index in range(bcc.lib.bpf_num_functions(module.module)):
            name = bcc.lib.bpf_function_name(module.module, index)
            programs[name.decode()] = module.dump_func(name).hex()
        return {"programs": programs}

    return run


def _scope(fields: dict[str, Any]) -> Scope:
    settings = ({**given, "value": _value(given["value"])} for given in fields["settings"])
    return Scope(fields["template"], tuple(Setting(**given) for given in settings))


def _value(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as source:
        return source.read()


def _out_of_time(*_: object) -> NoReturn:
    raise TimeoutError("out of CPU time")


def main() -> None:
    """Serve one request. argv: one JSON object with mode, directory and limits."""
    order = json.loads(sys.argv[1])
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever bcc prints is a diagnostic
    prepare = {"render": prepare_render, "compile": prepare_compile}[order["mode"]]
    answer: Answer
    try:
        run = prepare()
        seen = lock_down(order["directory"], Limits(**order["limits"]))
        os.environ["BCC_KERNEL_SOURCE"] = f"{seen}/stubs"
        signal.signal(signal.SIGXCPU, _out_of_time)
        answer = {"ok": run(json.load(sys.stdin))}
    except BpfoomError as error:
        answer = {"error": {"type": type(error).__name__, "message": error.message}}
        answer["error"] |= {"hint": error.hint, "detail": error.detail, "data": error.data}
    json.dump(answer, answer_to, default=str)
    answer_to.close()
    sys.stdout.flush()
    os._exit(0)  # no atexit handlers of bcc, no LLVM destructors
