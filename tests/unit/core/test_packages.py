"""Optional packages: the table agrees with pyproject.toml, and a message names what brings one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcompile.core.errors import BrokenPackageError, MissingExtraError
from tcompile.core.packages import OPTIONAL, require

ROOT = Path(__file__).parents[3]
FOLDERS = ("tcompile", "passes", "plugins", "targets", "models")


def extras() -> dict[str, dict[str, str]]:
    """Extra → distribution → its oldest version, of pyproject.toml (Python 3.10 has no tomllib)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    part = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    found: dict[str, dict[str, str]] = {}
    for extra, items in re.findall(r"^(\w+) = \[(.*)\]$", part, re.MULTILINE):
        pairs = re.findall(r'"([\w-]+)(?:>=([\d.]+))?[";]', items)
        found[extra] = dict(pairs)
    return found


def test_the_table_is_that_of_pyproject() -> None:
    known = extras()
    for package in OPTIONAL:
        assert known[package.extra].get(package.name) == package.least, package
    listed = {
        name
        for extra in (
            "cpu",
            "export",
            "rtx",
            "openvino",
            "tensorrt",
            "cuda",
            "plot",
            "yaml",
            "data",
        )
        for name in known[extra]
    }
    assert listed == {p.name for p in OPTIONAL}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Calls that name a package and the extra that brings it."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in ("require", "MissingExtraError")
                    and len(node.args) == 3
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_each_message_names_the_smallest_extra_that_brings_it() -> None:
    brings = {name: p.extra for p in OPTIONAL for name in (p.name, p.module)}
    seen = 0
    for where, call in calls():
        named, extra = call.args[:2]
        if isinstance(named, ast.Constant) and isinstance(extra, ast.Constant):
            name = re.split(r"[.>]", str(named.value))[0]
            assert extra.value == brings[name], where
            seen += 1
    assert seen > 15


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError) as caught:
        require("PIL", "cpu", "reading images")
    line = caught.value.one_line()
    assert (
        line
        == "reading images needs 'pillow', which is not installed (pip install 'tcompile[cpu]')"
    )


def test_a_package_that_cannot_be_loaded_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfbuilt.py").write_text("raise OSError('libnvinfer.so.10: not found')")
    (tmp_path / "needy.py").write_text("import absent_thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BrokenPackageError, match=r"is installed and cannot be loaded: libnvinfer"):
        require("halfbuilt", "rtx", "building")
    with pytest.raises(MissingExtraError, match="needs 'absent_thing', which is not installed"):
        require("needy", "rtx", "building")
