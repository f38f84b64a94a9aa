"""The layouts of a residual stream, and what brings one to [batch, tokens, features]."""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, Run, locate


@dataclass(frozen=True)
class Layout:
    """The places of a stream's axes.

    Attributes:
        batch: the batch axis; None where there is none (packed tokens).
        tokens: the neighbouring axes that hold the tokens, a grid's or one.
        features: the feature axis.
    """

    batch: int | None
    tokens: tuple[int, ...]
    features: int

    @property
    def order(self) -> tuple[int, ...]:
        """The permutation to (batch,) tokens, features."""
        head = () if self.batch is None else (self.batch,)
        return (*head, *self.tokens, self.features)


def stream_layout(axes: Axes, space: TokenSpace) -> Layout | None:
    """The layout of a stream that carries all tokens; None where it is another."""
    dims = locate(axes, space)
    whole = Run(0, len(space.pieces))
    tokens = [i for i, d in enumerate(dims) if d is not None and d.run == whole]
    others: list[tuple[int, Dim]] = []
    for i, dim in enumerate(dims):
        if dim is None or dim.part == "groups" or (i in tokens and (dim.batch or dim.factor != 1)):
            return None
        if i not in tokens:
            others.append((i, dim))
    batches = [i for i, d in others if d.batch]
    plain = [i for i, d in others if not d.batch]
    if not batches and len(plain) == 2:
        # A literal batch of 1 has no digit to be known by.
        batches = [i for i in plain if ax.size(axes[i]) == 1][:1]
        plain = [i for i in plain if i not in batches]
    if not tokens or len(batches) > 1 or len(plain) != 1:
        return None
    return Layout(batches[0] if batches else None, tuple(tokens), plain[0])
