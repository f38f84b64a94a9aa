"""ToMe and its kin: tokens that are alike become one.

* ToMe's edges and selection, with Turbo's penalty (Ju et al., ECCV 2024, arXiv:2312.07408);
* ToFu (Kim et al., WACV 2024, arXiv:2312.01026): what merges is dropped, or averaged to the norm
  of its longest member;
* PiToMe (Tran et al., NeurIPS 2024, arXiv:2405.16148): energy decides who may merge;
* MCTF (Lee et al., CVPR 2024, arXiv:2403.10030): edges of similarity, information and size, in
  both directions.

Positions are of the patch tokens as they are now. Every function gives a `Step`; its tokens are in
the order [what did not merge | what others merged into], each ascending, except PiToMe's, which
stay in their order: no later step of it depends on that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.choices import Step
from tests.oracles.stream import gather

Margins = tuple[tuple[str, Tensor], ...]


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """[B, m, d], [B, n, d] -> [B, m, n]."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).transpose(1, 2)


def best_of(edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the last axis: the largest, its lowest index, how far the second lies below."""
    value, index = edges.sort(dim=-1, descending=True, stable=True)
    second = value[..., 1] if edges.shape[-1] > 1 else torch.full_like(value[..., 0], -math.inf)
    return value[..., 0], index[..., 0], value[..., 0] - second


def ranked(score: Tensor) -> Tensor:
    """[B, T] positions, the highest score first, equal ones ascending."""
    return score.argsort(dim=1, descending=True, stable=True)


def boundary(score: Tensor, count: int) -> Tensor:
    """[B]: how far the first that is not among the `count` best lies below the last that is."""
    best = score.sort(dim=1, descending=True).values
    if not 0 < count < best.shape[1]:
        return torch.full_like(best[:, 0], math.inf)
    return best[:, count - 1] - best[:, count]


def ones(x: Tensor, sizes: Tensor | None) -> Tensor:
    return torch.ones_like(x[..., 0]) if sizes is None else sizes


def pooled(x: Tensor, weights: Tensor, owner: Tensor, count: int) -> Tensor:
    """[B, count, C]: the weighted mean of the rows of x that each owner has."""
    members = F.one_hot(owner, count).to(x).transpose(1, 2)
    weight = weights.unsqueeze(-1)
    return (members @ (weight * x)) / (members @ weight)


def summed(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """[B, count]: the sum of the values [B, T] that each owner has."""
    return torch.zeros_like(values[:, :1]).repeat(1, count).scatter_add_(1, owner, values)


def joined(total: int, pairs: list[tuple[Tensor, Tensor]], kept: Tensor) -> Tensor:
    """Owners [B, T] when kept [B, K] stay, in that order, and in each pair of positions
    [B, n] the first goes where the second is."""
    slot = torch.zeros(len(kept), total, dtype=torch.long)
    slot.scatter_(1, kept, torch.arange(kept.shape[1]).expand_as(kept))
    for source, target in pairs:
        slot.scatter_(1, source, gather(slot, target))
    return slot


def matched(
    x: Tensor,
    sizes: Tensor | None,
    left: Tensor,
    right: Tensor,
    edges: Tensor,
    merges: int,
    combine: str = "mean",
    aside: Tensor | None = None,
    margins: Margins = (),
    ascending: bool = False,
) -> Step:
    """The `merges` best edges [B, m, n] between the positions left [B, m] and right [B, n] are
    followed, of each left token its best. combine: mean by size, drop, plain (not by size), or
    mlerp. aside: positions that take no part. ascending: what is left stays in its order."""
    total = x.shape[1]
    value, nearest, gap = best_of(edges)
    order = ranked(value)
    going, staying = order[:, :merges], order[:, merges:]
    source, target = gather(left, going), gather(right, gather(nearest, going))
    first = gather(left, staying)
    if aside is not None:
        first = torch.cat([aside, first], dim=1)
    kept = torch.cat([first.sort(dim=1).values, right.sort(dim=1).values], dim=1)
    if ascending:
        kept = kept.sort(dim=1).values
    owner = joined(total, [(source, target)], kept)
    size = ones(x, sizes)
    return Step(
        x=combined(x, size, owner, kept, combine),
        sizes=summed(size, owner, kept.shape[1]),
        source=kept,
        owner=owner,
        margins=(
            *margins,
            ("merged", boundary(value, merges)),
            ("target", gather(gap, going).amin(dim=1)),
        ),
    )


def combined(x: Tensor, size: Tensor, owner: Tensor, kept: Tensor, combine: str) -> Tensor:
    """Return what becomes of tokens with the same owner."""
    count = kept.shape[1]
    if combine == "drop":
        return gather(x, kept)
    mean = pooled(x, torch.ones_like(size) if combine == "plain" else size, owner, count)
    if combine != "mlerp":
        return mean
    # Direction of the mean, length of the longest member (ToFu, equation of MLERP).
    alone = F.one_hot(owner, count).bool()
    length = x.norm(dim=-1).unsqueeze(-1).masked_fill(~alone, -math.inf).amax(dim=1)
    return F.normalize(mean, dim=-1) * length.unsqueeze(-1)


def alternating(x: Tensor, before: int = 0) -> tuple[Tensor, Tensor]:
    """Positions of [B, T, ...] at even places and at odd ones, `before` tokens coming first."""
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    return places[:, before % 2 :: 2], places[:, 1 - before % 2 :: 2]


def tome(
    x: Tensor,
    sizes: Tensor | None,
    metric: Tensor,
    keep: int,
    *,
    combine: str = "mean",
    penalty: Tensor | None = None,
    before: int = 0,
) -> Step:
    """ToMe on the metric [B, T, d]; Turbo where a penalty [B, T] is taken off the edges of those
    that would leave; ToFu by `combine`. before: how many tokens that take no part are counted for
    who is at an even place; in ToMe's own code these are the class token."""
    left, right = alternating(x, before)
    edges = cosines(gather(metric, left), gather(metric, right))
    if penalty is not None:
        edges = edges - gather(penalty, left).unsqueeze(-1)
    return matched(x, sizes, left, right, edges, x.shape[1] - keep, combine)


def turbo_penalty(
    cls: Tensor, layer: int, alpha: float = 1.0, beta: float = 1.0, gamma: float = 0.0
) -> Tensor:
    """30 α β^|γ−l| c, c the mean over heads of what the class token attends to."""
    return 30.0 * alpha * beta ** abs(gamma - layer) * cls


def energy(metric: Tensor, margin: float, form: str = "elu", alpha: float = 1.0) -> Tensor:
    """[B, T]: how much each token is like all, itself included (PiToMe). elu: ELU(cos − m), as
    released; paper: cos where it is at least m, else α (e^(cos − m) − 1)."""
    cos = cosines(metric, metric)
    below = alpha * (torch.exp(cos - margin) - 1)
    above = cos if form == "paper" else cos - margin
    inside = cos >= margin if form == "paper" else cos > margin
    return torch.where(inside, above, below).mean(dim=2)


def apart(score: Tensor, count: int) -> Tensor:
    """[B]: the closest two neighbours among the `count` best and the next."""
    best = score.sort(dim=1, descending=True).values[:, : count + 1]
    return (best[:, :-1] - best[:, 1:]).amin(dim=1)


def pitome(
    x: Tensor, sizes: Tensor | None, metric: Tensor, scores: Tensor, keep: int, protected: bool
) -> Step:
    """PiToMe by energies [B, T]. Ranks alternate between those that go and those that receive:
    among the 2r highest only, the others being protected; or among all, of which r go (BSM)."""
    total = x.shape[1]
    merges = total - keep
    order = ranked(scores)
    able = 2 * merges if protected else total
    if able > total:
        raise ValueError(f"{merges} of {total} tokens cannot merge")
    left, right = order[:, 0:able:2], order[:, 1:able:2]
    edges = cosines(gather(metric, left), gather(metric, right))
    close = (("energy", apart(scores, able if protected else total - 1)),)
    aside = order[:, able:] if protected else None
    return matched(x, sizes, left, right, edges, merges, "mean", aside, close, ascending=True)


def mctf(
    x: Tensor,
    sizes: Tensor | None,
    metric: Tensor,
    received: Tensor,
    keep: int,
    tau: tuple[float, float, float] = (1.0, 20.0, 40.0),
) -> Step:
    """MCTF. received [B, T]: a, the mean over heads and queries of the attention to each token.

    Edges ((cos + 1)/2)^(1/τs) · (â_i â_j)^(1/τi) · (ŝ_i ŝ_j)^(1/τz), where â = 1/a and ŝ = 1/s,
    each over its largest. Half of the r merges go from even to odd, the others back to those even
    tokens that are left; means are weighted by a·s.
    """
    total, size = x.shape[1], ones(x, sizes)
    merges = total - keep
    here, there = merges // 2, merges - merges // 2
    rare, small = 1 / received, 1 / size
    rare, small = (v / v.amax(dim=1, keepdim=True) for v in (rare, small))
    alike = (cosines(metric, metric) + 1) / 2
    edges = alike ** (1 / tau[0])
    for factor, root in ((rare, tau[1]), (small, tau[2])):
        edges = edges * (factor.unsqueeze(2) * factor.unsqueeze(1)) ** (1 / root)
    left, right = alternating(x)
    across = edges[:, 0::2, 1::2]

    value, nearest, gap1 = best_of(across)
    order = ranked(value)
    going, staying = order[:, :here], order[:, here:].sort(dim=1).values
    pairs = [(gather(left, going), gather(right, gather(nearest, going)))]
    rest = gather(left, staying)
    back = gather(across, staying).transpose(1, 2)
    value2, nearest2, gap2 = best_of(back)
    order2 = ranked(value2)
    going2, staying2 = order2[:, :there], order2[:, there:]
    kept = torch.cat([rest, gather(right, staying2).sort(dim=1).values], dim=1)

    slot = torch.zeros(len(x), total, dtype=torch.long)
    slot.scatter_(1, kept, torch.arange(kept.shape[1]).expand_as(kept))
    returned = gather(right, going2)
    slot.scatter_(1, returned, gather(slot, gather(rest, gather(nearest2, going2))))
    for source, target in pairs:
        slot.scatter_(1, source, gather(slot, target))
    return Step(
        x=pooled(x, received * size, slot, kept.shape[1]),
        sizes=summed(size, slot, kept.shape[1]),
        source=kept,
        owner=slot,
        margins=(
            ("merged", boundary(value, here)),
            ("merged", boundary(value2, there)),
            ("target", _least(gather(gap1, going))),
            ("target", _least(gather(gap2, going2))),
        ),
    )


def _least(gap: Tensor) -> Tensor:
    if gap.shape[1] == 0:
        return torch.full((len(gap),), math.inf, dtype=gap.dtype)
    return gap.amin(dim=1)
