"""The optimiser's input: what every part and every step costs and loses, by token count.

Counts are whole token counts, prefix included, as they run through the model. Latencies are in ms
for one batch. Losses are in any unit that adds up over steps; both are ≥ 0.

Sums are told apart to 2⁻³⁸ of the largest one: forbid a step by `SiteRule` and `Limits`, not by a
loss of 10¹².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.methods.site_rule import SiteRule

Floats = npt.NDArray[np.float64]
#: (site, n_in [G, 1], n_out [1, G]) → anything that broadcasts to [G, G].
StepFunction = Callable[[str, npt.NDArray[np.int64], npt.NDArray[np.int64]], Any]


@dataclass(frozen=True, eq=False)
class Tables:
    """A model on a device, by token count.

    Attributes:
        counts: G token counts, ascending, prefix included; the last is the dense model's.
        prefix: tokens that never leave.
        attn_ms, mlp_ms: [L, G], of the halves of each of L blocks.
        head_ms: [G], all that follows the blocks.
        stem_ms: all that precedes them.
        sites: the legal ones, in execution order.
        reducer_ms: by site, [G, G]: what scoring and reducing from counts[i] to counts[j] takes.
            Only i > j is read.
        loss: by site, [G, G]: what such a step loses.
    """

    counts: tuple[int, ...]
    prefix: int
    attn_ms: Floats
    mlp_ms: Floats
    head_ms: Floats
    stem_ms: float
    sites: tuple[SiteRule, ...]
    reducer_ms: tuple[Floats, ...]
    loss: tuple[Floats, ...]

    def __post_init__(self) -> None:
        size = len(self.counts)
        if size == 0 or list(self.counts) != sorted(set(self.counts)):
            raise UsageError("token counts must ascend", where="tables")
        if not 0 <= self.prefix < self.counts[0]:
            raise UsageError("every count must exceed the prefix tokens", where="tables")
        if self.attn_ms.ndim != 2 or not self.blocks:
            raise UsageError("attn_ms must be [blocks, counts]", where="tables")
        shapes = {"attn_ms": (self.blocks, size), "mlp_ms": (self.blocks, size), "head_ms": (size,)}
        for name, shape in shapes.items():
            _check(name, getattr(self, name), shape)
        _check("stem_ms", np.asarray(self.stem_ms, float), ())
        if not len(self.sites) == len(self.reducer_ms) == len(self.loss):
            raise UsageError("each site needs a reducer's costs and a loss", where="tables")
        places = [site.place(self.blocks) for site in self.sites]
        if places != sorted(set(places)):
            raise UsageError("sites must be in execution order, each once", where="tables")
        for site, costs, loss in zip(self.sites, self.reducer_ms, self.loss, strict=True):
            if site.place(self.blocks)[0] >= self.blocks:
                raise UsageError(f"the model has {self.blocks} blocks", where=site.name)
            _check(f"reducer_ms of {site.name}", costs, (size, size), below=True)
            _check(f"loss of {site.name}", loss, (size, size), below=True)

    @property
    def blocks(self) -> int:
        return int(self.attn_ms.shape[0])

    @property
    def tokens(self) -> int:
        """Return the tokens of the dense model."""
        return self.counts[-1]

    @property
    def dense_ms(self) -> float:
        """Return stem + Σ_l (attn_l(N) + mlp_l(N)) + head(N)."""
        last = self.attn_ms[:, -1].sum() + self.mlp_ms[:, -1].sum() + self.head_ms[-1]
        return float(self.stem_ms + last)

    def index(self, count: int) -> int:
        """Return the number of a count on the grid.

        Raises:
            UsageError: it is not on it.
        """
        if count not in self.counts:
            raise UsageError(f"{count} tokens are not on the grid of counts", where="tables")
        return self.counts.index(count)

    @staticmethod
    def of(
        counts: Sequence[int],
        prefix: int,
        *,
        attn_ms: npt.ArrayLike,
        mlp_ms: npt.ArrayLike,
        head_ms: npt.ArrayLike,
        stem_ms: float,
        sites: Sequence[SiteRule],
        reducer_ms: StepFunction,
        loss: StepFunction,
    ) -> Tables:
        """Make tables from functions of steps, called once for each site with all pairs of counts.

        Raises:
            UsageError: shapes that do not fit, or values that are negative or not finite.
        """
        n = np.asarray(counts, np.int64)
        size = (len(n), len(n))

        def pairs(function: StepFunction) -> tuple[Floats, ...]:
            found = (function(s.name, n[:, None], n[None, :]) for s in sites)
            return tuple(np.broadcast_to(np.asarray(f, np.float64), size) for f in found)

        return Tables(
            tuple(int(c) for c in n),
            prefix,
            np.asarray(attn_ms, np.float64),
            np.asarray(mlp_ms, np.float64),
            np.asarray(head_ms, np.float64),
            float(stem_ms),
            tuple(sites),
            pairs(reducer_ms),
            pairs(loss),
        )


def _check(name: str, values: Floats, shape: tuple[int, ...], *, below: bool = False) -> None:
    """Check the shape, and that values are finite and not negative (`below`: only where i > j)."""
    if values.shape != shape:
        raise UsageError(f"{name} has shape {values.shape}, not {shape}", where="tables")
    read = values[np.tril_indices(shape[0], -1)] if below else values
    if not np.all(np.isfinite(read)) or np.any(read < 0):
        raise UsageError(f"{name} must be finite and not negative", where="tables")
