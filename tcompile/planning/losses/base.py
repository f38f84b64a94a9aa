"""Losses of steps by site and token count: the table that measurements fill in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.core.schedule import Shape
from tcompile.core.site import SiteName
from tcompile.planning.optimise.prior import depth, growth
from tcompile.planning.optimise.tables import Floats, StepFunction


@dataclass(frozen=True)
class SiteLosses:
    """The loss of one step from all N tokens to fewer, by site.

    They are shares of attention mass, and never compared with a prior.

    Attributes:
        counts: G whole token counts, ascending, prefix included; the last is N.
        at: site → [G], the loss of going from N to each count: 0 at N, never less for fewer tokens.
        blocks, prefix: of the model: its blocks, and the tokens that never leave.
        unit: of the losses, in words.
        images: on how many it was measured.
        source: where the images come from.
        notes: what could not be measured, and what was done about it.
    """

    counts: tuple[int, ...]
    at: Mapping[str, tuple[float, ...]]
    blocks: int
    prefix: int
    unit: str
    images: int
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.at or list(self.counts) != sorted(set(self.counts)) or len(self.counts) < 2:
            raise UsageError(
                "needs sites, and counts that ascend to the model's own", where="losses"
            )
        if not 0 <= self.prefix < self.counts[0]:
            raise UsageError("every count must exceed the prefix tokens", where="losses")
        for site, values in self.at.items():
            where = f"losses at {site}"
            found = np.asarray(values, np.float64)
            if found.shape != (len(self.counts),) or not np.all(np.isfinite(found)):
                raise UsageError("needs a finite loss for each count", where=where)
            if found[-1] != 0 or np.any(np.diff(found) > 0):
                raise UsageError("must fall to 0 as all tokens stay", where=where)

    @property
    def tokens(self) -> int:
        """N, of the dense model."""
        return self.counts[-1]

    def curve(self, site: str) -> LossCurve:
        """The loss of going from N to n tokens at a site, as a function of n.

        A site that was not measured lies between its neighbours in depth, linearly; before the
        first and behind the last it is as they are.
        """
        names = sorted(self.at, key=lambda s: SiteName(s).depth(self.blocks))
        depths = [depth(s, self.blocks) for s in names]
        values: Sequence[float] = self.at.get(site, ())
        if not values:
            table = np.array([self.at[s] for s in names])  # [S, G]
            values = [np.interp(depth(site, self.blocks), depths, column) for column in table.T]
        return LossCurve(self.counts, tuple(map(float, values)), self.prefix)

    def step(self) -> StepFunction:
        """The loss of a step, as the optimiser asks for it: losses of steps at several depths add
        up, and a step loses max(at(n_out) − at(n_in), 0). So two steps at one depth lose what one
        does, since what left earlier would mostly have left here."""
        curves: dict[str, LossCurve] = {}

        def loss(site: str, n_in: npt.NDArray[np.int64], n_out: npt.NDArray[np.int64]) -> Floats:
            curve = curves.setdefault(site, self.curve(site))
            return np.maximum(curve(n_out) - curve(n_in), 0.0)

        return loss


def whole_counts(shape: Shape, counts: Iterable[int]) -> tuple[int, ...]:
    """The counts that a model can carry, ascending, its own last."""
    return (*sorted({n for n in counts if shape.prefix < n < shape.tokens}), shape.tokens)


def through(measured: Mapping[int, float], counts: Sequence[int], prefix: int) -> tuple[float, ...]:
    """Losses at all counts, from those at some of them."""
    return tuple(fitted(measured, counts[-1], prefix)(counts).tolist())


@dataclass(frozen=True)
class LossCurve:
    """A loss that never falls as tokens leave.

    Between two counts it is linear. Below the fewest, n₀, its odds grow as the prior does:
    v/(1 − v) ∝ g(r) = (1 − r)²/r (`optimise.prior`), r the share of the patches that stay. A loss
    that stayed flat where nothing was measured would lure the planner there; distances and shares
    end at 1, so that g alone is far too steep. On zoo:glyphs (topk, evit), measured down to 0.5,
    0.3 or 0.2 of the patches, it is off by 0.08 to 0.10 at counts down to 0.05 on average, a
    straight line by 0.16 to 0.28, g cut off at 1 by 0.12 to 0.14.

    Attributes:
        counts: [G] ascending, prefix included; the last is N.
        values: [G], the last 0.
        prefix: tokens that never leave.
    """

    counts: tuple[int, ...]
    values: tuple[float, ...]
    prefix: int

    def __call__(self, n: npt.ArrayLike) -> Floats:
        """The loss of going from N tokens to n, any shape."""
        wanted, first, start = np.asarray(n, np.float64), float(self.counts[0]), self.values[0]
        between = np.interp(wanted, self.counts, self.values)
        if first == self.counts[-1] or start >= 1.0:
            return np.asarray(between)
        patches = self.counts[-1] - self.prefix
        grown = growth(np.minimum(wanted, first), self.prefix, patches)
        odds = start / (1 - start) * grown / growth(first, self.prefix, patches)
        return np.where(wanted < first, odds / (1 + odds), between)


def fitted(measured: Mapping[int, float], tokens: int, prefix: int) -> LossCurve:
    """The curve through losses at some counts: 0 at N, made monotone where noise made them fall.

    Args:
        measured: whole token count → loss, below `tokens`; any order.
        tokens: N.
    """
    counts, falling = sorted(n for n in measured if n < tokens), np.zeros(0)
    if counts:
        optimize = require("scipy.optimize", "cpu", "measuring what steps lose")
        losses = [measured[n] for n in counts]
        falling = np.maximum(optimize.isotonic_regression(losses, increasing=False).x, 0.0)
    return LossCurve((*counts, tokens), (*falling.tolist(), 0.0), prefix)
