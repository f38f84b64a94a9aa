"""From `tcompile build --calibration` to a report each of whose figures is computed in another way.

Of report.html, report.md and the lines that the build prints (tests/oracles/report):

| figure | computed from |
|---|---|
| FLOPs, times less | shapes that ONNX Runtime gives all tensors; 2·M·N·K a product |
| tokens: asked, kept, by block and step | shapes of softmaxes and MLPs there; ceil(keep·T) |
| memory: weights, activations | bytes of initialisers; liveness over those shapes |
| file sizes, digest, versions, ends | files, hashlib, importlib.metadata, ONNX Runtime |
| medians, speed-ups, intervals | the rounds in the manifest, by `statistics` and a bootstrap |
| fidelity, loss, top-1, worst images, classes | outputs of both models in ONNX Runtime, in numpy |
| maps | `token_owner` of models that do the first 1, 2, … steps |
| predicted latencies, the curve | the formula of docs/planner.md on a profile in closed form |
| loss of the plan that was taken | outputs on the images that were planned with |
| plots | places of points, lines, labels, tips through the axes' ticks |
| pictures | whose they are: the sample whose values go with their pixels most |
| losses of other plans | table, plot and manifest agree; which is beaten (their models are gone) |
| bounds for polygraphy | tests/acceptance/test_polygraphy.py |
| the command | typed again, elsewhere: the same model, byte by byte |
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile import pipeline
from tcompile.api.demo import write_glyphs
from tcompile.cli import main
from tcompile.methods.method import method_for
from tcompile.models.glyphs import data
from tcompile.models.glyphs.evaluate import HELD_OUT_SEED
from tcompile.planning.constraints import site_constraints
from tcompile.profiling.modelled import modelled_profile
from tcompile.targets import load_target
from tests.oracles.report.given import given_of, halves
from tests.oracles.report.mutants import unseen
from tests.oracles.report.report import Report
from tests.support import browser as browsers

_SCENES, _PLANNED = 24, 8
_COMMAND = (
    "tcompile build glyphs.onnx --target cpu --keep 0.5 --calibration scenes.npz "
    f"--images {_PLANNED} --calibration-level coarse --threads 1 --profile profile.json --force"
)


def write_profile(path: Path) -> None:
    """A measured profile in closed form: attention c + a·n + b·n² ms, MLPs and head c + a·n."""
    read = pipeline.read("glyphs.onnx")
    rules = site_constraints(read.analysis, "reduced")
    methods = [
        method_for(read.analysis, rules, name, "reduced") for name in ("tome", "topk", "evit")
    ]
    profile = modelled_profile(
        read.graph,
        read.analysis,
        methods,
        load_target("rtx-4090"),
        precision="fp32",
        batch=1,
        source="glyphs.onnx",
    ).to_json()

    def figure(ms: float) -> list[float]:
        return [ms, 0.9999 * ms, 1.0001 * ms, 9]

    for i, rows in enumerate({**profile["halves"], **profile["heads"]}.values()):
        for row in rows:
            row[1:] = figure(0.02 + 0.001 * i + 2e-3 * row[0] + 4e-6 * row[0] ** 2)
    for rows in profile["reducers"].values():
        for row in rows:
            before, after = row[:2]
            row[2:] = figure(0.01 + 1e-4 * before + 1e-7 * (before - after) * after)
    profile["stem"] = {name: figure(0.3) for name in profile["stem"]}
    profile["dense"] = figure(8.0)
    profile["kind"] = "measured"
    conditions = {"target": "cpu", "device": "a test", "runtime": "none", "threads": 1}
    profile["conditions"] |= {**conditions, "date": "2026-01-02T03:04:05+00:00"}
    path.write_text(json.dumps(profile), encoding="utf-8")


def typed(command: str, *more: str) -> str:
    """What a command of tcompile prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()) as said:
        assert main([*shlex.split(command)[1:], *more]) == 0, said.getvalue()
    return printed.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the model was built, and the present folder."""
    where = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCOMPILE_CACHE", str(where / "cache"))
        patch.chdir(where)
        write_glyphs(Path("glyphs.onnx"))
        images, labels, _ = data.batch(HELD_OUT_SEED, 0, _SCENES)
        np.savez("scenes.npz", image=data.preprocess(images), labels=labels)
        write_profile(Path("profile.json"))
        printed = typed(_COMMAND, "-o", "made").replace(str(where), "")  # its name has numbers
        Path("printed.txt").write_text(printed, encoding="utf-8")
        yield where


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    image = np.load("scenes.npz")["image"]
    planned, seen = halves(_SCENES)
    given = given_of(
        Path("made"),
        Path("glyphs.onnx"),
        folder,
        keep="0.5",
        seen={"image": image[seen]},
        names=[f"sample {row + 1}" for row in seen],
        planned={"image": image[planned[:_PLANNED]]},
        profile=Path("profile.json"),
        printed=Path("printed.txt").read_text(encoding="utf-8"),
        command=_COMMAND,
        total=(_SCENES, "scenes.npz"),
        own=_PLANNED,
    )
    return Report(given)


def wrong(report: Report, **texts: str) -> list[str]:
    """Figures that are not as they were computed; a text that cannot be read is wrong as well."""
    try:
        return [
            f"{c.figure}: {c.shown}, not {c.found}" for c in report.checks(**texts) if not c.equal
        ]
    except (AssertionError, LookupError, StopIteration, ValueError) as error:
        return [f"cannot be read: {error!r}"]


def test_every_figure_is_as_it_is_computed_in_another_way(report: Report) -> None:
    assert len(report.checks()) > 150
    assert wrong(report) == []


@pytest.mark.parametrize("kind", ["html", "markdown", "printed"])
def test_every_number_that_is_shown_is_looked_at(report: Report, kind: str) -> None:
    text = getattr(report, kind).partition("## Checks by polygraphy")[0]
    assert (
        unseen(text, lambda changed: bool(wrong(report, **{kind: changed})), html=kind == "html")
        == []
    )


def moved(html: str, chart: str, pattern: str) -> str:
    """A page in which a place in a chart is three pixels up."""
    start = html.index(f'"{chart}-t {chart}-d"')
    found = re.compile(pattern).search(html, start)
    assert found is not None
    return f"{html[: found.start(1)]}{float(found[1]) - 3:g}{html[found.end(1) :]}"


@pytest.mark.parametrize(
    ("chart", "pattern"),
    [
        ("front", r'class="mark"[^>]* cy="([\d.]+)"'),
        ("front", r'class="line" d="M[\d.]+ ([\d.]+)'),
        ("front", r'<path class="grid" d="M[\d.]+ ([\d.]+)H'),
        ("depth", r'class="line strong" d="M[\d.]+ [\d.]+L[\d.]+ ([\d.]+)'),
        ("depth", r'class="line dashed" d="M[\d.]+ ([\d.]+)'),
        ("latency", r'class="line strong" d="M[\d.]+ [\d.]+L[\d.]+ ([\d.]+)'),
        ("latency", r'class="mark"[^>]* cy="([\d.]+)"'),
    ],
)
def test_a_point_that_lies_elsewhere_is_seen(report: Report, chart: str, pattern: str) -> None:
    assert wrong(report, html=moved(report.html, chart, pattern))


def test_the_command_makes_the_same_model(
    folder: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = re.findall(r"<pre>(.*?)</pre>", report.html)
    for name in ("glyphs.onnx", "scenes.npz", "profile.json"):
        shutil.copy(folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    typed(command)
    (made,) = tmp_path.glob("*/model.onnx")
    assert made.read_bytes() == (folder / "made" / "model.onnx").read_bytes()


def test_its_first_screen_and_its_tables_in_a_browser(folder: Path, report: Report) -> None:
    with browsers.chromium() as chromium:
        chromium.get(browsers.address(folder / "made" / "report.html"))
        shown: list[Any] = chromium.find_elements("css selector", ".card, .top .pic")
        assert len(shown) == 5
        assert max(each.rect["y"] + each.rect["height"] for each in shown) <= 800
        assert browsers.pages_in_print(chromium) == 2
        for details in chromium.find_elements("css selector", "details"):
            chromium.execute_script("arguments[0].open = true", details)
        for dark in (False, True):
            browsers.dark(chromium, dark)
            assert browsers.axe(chromium) == []
