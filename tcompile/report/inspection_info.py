"""Descriptions of the parts of a model for `tcompile inspect`: blocks, sites, outputs, towers."""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.analysis.sites import Verdict
from tcompile.core.site import SiteName


@dataclass(frozen=True)
class PartInfo:
    """Consecutive tokens: patches, or fixed ones, which do not depend on the image.

    `source` is the tensor that fixed tokens come from.
    """

    kind: str
    start: int
    tokens: int
    source: str


@dataclass(frozen=True)
class GroupInfo:
    """Groups of patches that `node` joins: `sides` of a group, and how many groups there are."""

    members: int
    sides: tuple[int, ...]
    groups: int
    node: str


@dataclass(frozen=True)
class BlockInfo:
    """One block.

    `attention` is how it is spelled, `window` the sides of what one query sees (empty: every
    token; in a segment, its tokens), `parallel` whether attention and MLP stand side by side.
    `stream_in`, `after_attention` and `stream_out` name the residual stream. FLOPs are for one
    image. `unusual` is what sets its attention apart from a plain softmax, `unread` why no score
    can read it; empty where nothing does.
    """

    block: int
    heads: int
    attention: str
    node: str
    attentions: int
    window: tuple[int, ...]
    parallel: bool
    stream_in: str
    after_attention: str
    stream_out: str
    flops: int
    unusual: tuple[str, ...] = ()
    unread: str = ""


@dataclass(frozen=True)
class OutputInfo:
    """An output, and what it holds, in words: all tokens, patches, groups, a grid, or no tokens.

    `after` is the last block that it depends on; None: on none.
    """

    output: str
    shape: tuple[int | str, ...]
    holds: str
    after: int | None


@dataclass(frozen=True)
class SiteInfo:
    """A point where tokens may leave, or around which they may pass a block.

    Attributes:
        granularity, restored_granularity: so many tokens leave together (whole groups, and as many
            in each segment), with the outputs reduced and restored.
        legal, merge_legal: for dropping and for merging, outputs reduced.
        reason: why not; empty where tokens may leave.
        reduced, restored: why not, for any reducer, for merging and for fusing, with the outputs
            reduced and with every token given back.
    """

    site: SiteName
    block: int
    tensor: str
    granularity: int
    restored_granularity: int
    legal: bool
    merge_legal: bool
    reason: str
    reduced: Verdict
    restored: Verdict


@dataclass(frozen=True)
class TowerInfo:
    """One of the encoders, or of the passes of one, that run over tokens of their own.

    `reduced` says whether tokens leave it unless another is chosen, `follows` whether it has the
    shape of the first one and so follows the same schedule as it is. `legal` names the sites where
    its tokens may leave, `reason` says why there is none. `meets` is the first node that its tokens
    come to together with those of the first tower; empty where they never do.
    """

    tower: str
    tokens: int
    prefix: int
    suffix: int
    patches: int
    grid: tuple[int, ...]
    cls: int | None
    blocks: int
    stream_in: str
    stream_out: str
    reduced: bool
    follows: bool
    legal: tuple[str, ...]
    reason: str
    meets: str = ""


@dataclass(frozen=True)
class BesideInfo:
    """Attentions that belong to no tower and stay dense: `attentions` of them, from `queries` to
    `keys`, the first at `node`, made from `inputs`."""

    attentions: int
    queries: int
    keys: int
    node: str
    inputs: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class SideInfo:
    """One side input, and the nodes that read it.

    `axes` are those that run over tokens, `live` says that it is computed from the image, `blocks`
    where it is read (empty: outside of the blocks), `nodes` by what.
    """

    kind: str
    tensor: str
    shape: tuple[int | str, ...]
    axes: tuple[int, ...]
    live: bool
    blocks: tuple[int, ...]
    nodes: tuple[str, ...]
