"""What a build stores for polygraphy, and the loader that polygraphy calls."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from polygraphy.comparator import IterationResult

import tcompile
from tcompile.artifact.polygraphy import INPUTS, LOADER, OUTPUTS, read_parts
from tcompile.builder import polygraphy
from tests.support.tiny_vit import VitSpec, save_tiny_vit


def loader_of(artifact: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("polygraphy_data", artifact / LOADER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checks")
    save_tiny_vit(folder / "vit.onnx", VitSpec(pool="none"))
    return tcompile.build(
        folder / "vit.onnx", target="cpu", method="topk", keep=0.5, output=folder / "a", force=True
    )


def test_inputs_are_what_the_model_was_run_on(built: Path) -> None:
    runs = list(loader_of(built).load_scenes())
    assert len(runs) == 2
    with tcompile.load(built) as model:
        found = model(np.concatenate([run["image"] for run in runs]))
    for run in runs:
        assert (run["image"].shape, run["image"].dtype) == ((1, 3, 32, 32), np.float32)
        assert np.array_equal(run["image"], run["image"].astype(np.float16))
    from polygraphy.comparator import RunResults

    (_, stored), *_ = RunResults.load(str(built / OUTPUTS)).items()
    want = np.concatenate([np.asarray(run["tokens"]) for run in stored])
    np.testing.assert_allclose(found["tokens"], want, atol=1e-5)


def test_a_token_that_is_flipped_counts_for_itself(built: Path) -> None:
    module = loader_of(built)
    assert module.ROWS == {"tokens": ("token_index", 1, 17)}
    rows = np.arange(12, dtype=np.float32).reshape(1, 4, 3)

    def spread(index: list[int]) -> np.ndarray:
        given = {"tokens": rows, "token_index": np.array([index]), "token_size": rows[..., 0]}
        found = module.postprocess_outputs(IterationResult(given, runner_name="a"))
        assert list(found) == ["tokens"]
        return np.asarray(found["tokens"])

    before, after = spread([0, 3, 7, 9]), spread([0, 3, 8, 9])
    assert before.shape == (1, 18, 3)
    assert np.array_equal(before[0, [0, 3, 7, 9]], rows[0])
    assert sorted(np.nonzero((before != after).any(axis=(0, 2)))[0]) == [7, 8]
    fused = spread([0, -1, 3, -1])
    assert np.array_equal(fused[0, 17], rows[0, 1] + rows[0, 3])


def test_kept_tokens_are_compared_with_those_of_the_dense_model(built: Path) -> None:
    module = loader_of(built)
    dense = np.random.default_rng(0).standard_normal((1, 17, 8)).astype(np.float32)
    index = np.array([[0, 4, 5, -1]])
    rows = np.concatenate([dense[:, [0, 4, 5]], np.ones((1, 1, 8), np.float32)], axis=1)
    module.KEPT = {"tokens": (0.999, 0.1)}
    want = IterationResult({"tokens": dense}, runner_name="dense")

    def same(changed: np.ndarray) -> bool:
        have = IterationResult({"tokens": changed, "token_index": index}, runner_name="reduced")
        return bool(module.compare_kept_tokens(have, want)["tokens"])

    assert same(rows)  # the one that stands for several is left out
    assert not same(rows + 0.1)
    assert not same(rows[:, [1, 0, 2, 3]])


def test_large_outputs_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    monkeypatch.setattr(polygraphy, "_MOST", 1000)
    source = built.parent / "vit.onnx"
    again = tcompile.build(
        source, target="cpu", method="topk", keep=0.5, output=tmp_path / "a", force=True
    )
    parts = read_parts((again / "polygraphy.sh").read_text(encoding="utf-8"))
    assert [part.name for part in parts] == ["dense"]
    assert (again / INPUTS).is_file()
    assert not (again / OUTPUTS).exists()
    assert len(list(loader_of(again).load_scenes())) == 1
