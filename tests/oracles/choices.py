"""Choice of the tokens that stay, and of what becomes of the others: scores and reducers of
`methods.py`, on plain tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.stream import gather


@dataclass(frozen=True)
class Step:
    """Decision of one reduction about the T non-prefix tokens that entered it.

    x: [B, K, C].  sizes: [B, K] or None.  source: [B, K], the position each came from, -1 if it is
    new.  owner: [B, T], which of the K now stands for each.  margins: closest decisions.
    """

    x: Tensor
    sizes: Tensor | None
    source: Tensor
    owner: Tensor
    margins: tuple[tuple[str, Tensor], ...]


# ---- scores: [B, T], larger = keep ---------------------------------------------------------------


def cls_score(
    q: Tensor, k: Tensor, scale: float, prefix: int, bias: Tensor | None = None, suffix: int = 0
) -> Tensor:
    """Mean over heads of what the class token attends to, among all keys.

    The class token is the first of the prefix, or without a prefix the first of the suffix.
    """
    return _attended(q, k, scale, [0 if prefix else q.shape[2] - suffix], prefix, bias, suffix)


def attn_score(
    q: Tensor, k: Tensor, scale: float, prefix: int, bias: Tensor | None = None, suffix: int = 0
) -> Tensor:
    """Mean attention received from ceil(sqrt(T)) patches, evenly strided at half-step offsets."""
    patches = q.shape[2] - prefix - suffix
    m = math.isqrt(patches - 1) + 1
    rows = [prefix + ((2 * i + 1) * patches) // (2 * m) for i in range(m)]
    return _attended(q, k, scale, rows, prefix, bias, suffix)


def _attended(
    q: Tensor,
    k: Tensor,
    scale: float,
    rows: list[int],
    prefix: int,
    bias: Tensor | None,
    suffix: int,
) -> Tensor:
    """Return what the patches receive from the given rows, as a mean over rows and heads."""
    logits = q[:, :, rows] @ k.transpose(-1, -2) * scale
    if bias is not None:
        logits = logits + (bias if bias.shape[-2] == 1 else bias[..., rows, :])
    return logits.softmax(dim=-1)[..., prefix : k.shape[2] - suffix].mean(dim=(1, 2))


# ---- reducers ------------------------------------------------------------------------------------


def select(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` largest of each row in ascending position, and the smallest gap at the boundary.

    Equal scores: the lower position wins, as in ONNX.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    ranked = gather(score, order)
    return order[:, :keep].sort(dim=1).values, ranked[:, keep - 1] - ranked[:, keep]


def _two_best(edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the last axis: best value, its lowest index, and how far the second best lies below."""
    value, index = edges.sort(dim=-1, descending=True, stable=True)
    behind = (
        value[..., 0] - value[..., 1]
        if edges.shape[-1] > 1
        else torch.full_like(value[..., 0], math.inf)
    )
    return value[..., 0], index[..., 0], behind


def topk(x: Tensor, sizes: Tensor | None, score: Tensor, keep: int) -> Step:
    """Keep the best, ascending; a dropped token is owned by the kept one of nearest direction."""
    kept, gap = select(score, keep)
    owner, nearest = _owners(x, kept)
    return _keep(x, sizes, kept, owner, (("kept", gap), ("owner", nearest)))


def topk_groups(x: Tensor, sizes: Tensor | None, score: Tensor, keep: int, groups: Tensor) -> Step:
    """Keep whole groups [G, g], the best by their members' mean score: the kept ones in the order
    of `groups`, the members of each in its order. A group that is dropped is owned by the kept one
    whose mean has the nearest direction, member by member."""
    members = groups.shape[1]
    kept, gap = select(score[:, groups].mean(dim=-1), keep // members)
    owner, nearest = _owners(x[:, groups].mean(dim=2), kept)
    place = groups.flatten().argsort()
    owner = owner[:, place // members] * members + place % members
    rows = groups[kept].flatten(1)
    return _keep(x, sizes, rows, owner, (("kept", gap), ("owner", nearest)))


def _owners(x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of x [B, T, C] which of those kept [B, K] is nearest, itself if it is among
    them, and how clear the closest of these decisions is [B]."""
    unit = F.normalize(x, dim=-1)
    _, owner, behind = _two_best(unit @ gather(unit, kept).transpose(1, 2))
    owner = owner.scatter(1, kept, torch.arange(kept.shape[1]).expand_as(kept))
    return owner, behind.scatter(1, kept, math.inf).amin(dim=1)


def _keep(
    x: Tensor,
    sizes: Tensor | None,
    kept: Tensor,
    owner: Tensor,
    margins: tuple[tuple[str, Tensor], ...],
) -> Step:
    """The tokens kept [B, K], in that order."""
    return Step(
        x=gather(x, kept),
        sizes=None if sizes is None else gather(sizes, kept),
        source=kept,
        owner=owner,
        margins=margins,
    )


def fuse(x: Tensor, sizes: Tensor | None, score: Tensor, keep: int) -> Step:
    """Keep the best keep-1, ascending, then one token: the sum of score * x over the rest."""
    kept, gap = select(score, keep - 1)
    dropped = torch.ones_like(score, dtype=torch.bool).scatter(1, kept, False)
    left = (score * dropped).unsqueeze(1) @ x
    owner = torch.full_like(score, keep - 1, dtype=torch.long)
    owner = owner.scatter(1, kept, torch.arange(keep - 1).expand_as(kept))
    new_sizes = None
    if sizes is not None:
        rest = (sizes * dropped).sum(dim=1, keepdim=True)
        new_sizes = torch.cat([gather(sizes, kept), rest], dim=1)
    return Step(
        x=torch.cat([gather(x, kept), left], dim=1),
        sizes=new_sizes,
        source=torch.cat([kept, torch.full_like(kept[:, :1], -1)], dim=1),
        owner=owner,
        margins=(("kept", gap),),
    )


def tome(x: Tensor, sizes: Tensor | None, keys: Tensor, keep: int) -> Step:
    """Merge the T-keep even tokens with the closest odd neighbour into it.

    keys: [B, H, T, d]; edges are cosines of the keys' mean over heads.  Order of what leaves: even
    tokens that were not merged, then all odd ones, both ascending.
    """
    batch, total, _ = x.shape
    remove = total - keep
    sizes = torch.ones(batch, total, dtype=x.dtype) if sizes is None else sizes
    unit = F.normalize(keys.mean(dim=1), dim=-1)
    edges = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    best, target, behind = _two_best(edges)
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, alone = order[:, :remove], order[:, remove:].sort(dim=1).values
    ranked = gather(best, order)
    boundary = torch.full_like(ranked[:, 0], math.inf)
    if remove < order.shape[1]:
        boundary = ranked[:, remove - 1] - ranked[:, remove]

    weighted = x * sizes.unsqueeze(-1)
    sums, counts = weighted[:, 1::2].clone(), sizes[:, 1::2].clone()
    into = gather(target, merged)
    sums.scatter_add_(
        1, into.unsqueeze(-1).expand(-1, -1, x.shape[2]), gather(weighted[:, 0::2], merged)
    )
    counts.scatter_add_(1, into, gather(sizes[:, 0::2], merged))

    stay = alone.shape[1]
    owner = torch.empty(batch, total, dtype=torch.long)
    owner[:, 1::2] = stay + torch.arange(total // 2)
    even = (stay + target).scatter(1, alone, torch.arange(stay).expand_as(alone))
    owner[:, 0::2] = even
    odd = torch.arange(1, total, 2).expand(batch, -1)
    return Step(
        x=torch.cat([gather(x[:, 0::2], alone), sums / counts.unsqueeze(-1)], dim=1),
        sizes=torch.cat([gather(sizes[:, 0::2], alone), counts], dim=1),
        source=torch.cat([2 * alone, odd], dim=1),
        owner=owner,
        margins=(("merged", boundary), ("target", gather(behind, merged).amin(dim=1))),
    )
