# SPDX-License-Identifier: Apache-2.0
"""Object files: written whole, read back as they were, refused where they cannot be trusted."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from bpfoom.compiler.object import (
    EnumValue,
    HandlerObject,
    Kfunc,
    MapSpec,
    MemberAccess,
    Parameter,
    Program,
    Provenance,
    Relocation,
    read_file,
)
from bpfoom.errors import NotThereError, PolicyError

INSNS = bytes.fromhex("85000000010000009500000000000000")
OBJECT = HandlerObject(
    programs=(
        Program("f", "struct_ops", "f", True, INSNS, (Relocation(0, "kfunc", "bpf_oom_victims"),)),
    ),
    maps=(MapSpec("strings", "array", 4, 8, 1, frozen=True, initial=b"\x00\xffa"),),
    accesses=(MemberAccess("oom_control", "memcg", 128, 64, "struct mem_cgroup *"),),
    enums=(EnumValue("bpf_oom_verdict", "BPF_OOM_PASS", 0),),
    kfuncs=(Kfunc("bpf_oom_victims", "int bpf_oom_victims(struct oom_control *oc)"),),
    parameters=(Parameter("min", "bytes", "1M", False),),
    provenance=Provenance("mine", "mine.bpf.c.j2", "00" * 32, "0.1.0", "0.31.0", "19.1"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.o"
    path.write_bytes(OBJECT.to_bytes())
    path.chmod(0o644)
    return path


def changed(file: Path, **members: object) -> None:
    """Exchange members of the document."""
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **members}))


def test_a_file_holds_the_whole_object(file: Path) -> None:
    assert read_file(file) == OBJECT


def test_no_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="cannot read object") as caught:
        read_file(tmp_path / "nosuch")
    assert "bpfoom compile" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\x00", b"null", b'{"a": 1'])
def test_another_file_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(PolicyError, match="not a bpfoom object"):
        read_file(file)


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        ("bpfoom-object", 99, "another format version"),
        ("accesses", [{"struct": "s"}], "missing"),
        ("enums", [{"enum": "e", "name": "n", "value": "1"}], "EnumValue.value is no int"),
        ("kfuncs", [], "refers to kfunc bpf_oom_victims"),
        ("provenance", None, "not a bpfoom object"),
    ],
)
def test_a_damaged_object_is_refused(file: Path, member: str, content: object, said: str) -> None:
    changed(file, **{member: content})
    with pytest.raises(PolicyError, match=said) as caught:
        read_file(file)
    assert caught.value.message.startswith(f"{file}: not a bpfoom object: ")


def test_what_is_nested_too_deep_is_refused(file: Path) -> None:
    file.write_text("[" * 100_000)
    with pytest.raises(PolicyError, match="not a bpfoom object"):
        read_file(file)


@pytest.mark.parametrize("size", [0, 7, 12])
def test_half_an_instruction_is_refused(file: Path, size: int) -> None:
    program = json.loads(file.read_bytes())["programs"][0]
    raw = base64.b64encode(INSNS[:size]).decode()
    changed(file, programs=[{**program, "insns": {"base64": raw}}])
    with pytest.raises(PolicyError, match=f"f has {size} bytes, not whole instructions"):
        read_file(file)


def test_a_fifo_is_refused_and_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o644)
    with pytest.raises(PolicyError, match="not a file"):
        read_file(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses others' files")
@pytest.mark.parametrize(
    ("owner", "group", "mode"), [(65534, 0, 0o600), (0, 65534, 0o664), (0, 0, 0o666)]
)
def test_root_takes_no_object_that_somebody_else_can_write(
    file: Path, owner: int, group: int, mode: int
) -> None:
    os.chown(file, owner, group)
    file.chmod(mode)
    with pytest.raises(PolicyError, match="can be written by others than root") as caught:
        read_file(file)
    assert "install -m 644" in caught.value.hint and caught.value.data["mode"] == f"{mode:04o}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_link_does_not_hide_whose_file_it_is(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_file(link) == OBJECT
    os.chown(file, 65534, 65534)
    with pytest.raises(PolicyError, match="others than root"):
        read_file(link)
