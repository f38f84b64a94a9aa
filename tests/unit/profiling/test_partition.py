"""Every node lies in one part, and the parts one after another are the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.methods.schedulers import Place
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.profiling.partition import Segment, chained, partition, subgraph
from tcompile.profiling.runtimes import CpuRuntime
from tcompile.profiling.structure import partition_at, partition_dense, partition_steps
from tcompile.targets import load_target
from tests.support.profiling import mapped, method, run_parts, run_whole, sided, tiny
from tests.support.tiny_vit import VitSpec

SPECS = {
    "cls": VitSpec(),
    "registers": VitSpec(prefix=5, pool="none"),
    "average": VitSpec(prefix=0, pool="avg", depth=2),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Analysed]:
    """Models of several builds, one of them with more than the stream in its blocks."""
    folder = tmp_path_factory.mktemp("cut")
    found = {}
    for name, spec in SPECS.items():
        (folder / name).mkdir()
        found[name] = tiny(folder / name, spec, batch=2)
    found["sided"] = sided(folder)
    found["mapped"] = mapped(folder)
    return found


def check(graph: gs.Graph, parts: list[Segment], folder: Path) -> None:
    """A partition; and the same outputs, exactly, as of the whole graph."""
    owners = Counter(name for part in parts for name in part.nodes)
    assert set(owners) == {n.name for n in graph.nodes}
    assert set(owners.values()) == {1}
    rng = np.random.default_rng(0)
    feed = {
        t.name: rng.standard_normal([2 if isinstance(d, str) else d for d in t.shape], np.float32)
        for t in graph.inputs
    }
    whole = run_whole(graph, feed, folder)
    pieces = run_parts(graph, parts, feed, folder)
    assert whole.keys() == pieces.keys()
    for name, value in whole.items():
        assert np.array_equal(value, pieces[name]), name


@pytest.mark.parametrize("name", [*SPECS, "sided", "mapped"])
def test_parts_of_the_dense_model(models: dict[str, Analysed], name: str, tmp_path: Path) -> None:
    model = models[name]
    parts = partition(model.graph, model.analysis)
    check(model.graph, parts, tmp_path)
    blocks = len(model.analysis.blocks)
    roles = Counter(p.role for p in parts)
    assert (roles["attn"], roles["mlp"], roles["reducer"]) == (blocks, blocks, 0)
    assert parts[0].role == "stem"
    halves = [(p.block, p.role) for p in parts if p.role in ("attn", "mlp")]
    assert halves == [(b, r) for b in range(blocks) for r in ("attn", "mlp")]


@pytest.mark.parametrize("text", ["topk", "evit", "tome"])
@pytest.mark.parametrize("name", [*SPECS, "sided"])
def test_parts_of_a_reduced_model(
    models: dict[str, Analysed], name: str, text: str, tmp_path: Path
) -> None:
    """Two steps, the second after the blocks between them."""
    model = models[name]
    planner = method(model, text)
    patches = model.analysis.shape.patches
    sites = [s.name for s in planner.sites if s.name != "output"]
    chosen = dict.fromkeys((sites[0], sites[-1]))
    places = [Place(s, patches * (3 - i) // 4) for i, s in enumerate(chosen)]
    made = reduce_graph(model.graph, model.analysis, planner.schedule(places))
    parts = partition(model.graph, model.analysis, made)
    check(made.graph, parts, tmp_path)
    steps = [p.site for p in parts if p.role == "reducer" and p.site != "output"]
    assert steps == [p.site for p in places]


def test_a_step_at_the_output_is_a_part(models: dict[str, Analysed]) -> None:
    model = models["registers"]
    planner = method(model, "topk")
    sites = [s.name for s in model.analysis.sites if s.name == "output"]
    assert sites
    places = [Place("output", model.analysis.shape.patches // 2)]
    made = reduce_graph(model.graph, model.analysis, planner.schedule(places))
    parts = partition(model.graph, model.analysis, made)
    (step,) = [p for p in parts if p.role == "reducer"]
    assert step.site == "output"
    assert any("TopK" in name for name in step.nodes), step.nodes
    assert sum(len(p.nodes) for p in parts) == len(made.graph.nodes)


def test_a_reader_that_left_the_graph_is_none(models: dict[str, Analysed]) -> None:
    """What computed the same as another node is still listed where it read."""
    model = models["average"]
    planner = method(model, "mctf")
    made = partition_steps(model.graph, planner, [("attn:0", 8), ("attn:1", 4)], deduplicate=True)
    assert {p.site for p in made.parts if p.role == "reducer"} == {"attn:0", "attn:1"}


def test_a_chain_runs_halves_one_after_another(models: dict[str, Analysed], tmp_path: Path) -> None:
    """MLP halves chained: the second reads what the first gave, not what stood between."""
    model = models["cls"]
    parts = [p for p in partition(model.graph, model.analysis) if p.role == "mlp"]
    rng = np.random.default_rng(1)
    shape = [2, model.analysis.shape.tokens, 32]
    stream = rng.standard_normal(shape, np.float32)
    linked = chained(model.graph, parts)
    (given,) = linked.inputs
    (made,) = run_whole(linked, {given.name: stream}, tmp_path).values()
    for part in parts:
        piece = subgraph(model.graph, part)
        (stream,) = run_whole(piece, {piece.inputs[0].name: stream}, tmp_path).values()
    assert np.array_equal(made, stream)


def test_a_part_reads_sizes_off_the_shapes(models: dict[str, Analysed], tmp_path: Path) -> None:
    """Inputs of a part are made up: a Resize to a batch of 0 fails."""
    model = models["mapped"]
    (head,) = partition_dense(model.graph, model.analysis).behind("head")
    piece = subgraph(model.graph, head)
    assert {np.dtype(t.dtype).kind for t in piece.inputs} == {"f"}
    CpuRuntime(load_target("cpu")).open(piece, tmp_path / "part.onnx")()


def test_halves_behind_a_step_see_its_tokens(models: dict[str, Analysed]) -> None:
    model = models["cls"]
    found = partition_at(model.graph, method(model, "topk"), 9)
    assert found.tokens == 9
    for role in ("attn", "mlp"):
        for part in found.behind(role):
            piece = subgraph(found.graph, part)
            assert piece.inputs[0].shape[1] == 9, part
    assert len(found.behind("mlp")) == 3
    assert len(found.behind("attn")) == 2
    assert partition_dense(model.graph, model.analysis).step == -1


@pytest.mark.parametrize(("build", "text"), [(tiny, "tome"), (sided, "topk"), (sided, "tome")])
def test_what_halves_share_is_made_before_them(tmp_path: Path, build: Any, text: str) -> None:
    """Or else the first of them would be another structure, and dearer, than those behind it."""
    model = build(tmp_path, VitSpec(depth=5))
    found = partition_at(model.graph, method(model, text), 12)
    makers = {
        o.name: part.role
        for part in found.parts
        for node in found.graph.nodes
        if node.name in part.nodes
        for o in node.outputs
    }
    beside = 0
    for role in ("attn", "mlp"):
        assert len({part.signature for part in found.behind(role)}) == 1
        for part in found.behind(role):
            names = [t.name for t in subgraph(found.graph, part).inputs if t.name != part.start]
            assert {makers[n] for n in names} <= {"stem", "reducer"}, part
            beside += len(names)
    assert beside >= 4
