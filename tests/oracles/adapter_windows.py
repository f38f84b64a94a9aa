"""Adapters for image encoders that attend within windows, except in a few blocks: SAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_parts import identity, split_heads
from tests.oracles.stream import Block, Encoder, Output, Stream


def square(x: Tensor) -> Tensor:
    """[B, side^2, C] -> [B, side, side, C]."""
    side = round(x.shape[1] ** 0.5)
    return x.unflatten(1, (side, side))


def _decomposed(attn: Any, side: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A bias for each pair of tokens of a square grid: what the query makes of their distance down,
    and of their distance across."""

    def pairs(q: Tensor, index: Tensor) -> Tensor:
        found = torch.zeros(())
        for place, table in ((index // side, attn.rel_pos_h), (index % side, attn.rel_pos_w)):
            away = place[:, :, None] - place[:, None, :] + side - 1
            found = found + torch.einsum("bhqd,bqkd->bhqk", q, table[away])
        return found

    return pairs


def _block(
    layer: Any,
    norms: tuple[Any, Any],
    scales: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    heads: int,
    side: int,
) -> Block:
    """A block that attends to the whole grid, or one with windows, which is left as it is."""
    attn, (norm1, norm2), (scale1, scale2) = layer.attn, norms, scales

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, heads) for part in attn.qkv(norm1(x)).chunk(3, -1))
        return q, k, v

    windows = layer.window_size > 0
    return Block(
        qkv=qkv,
        scale=attn.scale,
        attend=lambda x, context: x + scale1(attn.proj(context)),
        mlp=lambda x: x + scale2(layer.mlp(norm2(x))),
        pairs=_decomposed(attn, side) if attn.use_rel_pos else None,
        windows=windows,
        whole=(lambda x: layer(square(x)).flatten(1, 2)) if windows else None,
    )


def _map(x: Tensor) -> Tensor:
    """[B, side^2, C] -> [B, C, side, side]."""
    return square(x).permute(0, 3, 1, 2)


def sam(model: Any) -> Encoder:
    """transformers': the map behind the neck."""
    side = model.config.image_size // model.config.patch_size
    heads = model.config.num_attention_heads

    def block(layer: Any) -> Block:
        norms = layer.layer_norm1, layer.layer_norm2
        return _block(layer, norms, (identity, identity), heads, side)

    return Encoder(
        embed=lambda image: (model.patch_embed(image) + model.pos_embed).flatten(1, 2),
        prefix=0,
        cls=False,
        blocks=tuple(map(block, model.layers)),
        norm=identity,
        head=lambda stream: (Output(model.neck(square(stream.every()))),),
    )


def timm_sam(model: Any) -> Encoder:
    """timm's: the map, and its average."""
    side = model.patch_embed.grid_size[0]

    def block(layer: Any) -> Block:
        norms, scales = (layer.norm1, layer.norm2), (layer.ls1, layer.ls2)
        return _block(layer, norms, scales, layer.attn.num_heads, side)

    def head(stream: Stream) -> tuple[Output, ...]:
        features = model.neck(_map(stream.every()))
        return Output(model.head(features)), Output(features)

    return Encoder(
        embed=lambda image: (model.patch_embed(image) + model.pos_embed).flatten(1, 2),
        prefix=0,
        cls=False,
        blocks=tuple(map(block, model.blocks)),
        norm=identity,
        head=head,
    )
