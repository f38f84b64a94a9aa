"""What a step loses, by site and token count: the table that measurements fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.site_rule import SiteRule
from tcompile.planning.losses.curves import Curve
from tcompile.planning.optimise.tables import Floats, StepFunction

SCHEMA = 1
Kind = Literal["calibrated", "attention"]
#: How a step from fewer than N tokens is had of those from N; see `SiteLosses.step`.
Composition = Literal["difference", "share"]


@dataclass(frozen=True)
class SiteLosses:
    """What one step from all N tokens to fewer loses, by site.

    Losses of kind `calibrated` are distances of outputs, those of kind `attention` shares of
    attention mass; they are never compared with each other, nor with a prior.

    Attributes:
        counts: G whole token counts, ascending, prefix included; the last is N.
        at: site → [G], the loss of going from N to each count: 0 at N, never less for fewer tokens.
        blocks, prefix: of the model: its blocks, and the tokens that never leave.
        unit: of the losses, in words.
        kind: `calibrated` (outputs compared) or `attention` (mass of attention).
        images: on how many it was measured.
        seed: of what was drawn.
        source: where the images come from.
        composition: how a step from fewer than N tokens is had of those from N: `difference`, or
            `share` for reducers that merge.
        notes: what could not be measured, and what was done about it.
    """

    counts: tuple[int, ...]
    at: Mapping[str, tuple[float, ...]]
    blocks: int
    prefix: int
    unit: str
    kind: Kind
    images: int
    seed: int
    source: str
    composition: Composition = "difference"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.at or list(self.counts) != sorted(set(self.counts)) or len(self.counts) < 2:
            raise UsageError(
                "needs sites, and counts that ascend to the model's own", where="losses"
            )
        if not 0 <= self.prefix < self.counts[0]:
            raise UsageError("every count must exceed the prefix tokens", where="losses")
        if self.kind not in ("calibrated", "attention"):
            raise UsageError(f"no such kind: {self.kind}", where="losses")
        if self.composition not in ("difference", "share"):
            raise UsageError(f"no such composition: {self.composition}", where="losses")
        for site, values in self.at.items():
            where = f"losses at {site}"
            if SiteRule(SiteName(site)).place(self.blocks)[0] >= self.blocks:
                raise UsageError(f"the model has {self.blocks} blocks", where=where)
            found = np.asarray(values, np.float64)
            if found.shape != (len(self.counts),) or not np.all(np.isfinite(found)):
                raise UsageError("needs a finite loss for each count", where=where)
            if found[-1] != 0 or np.any(np.diff(found) > 0):
                raise UsageError("must fall to 0 as all tokens stay", where=where)

    @property
    def tokens(self) -> int:
        """N, of the dense model."""
        return self.counts[-1]

    def curve(self, site: str) -> Curve:
        """The loss of going from N to n tokens at a site, as a function of n.

        A site that was not measured lies between its neighbours in depth, linearly; before the
        first and behind the last it is as they are.
        """
        if site in self.at:
            return self._curve(self.at[site])
        names = sorted(self.at, key=lambda s: SiteName(s).depth(self.blocks))
        depths = np.array([depth(s, self.blocks) for s in names])
        here = depth(site, self.blocks)
        table = np.array([self.at[s] for s in names])  # [S, G]
        return self._curve([np.interp(here, depths, column) for column in table.T])

    def _curve(self, values: Sequence[float]) -> Curve:
        return Curve(self.counts, tuple(map(float, values)), self.prefix)

    def step(self) -> StepFunction:
        """What the optimiser takes. Losses of steps at several depths add up, and with
        d = max(at(n_out) − at(n_in), 0), s = at(N · n_out/n_in) a step loses

        - d, where tokens leave by a score (`difference`): two steps at one depth lose what one
          does, since what left earlier would mostly have left here;
        - √(d · s), where tokens merge (`share`): every step finds its best pairs anew, so that it
          matters how many of its own tokens it merges. Half of all tokens at once is as much as
          pairs can be merged, and far worse than a tenth seven times over.

        By experiment on zoo:glyphs, as told in `losses.distance`: d, s and √(d·s) rank accuracy
        drops of topk by 0.985, 0.957, 0.975, of tome by 0.886, 0.933, 0.960.
        """
        curves: dict[str, Curve] = {}

        def loss(site: str, n_in: npt.NDArray[np.int64], n_out: npt.NDArray[np.int64]) -> Floats:
            curve = curves.setdefault(site, self.curve(site))
            lost = np.maximum(curve(n_out) - curve(n_in), 0.0)
            if self.composition == "difference":
                return lost
            left = np.minimum((n_out - self.prefix) / (n_in - self.prefix), 1.0)
            alone = curve(self.prefix + left * (self.tokens - self.prefix))
            return np.asarray(np.sqrt(lost * alone))

        return loss

    def to_json(self) -> dict[str, Any]:
        """The document that `from_json` reads."""
        at = {site: list(values) for site, values in self.at.items()}
        rest = {"at": at, "counts": list(self.counts), "notes": list(self.notes)}
        return {"schema": SCHEMA, **asdict(self), **rest}

    @staticmethod
    def from_json(document: Mapping[str, Any], where: str = "losses") -> SiteLosses:
        """Read what `to_json` wrote.

        Raises:
            UsageError: it is something else.
        """
        try:
            if document["schema"] != SCHEMA:
                raise UsageError(f"schema {document['schema']} is not {SCHEMA}", where=where)
            at = {str(s): tuple(map(float, v)) for s, v in document["at"].items()}
            return SiteLosses(
                tuple(map(int, document["counts"])),
                at,
                blocks=int(document["blocks"]),
                prefix=int(document["prefix"]),
                unit=str(document["unit"]),
                kind=document["kind"],
                images=int(document["images"]),
                seed=int(document["seed"]),
                source=str(document["source"]),
                composition=document["composition"],
                notes=tuple(map(str, document.get("notes", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UsageError(f"not losses: {type(error).__name__} {error}", where=where) from error


def depth(site: str, blocks: int) -> float:
    """Of a site in blocks: attn:3 at 3.5, block:3 at 4, the output half a block behind the last."""
    block, half = SiteName(site).depth(blocks)
    return block + (half + 1) / 2
