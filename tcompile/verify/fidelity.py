"""Fidelity: the reduced model against the dense one, output by output.

Nothing here passes or fails: the user decides how much may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tcompile.artifact.manifest import Fidelity, OutputFidelity
from tcompile.runtime.metrics import cosine, holds_classes, top1_agreement
from tcompile.runtime.samples import Samples, run_all
from tcompile.runtime.token_outputs import aligned, is_bookkeeping

Array = npt.NDArray[Any]


def measure_fidelity(
    dense: str | Path,
    reduced: str | Path,
    samples: Samples,
    towers: Mapping[str, str] | None = None,
) -> Fidelity:
    """Run both models on ONNX Runtime and compare what they say; see `compare`."""
    return compare(run_all(dense, samples), run_all(reduced, samples), samples, towers)


def compare(
    dense: Mapping[str, Array],
    reduced: Mapping[str, Array],
    samples: Samples,
    towers: Mapping[str, str] | None = None,
) -> Fidelity:
    """Compare outputs that both have, by name.

    Args:
        towers: output → tower whose tokens it holds, `token_outputs.tower_of_outputs`.
    """
    found = []
    for name, want in dense.items():
        if name in reduced and want.dtype.kind == "f" and not is_bookkeeping(name):
            entry = _output(name, want, reduced[name], reduced, towers)
            found += [entry] if entry else []
    return Fidelity(samples.source, len(samples), tuple(found))


def _output(
    name: str,
    dense: Array,
    reduced: Array,
    extra: Mapping[str, Array],
    towers: Mapping[str, str] | None,
) -> OutputFidelity | None:
    found = aligned(name, dense, reduced, extra, towers)
    if found is None:
        return None
    compared, want, have = found
    classes = compared == "all" and holds_classes(name, dense)
    top1 = top1_agreement(dense, reduced) if classes else None
    values = cosine(want, have)
    return OutputFidelity(name, compared, float(values.mean()), float(values.min()), top1)
