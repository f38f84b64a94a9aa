"""A site where a planned step may be, and what the analysis and the reducer demand there."""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName


@dataclass(frozen=True)
class SiteRule:
    """A legal site, and the limits of a step there.

    Attributes:
        name: `attn:3`, `block:3` or `output`.
        granularity: the patches that stay are a multiple of it.
        least: the fewest tokens that may stay, prefix included.
        most_dropped: the share of the patches that may leave in one step, such as 0.5 for merging
            in pairs; None: any.
    """

    name: SiteName
    granularity: int = 1
    least: int = 1
    most_dropped: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", SiteName(self.name))  # people write text
        kind, _, block = self.name.partition(":")
        known = self.name == "output" or (kind in ("attn", "block") and block.isdecimal())
        if not known:
            raise UsageError(
                "not a site that can be planned: attn:N, block:N or output", where=self.name
            )
        if self.granularity < 1 or (
            self.most_dropped is not None and not 0 <= self.most_dropped <= 1
        ):
            raise UsageError(
                "needs a granularity of at least 1 and a share from 0 to 1", where=self.name
            )

    def place(self, blocks: int) -> tuple[int, int]:
        """Return `SiteName.depth`: the order in which sites are passed."""
        return self.name.depth(blocks)
