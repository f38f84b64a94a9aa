"""The JSON schema of a manifest, made from its classes: fields, bounds, and what each one means.

python -m tools.manifest_schema > tcompile/manifest.schema.json
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import msgspec

from tcompile.analysis import memory
from tcompile.artifact import manifest


def schema() -> dict[str, Any]:
    """Return the schema; every field is required, and no other may be there."""
    _, parts = msgspec.json.schema_components([manifest.Manifest], ref_template="#/$defs/{name}")
    for name, part in parts.items():
        owner = manifest if hasattr(manifest, name) else memory
        _complete(part, inspect.getdoc(getattr(owner, name)) or "")
    whole = parts.pop("Manifest")
    fields = {name: whole["properties"][name] for name in ("schema", "tool", *whole["properties"])}
    whole |= {"title": "tcompile artifact manifest", "properties": fields, "required": [*fields]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:tcompile:manifest:1",
        **whole,
        "$defs": parts,
    }


def _complete(part: dict[str, Any], doc: str) -> None:
    """Add what msgspec does not say of a data class, in place; `doc` is its docstring."""
    head, _, attributes = doc.partition("Attributes:\n")
    part["description"] = " ".join(head.split())
    meanings = dict(re.findall(r"(?ms)^    (\w+): (.*?)\.?$(?=\n    \w|\Z)", attributes))
    for name, field in part["properties"].items():
        field.pop("default", None)  # A document has every field.
        if name in meanings:
            field["description"] = " ".join(meanings.pop(name).split())
    if meanings:
        raise ValueError(f"{part['title']} has no fields {', '.join(meanings)}")
    part |= {"required": list(part["properties"]), "additionalProperties": False}


def text() -> str:
    """Return the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
