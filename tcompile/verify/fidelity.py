"""Fidelity: the reduced model against the dense one, output by output.

Nothing here passes or fails: the user decides how much may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.artifact.manifest import Fidelity, OutputFidelity
from tcompile.report.shown import Seen, chosen_rows
from tcompile.runtime.metrics import (
    correlation,
    cosine,
    holds_classes,
    relative_error,
    token_cosine,
    top1_agreement,
)
from tcompile.runtime.samples import Samples, run_all
from tcompile.runtime.token_outputs import Compared, aligned, is_bookkeeping, tower_of_outputs
from tcompile.targets.backends.cpu import ORT, OnCpu

Array = npt.NDArray[Any]
#: Cosine, or correlation, that int8 and bf16 leave at least of an output that was perfect in fp32.
#: Sound models lose about a thousandth (dynamic, bf16) to a hundredth (static); those whose
#: outliers make the steps too coarse, or that overflow, lose most of it. In between there is hardly
#: anything, so the floor is no judgement of how much a user may lose: figures are in the report.
FLOOR = 0.9


def measure_fidelity(
    dense: str | Path,
    reduced: str | Path,
    samples: Samples,
    schedule: Mapping[str, Any] | None = None,
    how: OnCpu = ORT,
) -> Fidelity:
    """Run both models and compare what they say; see `compare`.

    Args:
        how: the reduced one is run; the dense one is run in ONNX Runtime.
    """
    return compare(run_all(dense, samples), run_all(reduced, samples, how), samples, schedule)


def loss_of(fidelity: Fidelity) -> float:
    """1 - likeness of the output that loses most."""
    return max((1 - out.likeness[0] for out in fidelity.outputs), default=0.0)


def rounding_fault(rounded: Fidelity, fp32: Fidelity) -> str:
    """Say what rounding loses more of than `FLOOR` allows; empty where that is nothing.

    Args:
        rounded, fp32: of the same reduced model as it is shipped and in fp32, to the dense one.
    """
    known = {out.output: out.likeness[0] for out in fp32.outputs}
    for out in rounded.outputs:
        have, name = out.likeness
        want = known.get(out.output, have)
        if not have >= want - (1 - FLOOR):
            return (
                f"output '{out.output}' has {name} {have:.3f} to the dense model, and {want:.3f} "
                f"in fp32: more than {1 - FLOOR:.1f} less, on {rounded.data}"
            )
    return ""


def compare(
    dense: Mapping[str, Array],
    reduced: Mapping[str, Array],
    samples: Samples,
    schedule: Mapping[str, Any] | None = None,
) -> Fidelity:
    """Compare outputs that both have, by name.

    Args:
        schedule: that of the reduced model, as JSON: which tower's tokens an output holds, and how
            many.
    """
    schedule = schedule or {}
    towers = tower_of_outputs(schedule)
    found = []
    for name, want in dense.items():
        if name in reduced and want.dtype.kind == "f" and not is_bookkeeping(name):
            pair = aligned(name, want, reduced[name], reduced, towers)
            if pair is not None:
                found.append(_output(name, *pair, samples, _of_tokens(pair, schedule)))
    digest = _digest(samples.arrays)
    return Fidelity(samples.source, len(samples), tuple(found), samples.kind, digest)


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 of arrays, names and shapes included."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        for row in array:
            found.update(np.ascontiguousarray(row).tobytes())
    return found.hexdigest()


def look(
    dense: Mapping[str, Array],
    reduced: Mapping[str, Array],
    samples: Samples,
    schedule: Mapping[str, Any] | None = None,
) -> Seen | None:
    """Some samples to look at, by the output that loses most; None where none can be compared.
    Arguments as `compare`."""
    towers, found = tower_of_outputs(schedule or {}), []
    for name, want in dense.items():
        if name in reduced and want.dtype.kind == "f" and not is_bookkeeping(name):
            pair = aligned(name, want, reduced[name], reduced, towers)
            if pair is not None:
                figure, order = _ranked(*pair)
                losses = -order if figure == "relative error" else 1 - order
                found.append((float(np.nan_to_num(losses).mean()), name, figure, losses))
    if not found:
        return None
    _, output, figure, losses = max(found, key=lambda one: one[0])
    rows, ranks = chosen_rows(losses)
    kept = list(rows)
    return Seen(
        output,
        figure if figure == "relative error" else f"1 - {figure}",
        losses,
        rows,
        ranks,
        tuple(map(samples.name_of, rows)),
        {name: array[kept] for name, array in dense.items()},
        {name: array[kept] for name, array in reduced.items()},
    )


def _ranked(compared: Compared, want: Array, have: Array) -> tuple[str, Array]:
    """How alike each sample is, the larger the more, and by which figure: correlation where there
    is one, cosine of classes and of one vector a sample, the relative error of one number."""
    if compared == "all" and want.ndim == 2 and want.shape[1] > 1:
        return "cosine", cosine(want, have)
    if compared == "all" and want[:1].size == 1:
        return "relative error", -relative_error(want, have)
    order = correlation(want, have)
    return ("cosine", cosine(want, have)) if np.isnan(order).all() else ("correlation", order)


def _output(
    name: str, compared: Compared, want: Array, have: Array, samples: Samples, tokens: bool
) -> OutputFidelity:
    values, errors = cosine(want, have), relative_error(want, have)
    found = OutputFidelity(name, compared, float(values.mean()), float(values.min()))
    remarks = []
    figure, order = _ranked(compared, want, have)
    if np.isfinite(errors).all():
        found = replace(found, error_mean=float(errors.mean()), error_max=float(errors.max()))
    else:
        bad = int((~np.isfinite(errors)).sum())
        remarks.append(f"no relative error: not finite, or 0 in dense, in {bad} of {len(errors)}")
    if compared == "all" and want.ndim == 2 and want.shape[1] > 1:
        if holds_classes(name, want):
            found = replace(found, top1_agreement=top1_agreement(want, have))
    elif figure != "relative error":
        known = order[~np.isnan(order)] if figure == "correlation" else order[:0]
        if len(known):
            found = replace(
                found, correlation_mean=float(known.mean()), correlation_min=float(known.min())
            )
        if len(known) < len(order):
            remarks.append(
                f"no correlation: constant in dense, in {len(order) - len(known)} of {len(order)}"
            )
    if tokens:
        found = replace(found, token_cosine_p05=_low(want, have))
    several = len(samples) > 1 and bool(errors.any())
    worst = samples.name_of(int(np.nanargmin(order))) if several else ""
    return replace(found, worst=worst, remark="; ".join(remarks))


def _of_tokens(pair: tuple[Compared, Array, Array], schedule: Mapping[str, Any]) -> bool:
    """Tell whether the rows [B, N, C] of an output are tokens."""
    compared, want, _ = pair
    shape = schedule.get("model") or {}
    counts = [shape[name] for name in ("tokens", "patches") if name in shape]
    return compared != "all" or (want.ndim == 3 and want.shape[1] in counts)


def _low(want: Array, have: Array) -> float | None:
    """The cosine that 5 % of the tokens lie below, those left out that both sides have as 0."""
    there = (want != 0).any(axis=-1) | (have != 0).any(axis=-1)
    tokens = token_cosine(want, have)[there]
    return float(np.quantile(tokens, 0.05)) if tokens.size else None
