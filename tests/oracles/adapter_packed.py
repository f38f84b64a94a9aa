"""Adapters for Qwen's image towers: patches in rows, four neighbours of which become one token.

All positions are worked out here, from the grid alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_groups import joined
from tests.oracles.adapter_parts import identity, split_heads
from tests.oracles.adapter_towers import rms
from tests.oracles.stream import Block, Encoder, Output, Rotary, Stream, gather


class Alone(torch.nn.Module):
    """A model of the patches of one image, for several: [B, N, P] -> the outputs, stacked."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Each image by itself."""
        found = [self.model(image) for image in images]
        parts = [one if isinstance(one, tuple) else (one,) for one in found]
        return tuple(torch.stack(values) for values in zip(*parts, strict=True))


def tiles(height: int, width: int, edge: int) -> Tensor:
    """[height * width]: places of a grid, in raster order, tile after tile of edge x edge."""
    grid = torch.arange(height * width).view(height // edge, edge, width // edge, edge)
    return grid.transpose(1, 2).flatten()


def _rotary(model: Any, order: Tensor, width: int, size: int) -> Rotary:
    """Half of the angles from the row of a patch, half from its column; both halves alike.

    order: [N], the place of each patch on the grid.  size: channels of a head.
    """
    base = model.config.rope_parameters["rope_theta"]
    speed = base ** -(torch.arange(0, size // 2, 2, dtype=torch.float64) / (size // 2))
    angles = torch.cat([(order // width)[:, None] * speed, (order % width)[:, None] * speed], -1)
    angles = torch.cat([angles, angles], -1)
    return Rotary(angles.cos(), angles.sin(), halves=True)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    return rms(module) if hasattr(module, "variance_epsilon") else module  # type: ignore[no-any-return]


def _block(layer: Any, rotary: Rotary) -> Block:
    attn, norm1, norm2 = layer.attn, _norm(layer.norm1), _norm(layer.norm2)

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, attn.num_heads) for part in attn.qkv(norm1(x)).chunk(3, -1))
        return q, k, v

    return Block(
        qkv=qkv,
        scale=attn.scaling,
        attend=lambda x, context: x + attn.proj(context),
        mlp=lambda x: x + layer.mlp(norm2(x)),
        rotary=rotary,
    )


def _merger(module: Any, members: int) -> Callable[[Tensor], Tensor]:
    """Norm (before the patches are joined, or after), then two matrices."""

    def old(x: Tensor) -> Tensor:
        return module.mlp(joined(_norm(module.ln_q)(x), members))  # type: ignore[no-any-return]

    def new(x: Tensor) -> Tensor:
        late = module.use_postshuffle_norm
        x = module.norm(joined(x, members)) if late else joined(module.norm(x), members)
        return module.linear_fc2(module.act_fn(module.linear_fc1(x)))  # type: ignore[no-any-return]

    return old if hasattr(module, "ln_q") else new


def _apart(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, N, N]: no token sees one of another part [N]."""
    return torch.zeros(1, len(parts), len(parts), dtype=dtype).masked_fill(
        parts[:, None] != parts[None, :], -torch.inf
    )


def _windows(height: int, width: int, side: int) -> Tensor:
    """[height * width]: in which window of side x side each place of a grid lies."""
    row, column = torch.arange(height)[:, None] // side, torch.arange(width)[None, :] // side
    return (row * -(-width // side) + column).flatten()


def qwen(model: Any) -> Encoder:
    """`models.packed_grid.PackedTower` around Qwen2-VL, Qwen2.5-VL or Qwen3-VL, one image or
    video.

    No frame sees another. Qwen2.5 puts the groups of a window together, and back in the end;
    windows of one length are segments, as frames are.
    """
    tower, (frames, height, width) = model.model, model.grid
    edge = tower.spatial_merge_size
    members, each = edge**2, height * width
    count = frames * each
    order = tiles(height, width, edge).repeat(frames)
    groups = torch.arange(count).view(-1, members)
    into, home = torch.arange(count), torch.arange(len(groups))
    frame = torch.arange(count) // each
    window, segments = None, frames
    if hasattr(tower, "window_size"):
        side = tower.window_size // tower.patch_size // edge
        one = _windows(height // edge, width // edge, side)
        number = torch.cat([one + f * (one.max() + 1) for f in range(frames)])
        index = number.argsort(stable=True)
        into, home = groups[index].flatten(), index
        window = number[index].repeat_interleave(members)
        if len(set(window.bincount().tolist())) == 1:
            segments = int(window.max()) + 1

    def embed(patches: Tensor) -> Tensor:
        x = tower.patch_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        if hasattr(tower, "pos_embed"):
            table = tower.pos_embed.original.weight
            if (tower.num_grid_per_side,) * 2 != (height, width):
                raise LookupError("no adapter for resized positions")
            x = x + table[order]
        return x[:, into]

    merger = _merger(tower.merger, members)
    deep = list(getattr(tower, "deepstack_merger_list", []))
    size = tower.blocks[0].attn.head_dim
    rotary = _rotary(tower, order[into], width, size)
    dtype = tower.blocks[0].attn.qkv.weight.dtype

    def block(i: int, layer: Any) -> Block:
        plain = _block(layer, rotary)
        if window is None or i in tower.fullatt_block_indexes:
            return plain if frames == 1 else replace(plain, bias=_apart(frame, dtype), apart=frames)
        even = segments > frames
        bias = _apart(window, dtype)
        return replace(plain, bias=bias, windows=not even, apart=segments if even else 1)

    def head(stream: Stream) -> tuple[Output, ...]:
        value, rows = merger(stream.x), None
        if window is not None:
            assert stream.index is not None
            rows, place = home[stream.index[:, ::members] // members].sort(dim=1)
            value = gather(value, place)
        taps = zip(deep, stream.taps, strict=True)
        return (
            Output(value, 0, members=members, rows=rows),
            *(Output(_merger(own, members)(x), 0, members=members, tap=True) for own, x in taps),
        )

    return Encoder(
        embed=embed,
        prefix=0,
        cls=False,
        blocks=tuple(block(i, layer) for i, layer in enumerate(tower.blocks)),
        norm=identity,
        head=head,
        groups=groups,
        segments=segments,
        taps=tuple(getattr(tower, "deepstack_visual_indexes", ())),
    )
