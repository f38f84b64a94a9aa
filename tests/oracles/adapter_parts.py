"""Code that the adapters of several libraries share."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.stream import Block


def identity(x: Tensor) -> Tensor:
    return x


def scaled(gain: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Multiplication by a LayerScale gain [C], where there is one."""
    return identity if gain is None else lambda x: gain * x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H*d] -> [B, H, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def mha_qkv(attn: nn.MultiheadAttention, query: Tensor, memory: Tensor) -> list[Tensor]:
    """Projected q (of query), k and v (of memory) of a batch-first or -last MultiheadAttention."""
    weights = attn.in_proj_weight.chunk(3)
    biases = attn.in_proj_bias.chunk(3)
    return [
        split_heads(F.linear(source, weight, bias), attn.num_heads)
        for source, weight, bias in zip((query, memory, memory), weights, biases, strict=True)
    ]


def mha_block(
    norm1: nn.Module,
    attn: nn.MultiheadAttention,
    norm2: nn.Module,
    mlp: Callable[[Tensor], Tensor],
    scale1: Callable[[Tensor], Tensor] = identity,
    scale2: Callable[[Tensor], Tensor] = identity,
) -> Block:
    """A pre-norm block around nn.MultiheadAttention (open_clip, torchvision)."""

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = norm1(x)
        q, k, v = mha_qkv(attn, y, y)
        return q, k, v

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=lambda x, context: x + scale1(attn.out_proj(context)),
        mlp=lambda x: x + scale2(mlp(norm2(x))),
    )
