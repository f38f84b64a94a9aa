"""Zero-shot classes: embeddings of images against those of texts, from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.arrays import UNNAMED, read_arrays
from tcompile.core.errors import UsageError

Array = npt.NDArray[Any]
#: What cosines are multiplied by, as in CLIP: only probabilities of the worst images depend on it.
_SCALE = 100.0
#: Names of the arrays in the file.
EMBEDDINGS, NAMES = "embeddings", "classes"


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """An embedding a class.

    Attributes:
        rows: [classes, D], of length 1.
        names: of the classes; empty: the file has none.
    """

    rows: Array
    names: tuple[str, ...]

    def scores(self) -> Callable[[Array], Array]:
        """What makes scores [B, classes] of embeddings [B, D]; NaN of what is near no text: an
        embedding with NaN or Inf, or of zeros."""

        def scores(embeddings: Array) -> Array:
            sound = np.asarray(np.isfinite(embeddings).all(axis=1) & embeddings.any(axis=1))
            return np.where(sound[:, None], _SCALE * normalized(embeddings) @ self.rows.T, np.nan)

        return scores


def read_texts(path: str | Path) -> TextEmbeddings:
    """Read the embeddings of texts.

    Args:
        path: an .npy with [classes, D], or an .npz with `embeddings`, and perhaps the names of the
            classes in `classes`; [classes, templates, D] for several texts a class, whose
            embeddings of length 1 are averaged, as CLIP has it.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    arrays = read_arrays(path)
    rows = arrays.get(EMBEDDINGS, arrays.get(UNNAMED))
    names = arrays.get(NAMES)
    sound = rows is not None and rows.ndim in (2, 3) and rows.dtype.kind == "f" and rows.size
    if rows is None or not sound or not np.isfinite(rows).all():
        raise UsageError(f"holds no '{EMBEDDINGS}' [classes, D] of finite numbers", where=str(path))
    if rows.ndim == 3:
        rows = normalized(rows).mean(axis=1)
    if names is not None and (names.shape != rows.shape[:1] or names.dtype.kind != "U"):
        raise UsageError(f"'{NAMES}' must be {len(rows)} names", where=str(path))
    return TextEmbeddings(normalized(rows), tuple(names.tolist()) if names is not None else ())


def normalized(rows: Array) -> Array:
    """The same of length 1 along the last axis; zeros stay zeros."""
    wide = rows.astype(np.float32)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    found: Array = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
    return found
