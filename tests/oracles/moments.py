"""Values that a method may read where tokens leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.oracles.attending import Attended
from tests.oracles.stream import Encoder, Stream, gather

if TYPE_CHECKING:
    from tests.oracles.reductions import Reduction


@dataclass(frozen=True)
class Attention:
    """The attention of one block, over the n tokens it had, of which the patches are `inner`.

    q, k, v: [B, H, n, d] as they met.
    """

    attended: Attended
    scale: float
    inner: slice

    @property
    def q(self) -> Tensor:
        return self.attended.q

    @property
    def k(self) -> Tensor:
        return self.attended.k

    @property
    def v(self) -> Tensor:
        return self.attended.v

    @cached_property
    def logits(self) -> Tensor:
        """[B, H, n, n]: scaled, with whatever is added to them."""
        found = self.q @ self.k.transpose(-1, -2) * self.scale
        return found if self.attended.bias is None else found + self.attended.bias

    @cached_property
    def weights(self) -> Tensor:
        """[B, H, n, n]: A, after softmax over all keys."""
        return self.logits.softmax(dim=-1)

    @cached_property
    def context(self) -> Tensor:
        """[B, H, n, d]: A·v."""
        return self.weights @ self.v


@dataclass(frozen=True)
class Past:
    """A block that ran before, and where each patch of now was among its patches [B, T]; −1: it
    was not there."""

    attention: Attention
    where: Tensor

    def carried(self, values: Tensor) -> Tensor:
        """[B, T of then] -> [B, T of now], 0 for those that were not there."""
        return gather(values, self.where.clamp(min=0)).masked_fill(self.where < 0, 0.0)

    def followed(self, source: Tensor) -> Past:
        """After a step whose tokens come from `source` [B, K], −1 for new ones."""
        moved = gather(self.where, source.clamp(min=0)).masked_fill(source < 0, -1)
        return Past(self.attention, moved)


@dataclass(frozen=True)
class Moment:
    """Point where tokens leave, or are chosen to run through a block.

    Attributes:
        encoder, stream: the model, and its tokens at this point, prefix and suffix included.
        attention: of this block, over these very tokens.
        cut: what is asked for: site, keep and the steps' counts.
        places: [B, T], which patch of the image each token is; −1: made of others.
        blocks: how many there are.
        embedded: [B, T0, C], the patches as they came to the first block.
        last: [B, T0, C], every patch as it was when it was last seen.
        groups: [G, g], patches that must leave together, if any must.
        past: the blocks before this one, oldest first.
        state: to keep what is computed once; a fresh one for every walk.
    """

    encoder: Encoder
    stream: Stream
    attention: Attention
    cut: Reduction
    places: Tensor
    blocks: int
    embedded: Tensor
    last: Tensor
    groups: Tensor | None = None
    past: tuple[Past, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def inner(self) -> slice:
        """The patches among the tokens."""
        return self.attention.inner

    @property
    def x(self) -> Tensor:
        """[B, T, C]."""
        return self.stream.x[:, self.inner]

    @property
    def sizes(self) -> Tensor | None:
        """[B, T] or None."""
        return None if self.stream.sizes is None else self.stream.sizes[:, self.inner]

    @property
    def keys(self) -> Tensor:
        """[B, T, d]: K of the patches, mean over heads."""
        return self.attention.k[:, :, self.inner].mean(dim=1)

    @property
    def total(self) -> int:
        return self.places.shape[1]

    @property
    def block(self) -> int:
        """Whose attention is read; at the output the last one's."""
        _, _, number = self.cut.site.partition(":")
        return int(number) if number else self.blocks - 1

    @property
    def grid(self) -> tuple[int, int]:
        """Grid of the image's patches; square."""
        side = round(self.embedded.shape[1] ** 0.5)
        if side * side != self.embedded.shape[1]:
            raise ValueError(f"{self.embedded.shape[1]} patches are no square")
        return side, side

    @property
    def values(self) -> Mapping[str, Any]:
        """The preset's parameters."""
        return self.cut.values

    def everyone(self) -> Tensor:
        """[B, T]: 0 … T − 1."""
        return torch.arange(self.total).expand(len(self.places), -1)
