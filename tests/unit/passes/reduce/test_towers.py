"""The last check: a reduced graph, analysed afresh, must carry the planned counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcompile.analysis.model import analyse
from tcompile.core.errors import InternalError
from tcompile.methods.composition import compose
from tcompile.passes.normalize import normalize
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.reduce.towers import check_counts
from tests.support.tiny_vit import VitSpec, build_vit, random_weights


@pytest.mark.parametrize("method", ["topk", "evit", "tome", "bypass"])
def test_a_count_that_was_not_planned_is_caught(method: str) -> None:
    spec = VitSpec(depth=4)
    graph = normalize(build_vit(spec, random_weights(spec))).graph
    analysis = analyse(graph)
    schedule = compose(method, analysis.shape, True, "0.5")
    made = reduce_graph(graph, analysis, schedule).graph
    check_counts(made, analysis, schedule)
    steps = schedule.reductions
    wrong = replace(schedule, reductions=(*steps[:-1], replace(steps[-1], keep=steps[-1].keep - 1)))
    if method == "topk":
        wrong = replace(schedule, reductions=(replace(steps[0], keep=steps[0].keep + 1),))
    late = steps[-1].site == f"attn:{spec.depth - 1}"  # no attention follows: nothing to count
    if late:
        return
    with pytest.raises(InternalError, match="the schedule says"):
        check_counts(made, analysis, wrong)


def test_a_lost_attention_is_caught() -> None:
    spec = VitSpec(depth=3)
    graph = normalize(build_vit(spec, random_weights(spec))).graph
    analysis = analyse(graph)
    schedule = compose("topk", analysis.shape, True, "0.5")
    made = reduce_graph(graph, analysis, schedule).graph
    last = [n for n in made.nodes if n.op == "Softmax" and not n.name.startswith("tcompile/")][-1]
    last.op = "Identity"
    last.attrs.clear()
    with pytest.raises(InternalError, match="is gone after reduction"):
        check_counts(made, analysis, schedule)
