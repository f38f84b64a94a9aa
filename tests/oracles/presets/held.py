"""Holding what tcompile makes of a preset against the preset's oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from tcompile import pipeline
from tcompile.ir import to_onnx
from tests.oracles.compare import check, check_structure, dense_errors
from tests.oracles.presets.base import PresetOracle
from tests.oracles.presets.subjects import Setting, file_of, subject


def method(name: str, values: Mapping[str, Any]) -> str:
    """As `--method` takes it."""
    given = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{name}:{given}" if given else name


def holds(
    oracle: PresetOracle,
    setting: Setting,
    cache: Path,
    values: Mapping[str, Any],
    keep: str | None,
    graph: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reduce a model by the preset, hold it against the oracle, and give the schedule's JSON.

    values: parameters of the preset, for compiler and oracle.  graph: parameters that the compiler
    alone gets, such as a file.

    Raises MismatchError where they differ.
    """
    path = file_of(setting, cache)
    found = subject(setting.source, setting.tokens, setting.depth)
    name = method(oracle.name, {**values, **(graph or {})})
    share = None if keep is None else float(keep)
    reduced = pipeline.reduce(path, target="cpu", keep=share, method=name)
    schedule = reduced.schedule.to_json()
    cuts = oracle.reductions(schedule, values)
    assert cuts, "nothing leaves"
    images = found.images(cuts, setting.batch)
    model = to_onnx(reduced.graph)
    check_structure(model)
    check(model, found, images, cuts, dense_errors(onnx.load(path), found, images))
    return schedule
