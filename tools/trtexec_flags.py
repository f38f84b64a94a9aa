"""The flags of trtexec by release, from its published source: names, and whether they take a value.

git clone https://github.com/NVIDIA/TensorRT
python -m tools.trtexec_flags TensorRT > tests/support/tensorrt/trtexec_flags.json

It reads `samples/common/sampleOptions.cpp` and its header of every release tag from 10.0 on. A flag
is what a `get…(arguments, "--flag", variable)` of the parser takes; it takes a value unless the
variable is a bool. Flags that a build of trtexec may be compiled without (those of its safety part)
are in it all the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_SOURCE, _HEADER = "samples/common/sampleOptions.cpp", "samples/common/sampleOptions.h"
_OLDEST = (10, 0)
#: `name(… "--flag", variable …)` of the parser; helpers of its own take lists, which are values.
_TAKEN = re.compile(
    r"\b(get\w+)(?:<[^>()]*>)?\(\s*(?:arguments,\s*)?(?:\w+,\s*)?"
    r"\"(--?[A-Za-z]\w*)\"(?:,\s*([\w.]+))?"
)
_PARSER = re.compile(r"^void (\w+)::parse\(Arguments& arguments\)$", re.MULTILINE)
#: Other programs that share the file.
_OTHERS = ("SafeBuilderOptions", "TaskInferenceOptions")


def table(repository: Path) -> dict[str, Any]:
    """Return the table: releases with their commits; flag → value, releases, where not all."""
    releases, found = [], dict[str, dict[str, bool]]()
    ignored: dict[str, list[str]] = {}
    for version, tag in _releases(repository):
        names = flags(_show(repository, tag, _SOURCE), _show(repository, tag, _HEADER))
        commit = _git(repository, "rev-parse", f"{tag}^{{commit}}").strip()
        releases.append({"version": version, "tag": tag, "commit": commit})
        for name, takes in names.items():
            found.setdefault(name, {})[version] = takes
        for name in no_ops(_show(repository, tag, _SOURCE)):
            ignored.setdefault(name, []).append(version)
    every = [r["version"] for r in releases]
    rows = {}
    for name, by_version in sorted(found.items(), key=lambda item: item[0].lower()):
        if len(set(by_version.values())) > 1:
            raise ValueError(f"{name} takes a value in some releases only: {by_version}")
        row: dict[str, Any] = {"value": next(iter(by_version.values()))}
        if len(by_version) < len(every):
            row["releases"] = list(by_version)
        if name in ignored:
            row["ignored"] = ignored[name]
        rows[name] = row
    return {
        "source": f"github.com/NVIDIA/TensorRT, {_SOURCE}, by tools/trtexec_flags.py",
        "releases": releases,
        "flags": rows,
    }


def flags(source: str, header: str) -> dict[str, bool]:
    """Return flag → whether it takes a value, of one release."""
    found: dict[str, bool] = {}
    for text in _parsers(source):
        for taken in _TAKEN.finditer(text):
            function, name, variable = taken.groups()
            before = text[: taken.start()]
            found[name] = _takes_value(function, variable or "", before, header)
        missed = set(re.findall(r"\"(--\w+)\"", text)) - set(found)
        if missed:
            raise ValueError(f"flags in a form that is not known: {sorted(missed)}")
    return found


def no_ops(source: str) -> set[str]:
    """Return the flags of which the help says that they do nothing any more."""
    lines = re.findall(r"^\s*\"\s*(--\w+)([^\n]*)", source, re.MULTILINE)
    return {name for name, rest in lines if "is a no-op" in rest}


def _parsers(source: str) -> list[str]:
    """The functions of the parser, helpers in front of the first class included."""
    heads = list(_PARSER.finditer(source))
    ends = [*(h.start() for h in heads[1:]), source.index("::help(")]
    parts = [source[: heads[0].start()]]
    parts += [
        source[h.start() : end] for h, end in zip(heads, ends, strict=True) if h[1] not in _OTHERS
    ]
    return parts


def _takes_value(function: str, variable: str, before: str, header: str) -> bool:
    if function == "getAndDelNegOption":
        return False
    if function not in ("getAndDelOption", "getOption"):
        return True
    name = variable.rsplit(".", 1)[-1]
    local = re.findall(rf"\b([\w:<>]+)(?: const)? {name}(?:\{{[^}}]*\}}|\s*=[^;]*)?;", before)
    member = re.findall(rf"^\s+([\w:<>, ]+?) {name}(?:\{{[^;]*\}}|\s*=[^;]*)?;", header, re.M)
    kinds = local[-1:] or member
    if not kinds:
        raise ValueError(f"the type of {variable} is not found")
    return "bool" not in kinds


def _releases(repository: Path) -> list[tuple[str, str]]:
    """(version, tag) of the release tags, oldest first."""
    found = []
    for tag in _git(repository, "tag", "--list", "v*").split():
        numbers = tuple(int(part) for part in tag[1:].split("."))
        if numbers >= _OLDEST:
            found.append((numbers, tag))
    return [(".".join(map(str, numbers)), tag) for numbers, tag in sorted(found)]


def _show(repository: Path, tag: str, path: str) -> str:
    return _git(repository, "show", f"{tag}:{path}")


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def text(repository: Path) -> str:
    """Return the file: a line for each release and each flag."""
    found = table(repository)
    releases = ",\n".join(f"  {json.dumps(row)}" for row in found["releases"])
    rows = ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in found["flags"].items())
    source = json.dumps(found["source"])
    parts = f'"source": {source}', f'"releases": [\n{releases}\n ]', f'"flags": {{\n{rows}\n }}'
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    print(text(Path(sys.argv[1])), end="")
