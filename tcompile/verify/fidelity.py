"""What the reduction changed: the reduced model against the dense one, output by output.

Nothing here is a pass or a fail. How much may change is for the person to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.manifest import Fidelity, OutputFidelity
from tcompile.verify.metrics import cosine, top1_agreement
from tcompile.verify.runs import Samples, run_all

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

INDEX, OWNER, SIZE = "token_index", "token_owner", "token_size"
_NOT_CLASSES = ("pool", "embed", "feature", "hidden", "token")


def measure_fidelity(dense: str | Path, reduced: str | Path, samples: Samples) -> Fidelity:
    """Run both models on ONNX Runtime and compare what they say."""
    return compare(run_all(dense, samples), run_all(reduced, samples), samples)


def compare(dense: Mapping[str, Array], reduced: Mapping[str, Array], samples: Samples) -> Fidelity:
    """Compare outputs that both have, by name."""
    found = []
    for name, want in dense.items():
        if name in reduced and want.dtype.kind == "f":
            found.append(_output(name, want, reduced[name], reduced))
    return Fidelity(samples.source, len(samples), tuple(found))


def _output(name: str, dense: Array, reduced: Array, extra: Mapping[str, Array]) -> OutputFidelity:
    if dense.shape == reduced.shape:
        classes = dense.ndim == 2 and not any(word in name.lower() for word in _NOT_CLASSES)
        top1 = top1_agreement(dense, reduced) if classes else None
        return _entry(name, "all", cosine(dense, reduced), top1)
    if OWNER in extra:
        want, have = restored(dense, reduced, extra[OWNER])
        return _entry(name, "restored tokens", cosine(want, have), None)
    kept = take_rows(dense, extra[INDEX])
    return _entry(name, "kept tokens", cosine(kept, reduced), None)


def restored(dense: Array, reduced: Array, owner: Array) -> tuple[Array, Array]:
    """Both as [B, N, C], original tokens that nothing stands for zeroed in both.

    Args:
        dense: [B, N, C].
        reduced: [B, K, C].
        owner: [B, N], the row of `reduced` that stands for each token, or -1.
    """
    here = (owner >= 0)[..., None]
    rows = take_rows(reduced, owner.clip(min=0))
    return dense * here, rows * here


def take_rows(tokens: Array, index: Array) -> Array:
    """tokens [B, N, C] at index [B, K]: [B, K, C]."""
    import numpy as np

    return np.take_along_axis(tokens, index.astype(np.int64)[..., None], axis=1)


def _entry(name: str, compared: Any, values: Array, top1: float | None) -> OutputFidelity:
    return OutputFidelity(name, compared, float(values.mean()), float(values.min()), top1)
