"""Centres and the tokens that go to them.

* DiffRate (Chen et al., ICCV 2023, arXiv:2305.17997): prune, then merge the worse into the better;
* VisionZip (Yang et al., CVPR 2025, arXiv:2412.04467): dominant tokens, and contextual ones;
* PruMerge (Shang et al., 2024, arXiv:2403.15388): each that stays takes its neighbours in;
* FiCoCo-V (Han et al., 2024, arXiv:2411.17686): what leaves is spread over those it is like.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.choices import Step
from tests.oracles.presets.merging import best_of, boundary, cosines, joined, ones, pooled, ranked
from tests.oracles.stream import gather


def diffrate(x: Tensor, sizes: Tensor | None, score: Tensor, prune: int, keep: int) -> Step:
    """The `prune` best by score stay; of those the `keep` best are centres, and each other one goes
    to the centre with the nearest direction: features are plain means, and a centre's size grows
    by s·cos of what it takes in. What is pruned is owned by the nearest direction among those
    that stayed, or by whoever that one went to."""
    total, size = x.shape[1], ones(x, sizes)
    order = ranked(score)
    centres = order[:, :keep].sort(dim=1).values
    others = order[:, keep:prune].sort(dim=1).values
    value, nearest, gap = best_of(cosines(gather(x, others), gather(x, centres)))
    owner = joined(total, [(others, gather(centres, nearest))], centres)
    margins = [("kept", boundary(score, keep)), ("kept", boundary(score, prune))]
    # Only those that were not pruned count; a weight of zero leaves the others out.
    stays = torch.zeros_like(score).scatter(1, order[:, :prune], 1.0)
    grown = gather(size, centres).scatter_add(1, nearest, gather(size, others) * value)
    if others.shape[1]:
        margins.append(("target", gap.amin(dim=1)))
    if prune < total:
        alive, gone = order[:, :prune].sort(dim=1).values, order[:, prune:]
        _, like, near = best_of(cosines(gather(x, gone), gather(x, alive)))
        owner = owner.scatter(1, gone, gather(owner, gather(alive, like)))
        margins.append(("owner", near.amin(dim=1)))
    return Step(
        x=pooled(x, stays, owner, keep),
        sizes=grown,
        source=centres,
        owner=owner,
        margins=tuple(margins),
    )


def visionzip(x: Tensor, score: Tensor, metric: Tensor, keep: int, contextual: int) -> Step:
    """The keep − c best by score, ascending. Of the M others, ascending, every step-th is a target,
    step = max(1, M // c), c of them; the rest go to the nearest by metric [B, T, d], and a target
    becomes itself plus the mean of what it took."""
    total, dominant = x.shape[1], keep - contextual
    order = ranked(score)
    best, others = (part.sort(dim=1).values for part in (order[:, :dominant], order[:, dominant:]))
    step = max(1, others.shape[1] // contextual)
    chosen = torch.arange(others.shape[1]) % step == 0
    chosen &= torch.arange(others.shape[1]) < step * contextual
    targets, rest = others[:, chosen], others[:, ~chosen]
    _, nearest, gap = best_of(cosines(gather(metric, rest), gather(metric, targets)))
    kept = torch.cat([best, targets], dim=1)
    owner = joined(total, [(rest, gather(targets, nearest))], kept)
    took = F.one_hot(nearest, contextual).to(x).transpose(1, 2)
    mean = (took @ gather(x, rest)) / took.sum(dim=2, keepdim=True).clamp(min=1)
    return Step(
        x=torch.cat([gather(x, best), gather(x, targets) + mean], dim=1),
        sizes=None,
        source=kept,
        owner=owner,
        margins=(("kept", boundary(score, dominant)), ("target", gap.amin(dim=1))),
    )


def prumerge(x: Tensor, score: Tensor, keys: Tensor, keep: int, neighbours: int = 32) -> Step:
    """The keep − 1 best by score c; each is x + Σ c·x over the `neighbours` other tokens whose keys
    [B, T, d] have the nearest direction, whether they stay or not; then one more, Σ c·x over all
    that do not stay."""
    total, stay = x.shape[1], keep - 1
    kept = ranked(score)[:, :stay].sort(dim=1).values
    near = cosines(gather(keys, kept), keys)
    itself = F.one_hot(kept, total).bool()
    near = near.masked_fill(itself, -torch.inf)
    count = min(neighbours, total - 1)
    best = near.sort(dim=-1, descending=True, stable=True)
    weight = torch.zeros_like(near).scatter(2, best.indices[..., :count], 1.0)
    weight = weight * score.unsqueeze(1)
    gap = torch.full_like(score[:, 0], torch.inf)
    if count < total - 1:
        gap = (best.values[..., count - 1] - best.values[..., count]).amin(dim=1)
    gone = torch.ones_like(score).scatter(1, kept, 0.0)
    fused = ((score * gone).unsqueeze(1)) @ x
    owner = torch.full_like(kept[:, :1], stay).repeat(1, total)
    owner = owner.scatter(1, kept, torch.arange(stay).expand_as(kept))
    return Step(
        x=torch.cat([gather(x, kept) + weight @ x, fused], dim=1),
        sizes=None,
        source=torch.cat([kept, torch.full_like(kept[:, :1], -1)], dim=1),
        owner=owner,
        margins=(("kept", boundary(score, stay)), ("target", gap)),
    )


def ficoco_score(
    cls: Tensor, logits: Tensor, places: Tensor, grid: tuple[int, int], beta: float = 0.35
) -> Tensor:
    """[B, T], larger stays: β·l2(cls) − (1 − β)·l2(mean_j logits), and in each 2×2 window of the
    image the least is pushed down, doubled where negative and halved where positive.

    cls [B, T], logits [B, T, T]: means over heads of q·k, not divided and not softmaxed.
    places [B, T]: which patch of the grid each token is.
    """
    score = beta * F.normalize(cls, dim=1) - (1 - beta) * F.normalize(logits.mean(dim=2), dim=1)
    rows, columns = places // grid[1], places % grid[1]
    window = (rows // 2) * ((grid[1] + 1) // 2) + columns // 2
    same = window.unsqueeze(2) == window.unsqueeze(1)
    least = score.unsqueeze(1).masked_fill(~same, torch.inf).argmin(dim=2)
    lowest = least == torch.arange(score.shape[1])
    # A window takes its turn once: not when one of its tokens has left.
    every = torch.arange(grid[0] * grid[1])
    members = (every // grid[1] // 2) * ((grid[1] + 1) // 2) + every % grid[1] // 2
    complete = same.sum(dim=2) == torch.bincount(members)[window]
    lowest = lowest & complete
    return torch.where(lowest, torch.where(score < 0, score * 2, score / 2), score)


def ficoco(x: Tensor, score: Tensor, logits: Tensor, keep: int, targets: int = 1) -> Step:
    """The T − keep lowest leave, each to the `targets` that stay with the highest logits, by
    softmax weights w; x_t = (x_t + Σ w·x) / (1 + Σ w)."""
    total = x.shape[1]
    kept = ranked(score)[:, :keep].sort(dim=1).values
    gone = ranked(score)[:, keep:].sort(dim=1).values
    edges = gather(gather(logits, gone).transpose(1, 2), kept).transpose(1, 2)
    best = edges.sort(dim=-1, descending=True, stable=True)
    weight = best.values[..., :targets].softmax(dim=-1)
    spread = torch.zeros_like(edges).scatter(2, best.indices[..., :targets], weight).transpose(1, 2)
    gap = torch.full_like(score[:, 0], torch.inf)
    if targets < keep:
        gap = (best.values[..., targets - 1] - best.values[..., targets]).amin(dim=1)
    mean = (gather(x, kept) + spread @ gather(x, gone)) / (1 + spread.sum(dim=2, keepdim=True))
    owner = joined(total, [(gone, gather(kept, best.indices[..., 0]))], kept)
    return Step(
        x=mean,
        sizes=None,
        source=kept,
        owner=owner,
        margins=(("kept", boundary(score, keep)), ("target", gap)),
    )
