"""The same choice in each segment of the patches: segments join the batch, and leave it again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.oracles.choices import Step, select


def folded(x: Tensor, parts: int, axis: int = 1) -> Tensor:
    """[B, ..., parts * n, ...] -> [B * parts, ..., n, ...]."""
    return x.unflatten(axis, (parts, -1)).movedim(axis, 1).flatten(0, 1)


def diagonal(bias: Tensor | None, parts: int, batch: int) -> Tensor | None:
    """[1 or B, H, N, N] -> [B * parts, H, n, n]: what each part adds to its own logits."""
    if bias is None:
        return None
    split = bias.expand(batch, -1, -1, -1).unflatten(3, (parts, -1)).unflatten(2, (parts, -1))
    return split.diagonal(dim1=2, dim2=4).movedim(-1, 1).flatten(0, 1)


def _counted(places: Tensor, parts: int, length: int) -> Tensor:
    """[B * parts, n] places in segments of so many -> [B, parts * n] places in all."""
    first = length * torch.arange(parts)[:, None]
    return (places.view(-1, parts, places.shape[1]) + first).flatten(1)


def unfolded(step: Step, parts: int) -> Step:
    """Decision in [B * parts, n], turned to that for [B, parts * n]; nothing may have been made
    new."""
    if parts == 1:
        return step
    kept, length = step.x.shape[1], step.owner.shape[1]
    return replace(
        step,
        x=step.x.unflatten(0, (-1, parts)).flatten(1, 2),
        sizes=None if step.sizes is None else step.sizes.view(-1, parts * kept),
        source=_counted(step.source, parts, length),
        owner=_counted(step.owner, parts, kept),
        margins=tuple((what, gap.view(-1, parts).amin(dim=1)) for what, gap in step.margins),
    )


def select_in(score: Tensor, keep: int, parts: int) -> tuple[Tensor, Tensor]:
    """`select` of score [B, T] with keep / parts in each segment: [B, keep] and [B]."""
    kept, gap = select(folded(score, parts), keep // parts)
    return _counted(kept, parts, score.shape[1] // parts), gap.view(-1, parts).amin(dim=1)
