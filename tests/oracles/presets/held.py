"""Holding what tcompile makes of a preset against the preset's oracle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tcompile import pipeline
from tests.oracles.compare import Subject, check, check_structure, dense_errors
from tests.oracles.presets.base import PresetOracle
from tests.oracles.presets.comparing import agree
from tests.oracles.presets.scores import Head
from tests.oracles.presets.subjects import Setting, file_of, subject
from tests.support.onnx_models import to_onnx


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
    *,
    head: Head | None = None,
    images: bool = False,
    close: bool = False,
) -> dict[str, Any]:
    """Reduce a model by the preset, hold it against the oracle, and give the schedule's JSON.

    values: parameters of the preset, for compiler and oracle.  head: what the compiler gets as a
    file.  images: whether counts are learnt on some.  close: whether some decision is always too
    close to tell (`agree`).

    Raises MismatchError where they differ.
    """
    path = file_of(setting, cache)
    found = subject(setting.source, setting.tokens, setting.depth)
    given, known = dict(values), dict(values)
    request: dict[str, Any] = {"keep": None if keep is None else float(keep)}
    if head is not None:
        file = path.with_name(f"{path.stem}-{oracle.name}.{os.getpid()}.npz")
        head.save(file)
        given["head"], known["weights"] = file, head
    if images:
        file = path.with_name(f"{path.stem}-images.{os.getpid()}.npz")
        (name,) = (one.name for one in onnx.load(path).graph.input)
        np.savez(file, **{name: found.pool[-4:].numpy()})
        request["calibration"] = file
    request["method"] = method(oracle.name, given)
    return against(oracle, path, found, setting.batch, request, known, close=close)


def against(
    oracle: PresetOracle,
    path: Path,
    found: Subject,
    count: int,
    request: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    close: bool = False,
) -> dict[str, Any]:
    """Reduce a file as requested and hold it against the oracle on `count` images; the schedule's
    JSON. Raises MismatchError where they differ."""
    reduced = pipeline.reduce(path, target="cpu", **request)
    schedule = reduced.schedule.to_json()
    cuts = oracle.reductions(schedule, values)
    assert cuts, "nothing leaves"
    model, dense = to_onnx(reduced.graph), onnx.load(path)
    check_structure(model)
    if close:
        agree(model, dense, found, cuts, count)
    else:
        chosen = found.images(cuts, count)
        check(model, found, chosen, cuts, dense_errors(dense, found, chosen))
    return schedule
