"""Adapters for timm's models with rotary positions: EVA and EVA-02, DINOv3, PE, ROPE-ViT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.adapter_parts import identity, scaled
from tests.oracles.adapter_timm import attention_pool
from tests.oracles.stream import Block, Encoder, Output, Rotary, Stream, pooled_mean


def _rotary(table: Tensor, prefix: int, halves: bool) -> Rotary:
    """From timm's table of the patches, [P, 2d] or [H, P, 2d], sines first."""
    sin, cos = table.detach().chunk(2, dim=-1)
    rows = (0, 0, prefix, 0)
    return Rotary(F.pad(cos, rows, value=1.0), F.pad(sin, rows), halves)


def _projections(attn: Any, x: Tensor) -> list[Tensor]:
    """q, k, v [B, H, N, d] of normed x: fused or apart, with biases beside the layer or in it."""
    if attn.qkv is None:
        parts = [attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)]
    else:
        parts = list(attn.qkv(x).chunk(3, -1))
    if getattr(attn, "q_bias", None) is not None:  # the key has none
        parts[0] = parts[0] + attn.q_bias
        parts[2] = parts[2] + attn.v_bias
    return [part.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for part in parts]


def _block(layer: Any, rotary: Rotary | None) -> Block:
    attn, post = layer.attn, type(layer).__name__ == "EvaBlockPostNorm"
    before1 = identity if post else layer.norm1
    before2 = identity if post else layer.norm2
    after1 = layer.norm1 if post else scaled(layer.gamma_1)
    after2 = layer.norm2 if post else scaled(layer.gamma_2)

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _projections(attn, before1(x))
        shared = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(shared, dim=1) for part in (attn.k_norm(k), v))
        return attn.q_norm(q), k, v

    def attend(x: Tensor, context: Tensor) -> Tensor:
        y = attn.norm(context)
        if attn.gate is not None:
            y = y * attn.gate(before1(x)).sigmoid()
        return x + after1(attn.proj(y))

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=attend,
        mlp=lambda x: x + after2(layer.mlp(before2(x))),
        rotary=rotary,
    )


def _rotaries(model: Any) -> list[Rotary | None]:
    """One for each block."""
    depth, prefix = len(model.blocks), model.num_prefix_tokens
    if model.rope is None:
        return [None] * depth
    table = model.rope.get_embed(list(model.patch_embed.grid_size))
    halves = model.blocks[0].attn.rotate_half
    if table.ndim == 4:
        return [_rotary(own, prefix, halves) for own in table]
    return [_rotary(table, prefix, halves)] * depth


def _embed(model: Any) -> Callable[[Tensor], Tensor]:
    """Patches, then class token and registers before them, then learnt positions."""
    special = [t for t in (model.cls_token, model.reg_token) if t is not None]

    def embed(image: Tensor) -> Tensor:
        x = model.patch_embed(image)
        x = x.flatten(1, 2) if x.ndim == 4 else x  # [B, H, W, C] where sizes may change
        positions = 0 if model.pos_embed is None else model.pos_embed
        if model.no_embed_class:
            x = x + positions
        x = torch.cat([*(t.expand(len(x), -1, -1) for t in special), x], dim=1)
        return model.norm_pre(x if model.no_embed_class else x + positions)

    return embed


def eva(model: Any) -> Encoder:
    prefix = model.num_prefix_tokens

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        if model.attn_pool is not None:
            pooled = attention_pool(model.attn_pool, x, stream.key_bias())
        elif model.global_pool == "token":
            pooled = x[:, 0]
        elif model.global_pool == "avg":
            sizes = None if stream.sizes is None else stream.sizes[:, prefix:]
            pooled = pooled_mean(x[:, prefix:], sizes)
        else:
            return (Output(model.head(model.fc_norm(x)), 0),)
        features = model.fc_norm(pooled)
        return Output(model.head(features)), Output(features), Output(x, 0)

    return Encoder(
        embed=_embed(model),
        prefix=prefix,
        # A class token that the head leaves out has learnt nothing about the image.
        cls=model.cls_token is not None and model.global_pool in ("token", ""),
        blocks=tuple(map(_block, model.blocks, _rotaries(model))),
        norm=model.norm,
        head=head,
    )
