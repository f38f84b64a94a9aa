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
from tcompile.passes.reduce.reducers.base import Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import compose_owner, take
from tcompile.passes.reduce.reducers.merge_alternate import alternate
from tcompile.passes.reduce.reducers.merge_combine import COMBINES, Groups, leave
from tcompile.passes.reduce.reducers.merge_edges import edges, metric
from tcompile.passes.reduce.reducers.merge_limits import plain, problem
from tcompile.passes.reduce.reducers.merge_match import match
from tcompile.passes.reduce.reducers.merge_split import PARITIES, SORTED, SPLITS, shifted, sides
from tcompile.passes.reduce.token_state import TokenState


def merge(given: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """r = T − keep patches of A leave into their best of B (`merge_split`, `merge_edges`,
    `merge_match`, `merge_combine`), fp32 inside. The prefix takes no part (DESIGN 5.4).

    Order of what is left: alternate [unmerged A | B], as the next step's split is of places; the
    others as before, ascending. An owner is the token merged into, of a dropped one as well.
    """
    b, before, parameters = given.b, given.stage, given.parameters
    if given.score is None and _by(parameters)["scored"]:
        raise UsageError("merging so needs a score", where="schedule")
    size: gs.Tensor | None
    if plain(parameters) and not shifted(parameters, given.prefix):
        merged, size, index, step = alternate(given, metric(given))
    else:
        a, other = sides(given)
        found = edges(given, metric(given), a, other)
        r, both = before.count - given.keep, parameters["bidirectional"]
        source, target = match(b, found, a, other, r, both)
        order = np.arange(before.count)
        if parameters["split"] == "alternate":
            destination = order % 2 != shifted(parameters, given.prefix)
            order = np.where(destination, before.count, 0) + order // 2
        index, slot, step = leave(b, source, target, before.count, r, order)
        groups = Groups(given, index, source, slot)
        merged = groups.features(parameters["combine"])
        size = groups.sizes() if parameters["sizes"] else None
    if not parameters["sizes"]:
        size = None if before.size is None else take(b, before.size, index)
    after = TokenState(
        given.keep,
        index=take(b, before.index, index),
        size=size,
        owner=compose_owner(b, before.owner, step),
        positioned=before.positioned,
        prop_attn=bool(parameters["prop_attn"]) if parameters["sizes"] else before.prop_attn,
        local=index,
    )
    return given.joined(merged, fp32=False), after


def _by(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the score is read, and whether tokens come to stand for several."""
    criteria, combine = parameters["criteria"], parameters["combine"]
    read = parameters["split"] in SORTED or criteria == "mctf" or combine == "score"
    only_leave = combine == "drop" and not parameters["sizes"]
    return {
        "scored": bool(read or parameters["penalty"]),
        "traits": frozenset() if only_leave else frozenset({"merge"}),
    }


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
    problem=problem,
    by=_by,
)
