"""The rows that dropped tokens are given back under `--outputs restored`: a closed set of rules.

Tokens left in steps i = 1 … n, x_i⁻ [T_i, C] before step i and x_i⁺ [K_i, C] behind it. Back from
the tokens R_n that are left now, step by step:

    owner                          R_{i−1} = R_i[step_i], the step that the reducer itself took
    nearest                        R_{i−1} = R_i[argmax_k cos(x_i⁻, x_i⁺_k)]
    similar                        R_{i−1} = W_i R_i,  W_i = softmax_k(cos(x_i⁻, x_i⁺_k) / 0.03)
    interpolate                    R_{i−1} = W_i R_i,  W_i = softmax_k(−d(p_i⁻, p_k)² / (2 · 0.75²))
    stale                          R_{i−1} = x_i⁻ + W_i (R_i − x_i⁺),  W_i as in `similar`

with p the place in the grid of patches, in tokens. A token that stays has its own row (W_i is 1
there), a fused one stands for no other (W_i is 0), and in a step that merges the reducer's own step
takes the place of W_i: there `nearest`, `similar` and `interpolate` are `owner`.

Measured on a trained ViT-S (DINOv2's architecture, 257 tokens) whose saliency decoder reads the
patches, on 20 photos: mean correlation of the map with the dense model's, and mean cosine of the
patch features, 0.6 of the tokens kept:

                 topk         evit         diffrate     tome
    owner        .951 .937    .869 .897    .990 .982    .997 .994
    nearest      .951 .937    .979 .969
    similar      .957 .943    .983 .973
    interpolate  .883 .902    .946 .944
    stale        .957 .944    .983 .974    .993 .988    .997 .994

The nearest kept token in the grid loses more than interpolation (.870 with topk), a token's own row
without correction (.785), or with the mean change of all that stayed (.832), far more. Cosines of
keys find worse neighbours than those of the stream (.924); a fused token as a neighbour costs .015
(evit); weights by likeness and distance together are no better than by likeness.

Operators that are written: MatMul, Softmax, ArgMax, Equal, Where, Gather, GatherElements, ReduceL2,
elementwise ones, and the token op `TcGatherTokens`; all of them TensorRT takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.space import TokenSpace
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers import traits_of
from tcompile.passes.reduce.reducers.base import Grid
from tcompile.passes.reduce.reducers.common import compose_owner, rows, take
from tcompile.passes.reduce.token_state import Departure, TokenState

#: Rules by which a row is that of one kept token: owners suffice for them.
BY_OWNER = ("owner", "nearest")
#: How sharply weights fall with the cosine of two tokens, and with their distance in the grid.
TEMPERATURE = 0.03
WIDTH = 0.75
#: More than any other logit; a row that has it has weight 1.
_SURE = 1e4


def default_rule(steps: Sequence[Reduction]) -> str:
    """The rule where none is asked for: `owner`, which loses least where tokens merge and is
    `nearest` of what `topk` drops; a fused token stands for nobody, so there it is `nearest`."""
    fused = any("fuse" in traits_of(step.reducer) for step in steps)
    return "nearest" if fused else "owner"


def rules_for(steps: Sequence[Reduction], grid: Grid) -> tuple[str, ...]:
    """The rules that differ on a schedule, the default one first.

    Args:
        grid: of the dense model's patches; empty where they are none.
    """
    traits = [traits_of(step.reducer) for step in steps]
    default = default_rule(steps)
    if all(_merges(t) for t in traits):
        return default, "stale"
    others = ("owner", "nearest", "similar", *(["interpolate"] if grid else []), "stale")
    return default, *(rule for rule in others if rule != default)


def check_rule(rule: str, grid: Grid) -> None:
    """Look whether tokens can be given back so.

    Raises:
        UsageError: they are no grid.
    """
    if rule == "interpolate" and not grid:
        raise UsageError(
            "interpolation needs tokens that are a grid of rows and columns, which these are not",
            where="--restore interpolate",
            hint="--restore similar",
        )


def owner_by(b: Builder, space: TokenSpace, state: TokenState, rule: str) -> gs.Tensor | None:
    """[B, T0] i64: the current token whose row each dense patch gets, by a rule of `BY_OWNER`."""
    steps = _steps(state)
    if rule == "owner" or all(_merges(d.traits) for d, _ in steps):
        return state.owner
    owner: gs.Tensor | None = None
    for departure, after in steps:
        if _merges(departure.traits):
            step = _own_step(b, departure, after)
        else:
            likeness = _masked(b, space, departure, after, _cosines(b, space, departure, after))
            step = b.op("ArgMax", likeness, dtype=np.int64, axis=2, keepdims=0)
        owner = compose_owner(b, owner, step)
    return owner


def given_back(
    b: Builder, space: TokenSpace, grid: Grid, state: TokenState, now: gs.Tensor, rule: str
) -> gs.Tensor:
    """[B, T0, C] f32: the patches of the dense model, by any rule but those of `BY_OWNER`.

    Args:
        now: [B, K, C], those that are left, as they are now in the stream that they left.
    """
    found = now
    for departure, after in reversed(_steps(state)):
        if rule != "stale":
            found = _spread(b, space, grid, departure, after, found, rule)
            continue
        changed = b.op("Sub", found, _patches(b, space, departure.left, after))
        changed = _spread(b, space, grid, departure, after, changed, rule)
        found = b.op("Add", _patches(b, space, departure.rows, departure.before), changed)
    return found


def _steps(state: TokenState) -> list[tuple[Departure, TokenState]]:
    """The steps that tokens left at, in order, and the tokens behind each."""
    found: list[tuple[Departure, TokenState]] = []
    while state.departure is not None:
        found.append((state.departure, state))
        state = state.departure.before
    return found[::-1]


def _merges(traits: frozenset[str]) -> bool:
    return "merge" in traits and "fuse" not in traits


def _patches(b: Builder, space: TokenSpace, x: gs.Tensor, state: TokenState) -> gs.Tensor:
    """[B, T, C]: the patch rows of the stream [B, N, C]."""
    if not space.prefix and not space.suffix:
        return x
    return b.slice(x, 1, space.prefix, space.prefix + state.count)


def _own_step(b: Builder, departure: Departure, after: TokenState) -> gs.Tensor:
    """[B, T] i64: the token that each one of before is part of behind a step that merges."""
    assert after.owner is not None
    index = departure.before.index
    if index is None:
        return after.owner
    return take(b, after.owner, _positions(b, departure.before, index))


def _positions(b: Builder, state: TokenState, index: gs.Tensor) -> gs.Tensor:
    """[B, K] i64: the dense position of each token, any where it has none."""
    if state.positioned:
        return index
    return b.op("Where", b.op("Less", index, [0], dtype=np.bool_), [0], index, dtype=np.int64)


def _spread(
    b: Builder,
    space: TokenSpace,
    grid: Grid,
    departure: Departure,
    after: TokenState,
    x: gs.Tensor,
    rule: str,
) -> gs.Tensor:
    """[B, T, C]: W x for x [B, K, C], back over one step."""
    if _merges(departure.traits):
        return rows(b, x, _own_step(b, departure, after))
    if rule == "interpolate":
        logits, sharp = _nearness(b, grid, departure, after), 1 / (2 * WIDTH**2)
    else:
        logits, sharp = _cosines(b, space, departure, after), 1 / TEMPERATURE
    logits = b.op("Mul", logits, b.const([sharp], np.float32))
    weights = b.op("Softmax", _masked(b, space, departure, after, logits), axis=-1)
    return b.op("MatMul", weights, x)


def _cosines(b: Builder, space: TokenSpace, departure: Departure, after: TokenState) -> gs.Tensor:
    """[B, T, K]: cosine of each token before a step and each one behind it."""
    before = b.unit(_patches(b, space, departure.rows, departure.before))
    behind = b.unit(_patches(b, space, departure.left, after))
    return b.op("MatMul", before, b.transpose(behind, [0, 2, 1]))


def _nearness(b: Builder, grid: Grid, departure: Departure, after: TokenState) -> gs.Tensor:
    """[B, T, K]: minus the squared distance in the grid, 2 p·q − ‖p‖² − ‖q‖²."""
    places = np.indices(grid).reshape(len(grid), -1).T.astype(np.float32)
    table = b.const(places, np.float32)

    def at(state: TokenState) -> gs.Tensor:
        if state.index is None:
            return b.const(places[None], np.float32)
        return b.op("Gather", table, _positions(b, state, state.index), axis=0)

    before, behind = at(departure.before), at(after)
    product = b.op("MatMul", before, b.transpose(behind, [0, 2, 1]))
    twice = b.op("Mul", product, b.const([2], np.float32))
    squares = [b.reduce("Sum", b.op("Mul", p, p), [2], 1) for p in (before, behind)]
    apart = b.op("Add", squares[0], b.transpose(squares[1], [0, 2, 1]))
    return b.op("Sub", twice, apart)


def _masked(
    b: Builder, space: TokenSpace, departure: Departure, after: TokenState, logits: gs.Tensor
) -> gs.Tensor:
    """[B, T, K]: the logits, a token itself the surest where it stays; no fused token, and none of
    another segment, is anything to another."""
    before, count = departure.before, departure.before.count
    assert after.index is not None
    index = before.index if before.index is not None else b.const(np.arange(count)[None])
    now = b.unsqueeze(after.index, 1)
    same = b.op("Equal", b.unsqueeze(index, 2), now, dtype=np.bool_)
    sure, never = b.const([_SURE], np.float32), b.const([-_SURE], np.float32)
    found = b.op("Where", same, sure, logits)
    if not after.positioned:
        found = b.op("Where", b.op("Less", now, [0], dtype=np.bool_), never, found)
    if space.segments > 1:
        parts = [np.arange(n) * space.segments // n for n in (count, after.count)]
        apart = parts[0][:, None] != parts[1][None]
        found = b.op("Add", found, b.const(-2 * _SURE * apart[None], np.float32))
    return found
