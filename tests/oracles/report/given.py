"""What `tcompile build --calibration` was given, for its figures to be computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tcompile import pipeline
from tcompile.core.save import save
from tests.oracles.report.evidence import Given


def halves(total: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """The samples that are planned with, and the quarter that fidelity is shown on."""
    order = np.random.default_rng(seed).permutation(total).tolist()
    first = total - max(total // 4, 1)
    return sorted(order[:first]), sorted(order[first:])


def given_of(
    artifact: Path, source: Path, folder: Path, *, stages_of: Path | None = None, **more: Any
) -> Given:
    """The same, with what is derived from the source in a folder: its normal form, which is what
    FLOPs and memory of the dense model are of, and models that do some steps of the schedule only.

    Args:
        stages_of: another model with the same encoder, whose tokens tell what becomes of them;
            for an artifact that gives all of them back.
        more: see `Given`.
    """
    normal = folder / "normal.onnx"
    save(pipeline.read(source).graph, normal)
    schedule = json.loads((artifact / "manifest.json").read_text("utf-8"))["schedule"]
    steps, paths = schedule["reductions"], []
    schedule.pop("restore", None)
    for count in range(1, len(steps) + (stages_of is not None)):
        some = {**schedule, "reductions": steps[:count]}
        paths.append(folder / f"step{count}.onnx")
        save(pipeline.reduce(stages_of or source, schedule=some).graph, paths[-1])
    return Given(artifact, source, normal, stages=paths, **more)
