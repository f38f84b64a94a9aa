"""Score any implementation of the glyphs model on held-out scenes.

`python -m tcompile.models.glyphs.evaluate [model.onnx]`: the committed weights in torch, or an ONNX
file in ONNX Runtime. `evaluate` takes a function from arrays to arrays, so an engine or a reduced
graph is scored by the same code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tcompile.core.errors import MissingExtraError, ModelError
from tcompile.models.glyphs import data

if TYPE_CHECKING:
    from torch import nn

HELD_OUT_SEED = 2
"""Scene stream that is never trained on."""

Array = NDArray[np.float32]
Predict = Callable[[Array], dict[str, NDArray[np.generic]]]
"""Preprocessed images [b, 3, 56, 56] -> arrays by output name: `logits`, maybe `patch_logits`."""


@dataclass(frozen=True)
class Scores:
    """Return what a model gets right on `n` scenes."""

    top1: float  # share of scenes whose sum is right
    patch_accuracy: float | None  # share of patches labelled right; None without full patch_logits
    ink_accuracy: float | None  # the same, of the patches that hold a digit
    n: int

    def __str__(self) -> str:
        text = f"top-1 {self.top1:.2%}"
        if self.patch_accuracy is not None:
            text += f", patches {self.patch_accuracy:.2%}, ink patches {self.ink_accuracy:.2%}"
        return f"{text} on {self.n} scenes"


def evaluate(
    predict: Predict, n: int = 2000, seed: int = HELD_OUT_SEED, batch_size: int = 64
) -> Scores:
    """Run `predict` over the first `n` scenes of stream `seed`.

    Patch accuracies need a `patch_logits` of all 196 tokens (a dense or restored output); fewer
    tokens leave them None. The last batch may be smaller: take a `batch_size` that divides `n` for
    a model with a fixed batch.
    """
    images, labels, patches = _scenes(n, seed)
    right, patch_right, ink_right, patch_seen = 0, 0, 0, 0
    for rows in _slices(n, batch_size):
        outputs = predict(data.preprocess(images[rows]))
        right += int((outputs["logits"].argmax(-1) == labels[rows]).sum())
        dense = outputs.get("patch_logits")
        if dense is not None and dense.shape[1] == patches.shape[1]:
            hit = dense.argmax(-1) == patches[rows]
            patch_seen += hit.size
            patch_right += int(hit.sum())
            ink_right += int(hit[patches[rows] != data.BACKGROUND].sum())
    if patch_seen == 0:
        return Scores(right / n, None, None, n)
    ink = int((patches != data.BACKGROUND).sum())
    return Scores(right / n, patch_right / patch_seen, ink_right / ink, n)


@lru_cache(maxsize=2)
def _scenes(n: int, seed: int) -> tuple[data.UInt8, NDArray[np.int64], data.UInt8]:
    """Kept: rendering takes a while, and methods are compared on the same scenes."""
    return data.batch(seed, 0, n)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def torch_predict(module: nn.Module) -> Predict:
    """`predict` of a torch module that returns (logits, patch_logits)."""
    import torch

    def predict(images: Array) -> dict[str, NDArray[np.generic]]:
        with torch.inference_mode():
            logits, patch_logits = module(torch.from_numpy(images))
        return {"logits": logits.numpy(), "patch_logits": patch_logits.numpy()}

    return predict


def onnx_predict(path: Path) -> tuple[Predict, int]:
    """`predict` of an ONNX file in ONNX Runtime, and the batch size to feed it.

    Raises:
        MissingExtraError: without ONNX Runtime.
        ModelError: the file cannot be loaded, or has no `logits` output.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtraError("onnxruntime", "cpu", "evaluating an ONNX model") from None
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        raise ModelError(f"ONNX Runtime cannot load it: {error}", where=str(path)) from None
    feed = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]
    if "logits" not in names:
        raise ModelError("has no output named 'logits'", where=str(path))

    def predict(images: Array) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, session.run(names, {feed.name: images}), strict=True))

    batch = feed.shape[0]
    return predict, batch if isinstance(batch, int) else 64


def main() -> None:
    """Command line of `python -m tcompile.models.glyphs.evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, nargs="?", help="ONNX file; default: our weights")
    parser.add_argument("-n", type=int, default=2000, help="scenes (default 2000)")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    options = parser.parse_args()
    if options.model is None:
        from tcompile.models.glyphs import load

        predict, batch = torch_predict(load()), 64
    else:
        predict, batch = onnx_predict(options.model)
    print(evaluate(predict, options.n, options.seed, batch))


if __name__ == "__main__":
    main()
