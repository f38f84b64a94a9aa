"""The tokens between two reductions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.space import Order, TokenSpace
from tcompile.analysis.token_dims import Part, Run
from tcompile.passes.reduce.builder import Builder


@dataclass(frozen=True)
class Departure:
    """The step that tokens left at, for those that are to be given back behind it.

    Attributes:
        before: the tokens that came to it.
        rows: [B, N, C], the stream as it came, fixed tokens included.
        left: [B, N', C], the stream as it went on.
        traits: of its reducer: `merge`, `fuse`.
    """

    before: TokenState
    rows: gs.Tensor
    left: gs.Tensor
    traits: frozenset[str] = frozenset()


@dataclass
class TokenState:
    """The patch tokens after a number of reductions; tensors are [B, ...] with B free or literal.

    Attributes:
        count: how many patch tokens there are (a fused one included).
        index: [B, count] i64, the original patch each one is (−1: a fused token); None: all, in
            order.
        size: [B, count] f32, how many original patches each stands for; None: 1 each.
        owner: [B, T] i64, the current token that represents each original patch; None: itself.
        positioned: whether every token still has a position of its own (no fused token).
        prop_attn: whether later attentions are to add log size.
        local: [B, count] i64, where each one was in the state before; None: not from there.
        groups: [B, count/g] i64, the original groups that are left; None: all, or no groups.
        group_owner: [B, T/g] i64, the current group that represents each original one.
        before: the number of the state that it was made from; 0 is the dense model.
        departure: the step that made it; None: the dense model, or all are back.
        parts: of a chain of reducers, the states that each left, `local` among what came to it.
    """

    count: int
    index: gs.Tensor | None = None
    size: gs.Tensor | None = None
    owner: gs.Tensor | None = None
    positioned: bool = True
    prop_attn: bool = False
    local: gs.Tensor | None = None
    groups: gs.Tensor | None = None
    group_owner: gs.Tensor | None = None
    before: int = 0
    departure: Departure | None = None
    parts: tuple[TokenState, ...] = ()
    cache: dict[str, gs.Tensor] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Tell if it is the dense model's tokens, or they are all back."""
        return self.owner is None and self.index is None


def on_run(
    b: Builder,
    space: TokenSpace,
    run: Run,
    patches: gs.Tensor,
    count: int,
    fixed: list[np.ndarray | None],
) -> gs.Tensor:
    """[B, n] values of the patches, extended to all tokens of a run.

    Args:
        patches: [B, count].
        fixed: for each piece of the space, the values of its tokens (None at the patches).
    """
    parts: list[gs.Tensor] = []
    each = count // space.segments
    for i in range(run.first, run.last):
        if space.patch <= i < space.end:
            low, high = max(run.first, space.patch), min(run.last, space.end)
            if i == low:
                start, stop = ((j - space.patch) * each for j in (low, high))
                whole = (start, stop) == (0, count)
                parts.append(patches if whole else b.slice(patches, 1, start, stop))
            continue
        values = fixed[i]
        assert values is not None
        # 0·patches[:, :1] + constant gives the constant the batch of the patches.
        first = b.slice(patches, 1, 0, 1)
        zero = b.op("Sub", first, first, dtype=patches.dtype)
        row = b.const(values[None], patches.dtype)
        parts.append(b.op("Add", zero, row, dtype=patches.dtype))
    return b.concat(parts, 1)


def sizes_on_run(b: Builder, space: TokenSpace, state: TokenState, run: Run) -> gs.Tensor:
    """[B, n] f32 sizes of a run's tokens; prefix tokens have size 1."""
    key = f"size{run}"
    if key not in state.cache:
        assert state.size is not None
        ones = [
            None if space.patch <= i < space.end else np.ones(p.size, np.float32)
            for i, p in enumerate(space.pieces)
        ]
        state.cache[key] = on_run(b, space, run, state.size, state.count, ones)
    return state.cache[key]


def _places(space: TokenSpace, run: Run, count: int) -> tuple[int, list[np.ndarray | None]]:
    """Return what to add to a patch's number for its place in a run of `count` patches, and the
    places of each piece of fixed tokens."""
    offset, begin = 0, 0
    fixed: list[np.ndarray | None] = []
    each = count // space.segments
    for i, piece in enumerate(space.pieces):
        patchy = space.patch <= i < space.end
        size = each if patchy else piece.size
        fixed.append(None if patchy else np.arange(offset, offset + size))
        if i == max(run.first, space.patch):
            begin = offset - (i - space.patch) * each
        if run.first <= i < run.last:
            offset += size
    return begin, fixed


def index_on_run(
    b: Builder,
    space: TokenSpace,
    state: TokenState,
    run: Run,
    part: Part = "tokens",
    since: TokenState | None = None,
) -> gs.Tensor:
    """[B, n] i64: for each token (or group) of the run, its position in the dense run (−1: none).

    Args:
        since: an earlier state, for the position in the run as it was then; None: the dense one.
    """
    if part == "groups":
        assert state.groups is not None
        return state.groups
    key = f"index{run}{id(since)}"
    if key not in state.cache:
        index = state.index if since is None else state.local
        assert index is not None
        begin, fixed = _places(space, run, space.patches if since is None else since.count)
        if begin:
            shifted = b.op("Add", index, [begin], dtype=np.int64)
            if not state.positioned:
                negative = b.op("Less", index, [0], dtype=np.bool_)
                shifted = b.op("Where", negative, index, shifted, dtype=np.int64)
            index = shifted
        state.cache[key] = on_run(b, space, run, index, state.count, fixed)
    return state.cache[key]


def owner_on_run(
    b: Builder, space: TokenSpace, state: TokenState, run: Run, part: Part = "tokens"
) -> gs.Tensor:
    """[B, n dense] i64: each dense token (group) of the run → its owner's place in the reduced
    run."""
    if part == "groups":
        assert state.group_owner is not None
        return state.group_owner
    key = f"owner{run}"
    if key not in state.cache:
        assert state.owner is not None
        begin, fixed = _places(space, run, state.count)
        owner = state.owner
        if begin:
            owner = b.op("Add", owner, [begin], dtype=np.int64)
        state.cache[key] = on_run(b, space, run, owner, space.patches, fixed)
    return state.cache[key]


def _left(space: TokenSpace, state: TokenState, order: Order) -> int:
    """Return how many tokens (or groups) an order has left."""
    grouping = space.grouping if order.groups else None
    return state.count // (1 if grouping is None else grouping.members)


def in_order(
    b: Builder, space: TokenSpace, state: TokenState, run: Run, order: Order
) -> tuple[gs.Tensor, gs.Tensor]:
    """[B, n] i64 twice: the positions in another order of what is left, ascending, and where each
    of them is now."""
    key = f"order{order.name}"
    if key not in state.cache:
        index = index_on_run(b, space, state, run, "groups" if order.groups else "tokens")
        place = b.const(np.argsort(order.permutation))
        moved = b.op("Gather", place, index, dtype=np.int64, axis=0)
        ascending, now = b.top_k(
            b.cast(moved, np.float32), _left(space, state, order), largest=False
        )
        state.cache[key] = b.cast(ascending, np.int64)
        state.cache[f"{key}/now"] = now
    return state.cache[key], state.cache[f"{key}/now"]


def owner_in_order(
    b: Builder, space: TokenSpace, state: TokenState, run: Run, order: Order
) -> gs.Tensor:
    """[B, n dense] i64: in another order, each dense token's (group's) owner's place."""
    _, now = in_order(b, space, state, run, order)
    owner = owner_on_run(b, space, state, run, "groups" if order.groups else "tokens")
    owner = b.op("Gather", owner, b.const(order.permutation), dtype=np.int64, axis=1)
    nothing = b.op("Sub", now, now, dtype=np.int64)
    numbers = b.const(np.arange(_left(space, state, order)))
    ranks = b.op("Add", nothing, numbers, dtype=np.int64)
    rank = b.op("ScatterElements", nothing, now, ranks, dtype=np.int64, axis=1)
    return b.op("GatherElements", rank, owner, dtype=np.int64, axis=1)
