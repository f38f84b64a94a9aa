"""Comparing the outputs of an artifact's model with those of the reduced graph.

The reference is the reduced graph in fp32, before lowering, on the same inputs. Polygraphy's
comparator does the comparing. Where reduced precision flips a token at the edge of the budget, two
outputs hold different tokens and comparing them element by element means nothing; such samples
answer to the overlap of their token sets and to the cosine of the tokens both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tcompile.runtime.metrics import cosine, not_finite, without_equal_nonfinite
from tcompile.runtime.token_outputs import INDEX, for_output, is_bookkeeping, token_overlap

Array = np.ndarray[Any, np.dtype[Any]]
#: For a sample in which a token was flipped, over the tokens that both have.
FLIPPED_COSINE = 0.99


@dataclass(frozen=True)
class Tolerance:
    """Bounds within which two outputs are the same.

    Errors are relative to the largest magnitude in the output. `statistic` is what must stay within
    `error`: the largest element-wise difference, or the mean.
    """

    error: float
    statistic: Literal["max", "mean"]
    cosine: float
    token_overlap: float


TOLERANCES = {
    # ONNX Runtime against itself: only the order of additions may differ.
    "fp32": Tolerance(error=2e-5, statistic="max", cosine=0.99999, token_overlap=0.99),
    # NVIDIA's guidance for engines (rtol = atol = 1e-2 on the mean), and a bound on direction.
    "fp16": Tolerance(error=1e-2, statistic="mean", cosine=0.999, token_overlap=0.95),
}


@dataclass(frozen=True)
class OutputNumerics:
    """One output. `error` is relative to its largest magnitude, over comparable samples."""

    output: str
    error: float
    cosine: float
    passed: bool


@dataclass(frozen=True)
class Numerics:
    """The comparison as a whole; `faults` says in a sentence each what did not hold.

    `same_tokens` counts the samples in which both keep (or merge) the very same tokens, and
    `token_overlap` is the mean share they have in common; None where no token leaves.
    """

    samples: int
    same_tokens: int | None
    token_overlap: float | None
    outputs: tuple[OutputNumerics, ...]
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether everything held."""
        return not self.faults


def compare_numerics(
    reference: Mapping[str, Array],
    actual: Mapping[str, Array],
    tolerance: Tolerance,
    towers: Mapping[str, str] | None = None,
) -> Numerics:
    """Compare the outputs of two runs on the same samples, [B, …] each.

    Args:
        towers: output → tower whose tokens it holds, `choice.tower_of_outputs`.
    """
    missing = sorted(set(reference) - set(actual))
    faults = [f"output '{name}' is missing" for name in missing] + not_finite(actual, reference)
    overlap = token_overlap(reference, actual)
    count = len(next(iter(reference.values())))
    same = np.ones(count, dtype=bool) if overlap is None else overlap == 1.0
    if overlap is not None and overlap.mean() < tolerance.token_overlap:
        faults.append(
            f"keeps other tokens than the reference: {overlap.mean():.1%} the same, "
            f"{tolerance.token_overlap:.0%} wanted"
        )
    outputs = []
    for name, want in reference.items():
        if name in missing or is_bookkeeping(name) or want.dtype.kind != "f":
            continue
        if want.shape != actual[name].shape:
            faults.append(f"output '{name}' is {actual[name].shape}, reference {want.shape}")
            continue
        result = _compare_output(name, reference, actual, same, tolerance, towers)
        outputs.append(result)
        if not result.passed:
            faults.append(
                f"output '{name}' is off by {result.error:.2g} ({tolerance.statistic}, relative; "
                f"{tolerance.error:.0e} allowed), cosine {result.cosine:.6f} "
                f"({tolerance.cosine} wanted)"
            )
    if overlap is None:
        return Numerics(count, None, None, tuple(outputs), tuple(faults))
    return Numerics(count, int(same.sum()), float(overlap.mean()), tuple(outputs), tuple(faults))


def _compare_output(
    name: str,
    reference: Mapping[str, Array],
    actual: Mapping[str, Array],
    same: Array,
    tolerance: Tolerance,
    towers: Mapping[str, str] | None,
) -> OutputNumerics:
    want, have = without_equal_nonfinite(reference[name], actual[name])
    index = [
        for_output(INDEX, name, outputs, want.shape[1], towers) for outputs in (reference, actual)
    ]
    similar = cosine(want, have)
    if want.ndim > 2 and not same.all():
        similar = np.where(same, similar, _cosine_of_common(want, have, *index))
    enough = np.where(same, tolerance.cosine, FLIPPED_COSINE)
    passed, error = bool((similar >= enough).all()), 0.0
    if same.any():
        scale = float(abs(want[same]).max(where=np.isfinite(want[same]), initial=0)) or 1.0
        error, within = _polygraphy(want[same] / scale, have[same] / scale, tolerance)
        passed = passed and within
    return OutputNumerics(name, error, float(similar.min()), passed)


def _cosine_of_common(
    want: Array, have: Array, index: Array | None, have_index: Array | None
) -> Array:
    """Cosine over the tokens that both outputs [B, K, C] hold, for each sample.

    Without indices [B, K] (restored outputs have none) rows are compared as they stand.
    """
    if index is None or have_index is None:
        return cosine(want, have)
    found = []
    for a, b, i, j in zip(want, have, index, have_index, strict=True):
        common, rows, others = np.intersect1d(i, j, return_indices=True)
        rows, others = rows[common >= 0], others[common >= 0]
        found.append(cosine(a[rows][None], b[others][None])[0])
    return np.array(found)


def _polygraphy(want: Array, have: Array, tolerance: Tolerance) -> tuple[float, bool]:
    """The worst sample's statistic as polygraphy's comparator finds it, and whether all pass."""
    from polygraphy import comparator
    from polygraphy.logger import G_LOGGER

    results = comparator.RunResults()
    for runner, array in (("artifact", have), ("reference", want)):
        rows = [{"output": np.atleast_1d(row)} for row in array.astype(np.float32)]
        results.add(rows, runner_name=runner)
    # CompareFunc.simple became a class of its own in polygraphy 0.53, which returns a list of
    # results where earlier versions return the one.
    simple = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    function = simple(atol=tolerance.error, rtol=0.0, check_error_stat=tolerance.statistic)
    with G_LOGGER.verbosity():  # it reports on stdout, which is for our results
        accuracy = comparator.Comparator.compare_accuracy(results, compare_func=function)
    first = accuracy if hasattr(accuracy, "values") else accuracy[0]
    found = [row["output"] for row in next(iter(first.values()))]
    errors = [r.max_absdiff if tolerance.statistic == "max" else r.mean_absdiff for r in found]
    return float(max(errors)), all(bool(result) for result in found)
