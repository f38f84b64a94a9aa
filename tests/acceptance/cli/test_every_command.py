"""Every command with --json, --quiet, NO_COLOR and in a terminal of 60 columns.

Commands are those of click's own tree: one without a row in the table below fails a test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.api import bench, demo
from tcompile.cli import tcompile as group
from tcompile.cli.text import wrapped
from tcompile.methods.presets import ALL as PRESETS
from tcompile.models.report import ExportReport
from tcompile.targets import list_targets
from tests.support.command import Command, Outcome
from tests.support.tiny_vit import save_tiny_vit

#: A control sequence of a terminal.
_CONTROL = re.compile(r"\x1b|[\x00-\x08\x0b\x0c\x0e-\x1f]")
MODEL, ONE, OTHER = "vit_base_patch16-224.onnx", "vit_base_patch16-cpu", "vit_base_patch16-less"
DATA, NEW = "two-black.images.npz", "NEW"
_KEEP = ("--target", "cpu", "--method", "topk", "--keep", "0.5")
#: Commands that are run once with --json and --quiet, and not with each.
SLOW = ("build", "profile", "doctor")
#: Command → arguments with which it works here, or is refused; NEW is a name without a file.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "export": ("zoo:glyphs", "-o", f"{NEW}.onnx"),
    "inspect": (MODEL,),
    "methods": ("tome",),
    "targets": ("cpu",),
    "profile": (MODEL, "--target", "jetson-orin"),
    "plan": (MODEL, *_KEEP),
    "build": (MODEL, *_KEEP, "--force", "-o", NEW),
    "view": (ONE, "--no-open"),
    "compare": (ONE, OTHER),
    "maps": (ONE, "--data", DATA, "-o", NEW),
    "verify": (ONE, "--samples", "1"),
    "evaluate": (ONE, "--data", DATA),
    "bench": (ONE, "--rounds", "5"),
    "run": (ONE, "--input", DATA),
    "init-app": (ONE, "--python", "-o", NEW),
    "plugins list": (),
    "plugins build": ("--tensorrt", "no-such-folder"),  # refused, and builds nothing
    "plugins check": (MODEL,),
    "plugins path": (),
    "demo": (),
    "doctor": (),
}
#: Other ways through the same commands.
MORE = (
    ("inspect", MODEL, "--why", "attn:1"),
    ("methods",),
    ("targets",),
    ("verify", ONE, "--layers", "--data", DATA),
    ("verify", ONE, "--print-polygraphy"),
    ("evaluate", ONE, "--data", DATA, "--fail-under", "top1=1"),
    ("evaluate", ONE, "--data", "no-such-data"),
    ("plan", MODEL, "--target", "cpu", "--keep", "0.5", "--method", "no-such-method"),
)
ALL = (*((*name.split(), *given) for name, given in ARGUMENTS.items()), *MORE)


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The commands of the tree that do something."""
    if not isinstance(command, click.Group):
        yield path
        return
    for name, each in command.commands.items():
        yield from leaves(each, (*path, name))


LEAVES = [" ".join(path) for path in leaves(group)]


def test_every_command_is_in_the_table() -> None:
    assert set(ARGUMENTS) == set(LEAVES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two builds of it, and data; names with all that a line might be broken at."""
    where = tmp_path_factory.mktemp("every")
    save_tiny_vit(where / MODEL)
    for name, keep in ((ONE, 0.5), (OTHER, 0.8)):
        pipeline.build(
            where / MODEL,
            target="cpu",
            method="topk",
            keep=keep,
            force=True,
            preprocess="imagenet",
            output=where / name,
        )
    np.savez(where / DATA, image=np.zeros((2, 3, 32, 32), np.float32), labels=np.arange(2))
    return where


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """Results of what takes seconds: `bench` is run once, those of `demo`, `export` typed."""
    measured = bench.bench(folder / ONE, against=folder / MODEL, rounds=5)
    summary = ("asked 0.50", "the reduced model is faster")
    told = demo.DemoResult(
        MODEL, ONE, "topk", 1, 1.0, 1.0, 17, 9, measured, ("a note",), "reduced", summary
    )
    report = ExportReport(
        Path(MODEL), (Path(MODEL),), "zoo:glyphs", "dynamo", 18, None, {}, {}, 1e-6, ("a note",)
    )
    return {
        "tcompile.api.bench.bench": measured,
        "tcompile.api.demo.demo": told,
        "tcompile.models.export": report,
    }


@pytest.fixture
def here(folder: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one."""
    monkeypatch.chdir(folder)
    for function, result in results.items():
        monkeypatch.setattr(function, partial(_given, result))
    return folder


def _given(result: Any, *_: object, **__: object) -> Any:
    return result


_NUMBER = count()


def called(tcompile: Command, command: tuple[str, ...], *more: str) -> Outcome:
    new = f"new-folder_{next(_NUMBER)}"
    return tcompile(*(word.replace(NEW, new) for word in command), *more)


@pytest.mark.parametrize("command", ALL, ids=" ".join)
@pytest.mark.usefixtures("here")
def test_json_is_one_document_and_quiet_says_what_is_wrong(
    tcompile: Command, command: tuple[str, ...]
) -> None:
    """Piped: without control characters, progress on stderr."""
    said = called(tcompile, command, "--json", *(("-q",) if command[0] in SLOW else ()))
    assert not _CONTROL.search(said.out + said.err + said.log)
    if said.out:
        json.loads(said.out, parse_constant=pytest.fail)
    assert said.out or said.code
    *others, error = said.err.splitlines() or [""]
    assert not others
    assert error.startswith("tcompile: error: ") == bool(said.code)
    if command[0] not in SLOW:
        silent = called(tcompile, command, "-q")
        assert (silent.code, silent.out, silent.err, silent.log) == (said.code, "", said.err, "")


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_sixty_columns_and_no_colour(
    tcompile: Command, command: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}.isatty", lambda: True, raising=False)
    for name, value in (("COLUMNS", "60"), ("TERM", "xterm-256color"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    said = called(tcompile, command)
    assert "\x1b" not in said.out + said.err
    shown = said.err.rpartition("\r")[2] + said.out
    assert shown
    assert put_together(shown, names(here)) == shown
    for line in () if command[-1] == "--print-polygraphy" else shown.splitlines():
        assert len(line) <= 60 or max(map(len, line.split())) > 50, line


@pytest.mark.parametrize("command", ["", *LEAVES, "plugins"])
def test_help_breaks_no_name(
    tcompile: Command, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = tcompile(*command.split(), "--help").out
    assert put_together(shown, names()) == shown


def put_together(text: str, known: set[str]) -> str:
    """The text, with names that are broken at the end of a line in one piece again."""
    for name in known:
        broken = r"(?:\s*\n\s*)?".join(map(re.escape, name))
        text = re.sub(rf"(?<![\w-]){broken}(?![\w-])", name, text)
    return text


def names(folder: Path | None = None) -> set[str]:
    """Names of options, methods, targets, files, nodes, in which a line might be broken."""
    found = {str(o) for c in leaves(group) for p in at(c).params for o in p.opts}
    found |= {preset.name for preset in PRESETS} | {target.name for target in list_targets()}
    if folder is not None:
        found |= {MODEL, ONE, OTHER, DATA, str(folder / ONE), "no-such-method", "no-such-data"}
        found |= {node.name for node in onnx.load(str(folder / MODEL)).graph.node}
    return {name for name in found if re.search(r"\w[-_/.]\w", name)}


def at(path: tuple[str, ...]) -> click.Command:
    """The command of a path."""
    command: click.Command = group
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def test_these_tests_see_a_broken_name() -> None:
    text = "give --fail-\n    under or vit_base_\npatch16"
    assert put_together(text, {"--fail-under", "vit_base_patch16"}) != text
    assert wrapped("give the --fail-under option", 20) == "give the\n  --fail-under\n  option"
