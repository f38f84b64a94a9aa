"""ONNX text before and after every pass, and of every score and reducer.

`python -m pytest tests/golden --update-golden` writes what is found; read the diff.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile.core.errors import TcompileError
from tcompile.passes import lower, reduce
from tcompile.passes.reduce.reducers import REDUCERS
from tcompile.passes.reduce.scores import SCORES
from tests.golden import members, passes
from tests.golden.text import parse, to_text

HERE = Path(__file__).parent
BEFORE, AFTER = "# ---- before\n", "# ---- after\n"
#: Lines that a graph may have.
MOST = 80
SHAPES = {"normalize/infer-shapes", "normalize/free-batch", "reduce/infer-shapes"}
SHAPES |= {"lower/complete-shapes"}
NAMES = {"normalize/unique-names", "lower/rename-nodes"}
FUNCTIONS = {"reduce/token-op-bodies", "lower/token-ops", "lower/move-token-casts"}

WANTED = {
    "normalize": {step.name for step in passes.NORMALIZE},
    "lower": {step.name for step in lower.PASSES},
    "reduce": {step.name for step in reduce.PASSES} | set(passes.REDUCTIONS),
    "resize": set(passes.GRIDS),
    "scores": {score.name for score in SCORES},
    "reducers": {reducer.name for reducer in REDUCERS},
}
STAGES = ("normalize", "reduce", "resize", "lower")
PASSES = [f"{stage}/{name}" for stage in STAGES for name in WANTED[stage]]


def read(path: Path) -> tuple[str, str, str]:
    """The title of a pass's file, its graph before, and the graph after."""
    if not path.exists():
        pytest.fail(f"no {path}: write `# TITLE`, `# ---- before`, a graph, `# ---- after`")
    title, _, rest = path.read_text(encoding="utf-8").partition(BEFORE)
    before, _, after = rest.partition(AFTER)
    return title, before, after


def source(before: str) -> str:
    """The text of a graph, which may be `from FILE` of the folder `shared`."""
    if before.startswith("from "):
        return (HERE / "shared" / before.removeprefix("from ").strip()).read_text(encoding="utf-8")
    return before


def after(name: str, text: str) -> str:
    """Return what a pass makes of a graph, or why it refuses it."""
    before = parse(text)
    known = {v.name for v in (*before.graph.input, *before.graph.initializer)}
    known |= {out for node in before.graph.node for out in node.output}
    try:
        made = passes.run(name, before)
    except TcompileError as error:
        return f"refused: {error.what}\n"
    return to_text(
        made, known, shapes=name in SHAPES, names=name in NAMES, functions=name in FUNCTIONS
    )


def compare(path: Path, written: str, *, update: bool) -> None:
    """Compare a file with what was found, or write it."""
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(written, encoding="utf-8")
        return
    stored = path.read_text(encoding="utf-8") if path.exists() else ""
    assert stored == written, f"{path.name}: --update-golden writes what was found"


@pytest.mark.parametrize("name", sorted(PASSES))
def test_a_pass(name: str, update_golden: bool) -> None:
    path = HERE / f"{name}.txt"
    title, before, _ = read(path)
    found = after(name, source(before))
    compare(path, f"{title}{BEFORE}{before}{AFTER}{found}", update=update_golden)


def cases(shown: list[tuple[str, Callable[[], str]]]) -> str:
    """One graph after the other, each below what it is of."""
    return "\n".join(f"# {title}\n{make()}" for title, make in shown)


@pytest.mark.parametrize("score", SCORES, ids=lambda s: s.name)
def test_a_score(score: Any, update_golden: bool) -> None:
    name = score.name
    shown: list[tuple[str, Callable[[], str]]] = []
    for parameters in members.SCORES.get(name, [{}]):
        title = f"{_titled(name, parameters)}\n# {members.declared_score(score, parameters)}"
        shown.append((title, lambda p=parameters: members.score(name, p)))
    if name in ("static", "window_penalty"):
        first = members.SCORES[name][0]
        title = _titled(name, first) + ", tokens have left"
        shown.append((title, lambda: members.score(name, first, reduced=True)))
    text = cases(shown)
    compare(HERE / "scores" / f"{name}.txt", text, update=update_golden)


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda r: r.name)
def test_a_reducer(reducer: Any, update_golden: bool) -> None:
    name = reducer.name
    listed = [(keep, p, "") for keep, p in members.REDUCERS.get(name, [(5, {})])]
    if not reducer.returns and not reducer.around:
        listed.append((*listed[0][:2], "tokens have sizes"))
    shown: list[tuple[str, Callable[[], str]]] = []
    for keep, parameters, how in [*listed, *members.MORE.get(name, [])]:
        title = f"{_titled(name, parameters)}, keep {keep}{', ' + how if how else ''}"
        title += f"\n# {members.declared_reducer(reducer, parameters)}"
        shown.append((title, lambda k=keep, p=parameters, h=how: members.reducer(name, k, p, h)))
    text = cases(shown)
    compare(HERE / "reducers" / f"{name}.txt", text, update=update_golden)


def _titled(name: str, parameters: dict[str, Any]) -> str:
    return f"{name} {json.dumps(parameters)}" if parameters else name


@pytest.mark.parametrize("stage", sorted(WANTED))
def test_every_one_has_its_file_and_no_file_is_left_over(stage: str) -> None:
    assert {path.stem for path in (HERE / stage).glob("*.txt")} == WANTED[stage]


@pytest.mark.parametrize(
    "path", sorted(HERE.rglob("*.txt")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_graphs_are_short_and_are_onnx(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for part in text.split("<ir_version")[1:]:
        graph = "<ir_version" + part.partition("\n# ")[0]
        assert len(graph.splitlines()) <= MOST
        onnx.parser.parse_model(graph)


def test_ci_does_not_rewrite_them() -> None:
    command = [sys.executable, "-m", "pytest", str(HERE), "--update-golden", "--collect-only", "-q"]
    done = subprocess.run(
        command, env={**os.environ, "CI": "true"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--update-golden" in done.stderr
