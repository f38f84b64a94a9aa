"""What a vision transformer is to the oracles: an embedding, blocks in two halves, and a head.

`tests/oracles/adapters.py` makes one of these from a model of each library; `methods.py` walks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """The tokens at one point of the encoder.

    x: [B, N, C], prefix first.  sizes: [B, N], how many original tokens each stands for (1 for the
    prefix), or None as long as nothing was merged.  proportional: whether attention counts a key as
    often as its size.
    """

    x: Tensor
    sizes: Tensor | None = None
    proportional: bool = True

    def key_bias(self) -> Tensor | None:
        """[B, 1, 1, N] to add to attention logits: log size of each key; None without merging."""
        if self.sizes is None or not self.proportional:
            return None
        return self.sizes.log()[:, None, None, :]


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer layer.

    qkv: stream tensor [B, N, C] -> q, k, v, each [B, H, N, d] (after bias and any q/k norm).
    scale: what the logits q·k are multiplied by.
    attend: (stream tensor, context [B, N, H*d]) -> stream tensor after the attention residual.
    mlp: stream tensor -> stream tensor after the MLP residual.
    bias: [H, N, N] added to the logits, a mask or relative-position table of the N original tokens.
    """

    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    scale: float
    attend: Callable[[Tensor, Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]
    bias: Tensor | None = None


@dataclass(frozen=True)
class Output:
    """One output of the model.  first: for an output with a token axis (axis 1), the position on
    the residual stream of its first row; None for logits, pooled features and the like."""

    value: Tensor
    first: int | None = None


@dataclass(frozen=True)
class Encoder:
    """What the oracles walk.

    embed: image [B, 3, H, W] -> [B, N, C].  prefix: how many tokens come before the patches.
    cls: whether the first of them is a class token that the head reads.  norm: applied to each
    token after the last block.  head: from the stream after that to every output that the module
    has or could have (an exporter picks some).
    """

    embed: Callable[[Tensor], Tensor]
    prefix: int
    cls: bool
    blocks: tuple[Block, ...]
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Stream], tuple[Output, ...]]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T + bias) v, heads joined: [B, H, N, d] -> [B, N, H*d].

    bias: whatever broadcasts to [B, H, N, N], for instance `Stream.key_bias()`.
    """
    logits = q @ k.transpose(-1, -2) * scale
    if bias is not None:
        logits = logits + bias
    context = logits.softmax(dim=-1) @ v
    return context.transpose(1, 2).flatten(2)


def pooled_mean(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Mean over axis 1 of [B, N, C], each token counted as often as it stands for a patch."""
    if sizes is None:
        return x.mean(dim=1)
    weight = sizes.unsqueeze(-1)
    return (weight * x).sum(dim=1) / weight.sum(dim=1)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of axis 1: x [B, N, ...] and index [B, K] -> [B, K, ...]."""
    rows = torch.arange(x.shape[0]).unsqueeze(1)
    return x[rows, index]
