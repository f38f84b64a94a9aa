"""Adapters for models with a relative-position bias: BEiT and its kin, and timm's vit_relpos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_parts import identity, scaled, split_heads
from tests.oracles.stream import Block, Encoder, Output, Stream, pooled_mean


def table_bias(table: Tensor, index: Tensor) -> Tensor:
    """Table [distances, H] read at index [N, N] -> [H, N, N]."""
    side = int(index.numel() ** 0.5)
    return table.detach()[index.reshape(side, side)].permute(2, 0, 1)


def timm_beit(model: Any) -> Encoder:
    shared = None
    if model.rel_pos_bias is not None:
        shared = table_bias(
            model.rel_pos_bias.relative_position_bias_table,
            model.rel_pos_bias.relative_position_index,
        )

    def block(layer: Any) -> Block:
        attn = layer.attn
        bias = shared
        if attn.relative_position_bias_table is not None:
            own = table_bias(attn.relative_position_bias_table, attn.relative_position_index)
            bias = own if shared is None else own + shared

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = attn.qkv(layer.norm1(x)).chunk(3, -1)
            if attn.q_bias is not None:  # the key has none
                q, v = q + attn.q_bias, v + attn.v_bias
            q, k, v = (split_heads(part, attn.num_heads) for part in (q, k, v))
            return q, k, v

        scale1, scale2 = scaled(layer.gamma_1), scaled(layer.gamma_2)
        return Block(
            qkv=qkv,
            scale=attn.scale,
            attend=lambda x, context: x + scale1(attn.proj(context)),
            mlp=lambda x: x + scale2(layer.mlp(layer.norm2(x))),
            bias=bias,
        )

    def embed(image: Tensor) -> Tensor:
        x = model.patch_embed(image)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x if model.pos_embed is None else x + model.pos_embed

    return Encoder(
        embed=embed,
        prefix=1,
        cls=model.global_pool in ("token", ""),
        blocks=tuple(map(block, model.blocks)),
        norm=model.norm,
        head=lambda stream: pooled_head(model, stream, 1),
    )


def pooled_head(model: Any, stream: Stream, prefix: int) -> tuple[Output, ...]:
    """Return what timm's simpler models do after the last norm: pool, norm, classify."""
    x = stream.x
    if not model.global_pool:
        return (Output(model.head(model.fc_norm(x)), 0),)
    sizes = None if stream.sizes is None else stream.sizes[:, prefix:]
    pooled = x[:, 0] if model.global_pool == "token" else pooled_mean(x[:, prefix:], sizes)
    features = model.fc_norm(pooled)
    return Output(model.head(features)), Output(features), Output(x, 0)


def timm_relpos(model: Any) -> Encoder:
    prefix = model.num_prefix_tokens
    shared = None if model.shared_rel_pos is None else model.shared_rel_pos.get_bias()[0].detach()

    def block(layer: Any) -> Block:
        attn, post = layer.attn, type(layer).__name__ == "ResPostRelPosBlock"
        before1 = identity if post else layer.norm1
        before2 = identity if post else layer.norm2
        after1 = layer.norm1 if post else layer.ls1
        after2 = layer.norm2 if post else layer.ls2

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = attn.qkv(before1(x)).chunk(3, -1)
            q, k, v = (split_heads(part, attn.num_heads) for part in parts)
            return attn.q_norm(q), attn.k_norm(k), v

        return Block(
            qkv=qkv,
            scale=attn.scale,
            attend=lambda x, context: x + after1(attn.proj(context)),
            mlp=lambda x: x + after2(layer.mlp(before2(x))),
            bias=shared if attn.rel_pos is None else attn.rel_pos.get_bias()[0].detach(),
        )

    def embed(image: Tensor) -> Tensor:
        x = model.patch_embed(image)
        if model.cls_token is None:
            return x
        return torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)

    return Encoder(
        embed=embed,
        prefix=prefix,
        cls=model.cls_token is not None and model.global_pool in ("token", ""),
        blocks=tuple(map(block, model.blocks)),
        norm=model.norm,
        head=lambda stream: pooled_head(model, stream, prefix),
    )
