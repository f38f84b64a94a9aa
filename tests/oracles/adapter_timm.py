"""Adapters for timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.oracles.adapter_parts import split_heads
from tests.oracles.stream import Block, Encoder, Output, Stream, attention, pooled_mean


def _timm_block(block: Any) -> Block:
    attn = block.attn

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            split_heads(part, attn.num_heads) for part in attn.qkv(block.norm1(x)).chunk(3, -1)
        )
        return attn.q_norm(q), attn.k_norm(k), v

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=lambda x, context: x + block.ls1(attn.proj(attn.norm(context))),
        mlp=lambda x: x + block.ls2(block.mlp(block.norm2(x))),
    )


def _timm_attention_pool(pool: Any, x: Tensor, bias: Tensor | None) -> Tensor:
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
            pooled = _timm_attention_pool(model.attn_pool, x[:, first:], kept)
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
