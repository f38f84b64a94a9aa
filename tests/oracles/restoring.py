"""The rows that tokens which left are given back, in plain PyTorch, one image and token at a time.

A second statement of the rules of `--restore`; see `passes/reduce/restoring.py` for the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rules whose rows are copies of one kept token's.
COPIES = ("owner", "nearest")


@dataclass(frozen=True)
class Left:
    """One step of patches. before [B, T, C], behind [B, K, C]: their rows. came [B, T], places
    [B, K]: the original patch that each is, below 0 for a fused one. owner [B, T]: which of K
    stands for each by the reducer's own words. merges: whether it is part of that one."""

    before: Tensor
    behind: Tensor
    came: Tensor
    places: Tensor
    owner: Tensor
    merges: bool
    segments: int = 1


def weights(step: Left, rule: str, grid: tuple[int, ...]) -> Tensor:
    """[B, T, K]: how much of each token behind the step each one before it is."""
    found = torch.zeros(*step.came.shape, step.places.shape[1], dtype=step.before.dtype)
    for b, came in enumerate(step.came.tolist()):
        places = step.places[b].tolist()
        for t, place in enumerate(came):
            if step.merges or rule == "owner":
                found[b, t, step.owner[b, t]] = 1
            elif place >= 0 and place in places:
                found[b, t, places.index(place)] = 1
            else:
                found[b, t] = _given(step, b, t, rule, grid)
    return found


def _given(step: Left, b: int, t: int, rule: str, grid: tuple[int, ...]) -> Tensor:
    """[K]: the weights of a token that left without being part of another."""
    places, count = step.places[b], step.places.shape[1]
    mine = torch.arange(count) * step.segments // count == t * step.segments // step.came.shape[1]
    can = (places >= 0) & mine
    if rule == "interpolate":
        at = torch.cartesian_prod(*(torch.arange(n) for n in grid)).to(step.before)
        apart = at[places.clamp(min=0)] - at[step.came[b, t].clamp(min=0)]
        return (-apart.square().sum(-1) / (2 * 0.75**2)).masked_fill(~can, -torch.inf).softmax(0)
    x, y = step.before[b, t], step.behind[b]
    alike = (y @ x / (y.norm(dim=-1) * x.norm())).masked_fill(~can, -torch.inf)
    if rule == "nearest":
        return torch.nn.functional.one_hot(alike.argmax(), count).to(x)
    return (alike / 0.03).softmax(0)


def given_back(steps: Sequence[Left], rule: str, grid: tuple[int, ...], now: Tensor) -> Tensor:
    """[B, T0, C]: the patches of the dense model, from those that are left now [B, K, C]."""
    for step in reversed(steps):
        w = weights(step, rule, grid)
        now = step.before + w @ (now - step.behind) if rule == "stale" else w @ now
    return now


def closest(steps: Sequence[Left]) -> Tensor:
    """[B]: how much nearer the nearest kept token was than the second, where that counts."""
    found = torch.full((len(steps[0].came),), torch.inf, dtype=steps[0].before.dtype)
    for step in steps:
        for b, came in enumerate(step.came.tolist()):
            places = step.places[b]
            kept = set(places.tolist())
            y = torch.nn.functional.normalize(step.behind[b], dim=-1)[places >= 0]
            for t, place in enumerate(came):
                if place in kept or step.merges or len(y) < 2:
                    continue
                best = (y @ torch.nn.functional.normalize(step.before[b, t], dim=-1)).topk(2)
                found[b] = torch.minimum(found[b], best.values[0] - best.values[1])
    return found
