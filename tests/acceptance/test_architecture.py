"""The worked examples of docs/architecture.md, followed to the letter in a copy of the checkout.

A comment above a fenced block says what a reader does with it:

    <!-- new PATH -->                     the block is a new file
    <!-- in PATH, after LINE -->          the block goes behind the first line that has this text
    <!-- run -->                          the block is run in a shell; it must succeed
    <!-- run, fails -->                   the same; it must fail
    <!-- prints -->                       each line of the block is in what the last run printed
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
_BLOCK = re.compile(r"<!-- (?P<do>.+?) -->\n```\w*\n(?P<text>.*?)```", re.S)
_SECTION = re.compile(r"^### (?P<title>.+?)$(?P<body>.*?)(?=^##|\Z)", re.S | re.M)


@dataclass(frozen=True)
class Act:
    """One block and what to do with it."""

    do: str
    text: str


def examples() -> dict[str, list[Act]]:
    """Title of a section → its blocks, of those that have any."""
    found = {}
    for section in _SECTION.finditer(PAGE.read_text()):
        acts = [Act(m["do"], m["text"]) for m in _BLOCK.finditer(section["body"])]
        if acts:
            found[section["title"]] = acts
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is needed to run and to test."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("tcompile", "passes", "plugins", "targets", "models", "tests", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def test_there_is_an_op_a_score_and_a_device() -> None:
    titles = " ".join(examples()).lower()
    assert all(thing in titles for thing in ("op", "score", "device"))


@pytest.mark.heavy
@pytest.mark.parametrize("title", list(examples()))
def test_example(title: str, checkout: Path, tmp_path: Path) -> None:
    printed = ""
    for act in examples()[title]:
        if act.do.startswith("new "):
            path = checkout / act.do.removeprefix("new ")
            assert not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(act.text)
        elif match := re.fullmatch(r"in (\S+), after (.+)", act.do):
            _insert(checkout / match[1], match[2], act.text)
        elif act.do.startswith("run"):
            printed = _run(act.text, checkout, fails=act.do == "run, fails")
        elif act.do == "prints":
            for line in act.text.splitlines():
                assert line.strip() in printed, f"{line!r} is not in:\n{printed}"
        else:
            raise AssertionError(f"nothing is known of <!-- {act.do} -->")


def _insert(path: Path, after: str, text: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if after in line), None)
    assert at is not None, f"{path.name} has no line with {after!r}"
    path.write_text("".join([*lines[: at + 1], text, *lines[at + 1 :]]))


def _run(script: str, folder: Path, *, fails: bool) -> str:
    """Return what it printed. The copy comes before what is installed; CI is not set, so that
    golden files may be written."""
    bin_folder = folder / ".bin"
    bin_folder.mkdir(exist_ok=True)
    for name, command in (("python", ""), ("tcompile", " -m tcompile")):
        shim = bin_folder / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        shim.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("PYTEST")}
    env |= {"PYTHONPATH": str(folder), "PATH": f"{bin_folder}:{env['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, printed
    return printed
