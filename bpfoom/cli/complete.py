# SPDX-License-Identifier: Apache-2.0
"""Completion in the shell: policies, their parameters and values, cgroups; ``bpfoom completion``.

click asks the functions here while a command line is typed, so they say nothing, least of all what
is wrong with it, and import only what reads cards and cgroups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from bpfoom.cli.main import COMPLETE
from bpfoom.errors import BpfoomError
from bpfoom.policy.params import ParamSpec

PROGRAM = "bpfoom"
SHELLS = ("bash", "zsh", "fish")
# What bash takes for the end of a word, and so has completed already.
_BREAKS = "=:"

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command(name="completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the shell's part of completion, to be sourced, or put where the shell looks for it.

    \b
    Examples:
      bpfoom completion bash > ~/.local/share/bash-completion/completions/bpfoom
      bpfoom completion zsh > ~/.zfunc/_bpfoom      # a directory of $fpath
      bpfoom completion fish > ~/.config/fish/completions/bpfoom.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, PROGRAM, COMPLETE).source(), nl=False)


def policies(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of policies, or files once there is a slash."""
    if "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(name) for name in _policy_names() if name.startswith(incomplete)]


def settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``NAME=`` for each parameter of the policy that is named or attached, or ``NAME=VALUE``."""
    given = dict(text.partition("=")[::2] for text in ctx.params.get(param.name or "") or ())
    try:
        specs = _specs(ctx, given)
    except (BpfoomError, OSError):
        return []
    name, equals, _ = incomplete.partition("=")
    if not equals:
        left = [spec for spec in specs if spec.name not in given]
        return [
            CompletionItem(f"{spec.name}=", help=spec.help)
            for spec in left
            if spec.name.startswith(incomplete)
        ]
    values = (f"{name}={value}" for spec in specs if spec.name == name for value in _values(spec))
    return [CompletionItem(text) for text in values if text.startswith(incomplete)]


def cgroups(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The cgroups below what is typed so far, which is a path on cgroup2 or below its mount."""
    from bpfoom.observe import cgroupfs

    try:
        top = cgroupfs.mount().path
        typed, _, name = incomplete.rpartition("/")
        absolute = Path(f"{typed}/")
        base = absolute if absolute.is_relative_to(top) else Path(f"{top}/{typed}")
        with os.scandir(base) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except (BpfoomError, OSError):
        return []
    before = incomplete.removesuffix(name)
    return [CompletionItem(f"{before}{found}") for found in names if found.startswith(name)]


def units(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The system's services that have a cgroup now."""
    from bpfoom.observe import cgroupfs

    try:
        with os.scandir(cgroupfs.mount().path / "system.slice") as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".service"))
    except (BpfoomError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _policy_names() -> list[str]:
    from bpfoom.policy.find import SUFFIX, directories

    found = (path for directory in directories() for path in directory.glob(f"*{SUFFIX}"))
    return sorted({path.name.removesuffix(SUFFIX) for path in found})


def _specs(ctx: click.Context, given: dict[str, str]) -> Iterable[ParamSpec]:
    from bpfoom.policy.compose import plan

    # click leaves arguments unread behind an option that still wants its value.
    policy = ctx.params.get("policy") or next(iter(ctx.args), None)
    if policy:
        wrapping = {name: value for name, value in given.items() if value in _policy_names()}
        return plan(str(policy), wrapping).specs
    return _attached(str(ctx.params.get("cgroup") or ""))


def _attached(cgroup: str) -> Iterable[ParamSpec]:
    """The parameters of what is attached there, as far as may be known."""
    from bpfoom.btf.types import Btf
    from bpfoom.handler import describe, params, pins
    from bpfoom.observe import cgroupfs

    where = pins.find()
    if where is None or not cgroup:
        return ()
    target = cgroupfs.resolve(cgroup)
    with Btf.from_file() as btf:
        handler = describe.handler_of(target.id, target.name, where, btf)
    return [params.spec_of(parameter) for parameter in handler.parameters]


def _values(spec: ParamSpec) -> Iterable[str]:
    if spec.type == "bool":
        return ("true", "false")
    return _policy_names() if spec.type == "policy" else spec.choices


class Bash(BashComplete):
    """click's, but for words with "=" and ":", which bash hands over in pieces.

    The line is split here instead, and of what is found bash gets the last piece, which is what it
    is about to replace. After a "=" or "/" no space is put: there is more to come.
    """

    source_template = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} %(complete_var)s=bash_complete "$1")
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != *[=/] ]] || compopt -o nospace
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
    _typed = ""

    def source(self) -> str:
        """The script. click would run bash here, to see whether it is new enough."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        self._typed = "" if not words or line[-1:].isspace() else words.pop()
        return words[1:], self._typed

    def format_completion(self, item: CompletionItem) -> str:
        """Kind and value, the latter without the pieces that are complete."""
        done = self._typed[: max(self._typed.rfind(mark) for mark in _BREAKS) + 1]
        while not item.value.startswith(done):
            done = done.partition("=")[2]  # --set=NAME=...: the option itself is no part of it
        return f"{item.type},{item.value[len(done) :]}"


class Zsh(ZshComplete):
    """click's, with no space after a "=" or "/": there is more to come."""

    source_template = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local kind value help
    local -a words_of_line described open open_described plain
    words_of_line=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
%(complete_var)s=zsh_complete ${~words[1]})}")
    for kind value help in $words_of_line; do
        case $kind:$value:$help in
        dir:*) _path_files -/ ;;
        file:*) _path_files -f ;;
        plain:*[=/]:_) open+=($value) ;;
        plain:*:_) plain+=($value) ;;
        plain:*[=/]:*) open_described+=("$value:$help") ;;
        plain:*) described+=("$value:$help") ;;
        esac
    done
    (( ! $#described )) || _describe -V bpfoom described -U
    (( ! $#open_described )) || _describe -V bpfoom open_described -U -S ''
    (( ! $#plain )) || compadd -U -V bpfoom -a plain
    (( ! $#open )) || compadd -U -V bpfoom -S '' -a open
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class Fish(FishComplete):
    """click's, for values and descriptions with commas in them."""

    source_template = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


for _shell in (Bash, Zsh, Fish):
    add_completion_class(_shell)
