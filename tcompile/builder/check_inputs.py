"""The inputs of an artifact's checks, `checks/scenes.npz`: what polygraphy.sh and, in a Jetson's
bundle, check.sh run on. Procedural scenes, rounded to fp16 before anything is run on them, so that
nothing is lost by storing them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.artifact.polygraphy import INPUTS
from tcompile.runtime.samples import Samples, feeds
from tcompile.runtime.scenes import JUDGED_ON, scenes_for
from tcompile.runtime.signature import Signature

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
#: At least.
_SCENES = 2


def check_inputs(model: Signature, least: int = 1) -> tuple[list[Arrays], Samples]:
    """Return what a model is run on, run after run, and the scenes that it was made of.

    Args:
        least: samples of a run where the model takes any number.
    """
    count = max(_SCENES, least) if model.batch is None else _SCENES
    scenes = scenes_for(model.whole, count=count, seed=JUDGED_ON)
    runs = [
        {name: _narrow(array).astype(array.dtype) for name, array in run.items()}
        for run in feeds(model, scenes, least)
    ]
    return list(runs), scenes


def write_inputs(folder: Path, runs: Sequence[Arrays]) -> None:
    """Store them in an artifact, by the names `RUN|DTYPE|INPUT`; what is there stays."""
    path = folder / INPUTS
    if path.exists():
        return
    stored = {
        f"{i}|{stored_dtype(array.dtype.name)}|{name}": _narrow(array)
        for i, run in enumerate(runs)
        for name, array in run.items()
    }
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **stored)  # type: ignore[arg-type]


def stored_dtype(dtype: str) -> str:
    """Return what an input is read as: numpy alone, which checks are run with, has no bfloat16."""
    return "float32" if dtype == "bfloat16" else dtype


def _narrow(array: Array) -> Array:
    """In fp16 where that has all values: images have 8 bits."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype != np.float32 or np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        return array
    return array.astype(np.float16)
