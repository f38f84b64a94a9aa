"""GTP-ViT (Xu et al., WACV 2024, arXiv:2311.03035): what leaves is propagated to its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.choices import Step
from tests.oracles.presets.merging import best_of, boundary, cosines, ranked
from tests.oracles.stream import gather


def beside(grid: tuple[int, int]) -> Tensor:
    """[T, T] bool: the up to eight neighbours of each patch of the grid."""
    places = torch.arange(grid[0] * grid[1])
    rows, columns = places // grid[1], places % grid[1]
    far = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    return far == 1


def graph(x: Tensor, grid: tuple[int, int], semantic: int) -> tuple[Tensor, Tensor]:
    """[B, T, T], D^-½ G D^-½, and how clear its closest choice was [B]: G has an edge between
    neighbours of the image and from each token to the `semantic` others of nearest direction."""
    alike = cosines(x, x)
    alike = alike - 4 * torch.eye(alike.shape[-1], dtype=x.dtype)
    order = alike.sort(dim=-1, descending=True, stable=True)
    near = torch.zeros_like(alike).scatter(2, order.indices[..., :semantic], 1.0)
    found = torch.maximum(near, beside(grid).to(x))
    degree = found.sum(dim=2).rsqrt()
    gap = (order.values[..., semantic - 1] - order.values[..., semantic]).amin(dim=1)
    return found * degree.unsqueeze(2) * degree.unsqueeze(1), gap


def mixed_attention(attention: Tensor) -> Tensor:
    """[B, N] of A [B, H, N, N]: max_h A_jj · max_h Σ_q A_qj, q over all tokens."""
    itself = attention.diagonal(dim1=-2, dim2=-1).amax(dim=1)
    return itself * attention.sum(dim=2).amax(dim=1)


def gtp(x: Tensor, score: Tensor, links: Tensor, keep: int, alpha: float = 0.2) -> Step:
    """The best stay, ascending; each becomes x_k + α Σ_p links_kp x_p over those that leave."""
    kept = ranked(score)[:, :keep].sort(dim=1).values
    gone = ranked(score)[:, keep:].sort(dim=1).values
    between = gather(gather(links, kept).transpose(1, 2), gone).transpose(1, 2)
    _, like, near = best_of(cosines(gather(x, gone), gather(x, kept)))
    owner = torch.zeros(score.shape, dtype=torch.long)
    owner.scatter_(1, kept, torch.arange(keep).expand_as(kept)).scatter_(1, gone, like)
    return Step(
        x=gather(x, kept) + alpha * (between @ gather(x, gone)),
        sizes=None,
        source=kept,
        owner=owner,
        margins=(("kept", boundary(score, keep)), ("owner", near.amin(dim=1))),
    )
