"""What `tcompile build --calibration` was given, for its figures to be computed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcompile import pipeline
from tcompile.core.save import save
from tests.oracles.report.evidence import Given
from tests.oracles.report.shown import Array


def halves(total: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """The samples that are planned with, and the quarter that fidelity is shown on."""
    order = np.random.default_rng(seed).permutation(total).tolist()
    first = total - max(total // 4, 1)
    return sorted(order[:first]), sorted(order[first:])


def given_of(
    artifact: Path,
    source: Path,
    folder: Path,
    *,
    seen: Mapping[str, Array],
    stages: bool,
    **more: Any,
) -> Given:
    """The same, with what is derived from the source in a folder: its normal form, which is what
    FLOPs and memory of the dense model are of, and models that do some steps of the schedule only.

    Args:
        stages: whether to write these.
        more: see `Given`.
    """
    normal = folder / "normal.onnx"
    save(pipeline.read(source).graph, normal)
    schedule = json.loads((artifact / "manifest.json").read_text("utf-8"))["schedule"]
    paths = []
    for count in range(1, len(schedule["reductions"]) if stages else 1):
        some = {**schedule, "reductions": schedule["reductions"][:count]}
        paths.append(folder / f"step{count}.onnx")
        save(pipeline.reduce(source, schedule=some).graph, paths[-1])
    return Given(artifact, source, normal, seen=seen, stages=paths, **more)
