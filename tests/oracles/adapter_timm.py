"""Adapters for timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_parts import identity, split_heads
from tests.oracles.stream import Block, Encoder, Output, Stream, attention, pooled_mean


def _timm_block(block: Any) -> Block:
    kind = type(block).__name__
    if kind == "ParallelScalingBlock":
        return _parallel_block(block)
    attn, post = block.attn, kind == "ResPostBlock"
    before1 = identity if post else block.norm1
    before2 = identity if post else block.norm2
    after1 = block.norm1 if post else block.ls1
    after2 = block.norm2 if post else block.ls2

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, attn.num_heads) for part in attn.qkv(before1(x)).chunk(3, -1))
        return attn.q_norm(q), attn.k_norm(k), v

    def attend(x: Tensor, context: Tensor) -> Tensor:
        y = attn.norm(context)
        if attn.gate is not None:
            y = y * attn.gate(before1(x)).sigmoid()
        return x + after1(attn.proj(y))

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=attend,
        mlp=lambda x: x + after2(block.mlp(before2(x))),
    )


def _parallel_block(block: Any) -> Block:
    """Attention and MLP side by side (ViT-22B)."""

    def project(x: Tensor) -> tuple[Tensor, ...]:
        hidden, *heads = block.in_proj(block.in_norm(x)).split(block.in_split, dim=-1)
        hidden = hidden if block.mlp_bias is None else hidden + block.mlp_bias
        return block.mlp_act(hidden), *(split_heads(part, block.num_heads) for part in heads)

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, q, k, v = project(x)
        return block.q_norm(q), block.k_norm(k), v

    def attend(x: Tensor, context: Tensor) -> Tensor:
        hidden, *_ = project(x)
        if block.out_proj is not None:
            y = block.out_proj(torch.cat([context, hidden], dim=-1))
        else:
            y = block.attn_out_proj(context) + block.mlp_out_proj(hidden)
        return x + block.ls(y)

    scale = block.head_dim**-0.5
    return Block(qkv=qkv, scale=scale, attend=attend, mlp=identity, parallel=True)


def attention_pool(pool: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """AttentionPoolLatent on [B, N, C], each key counted by the log size in `bias`."""
    q = split_heads(pool.q(pool.latent), pool.num_heads).expand(x.shape[0], -1, -1, -1)
    k, v = (split_heads(part, pool.num_heads) for part in pool.kv(x).chunk(2, -1))
    y = pool.proj(attention(pool.q_norm(q), pool.k_norm(k), v, pool.head_dim**-0.5, bias))
    y = y + pool.mlp(pool.norm(y))
    return y[:, 0]


def _timm_embed(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda image: model.norm_pre(model._pos_embed(model.patch_embed(image)))


def timm(model: Any) -> Encoder:
    prefix = model.num_prefix_tokens

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        first = 0 if model.pool_include_prefix else prefix
        sizes = None if stream.sizes is None else stream.sizes[:, first:]
        if model.attn_pool is not None:
            bias = stream.key_bias()
            kept = None if bias is None else bias[..., first:]
            pooled = attention_pool(model.attn_pool, x[:, first:], kept)
        elif model.global_pool == "token":
            pooled = x[:, 0]
        elif model.global_pool == "avg":
            pooled = pooled_mean(x[:, first:], sizes)
        else:
            return (Output(x, 0),)
        features = model.fc_norm(pooled)
        return Output(model.head(features)), Output(features), Output(x, 0)

    return Encoder(
        embed=_timm_embed(model),
        prefix=prefix,
        # A class token that the head leaves out has learnt nothing about the image.
        cls=model.cls_token is not None and model.global_pool in ("token", ""),
        blocks=tuple(map(_timm_block, model.blocks)),
        norm=model.norm,
        head=head,
    )


def timm_distilled(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        logits = (model.head(x[:, 0]) + model.head_dist(x[:, 1])) / 2
        return Output(logits), Output(x, 0)

    return Encoder(
        embed=_timm_embed(model),
        prefix=2,
        cls=True,
        blocks=tuple(map(_timm_block, model.blocks)),
        norm=model.norm,
        head=head,
    )
