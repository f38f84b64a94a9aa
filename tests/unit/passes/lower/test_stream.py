"""Merges on the whole stream: as many calls as there were, the same values, nothing in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.domain import DOMAIN
from tcompile.core.graph import producer
from tcompile.core.save import save
from tcompile.passes.lower import PASSES, Lowering, lower
from tcompile.passes.lower.stream import widen_merges
from tcompile.passes.stages import Reduced
from tcompile.runtime.samples import run_all
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.targets import load_target
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPECS = {"prefix": VitSpec(prefix=3), "no prefix": VitSpec(prefix=0, pool="mean")}


@pytest.fixture(scope="module", params=SPECS)
def reduced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    path = save_tiny_vit(
        tmp_path_factory.mktemp("vit") / "vit.onnx", SPECS[request.param], batch=None
    )
    return pipeline.reduce(path, method="tome:r=3")


def calls(graph: gs.Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes if node.domain == DOMAIN]


def test_every_merge_is_widened(reduced: Reduced) -> None:
    graph = reduced.graph.copy()
    before = calls(graph)
    assert widen_merges(graph) == len(before)
    prefix = reduced.schedule.model.prefix
    merged = "TcMergeStream" if prefix else "TcMergeWhole"
    assert set(calls(graph)) == {"TcMatchStream", merged}
    for node in graph.nodes:
        if node.op == merged:
            # Straight from the stream into the stream.
            source = producer(node.inputs[0])
            assert source is not None
            assert source.op not in ("Slice", "Concat")
            assert not any(reader.op == "Concat" for reader in node.outputs[0].outputs)


def test_an_older_opset_is_left_alone(reduced: Reduced) -> None:
    graph = reduced.graph.copy()
    graph.opset = 15
    assert widen_merges(graph) == 0
    assert calls(graph) == calls(reduced.graph)


def test_values_are_those_of_the_token_ops(
    reduced: Reduced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(name: str) -> dict[str, Any]:
        graph = lower(reduced.graph, target=load_target("cpu"), precision="fp32")
        save(graph, tmp_path / f"{name}.onnx", reduced.metadata)
        samples = scenes_for(signature(tmp_path / f"{name}.onnx"), count=3)
        return run_all(tmp_path / f"{name}.onnx", samples)

    have = outputs("wide")
    as_they_are = tuple(step for step in PASSES if step.name != "widen-merges")
    monkeypatch.setattr("tcompile.passes.lower.PASSES", as_they_are)
    for name, want in outputs("token ops").items():
        np.testing.assert_allclose(have[name], want, rtol=1e-5, atol=1e-6)


def test_a_prefix_that_is_read_between_stays(reduced: Reduced) -> None:
    """What was cut off and merged is read by somebody else: it must still be there."""
    graph = reduced.graph.copy()
    merge = next(node for node in graph.nodes if node.op == "TcMergeTokens")
    tensor = merge.outputs[0]
    graph.outputs.append(tensor)
    widen_merges(graph)
    assert merge.op == "TcMergeWhole"
    assert merge.outputs[0] is tensor


def test_it_is_for_a_cpu() -> None:
    (step,) = (step for step in PASSES if step.name == "widen-merges")
    for target, wanted in {"cpu": True, "cpu-openvino": True, "rtx-4090": False}.items():
        state = Lowering(gs.Graph(), load_target(target), "fp32", "native", frozenset())
        assert step.when(state) == wanted
