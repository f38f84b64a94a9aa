"""Importance of patches, [B, T], larger = keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.moments import Attention, Moment


def queries(moment: Moment, attention: Attention | None = None) -> list[int]:
    """Whose attention stands for the importance: the class token's; in a model that reads none,
    that of ceil(sqrt(T)) evenly strided patches."""
    inner = (attention or moment.attention).inner
    if moment.encoder.cls:
        return [0]
    count = inner.stop - inner.start
    m = math.isqrt(count - 1) + 1
    return [inner.start + ((2 * i + 1) * count) // (2 * m) for i in range(m)]


def per_head(moment: Moment, attention: Attention | None = None) -> Tensor:
    """[B, H, T]: what the patches receive of `queries`, mean over these, after softmax over all
    keys."""
    own = attention or moment.attention
    return own.weights[:, :, queries(moment, own)].mean(dim=2)[..., own.inner]


def cls(moment: Moment) -> Tensor:
    """mean_h A[h, 0, j] (EViT, FasterVLM)."""
    return per_head(moment).mean(dim=1)


def cls_logits(moment: Moment) -> Tensor:
    """mean_h q_0·k_j, not softmaxed (IdleViT); without a class token there are no such logits, and
    what is paid stands in."""
    if not moment.encoder.cls:
        return cls(moment)
    return moment.attention.logits[:, :, 0, moment.inner].mean(dim=1)


def cls_by_values(moment: Moment) -> Tensor:
    """Σ_h A[h, 0, j] · ‖v_j‖₂, v_j of all heads together (ATS)."""
    if not moment.encoder.cls:
        return cls(moment)
    length = moment.attention.v.transpose(1, 2).flatten(2).norm(dim=-1)
    return per_head(moment).sum(dim=1) * length[:, moment.inner]


def cls_by_context(moment: Moment) -> Tensor:
    """Σ_h A[h, 0, j] · ‖o_hj‖₂ / Σ_h ‖o_hj‖₂ (AS-ViT)."""
    if not moment.encoder.cls:
        return cls(moment)
    length = moment.attention.context[:, :, moment.inner].norm(dim=-1)
    return (per_head(moment) * length / length.sum(dim=1, keepdim=True)).sum(dim=1)


def cls_so_far(moment: Moment, tau: float = 0.5) -> Tensor:
    """g ← (1 − τ) g + τ c over the blocks before, c = Σ_h A[h, 0, j], g the first one's c to begin
    with; a token that was not in a block keeps its g (Evo-ViT)."""
    if not moment.encoder.cls:
        return cls(moment)
    total: Tensor | None = None
    for past in moment.past:
        found = past.carried(per_head(moment, past.attention).sum(dim=1))
        mixed = found if total is None else (1 - tau) * total + tau * found
        total = mixed if total is None else torch.where(past.where >= 0, mixed, total)
    assert total is not None, "no block before"
    return total


def received(moment: Moment, attention: Attention | None = None) -> Tensor:
    """[B, H, T]: Σ_q A[h, q, j] over all tokens q."""
    own = attention or moment.attention
    return own.weights.sum(dim=2)[..., own.inner]


def received_so_far(moment: Moment) -> Tensor:
    """Σ over heads, queries and the blocks so far, this one included (SpAtten)."""
    total = received(moment).sum(dim=1)
    for past in moment.past:
        total = total + past.carried(received(moment, past.attention).sum(dim=1))
    return total


def paid_and_received(moment: Moment) -> Tensor:
    """(max_h what the class token pays) · (max_h Σ_q what all tokens pay) (FitPrune)."""
    paid = per_head(moment).amax(dim=1) if moment.encoder.cls else cls(moment)
    return paid * moment.attention.weights.sum(dim=2).amax(dim=1)[:, moment.inner]


def pomt(moment: Moment) -> Tensor:
    """a/max(a) + m: a_j = Σ_q max_h A[h, q, j] over patches q, its maximum that of the image;
    m = softmax over all tokens of Σ_d max_h v[h, j, d], of which the patches'."""
    inner = moment.inner
    a = moment.attention.weights[:, :, inner, inner].amax(dim=1).sum(dim=1)
    mass = moment.attention.v.amax(dim=1).sum(dim=-1).softmax(dim=-1)[:, inner]
    return a / a.amax(dim=1, keepdim=True) + mass


def pagerank(moment: Moment, votes: int, low: float = 0.01, high: float = 0.7) -> Tensor:
    """s ← Aᵀ s, `votes` times from s = 1, of the class token √N, of mean 1; then over the heads
    whose variance of s lies in [low, high] (over all where none does) the root of the mean square
    (Zero-TPrune)."""
    weights = moment.attention.weights
    count = weights.shape[-1]
    votes_of = torch.ones(count, dtype=weights.dtype)
    if moment.encoder.cls:
        votes_of[0] = math.sqrt(count)
    s = (votes_of / votes_of.mean()).expand(*weights.shape[:2], count)
    for _ in range(votes):
        s = torch.einsum("bhqk,bhq->bhk", weights, s)
    variance = s.var(dim=-1, correction=0)
    good = ((variance >= low) & (variance <= high)).to(s)
    good = torch.where(good.sum(dim=1, keepdim=True) == 0, 1.0, good)
    mean = (good.unsqueeze(-1) * s**2).sum(dim=1) / good.sum(dim=1).unsqueeze(-1)
    return mean.sqrt()[:, moment.inner]


def unlike_pivots(moment: Moment, pivots: int = 4) -> tuple[Tensor, Tensor]:
    """−max_p cos(x_j, x_p) over the pivots, the tokens of largest ‖x‖₁, which stay in any case
    (DART); and how clear the pivots are [B]."""
    length = moment.x.abs().sum(dim=-1)
    best = length.sort(dim=1, descending=True, stable=True)
    gap = (best.values[:, pivots - 1] - best.values[:, pivots]) / best.values[:, 0]
    unit = F.normalize(moment.x, dim=-1)
    chosen = best.indices[:, :pivots]
    few = unit.gather(1, chosen.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
    return (-(unit @ few.transpose(1, 2)).amax(dim=-1)).scatter(1, chosen, 2.0), gap


# ---- patterns that look at no image --------------------------------------------------------------


def evenly(total: int, keep: int) -> list[int]:
    """`keep` of `total`, evenly spread: floor((i + ½) T / K)."""
    return [((2 * i + 1) * total) // (2 * keep) for i in range(keep)]


def from_centre(side: int, norm: str) -> Tensor:
    """[side²]: minus the distance of each patch from the centre, in half patches; exact (the square
    of it for l2)."""
    off = (2 * torch.arange(side) - (side - 1)).abs()
    down, across = torch.meshgrid(off, off, indexing="ij")
    distance = {"l1": down + across, "l2": down**2 + across**2, "linf": torch.maximum(down, across)}
    return -distance[norm].flatten().double()


def drawn(total: int, seed: int) -> Tensor:
    """[total]: places in a permutation drawn by a seed."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(total)).double()


# ---- trained heads -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A trained scorer: matrices [out, in] with biases, GELU between, perhaps a norm before."""

    layers: tuple[tuple[Tensor, Tensor | None], ...]
    norm: tuple[Tensor, Tensor] | None = None

    def __call__(self, moment: Moment) -> Tensor:
        """One output is the score; of two, the first means keep."""
        x = moment.x
        if self.norm is not None:
            weight, bias = (part.to(x) for part in self.norm)
            x = F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)
        for number, (weight, offset) in enumerate(self.layers):
            x = F.gelu(x) if number else x
            x = F.linear(x, weight.to(x), None if offset is None else offset.to(x))
        return x[..., 0] if x.shape[-1] == 1 else x[..., 0] - x[..., 1]

    def save(self, path: object) -> None:
        """As an .npz, the way the compiler reads it."""
        arrays = {}
        for number, (weight, offset) in enumerate(self.layers):
            arrays[f"{number}.weight"] = weight.numpy()
            if offset is not None:
                arrays[f"{number}.bias"] = offset.numpy()
        if self.norm is not None:
            arrays["norm.weight"], arrays["norm.bias"] = (part.numpy() for part in self.norm)
        np.savez(str(path), **arrays)


def random_head(width: int, *sizes: int, norm: bool = False, bias: bool = True) -> Head:
    """Layers of these sizes over tokens of a width, the same every time."""
    generator = torch.Generator().manual_seed(sum(sizes))

    def drawn_of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    layers = []
    for before, after in zip((width, *sizes), sizes, strict=False):
        weight = drawn_of(after, before) / math.sqrt(before)
        layers.append((weight, drawn_of(after) if bias else None))
    both = (1 + 0.2 * drawn_of(width), 0.2 * drawn_of(width)) if norm else None
    return Head(tuple(layers), both)
