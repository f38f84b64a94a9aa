"""R3: bipartite soft matching: similar tokens become one, or the lesser of two leaves.

Bolya et al., Token Merging (ICLR 2023); Tran et al., PiToMe (NeurIPS 2024); Kim et al., Token
Fusion (WACV 2024); Ju et al., Turbo (ECCV 2024); Lee et al., MCTF (CVPR 2024); Wang et al.,
Zero-TPrune (CVPR 2024); Bolya and Hoffman, tomesd (CVPRW 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import compose_owner, metric, sorts, take
from tcompile.passes.reduce.reducers.merge_match import (
    COMBINES,
    PARITIES,
    SORTED,
    SPLITS,
    Groups,
    dst_places,
    edges,
    leave,
    match,
    shifted,
    sides,
)
from tcompile.passes.reduce.token_state import TokenState


def merge(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """r = T − keep patches of A leave into their best of B (`sides`, `edges`, `match`,
    `Groups`), fp32 inside. The prefix takes no part.

    Order of what is left: alternate [unmerged A | B], as the next step's split is of places; the
    others as before, ascending. An owner is the token merged into, of a dropped one as well.
    """
    b, before, parameters = inputs.builder, inputs.state, inputs.parameters
    if inputs.score is None and _by(parameters)["scored"]:
        raise UsageError("merging so needs a score", where="schedule")
    size: gs.Tensor | None
    if _plain(parameters) and not shifted(parameters, inputs.prefix):
        merged, size, index, step = _alternate(inputs, metric(inputs))
    else:
        a, other = sides(inputs)
        found = edges(inputs, metric(inputs), a, other)
        r, both = before.count - inputs.keep, parameters["bidirectional"]
        source, target = match(b, found, a, other, r, both)
        order = np.arange(before.count)
        if parameters["split"] == "alternate":
            destination = order % 2 != shifted(parameters, inputs.prefix)
            order = np.where(destination, before.count, 0) + order // 2
        index, slot, step = leave(b, source, target, before.count, r, order)
        groups = Groups(inputs, index, source, slot)
        merged = groups.features(parameters["combine"])
        size = groups.sizes() if parameters["sizes"] else None
    if not parameters["sizes"]:
        size = None if before.size is None else take(b, before.size, index)
    after = TokenState(
        inputs.keep,
        index=take(b, before.index, index),
        size=size,
        owner=compose_owner(b, before.owner, step),
        positioned=before.positioned,
        prop_attn=bool(parameters["prop_attn"]) if parameters["sizes"] else before.prop_attn,
        local=index,
    )
    return inputs.joined(merged, fp32=False), after


def _alternate(
    inputs: ReducerInput, metric: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]:
    """ToMe's own case by token ops on strided slices: no gather before the match.

    Even positions match odd ones; the r best pairs become their size-weighted mean.

    x_b' = (s_b x_b + Σ s_a x_a)/(s_b + Σ s_a), fp32 inside; order [unmerged even | odd].

    Args:
        metric: [B, T, D], what cosines are taken of.

    Returns:
        The patches [B, K, C] and their sizes [B, K]; where each was before [B, K], and where each
        token of before went [B, T].
    """
    b, count = inputs.builder, inputs.state.count
    r = count - inputs.keep
    half, odd = count - count // 2, count // 2
    patches = inputs.of_patches(inputs.x, fp32=False)
    size = inputs.state.size
    if size is None:
        first = b.reduce("Sum", b.op("Sub", metric, metric), [2])
        size = b.op("Add", first, b.const([[1]], np.float32))
    slots, rest = b.const(np.arange(odd)), half - r
    dtypes = [np.float32, np.float32]
    if rest:
        keep, source, target = b.call(
            "TcMatchTokens", metric, dtypes=[np.int64] * 3, r=r, half=half, rest=rest
        )
        merged, sizes = b.call(
            "TcMergeTokens", patches, size, keep, source, target, slots, dtypes=dtypes
        )
        index = b.concat([b.op("Mul", keep, [2], dtype=np.int64), _odd(b, keep, odd)], 1)
    else:
        keep = source = None
        target = b.call("TcMatchAllTokens", metric, dtypes=[np.int64])[0]
        merged, sizes = b.call("TcMergeAllTokens", patches, size, target, slots, dtypes=dtypes)
        index = _odd(b, target, odd)
    return merged, sizes, index, _owner(b, count, rest, keep, source, target)


def _odd(b: Builder, like: gs.Tensor, odd: int) -> gs.Tensor:
    """[B, odd]: 1, 3, 5, … for each sample."""
    first = b.slice(like, 1, 0, 1)
    zero = b.op("Sub", first, first, dtype=np.int64)
    return b.op("Add", zero, b.const(2 * np.arange(odd)[None] + 1), dtype=np.int64)


def _owner(
    b: Builder,
    count: int,
    rest: int,
    keep: gs.Tensor | None,
    source: gs.Tensor | None,
    target: gs.Tensor,
) -> gs.Tensor:
    """[B, T]: where each token of before went: [unmerged even | odd], interleaved back."""
    half, odd = count - count // 2, count // 2
    moved = b.op("Add", target, [rest], dtype=np.int64)
    first = b.slice(target, 1, 0, 1)
    zero = b.op("Sub", first, first, dtype=np.int64)
    if keep is None or source is None:
        even = moved
    else:
        base = b.op("Add", zero, b.const(np.zeros((1, half))), dtype=np.int64)
        nothing = b.op("Sub", keep, keep, dtype=np.int64)
        ranks = b.op("Add", nothing, b.const(np.arange(rest)), dtype=np.int64)
        even = b.op("ScatterElements", base, keep, ranks, dtype=np.int64, axis=1)
        even = b.op("ScatterElements", even, source, moved, dtype=np.int64, axis=1)
    odds = b.op("Add", zero, b.const(rest + np.arange(half)[None]), dtype=np.int64)
    pairs = b.concat([b.unsqueeze(even, 2), b.unsqueeze(odds, 2)], 2)
    flat = b.reshape(pairs, [0, 2 * half])
    return flat if odd == half else b.slice(flat, 1, 0, count)


def _by(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Tell if the score is read, and if tokens come to stand for several."""
    criteria, combine = parameters["criteria"], parameters["combine"]
    read = parameters["split"] in SORTED or criteria == "mctf" or combine == "score"
    only_leave = combine == "drop" and not parameters["sizes"]
    return {
        "scored": bool(read or parameters["penalty"]),
        "traits": frozenset() if only_leave else frozenset({"merge"}),
    }


def _plain(parameters: Mapping[str, Any]) -> bool:
    """Tell if it is ToMe's own case."""
    usual = {"split": "alternate", "combine": "mean", "criteria": "none"}
    other = parameters["penalty"] or parameters["bidirectional"]
    return not other and all(parameters[k] == v for k, v in usual.items())


def _problem(ask: Ask) -> str:
    """Return why it cannot do what is asked; empty if it can."""
    parameters, r = ask.parameters, ask.count - ask.keep
    split, both = parameters["split"], parameters["bidirectional"]
    a, other = _counts(parameters, ask.count, ask.keep, ask.grid)
    if split == "protected" and both:
        return "split=protected merges every token of A, so that none is left for bidirectional"
    if not other and split == "grid":
        sx, sy = parameters["sx"], parameters["sy"]
        return f"split=grid needs tokens in a grid of cells of {sy} x {sx}, which these are not"
    most = a if split == "grid" else ask.count // 2
    # By the reference's count A and B change places where the prefix is of an odd number.
    reference = parameters["parity"] == "reference"
    if both:
        # A token of A must be left, for those of B to go to.
        most = min(2 * a - 1, 2 * other)
        if reference and split == "alternate":
            most = min(most, 2 * other - 1)
    if r > most:
        return f"at most {most} of {ask.count} tokens can merge in one step, not {r}"
    if _plain(parameters) and not reference:
        longest = a if r < a else 1
    else:
        sorted_by = {"protected": 2 * r, "energy": ask.count, "halves": ask.count}
        longest = max(r, ask.keep, sorted_by.get(split, 0))
    return sorts(longest)


def _counts(parameters: Mapping[str, Any], count: int, keep: int, grid: Grid) -> tuple[int, int]:
    """Return how many tokens A and B have."""
    split = parameters["split"]
    if split == "protected":
        return count - keep, count - keep
    if split == "halves":
        return count // 2, count - count // 2
    if split == "energy":
        return count - count // 2, count // 2
    cells = len(dst_places(parameters, count, grid))
    return count - cells, cells


REDUCER = Reducer(
    "merge",
    merge,
    {
        "prop_attn": Parameter(bool, True, "later attentions add log size to the logits"),
        "split": Parameter(str, "alternate", "who may merge (A) into whom (B)", SPLITS),
        "parity": Parameter(
            str,
            "stripped",
            "split=alternate counts places without the prefix "
            "(stripped) or with it, as ToMe's own code (reference)",
            PARITIES,
        ),
        "metric": Parameter(str, "keys", "what cosines are taken of", ("keys", "x")),
        "penalty": Parameter(float, 0.0, "edge −= penalty · score of the one that would leave"),
        "combine": Parameter(str, "mean", "what becomes of those that merge", COMBINES),
        "sizes": Parameter(bool, True, "tokens count for as many as they stand for from here on"),
        "criteria": Parameter(str, "none", "what the cosine is multiplied by", ("none", "mctf")),
        "bidirectional": Parameter(bool, False, "half from A to B, half from B to A"),
        "sx": Parameter(int, 2, "columns of a cell, split=grid", least=1),
        "sy": Parameter(int, 2, "rows of a cell, split=grid", least=1),
    },
    traits=frozenset({"merge"}),
    scored=False,
    segments=True,
    problem=_problem,
    by=_by,
)
