"""Which `token_index` belongs to which output, as the model, the manifest and `run` say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.api.run import run
from tcompile.artifact.directory import load_artifact
from tcompile.runtime.token_outputs import read_record, recorded
from tests.oracles.compare import infer
from tests.support import token_sets as sets
from tests.support.onnx_models import to_onnx


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outputs") / "depths.onnx"
    onnx.save(sets.depths(), path)
    return path


def step(site: str, reducer: str, keep: int) -> dict[str, object]:
    score = {"name": "norm"} if reducer == "topk" else None
    return {"site": site, "score": score, "reducer": {"name": reducer}, "keep": keep}


def schedule(*steps: dict[str, object]) -> dict[str, object]:
    shape = {"tokens": 17, "prefix": 1, "patches": 16, "blocks": 4}
    return {"schema": 1, "method": "own", "model": shape, "reductions": list(steps)}


def test_each_output_has_its_own_index(source: Path) -> None:
    """After merging, outputs of two depths have tokens of their own."""
    steps = (step("attn:0", "merge", 12), step("attn:2", "merge", 8))
    made = pipeline.reduce(source, schedule=schedule(*steps))
    index = dict(made.token_index)
    assert index["early"] != index["patches"] == index["again"] != index["all"]
    assert read_record(made.metadata) == index
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    found = infer(to_onnx(made.graph), {"image": image})
    for name, told in index.items():
        assert found[name].shape[1] == found[told].shape[1]


def test_what_was_dropped_is_told_in_manifest_report_and_run(source: Path, tmp_path: Path) -> None:
    folder = pipeline.build(
        source,
        target="cpu",
        schedule=schedule(step("attn:0", "topk", 8)),
        output=tmp_path / "out",
        force=True,
    )
    artifact = load_artifact(folder)
    told = artifact.manifest.token_index
    assert set(told) == {"early", "patches", "again", "all"}
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert f"The rows of `early` are the tokens that `{told['early']}` lists." in report
    data = tmp_path / "image.npy"
    np.save(data, np.zeros((1, 3, 32, 32), np.float32))
    shown = {out.name: out.token_index for out in run(folder, data).outputs}
    assert {name: shown[name] for name in told} == told


def test_a_record_that_is_none_is_passed_over() -> None:
    assert recorded({}) == {}
    assert read_record({"tcompile.token_index": "{"}) == {}
    assert read_record({"tcompile.token_index": "[1]"}) == {}
