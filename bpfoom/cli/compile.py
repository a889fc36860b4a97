# SPDX-License-Identifier: Apache-2.0
"""``bpfoom check`` and ``compile``: is a policy sound, and the object that it compiles to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli import output, view
from bpfoom.cli.options import SET_OPTION, parse_settings
from bpfoom.cli.policies import BTF_OPTION, DRY_RUN_OPTION, POLICY_ARGUMENT, hinting_at_btf
from bpfoom.cli.timings import TIMINGS_OPTION
from bpfoom.timings import IMPORTS, stage

if TYPE_CHECKING:
    from bpfoom.compiler.object import HandlerObject, Program

PROGRAM_COLUMNS = {
    "name": "PROGRAM",
    "instructions": "INSNS",
    "verified_instructions": "VERIFIED",
    "total_states": "STATES",
    "peak_states": "PEAK",
    "stack_bytes": "STACK",
    "xlated_bytes": "XLATED",
    "jited_bytes": "JITED",
}


@click.command(name="check")
@POLICY_ARGUMENT
@SET_OPTION
@DRY_RUN_OPTION
@BTF_OPTION
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@TIMINGS_OPTION
def check_command(
    policy: str, settings: tuple[str, ...], dry_run: bool, btf: Path | None, as_json: bool
) -> None:
    """Render, compile and lint a policy; as root on such a kernel, ask its verifier too.

    \b
    Examples:
      bpfoom check largest-task --set min=8M
      bpfoom check ./mine.bpf.c.j2
    """
    made = _compiled(policy, settings, dry_run, btf)
    verdict, work = _verify(made, btf, quiet=as_json)
    summary = _summary(made)
    summary["programs"] = [_program(program, work) for program in made.programs]
    summary["verifier"] = verdict
    if as_json:
        output.emit_json(summary)
        return
    output.say(f"{summary.pop('policy')}: renders, compiles and passes the lint")
    programs = summary.pop("programs")
    for label, value in summary.items():
        click.echo(f"  {label.replace('_', ' ') + ':':18}{_plain(value)}")
    click.echo()
    output.emit_table(PROGRAM_COLUMNS, programs)


@click.command(name="compile")
@POLICY_ARGUMENT
@click.option(
    "-o",
    "--output",
    "file",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the object.",
)
@SET_OPTION
@DRY_RUN_OPTION
@BTF_OPTION
@TIMINGS_OPTION
def compile_command(
    policy: str, file: Path, settings: tuple[str, ...], dry_run: bool, btf: Path | None
) -> None:
    """Compile a policy into a file, for `bpfoom attach --object` where no compiler is.

    It can be attached on kernels whose types are, as far as it uses them, those that it was
    compiled for.

    \b
    Example:
      bpfoom compile largest-task -o largest.bpfoom
    """
    made = _compiled(policy, settings, dry_run, btf)
    from bpfoom.compiler.object import write_file

    write_file(file, made)
    kernel = f"the kernel of {btf}" if btf else "the running kernel"
    output.say(f"{file}: {made.provenance.policy}{' (dry run)' if dry_run else ''}, for {kernel}")


def _compiled(
    policy: str, settings: tuple[str, ...], dry_run: bool, btf: Path | None
) -> HandlerObject:
    with stage(IMPORTS):
        from bpfoom.compiler.build import compile_policy

    with hinting_at_btf(btf):
        return compile_policy(policy, parse_settings(settings), btf=btf, dry_run=dry_run)


def _verify(
    made: HandlerObject, btf: Path | None, *, quiet: bool
) -> tuple[str, dict[str, dict[str, Any]]]:
    """What the running kernel's verifier says, and how much work each program was.

    Raises VerifierError when it refuses one.
    """
    if btf is not None:
        return "not asked: compiled for another kernel", {}
    with stage(IMPORTS):
        from bpfoom.btf.types import Btf
        from bpfoom.handler import features, info, pins, verifier
        from bpfoom.handler.load import load

    if features.rights().blocks:
        return "not asked: needs root", {}
    if not quiet:
        click.echo("compiled; the kernel's verifier looks at it ...", err=True)
    with stage("read BTF"):
        running = Btf.from_file()
    with running, load(made, running, pins.require(), note={}, statistics=True) as loaded:
        work = {}
        for name, program in loaded.programs.items():
            sizes = info.prog_info(program)
            work[name] = asdict(verifier.statistics(program.log)) | {
                "xlated_bytes": sizes.xlated_bytes,
                "jited_bytes": sizes.jited_bytes,
            }
    return "accepts it", work


def _summary(made: HandlerObject) -> dict[str, Any]:
    return {
        "policy": made.provenance.policy,
        "policy_hash": made.provenance.policy_hash,
        "instructions": sum(len(p.insns) // 8 for p in made.programs),
        "kfuncs": [k.name for k in made.kfuncs],
        "maps": [m.name for m in made.maps],
        "accesses": len(made.accesses),
        "enums": len(made.enums),
        "parameters": view.parameters(asdict(p) for p in made.parameters),
        "bcc_version": made.provenance.bcc_version,
        "llvm_version": made.provenance.llvm_version,
    }


def _program(program: Program, work: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A program's row; what only the verifier knows is None where it was not asked."""
    row: dict[str, Any] = dict.fromkeys(PROGRAM_COLUMNS)
    own = {"name": program.name, "instructions": len(program.insns) // 8}
    return row | own | work.get(program.name, {})


def _plain(value: Any) -> str:
    """A cell: lists in one line, parameters as they are typed."""
    if not isinstance(value, list):
        return str(value)
    items = (item if isinstance(item, str) else f"{item['name']}={item['value']}" for item in value)
    return ", ".join(items) or "none"
