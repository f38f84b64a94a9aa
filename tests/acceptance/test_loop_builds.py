"""Builds whose latency is planted: what is written where the reduced model is no faster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import tcompile as package
from tcompile import pipeline
from tcompile.artifact.manifest import Fidelity, Latency
from tcompile.builder.checks import Evidence
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.pipeline import building
from tests.support.planted import Planted, method, model
from tests.support.tiny_vit import save_tiny_vit

SCHEMA = json.loads((Path(package.__file__).parent / "manifest.schema.json").read_text())


PLANTED = Planted().profile(model(), [method(model(), "evit")], kind="modelled")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    """Plant what the reduced model takes of 2 ms; None: nothing runs here."""

    def plant(ms: float | None) -> None:
        def measure(source: Path, reduced: Path, *_: Any, **__: Any) -> Evidence:
            found = Evidence(Fidelity("planted", 1, ()), (), ())
            if ms is None:
                return found
            times = (("dense", 2.0), ("reduced", ms))
            latency = tuple(Latency(m, "measured", t, "here", "it") for m, t in times)  # type: ignore[arg-type]
            return replace(found, latency=latency, faster=ms < 2, notes=("timed",))

        monkeypatch.setattr(building, "measure", measure)

    return plant


def manifest_of(artifact: Path) -> dict[str, Any]:
    document = json.loads((artifact / "manifest.json").read_text())
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    listed = {f["path"] for f in document["files"]}
    there = {p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file()}
    assert there - {"manifest.json"} == listed
    return dict(document)


@pytest.mark.parametrize("name", ["topk", "auto"])
def test_a_slower_build_is_the_dense_model(
    source: Path, timed: Any, tmp_path: Path, name: str
) -> None:
    from tcompile.targets.backends.ort import OrtRunner

    timed(2.5)
    asked: dict[str, Any] = {"target": "cpu", "keep": 0.4, "method": name, "profile": PLANTED}
    made = pipeline.build(source, output=tmp_path / "out", **asked)
    document = manifest_of(made)
    assert {b["mlp"] for b in document["tokens_per_block"]} == {17}
    assert document["faster"] is None
    assert (document["emitted"], document["reason"]) == ("dense", "measured")
    assert document["asked"] == {"keep": 0.4, "patches": 7, "of": 16}
    assert document["kept"] == {"keep": 1.0, "patches": 16, "of": 16}
    first = document["summary"][0]
    method = {"auto": "evit"}.get(name, name)
    assert first.startswith(f"this is the dense model: the reduced model ({method}, 7 of 16 patch")
    assert "measured slower than dense here, 2.5 ms against 2 ms" in first
    report = (made / "report.md").read_text().splitlines()
    assert report[2].startswith(first)
    assert [(f["model"], f["milliseconds"]) for f in document["latency"]] == [("dense", 2.0)]
    assert document["schedule"]["method"] == "none"
    assert document["plan"]["budget"] == {"keep": 0.4}
    assert "timed" not in document["notes"], "said of a model that was not kept"
    tried = Schedule.from_json(document["plan"]["tried_schedule"]["schedule"])
    assert tried.reductions
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    dense, kept = (OrtRunner(p).run({"image": x})["logits"] for p in (source, made / "model.onnx"))
    np.testing.assert_allclose(dense, kept, rtol=1e-4, atol=1e-5)
    assert "--force" in (made / "report.md").read_text()

    forced = manifest_of(pipeline.build(source, output=tmp_path / "forced", force=True, **asked))
    assert forced["faster"] is False
    assert forced["emitted"] == "reduced"
    assert forced["summary"][-1].startswith("the reduced model was measured slower than dense")
    assert Schedule.from_json(forced["schedule"]) == tried
    assert "timed" in forced["notes"]


def test_a_faster_build_stays(source: Path, timed: Any, tmp_path: Path) -> None:
    timed(1.0)
    made = pipeline.build(source, target="cpu", keep=0.4, output=tmp_path / "out", profile=PLANTED)
    document = manifest_of(made)
    assert document["faster"] is True
    assert document["emitted"] == "reduced"
    (line,) = document["summary"]
    assert line.startswith("asked 0.40 (7 of 16 patch tokens), kept 0.44 (7), because that is what")
    assert document["tokens_per_block"][-1]["mlp"] == 8
    assert document["plan"]["latency_kind"] == "modelled"
    assert "planned from a modelled profile, not from a measurement" in document["notes"]
    again = pipeline.reduce(source, schedule=document["schedule"])
    assert again.schedule.to_json() == document["schedule"]


def test_a_bundle_has_modelled_latency(source: Path, timed: Any, tmp_path: Path) -> None:
    timed(None)
    for name, asked in (
        ("auto", {"keep": 0.5}),
        ("topk", {"keep": 0.5}),
        ("tome", {"method": "tome:r=2"}),
        ("dense", {"latency": 1000}),
    ):
        given: dict[str, Any] = {"method": name} if name in ("auto", "topk") else {}
        document = manifest_of(
            pipeline.build(source, target="jetson-orin", output=tmp_path / name, **given, **asked)
        )
        # One model, one figure.
        models = ["dense"] if name == "dense" else ["dense", "reduced"]
        assert [(f["model"], f["kind"]) for f in document["latency"]] == [
            (m, "modelled") for m in models
        ]
        plan = document["plan"]
        assert (plan["latency_kind"], plan["band"]) == ("modelled", 0.3)
        assert plan["predicted_ms"] > 0 < plan["dense_ms"]
        assert (document["emitted"], document["reason"]) == {
            "auto": ("reduced", "asked"),
            "topk": ("reduced", "asked"),
            "tome": ("reduced", "method"),
            "dense": ("dense", "budget"),
        }[name]


def test_nothing_is_written_where_no_plan_is(source: Path, timed: Any, tmp_path: Path) -> None:
    timed(1.0)
    with pytest.raises(UsageError, match="the fastest that was tried takes"):
        pipeline.build(source, target="jetson-orin", latency=1e-6, output=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vit.onnx"]
