"""Parts at any count follow from a few; and a modelled profile is the roofline's word on them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_graphsurgeon as gs
import pytest

from tcompile.analysis.flops import node_flops
from tcompile.core.errors import UsageError
from tcompile.passes.stages import Analysed
from tcompile.profiling import roofline
from tcompile.profiling.modelled import counts_to_model, modelled_profile
from tcompile.profiling.partition import subgraph
from tcompile.profiling.profile import ModelledProfile
from tcompile.profiling.sampling import sampled
from tcompile.profiling.sizing import sized, structures
from tcompile.profiling.structure import layout_of, partition_at, partition_dense
from tcompile.targets import load_target
from tests.support.profiling import method, sided, tiny
from tests.support.tiny_vit import VitSpec


def dims(graph: gs.Graph) -> list[Any]:
    return [list(t.shape) for n in graph.nodes for t in (*n.inputs, *n.outputs) if t.name]


@pytest.mark.parametrize("text", ["topk", "tome", "evit"])
@pytest.mark.parametrize("build", [tiny, sided])
def test_shapes_at_a_count_are_those_of_the_model_cut_there(
    tmp_path: Path, build: Any, text: str
) -> None:
    """Against cutting the model at every count."""
    model: Analysed = build(tmp_path, VitSpec(image=48, depth=4), batch=2)
    planner = method(model, text)
    found = structures(model.graph, model.analysis, [planner])
    tried = 0
    for n in range(12, 37, 3):
        partitioned = partition_at(model.graph, planner, n)
        if partitioned.tokens != n:
            continue
        for sign, parts in partitioned.halves().items():
            at = found.halves[sign].at(n)
            if at is not None:
                assert dims(at) == dims(subgraph(partitioned.graph, parts[0])), (n, sign)
                tried += 1
    assert tried >= 9
    assert sum(found.uses.values()) == len(partition_dense(model.graph, model.analysis).parts)
    assert all(n > k for n, k, _ in found.steps[planner.key])


def test_dims_on_no_line_are_not_guessed(tmp_path: Path) -> None:
    model = tiny(tmp_path, VitSpec(image=48))
    planner = method(model, "topk")
    graphs = {}
    for n in (10, 20, 30):
        partitioned = partition_at(model.graph, planner, n)
        part = partitioned.behind("mlp")[0]
        graphs[n] = subgraph(partitioned.graph, part)
    assert sized(graphs).at(25) is not None
    assert sized({n: graphs[n] for n in (10, 20)}).at(25) is None
    tensor = graphs[20].nodes[0].outputs[0]
    tensor.shape = [1, 21, *tensor.shape[2:]]
    bent = sized(graphs)
    assert bent.at(25) is None
    assert bent.at(20) is graphs[20]


def test_sampled_steps_are_possible_and_none_is_there_twice(tmp_path: Path) -> None:
    model = tiny(tmp_path, VitSpec(image=64, depth=4))
    for text in ("topk", "tome"):
        planner = method(model, text)
        schedules = sampled(planner)
        assert len(schedules) >= 4
        pairs = []
        for steps in schedules:
            kept = [64, *(k for _, k in steps)]
            assert kept == sorted(set(kept), reverse=True)
            pairs.append(set(pairwise(kept)))
        for i, mine in enumerate(pairs):
            assert mine - set().union(*pairs[:i]), "a schedule that adds no step"


@pytest.mark.parametrize(("batch", "tokens"), [(1, 197), (4, 197), (64, 50)])
def test_both_sides_of_each_tile_are_looked_at(batch: int, tokens: int) -> None:
    counts = counts_to_model(tokens, 1, batch)
    assert counts == sorted(set(counts))
    assert all(1 < n <= tokens for n in counts)
    assert set(range(8, tokens, 8)) <= set(counts)
    for n in range(2, tokens):
        if -(-batch * n // 16) != -(-batch * (n + 1) // 16):
            assert n in counts or n + 1 in counts, n
    assert counts_to_model(197, 1, 1, grain=4) == list(range(5, 198, 4))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A roofline that counts FLOPs: what it was asked, in order."""
    asked: list[tuple[str, int]] = []

    def modelled(graph: gs.Graph, device: Any, *, precision: str, batch: int = 1) -> Any:
        asked.append((precision, batch))
        return SimpleNamespace(ms=sum(node_flops(n) for n in graph.nodes) * 1e-6)

    monkeypatch.setattr(roofline, "modelled", modelled)
    return asked


def test_every_part_is_priced(tmp_path: Path, stub: list[tuple[str, int]]) -> None:
    spec = VitSpec(image=64, depth=3)
    model = tiny(tmp_path, spec)
    planners = [method(model, t) for t in ("topk", "tome")]
    target = load_target("rtx-4090")
    made = modelled_profile(
        model.graph, model.analysis, planners, target, precision="fp16", batch=1, source="tiny.onnx"
    )
    assert isinstance(made, ModelledProfile)
    layout = layout_of(model.graph, planners[1])
    c = spec.width
    for n in (16, 17, 40, 65):
        for signs in (layout.dense[0], layout.reduced[2]):
            if n < 65 or signs == layout.dense[0]:
                attn, mlp = (float(made.halves[s].at(n)) for s in signs)
                assert attn == pytest.approx(1e-6 * (8 * n * c * c + 4 * n * n * c))
                assert mlp == pytest.approx(1e-6 * 4 * n * c * c * spec.mlp_ratio)
    assert set(made.reducers) == {"topk", "tome"}
    assert made.dense is not None
    parts = made.stem[layout.stem].ms + made.heads[layout.head_dense].at(65)
    parts += sum(float(made.halves[s].at(65)) for pair in layout.dense for s in pair)
    assert parts == pytest.approx(made.dense.ms)
    assert set(stub) == {("fp16", 1)}
    words = made.conditions.note
    assert "docs/roofline.md" in words
    assert "128 SMs" in words
    assert "GeForce RTX 4090" in made.words


def test_counts_follow_the_batch(tmp_path: Path, stub: list[tuple[str, int]]) -> None:
    model = tiny(tmp_path)
    made = modelled_profile(
        model.graph,
        model.analysis,
        [method(model, "topk")],
        load_target("t4"),
        precision="fp32",
        batch=3,
        source="x",
    )
    asked = tuple(sorted({*counts_to_model(17, 1, 3), 17}))
    assert {c.counts for c in made.halves.values()} == {asked}
    assert set(stub) == {("fp32", 3)}


def test_the_real_roofline_and_refusals(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    methods = [method(model, "topk")]
    nano = load_target("jetson-orin-nano")
    made = modelled_profile(
        model.graph, model.analysis, methods, nano, precision="fp16", batch=1, source="x"
    )
    assert all(f.ms > 0 and f.runs == 0 for c in made.halves.values() for _, f in c.points)
    with pytest.raises(UsageError, match="precision"):
        modelled_profile(
            model.graph, model.analysis, methods, nano, precision="fp8", batch=1, source="x"
        )
    with pytest.raises(UsageError, match="--method"):
        modelled_profile(
            model.graph, model.analysis, [], nano, precision="fp16", batch=1, source="x"
        )
