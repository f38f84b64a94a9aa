"""Facts a preset is composed for: the model's shape, its sites, the budget; and where steps may be
that are planned, with what the analysis and the reducer demand there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import ceil, isqrt, prod
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Shape
from tcompile.core.site import SiteName

Values = Mapping[str, Any]


@dataclass(frozen=True)
class SiteConstraints:
    """The sites where a model lets tokens leave, and what it demands there.

    Attributes:
        legal: names of the sites where they may.
        groups: site → tokens that must leave together, where that is more than one.
        windows: whether some blocks attend within windows.
        parallel: blocks without a point between attention and MLP.
        unscored: sites whose attention cannot score → why not.
        grid: (h, w) or (t, h, w) of the patches; empty where they are in none.
    """

    legal: frozenset[SiteName]
    groups: Mapping[SiteName, int] = field(default_factory=dict)
    windows: bool = False
    parallel: frozenset[int] = frozenset()
    unscored: Mapping[SiteName, str] = field(default_factory=dict)
    grid: tuple[int, ...] = ()


@dataclass(frozen=True)
class Context:
    """The model and the budget that a preset is composed for.

    Attributes:
        method: its name, for messages.
        shape: token counts and number of blocks.
        has_cls: whether the model reads its first prefix token as CLS.
        keep: fraction of patch tokens that leave the encoder, or None where the preset's own
            parameters say.
        room: where the model lets tokens leave; None: everywhere.
        calibration: the scheduler's scores on images, [blocks, images, patches] each, as shares
            (`planning.calibration`); empty where it asks for none.
    """

    method: str
    shape: Shape
    has_cls: bool
    keep: Fraction | None
    room: SiteConstraints | None = None
    calibration: Sequence[Any] = ()

    def site(self, block: int) -> SiteName:
        """Between attention and MLP of a block; after it where nothing lies between."""
        parallel = self.room is not None and block in self.room.parallel
        return SiteName.of("block" if parallel else "attn", block)

    def legal(self, kind: str) -> list[int]:
        """The blocks whose site of the kind is legal."""
        blocks = range(self.shape.blocks)
        return [i for i in blocks if self.room is None or SiteName.of(kind, i) in self.room.legal]

    def first(self, kind: str, block: int) -> int:
        """The first block from `block` on with a legal site of the kind; `block` if none has."""
        legal = [i for i in self.legal(kind) if i >= block]
        scored = [i for i in legal if not self.blind(SiteName.of(kind, i))]
        return next(iter(scored + legal), block)

    def blind(self, site: SiteName) -> bool:
        """Tell whether the site's attention cannot score: it sees windows only, or is no plain
        softmax."""
        return self.room is not None and site in self.room.unscored

    def group(self, site: SiteName) -> int:
        """Tokens that must leave together at a site."""
        return self.room.groups.get(site, 1) if self.room else 1

    def final_at(self, site: SiteName) -> int:
        """Non-prefix tokens that leave a site: ceil(keep · T), or the groups' ceil(keep · G)."""
        size = self.group(site)
        assert self.keep is not None
        return ceil(self.keep * (self.shape.patches // size)) * size

    @property
    def final(self) -> int:
        """Non-prefix tokens that leave: ceil(keep · T), exact."""
        assert self.keep is not None
        return ceil(self.keep * self.shape.patches)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """(h, w) or (t, h, w) of the patches.

        Raises:
            UsageError: they are in none.
        """
        side = isqrt(self.shape.patches)
        grid = self.room.grid if self.room else (side, side)
        if len(grid) < 2 or prod(grid) != self.shape.patches:
            raise UsageError(
                f"{self.method} needs patches in a grid of rows and columns, which "
                "this model does not have",
                where="--method",
            )
        return grid


@dataclass(frozen=True)
class Step:
    """One point where a scheduler lets tokens leave, as scores and reducers vary by it.

    Attributes:
        context, values: what is composed, and the preset's parameters.
        site: where.
        before, keep: patch tokens before and after.
        number: of the step, from 0.
        steps: how many there are.
    """

    context: Context
    values: Values
    site: SiteName
    before: int
    keep: int
    number: int
    steps: int

    @property
    def block(self) -> int:
        """The block whose attention was the last; at the output, the last block."""
        return self.site.depth(self.context.shape.blocks)[0]

    @property
    def total(self) -> int:
        """Patches of the dense model."""
        return self.context.shape.patches


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

    def place(self, blocks: int) -> tuple[int, int]:
        """Return `SiteName.depth`: the order in which sites are passed."""
        return self.name.depth(blocks)
