"""Tokens that leave by where they are in the image.

* ALGM (Norouzi et al., CVPR 2024, arXiv:2406.09936): windows of like tokens become one;
* ATME (CAIT, Wang et al., 2023, arXiv:2309.15755): neighbouring columns, or rows, become one;
* LLaVA-Zip (Wang et al., 2024, arXiv:2412.08771): the grid is pooled;
* ToMe for Stable Diffusion (Bolya and Hoffman, CVPRW 2023, arXiv:2303.17604): one token of each
  cell is merged into.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.choices import Step
from tests.oracles.presets.merging import (
    boundary,
    cosines,
    joined,
    matched,
    ones,
    pooled,
    ranked,
    summed,
)
from tests.oracles.stream import gather

Grid = tuple[int, int]


def windows_of(grid: Grid, side: int) -> Tensor:
    """[windows, side²]: the patches of each window of the grid, rows of windows first."""
    places = torch.arange(grid[0] * grid[1]).view(grid)
    cut = places[: grid[0] // side * side, : grid[1] // side * side]
    parts = cut.unfold(0, side, side).unfold(1, side, side)
    return parts.reshape(-1, side * side)


def algm_windows(x: Tensor, sizes: Tensor | None, grid: Grid, keep: int, side: int = 2) -> Step:
    """The r most alike windows, by the mean cosine of two different members, become their last
    member, the mean by size. r·(side² − 1) = T − keep. First the windows, then all others."""
    members = side * side
    merges, odd = divmod(x.shape[1] - keep, members - 1)
    if odd:
        raise ValueError(f"windows of {members} cannot take {x.shape[1] - keep} tokens away")
    table = windows_of(grid, side)
    unit = F.normalize(x[:, table], dim=-1)
    cos = unit @ unit.transpose(-1, -2)
    alike = (cos.sum(dim=(-2, -1)) - members) / (members * (members - 1))
    chosen = ranked(alike)[:, :merges].sort(dim=1).values
    taken = table[chosen]
    last, others = taken[..., -1], taken[..., :-1].flatten(1)
    goes = taken[..., -1:].expand(-1, -1, members - 1).flatten(1)
    outside = torch.ones_like(x[..., 0]).scatter(1, taken.flatten(1), 0.0)
    rest = outside.argsort(dim=1, descending=True, stable=True)
    rest = rest[:, : x.shape[1] - members * merges].sort(dim=1).values
    kept = torch.cat([last, rest], dim=1)
    owner = joined(x.shape[1], [(others, goes)], kept)
    size = ones(x, sizes)
    return Step(
        x=pooled(x, size, owner, keep),
        sizes=summed(size, owner, keep),
        source=kept,
        owner=owner,
        margins=(("merged", boundary(alike, merges)),),
    )


def cells_of(grid: Grid, side: int) -> Tensor:
    """[T]: the side×side cell that each patch lies in, rows of cells first; those at the right and
    lower edge may be smaller."""
    places = torch.arange(grid[0] * grid[1])
    rows, columns = places // grid[1] // side, places % grid[1] // side
    return rows * -(-grid[1] // side) + columns


def pool(x: Tensor, grid: Grid, side: int = 2) -> Step:
    """The mean of every side×side cell, rows of cells first, in the place of its first token."""
    cells = cells_of(grid, side)
    count = int(cells.max()) + 1
    first = torch.stack([(cells == cell).nonzero()[0, 0] for cell in range(count)])
    owner = cells.expand(len(x), -1)
    one = torch.ones_like(x[..., 0])
    return Step(
        x=pooled(x, one, owner, count),
        sizes=summed(one, owner, count),
        source=first.expand(len(x), -1),
        owner=owner,
        margins=(),
    )


def tomesd(x: Tensor, grid: Grid, keep: int, side: int = 2) -> Step:
    """The first token of each complete cell is merged into; of the others the T − keep most alike
    to one of these go there: plain means."""
    firsts = windows_of(grid, side)[:, 0]
    into = torch.zeros(x.shape[1], dtype=torch.bool)
    into[firsts] = True
    places = torch.arange(x.shape[1])
    left, right = (places[part].expand(len(x), -1) for part in (~into, into))
    edges = cosines(gather(x, left), gather(x, right))
    merges = x.shape[1] - keep
    return matched(x, None, left, right, edges, merges, "plain", ascending=True)


def atme(x: Tensor, sizes: Tensor | None, grid: Grid, keep: int, vertical: bool) -> Step:
    """The most alike of the pairs of neighbouring lines (0, 1), (2, 3) …, columns or (vertical)
    rows, by the mean cosine of tokens that lie beside each other, become one line, the mean by
    size, in the place of the first; the grid stays one."""
    high, wide = grid
    lines = high if vertical else wide
    merges = (x.shape[1] - keep) // (wide if vertical else high)
    places = torch.arange(high * wide).view(high, wide)
    table = places if vertical else places.t()
    pairs = table[: lines // 2 * 2].view(lines // 2, 2, -1)
    unit = F.normalize(x, dim=-1)
    alike = (unit[:, pairs[:, 0]] * unit[:, pairs[:, 1]]).sum(dim=-1).mean(dim=-1)
    chosen = ranked(alike)[:, :merges]
    source, target = (pairs[chosen][:, :, i].flatten(1) for i in (1, 0))
    stays = torch.ones_like(x[..., 0]).scatter(1, source, 0.0)
    kept = stays.argsort(dim=1, descending=True, stable=True)[:, :keep]
    owner = joined(x.shape[1], [(source, target)], kept)
    size = ones(x, sizes)
    return Step(
        x=pooled(x, size, owner, keep),
        sizes=summed(size, owner, keep),
        source=gather(torch.arange(x.shape[1]).expand(len(x), -1), kept),
        owner=owner,
        margins=(("merged", boundary(alike, merges)),),
    )
