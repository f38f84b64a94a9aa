"""Models for a smaller image, in PyTorch, by their libraries' own code.

timm has `set_input_size`, which interpolates tables and makes rotary ones anew; transformers has
`interpolate_pos_encoding`, where a model does not follow the size of its image by itself.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tcompile.core.schedule import Resized
from tcompile.models import LoadedModel
from tests.oracles.compare import FACTOR, FLOOR, MismatchError, Verdict

Array = npt.NDArray[Any]
#: Of a grid of rotary positions, here and in pre-training.
_SHAPES = ("feat_shape", "ref_feat_shape")


@dataclass(frozen=True)
class Small:
    """What a module gives for images in their own size, and for smaller ones.

    Attributes:
        dense, outputs: of both; outputs with a row for each patch have their old grid.
    """

    dense: tuple[Array, ...]
    outputs: tuple[Array, ...]


def on_smaller(loaded: LoadedModel, prefix: int, images: Tensor, found: Resized) -> Small:
    """Run a module on images as they are, and on smaller ones with its positions resized.

    Raises:
        LookupError: its library has no code for that.
    """
    small = F.interpolate(images, size=found.size, mode="bilinear", antialias=True)
    with torch.no_grad():
        dense = _several(loaded.module(images))
        outputs = _several(_resized(loaded, found.size)(small))
    grid = tuple(
        round(n * g / s) for n, g, s in zip(images.shape[2:], found.grid, found.size, strict=True)
    )
    pairs = zip(outputs, dense, strict=True)
    whole = [o if o.shape == d.shape else _to_grid(o, prefix, found.grid, grid) for o, d in pairs]
    return Small(tuple(d.numpy() for d in dense), tuple(o.numpy() for o in whole))


def check_smaller(found: Sequence[Array], dense: Sequence[Array], wanted: Small) -> Verdict:
    """Compare what the file for the smaller image gives with the module.

    Args:
        dense: what the dense file gives.

    Raises:
        MismatchError: they differ by more than ten times what the dense file does, or the smaller
            image changes so little that no mistake would show.
    """
    errors, tolerances = [], []
    for have, before, truth, old in zip(found, dense, wanted.outputs, wanted.dense, strict=True):
        if have.shape != truth.shape:
            raise MismatchError(f"an output is {have.shape}, not {truth.shape}")
        error = float(np.abs(old - before).max())
        errors.append(float(np.abs(truth - have).max()))
        tolerances.append(FACTOR * max(error, FLOOR * float(np.abs(truth).max())))
        if not errors[-1] <= tolerances[-1]:
            raise MismatchError(f"error {errors[-1]:.2e}, allowed {tolerances[-1]:.2e}")
        if np.abs(before - have).max() < 100 * tolerances[-1]:
            raise MismatchError("the smaller image gives what the whole one does")
    return Verdict(tuple(errors), tuple(tolerances))


def _several(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _resized(loaded: LoadedModel, size: tuple[int, int]) -> nn.Module:
    made = copy.deepcopy(loaded)
    for part in made.base.modules():
        kind, sizes = type(part).__name__, (part.__dict__.get(n) for n in _SHAPES)
        if kind == "RelPosMlp":
            raise LookupError("an MLP makes its positions, which no stored table shows")
        feat, ref = (max(s) if s else 0 for s in sizes)
        if feat and ref > np.pi * feat:
            raise LookupError("its grid is so small that rotary angles turn by more than π a row")
    if made.library == "timm":
        if not hasattr(made.base, "set_input_size"):
            raise LookupError("no set_input_size")
        made.base.set_input_size(img_size=size)  # type: ignore[operator]
        return made.module
    if made.library != "hf":
        raise LookupError(f"{made.library} resizes no positions")
    forward = made.base.forward
    made.base.forward = functools.partial(  # type: ignore[method-assign]
        forward, interpolate_pos_encoding=True
    )
    try:
        made.module(torch.zeros(1, 3, *size))
    except TypeError:
        made.base.forward = forward  # type: ignore[method-assign]
    return made.module


def _to_grid(tokens: Tensor, prefix: int, small: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Rows of patches interpolated to another grid, those of prefix tokens as they are."""
    patches = small[0] * small[1]
    if tokens.ndim == 3 and tokens.shape[1] == patches:
        prefix = 0
    elif tokens.ndim != 3 or tokens.shape[1] != prefix + patches:
        raise LookupError(f"an output {tuple(tokens.shape)} of no known layout")
    head, rows = tokens[:, :prefix], tokens[:, prefix:]
    maps = rows.transpose(1, 2).unflatten(2, tuple(small))
    maps = F.interpolate(maps, size=tuple(grid), mode="bilinear")
    return torch.cat([head, maps.flatten(2).transpose(1, 2)], 1)
