# SPDX-License-Identifier: Apache-2.0
"""The schemas of docs/schemas as validators, for the tests of every room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SUFFIX = ".schema.json"
DIRECTORY = Path(__file__).parents[1] / "docs" / "schemas"
SCHEMAS: dict[str, Any] = {
    path.name.removesuffix(SUFFIX): json.loads(path.read_text())
    for path in sorted(DIRECTORY.glob(f"*{SUFFIX}"))
}
_REGISTRY: Registry[Any] = Registry().with_resources(
    (name + SUFFIX, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)


def problems(name: str, document: Any) -> list[str]:
    """What is wrong with a document by the schema of that name: place and reason, one each.

    A part of a schema is named as in ``demo#/$defs/run``.
    """
    # By reference, so that the schema's own "#/..." are resolved in its file.
    file, hash_sign, part = name.partition("#")
    validator = Draft202012Validator({"$ref": file + SUFFIX + hash_sign + part}, registry=_REGISTRY)
    found = validator.iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def valid(name: str, document: Any) -> Any:
    """The document, unless the schema of that name says no: then AssertionError."""
    found = problems(name, document)
    assert found == [], found
    return document
