"""Form of a vision transformer for the oracles: an embedding, blocks in two halves, and a head.

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
    often as its size.  taps: the stream after each block of `Encoder.taps` so far, of the tokens
    that are left now; where outputs are restored, of all.  whole: [B, N, C] after the last block, a
    row for every original token, where outputs are restored.  index: [B, N] at the end, which
    original token each is.
    """

    x: Tensor
    sizes: Tensor | None = None
    proportional: bool = True
    taps: tuple[Tensor, ...] = ()
    whole: Tensor | None = None
    index: Tensor | None = None

    def key_bias(self) -> Tensor | None:
        """[B, 1, 1, N] to add to attention logits: log size of each key; None without merging."""
        if self.sizes is None or not self.proportional:
            return None
        return self.sizes.log()[:, None, None, :]

    def every(self) -> Tensor:
        """[B, N, C]: all tokens, restored where some have left."""
        return self.x if self.whole is None else self.whole


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: how q and k of each original token are turned.

    cos, sin: [N, d], or [H, N, d] where every head has its own, the N original tokens in order.
    Tokens without a position (class token, registers) have rows of cos 1 and sin 0.
    halves: channel i turns with channel i + d/2; otherwise channel 2i with channel 2i + 1.
    """

    cos: Tensor
    sin: Tensor
    halves: bool

    def turn(self, x: Tensor, index: Tensor) -> Tensor:
        """x [B, H, K, d], turned as the original tokens index [B, K] are; -1 is not turned."""
        none = (index < 0)[:, None, :, None]
        cos = self._rows(self.cos, index).masked_fill(none, 1.0).to(x)
        sin = self._rows(self.sin, index).masked_fill(none, 0.0).to(x)
        if self.halves:
            half = x.shape[-1] // 2
            across = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        else:
            across = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return x * cos + across * sin

    @staticmethod
    def _rows(table: Tensor, index: Tensor) -> Tensor:
        """[N, d] or [H, N, d], and [B, K] -> [B, 1 or H, K, d]."""
        table = table if table.ndim == 3 else table.unsqueeze(0)
        return table[:, index.clamp(min=0)].transpose(0, 1)


@dataclass(frozen=True)
class Block:
    """One transformer layer.

    qkv: stream tensor [B, N, C] -> q, k, v, each [B, H, N, d] (after bias and any q/k norm, before
        rotary positions).
    scale: what the logits q·k are multiplied by.
    attend: (stream tensor, context [B, N, H*d]) -> stream tensor after the attention residual.
    mlp: stream tensor -> stream tensor after the MLP residual.
    bias: [H, N, N] added to the logits, a mask or relative-position table of the N original tokens.
    rotary: positions by which q and k are turned.
    late: [N, C], positions added to the stream of the N original tokens on entering the block.
    parallel: whether the MLP reads what the attention reads, so that there is no point between them
        (`attend` then does all, and `mlp` nothing).
    pairs: (q [B, H, K, d], original tokens [B, K]) -> [B, H, K, K], a bias of the logits that is
        made of the query.
    windows: whether the block attends within windows, so that every token must be in its place.
    apart: into how many parts of equal length the attention divides the tokens, none of which sees
        another; `bias` says the same. Each part then gives its own scores.
    whole: stream tensor -> stream tensor, for a block with windows that is called as it is; the
        fields before are then not used.
    """

    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    scale: float
    attend: Callable[[Tensor, Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]
    bias: Tensor | None = None
    rotary: Rotary | None = None
    late: Tensor | None = None
    parallel: bool = False
    pairs: Callable[[Tensor, Tensor], Tensor] | None = None
    windows: bool = False
    apart: int = 1
    whole: Callable[[Tensor], Tensor] | None = None

    def heads(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as they meet, for the original tokens index [B, N] (-1: without position)."""
        q, k, v = self.qkv(x)
        if self.rotary is not None:
            q, k = self.rotary.turn(q, index), self.rotary.turn(k, index)
        return q, k, v


@dataclass(frozen=True)
class Output:
    """One output of the model.  first: for an output with a token axis (axis 1), the position on
    the residual stream of its first row; None for logits, pooled features and the like.  behind:
    how many tokens at the end of the stream are not in it.  members: how many neighbours on the
    stream one row is made of.  tap: whether it is made of `Stream.taps`.  rows: [B, K], which row
    of the dense model's output each is, where that is not the stream's order."""

    value: Tensor
    first: int | None = None
    behind: int = 0
    members: int = 1
    tap: bool = False
    rows: Tensor | None = None

    def part(self, tokens: Tensor) -> Tensor:
        """Return the part of [B, N, ...] that belongs to this output."""
        return tokens[:, self.first : tokens.shape[1] - self.behind]


@dataclass(frozen=True)
class Encoder:
    """Model that the oracles walk.

    embed: image [B, 3, H, W] -> [B, N, C].  prefix, suffix: how many tokens come before and after
    the patches.  cls: whether the first of these is a class token that the head reads.  norm:
    applied to each token after the last block.  head: from the stream after that to every output
    that the module has or could have (an exporter picks some).  mask: image -> [1 or B, 1 or H,
    1 or N, N] to add to the logits of every block, made of the N original tokens.  groups: [G, g],
    which patches are joined behind the encoder; the stream comes to the head group after group.
    taps: blocks, ascending, after which the head reads the stream, too.  segments: parts of equal
    length (frames of a video) in each of which the same number of patches is left.  frames: of a
    video, one after the other.
    """

    embed: Callable[[Tensor], Tensor]
    prefix: int
    cls: bool
    blocks: tuple[Block, ...]
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Stream], tuple[Output, ...]]
    mask: Callable[[Tensor], Tensor] | None = None
    suffix: int = 0
    groups: Tensor | None = None
    taps: tuple[int, ...] = ()
    segments: int = 1
    frames: int = 1


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
