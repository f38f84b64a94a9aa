"""Holding what a preset makes of an exported model against its rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch

from tests.oracles.compare import (
    CLEAR,
    EXTRA,
    FACTOR,
    FLOOR,
    MismatchError,
    Subject,
    dense_errors,
    infer_in_batches,
)
from tests.oracles.methods import Reduction, Result

#: Differences of neighbouring energies decide too; in float32 they are off by up to 2e-7.
DOUBT = {**CLEAR, "energy": 2e-6}


def agree(
    model: onnx.ModelProto,
    dense: onnx.ModelProto,
    found: Subject,
    cuts: Sequence[Reduction],
    batch: int,
    tries: int = 5,
) -> None:
    """Compare `batch` images at a time until as many agree.

    An image on which the oracle was in no doubt must agree. One whose closest decision was closer
    than float32 can tell may come out otherwise, and then does not count: where tokens are paired
    by their rank, one decision of hundreds always is.

    Raises:
        MismatchError: where they differ.
    """
    good, last = 0, ""
    for start in range(0, batch * tries, batch):
        images = found.pool[start : start + batch]
        allowed = dense_errors(dense, found, images)
        ours, theirs = infer_in_batches(model, images), found.run(images, cuts)
        clear = torch.ones(batch, dtype=torch.bool)
        for margin in theirs.margins:
            if margin.what != "owner":
                clear &= margin.gap > DOUBT[margin.what]
        for row in range(batch):
            problem = _difference(ours, theirs, allowed, row)
            if problem and bool(clear[row]):
                raise MismatchError(f"image {start + row}: {problem}")
            good, last = good + (not problem), problem or last
        if good >= batch:
            return
    raise MismatchError(f"{good} of {batch * tries} images agree: {last}")


def _difference(
    ours: Mapping[str, Any], theirs: Result, allowed: tuple[float, ...], row: int
) -> str:
    """Return what is different in an image, or nothing."""
    values = [v for name, v in ours.items() if name not in EXTRA]
    for value, output, dense in zip(values, theirs.outputs, allowed, strict=True):
        want = output.value[row].numpy()
        if value[row].shape != want.shape:
            return f"shape {value[row].shape}, not {want.shape}"
        error = float(np.abs(value[row] - want).max())
        limit = FACTOR * max(dense, FLOOR * float(np.abs(want).max()))
        if not error <= limit:
            return f"error {error:.2e}, allowed {limit:.2e}"
    tokens = [o for o in theirs.outputs if o.first is not None]
    if not tokens or theirs.index.shape == theirs.owner.shape:
        return ""
    first = tokens[0].first or 0
    wanted = {
        "token_index": tokens[0].part(torch.where(theirs.index < 0, -1, theirs.index - first)),
        "token_owner": tokens[0].part(theirs.owner) - first,
        "token_size": tokens[0].part(theirs.size),
    }
    if "token_index" not in ours:
        return "no token_index"
    for name, want_all in wanted.items():
        if name not in ours:
            continue
        have, want = ours[name][row], want_all[row].numpy()
        # Some sizes are sums of similarities.
        close = 1e-5 if name == "token_size" else 0.0
        if have.shape != want.shape or not np.allclose(have, want, rtol=close, atol=0.0):
            return f"{name} {have.tolist()} instead of {want.tolist()}"
    return ""
