"""Inputs of an artifact's checks: stored as they are run, in types that numpy alone reads."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from tcompile.builder.check_inputs import check_inputs, write_inputs
from tcompile.runtime.signature import signature
from tests.support.tiny_vit import VitSpec, save_tiny_vit


def test_what_is_stored_is_what_is_run(tmp_path: Path) -> None:
    free = signature(save_tiny_vit(tmp_path / "free.onnx", VitSpec(depth=1), batch=None))
    fixed = signature(save_tiny_vit(tmp_path / "fixed.onnx", VitSpec(depth=1), batch=1))
    (three,), scenes = check_inputs(free, 3)
    assert len(three["image"]) == len(scenes) == 3
    runs, scenes = check_inputs(fixed)
    assert (len(runs), len(scenes)) == (2, 2)
    large = {"wide": np.float32([1e6, 1e-6]), "index": np.arange(3)}
    coarse = {"coarse": np.float32([1, 257]).astype(ml_dtypes.bfloat16)}
    write_inputs(tmp_path, [*runs, large | coarse])
    write_inputs(tmp_path, [{"other": np.zeros(1, np.float32)}])  # another check found them there
    stored = np.load(tmp_path / "checks" / "scenes.npz")
    assert set(stored) == {
        *("0|float32|image", "1|float32|image"),
        *("2|float32|wide", "2|int64|index", "2|float32|coarse"),
    }
    assert stored["0|float32|image"].dtype == np.float16
    for i, run in enumerate([*runs, large]):
        for name, array in run.items():
            have = stored[f"{i}|{array.dtype.name}|{name}"].astype(array.dtype)
            assert np.array_equal(have, array)
    assert stored["2|float32|coarse"].tolist() == coarse["coarse"].astype(np.float32).tolist()
