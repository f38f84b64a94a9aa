"""A profile_run on a clock that only the parts move: what is measured is what they take."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from tcompile.analysis.flops import node_flops
from tcompile.core.errors import UsageError
from tcompile.passes.stages import Analysed
from tcompile.planning.optimise.prior import prior_loss
from tcompile.planning.options.method_tables import counts_for, tables_for
from tcompile.profiling.measure import Effort, measure
from tcompile.profiling.profile import MeasuredProfile, from_json
from tcompile.profiling.structure import layout_of
from tests.support.profiling import CONDITIONS, Clock, FakeRuntime, method, tiny
from tests.support.tiny_vit import VitSpec

SPEC = VitSpec(image=64, depth=4)  # 65 tokens
#: ms of a FLOP.
RATE = 1e-5
EFFORT = Effort(seconds=1e9, rounds=2, least=0.0)


def flops(graph: gs.Graph) -> float:
    return RATE * sum(node_flops(n) for n in graph.nodes)


def attention(n: int) -> float:
    """QKV and output projections, Q·Kᵀ and its product with V: no code of the package."""
    c = SPEC.width
    return RATE * (2 * n * c * 4 * c + 2 * 2 * n * n * c)


def mlp(n: int) -> float:
    return RATE * 2 * 2 * n * SPEC.width * SPEC.width * SPEC.mlp_ratio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    return tiny(tmp_path_factory.mktemp("measure"), SPEC)


def profile_run(model: Analysed, *texts: str, call: float) -> MeasuredProfile:
    clock = Clock()
    methods = [method(model, text) for text in texts]
    with pytest.MonkeyPatch.context() as patched:
        clock.install(patched)
        return measure(
            model.graph,
            model.analysis,
            methods,
            FakeRuntime(clock, flops, call),
            source="tiny.onnx",
            effort=EFFORT,
        )


@pytest.fixture(scope="module")
def free(model: Analysed) -> MeasuredProfile:
    """Profile of two methods, where calling the runtime takes no time."""
    return profile_run(model, "topk", "tome", call=0.0)


def test_curves_are_the_function(model: Analysed) -> None:
    """What calling the runtime takes is taken off, and what is chained is shared out."""
    call = 0.5
    made = profile_run(model, "topk", call=call)
    layout = layout_of(model.graph, method(model, "topk"))
    first, second = (made.halves[s] for s in layout.dense[0])
    assert first.counts == second.counts
    assert len(first.counts) >= 5
    assert first.counts[-1] == SPEC.tokens
    for n in first.counts:
        assert first.at(n) == pytest.approx(attention(n), rel=1e-6)
        assert second.at(n) == pytest.approx(mlp(n), rel=1e-6)
    whole = made.dense
    assert whole is not None
    parts = 4 * (attention(65) + mlp(65)) + flops_of_stem_and_head()
    assert whole.ms == pytest.approx(parts + call, rel=1e-6)
    assert made.conditions == CONDITIONS
    assert from_json(made.to_json()).halves.keys() == made.halves.keys()


def flops_of_stem_and_head() -> float:
    patches, c = SPEC.patches, SPEC.width
    return RATE * (2 * patches * c * 3 * SPEC.patch**2 + 2 * c * SPEC.classes)


def test_stem_is_measured_without_blocks(free: MeasuredProfile) -> None:
    (stem,) = free.stem.values()
    assert stem.ms == pytest.approx(RATE * 2 * SPEC.patches * SPEC.width * 3 * 64, rel=1e-6)


def test_steps_of_merging_cost_what_their_products_do(free: MeasuredProfile) -> None:
    """topk has no products; tome multiplies half of the patches with the other half."""
    topk, tome = free.reducers["topk"], free.reducers["tome"]
    assert {n for n, _, _ in topk.points} >= {65, 46}
    assert all(n > k > SPEC.prefix for n, k, _ in topk.points)
    for n, _, figure in tome.points:
        patches = n - SPEC.prefix
        width = SPEC.width // SPEC.heads  # ToMe compares the mean of keys over heads
        least = RATE * 2 * (patches // 2) * (patches - patches // 2) * width
        assert figure.ms >= least * (1 - 1e-9)


def test_tables_add_up_to_the_dense_model(model: Analysed, free: MeasuredProfile) -> None:
    planner = method(model, "topk")
    made = free
    layout = layout_of(model.graph, planner)
    loss = prior_loss("prune", tokens=SPEC.tokens, prefix=SPEC.prefix, blocks=SPEC.depth)
    counts = counts_for(made, layout, planner)
    tables = tables_for(made, layout, planner, loss, counts)
    assert made.dense is not None
    assert tables.dense_ms == pytest.approx(made.dense.ms, rel=1e-9)
    at = tables.counts.index(counts[len(counts) // 2])
    assert tables.attn_ms[1, at] == pytest.approx(attention(counts[at]), rel=0.05)
    other = method(model, "evit")
    with pytest.raises(UsageError, match="evit"):
        tables_for(made, layout, other, loss, counts)


def test_without_a_method_there_is_nothing_to_measure(model: Analysed) -> None:
    with pytest.raises(UsageError, match="--method"):
        measure(model.graph, model.analysis, [], FakeRuntime(Clock(), flops), source="x")
