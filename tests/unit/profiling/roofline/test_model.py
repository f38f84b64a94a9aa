from __future__ import annotations

from dataclasses import replace

import onnx_graphsurgeon as gs
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.subgraph import extract, needed_nodes
from tcompile.profiling.roofline import device_of, modelled
from tcompile.targets import load_target

ORIN = device_of(load_target("jetson-orin-nano"), "fp16")


def halves(graph: gs.Graph) -> list[gs.Graph]:
    """Everything up to and with the first residual add, and the rest."""
    adds = [
        n
        for n in graph.nodes
        if n.op == "Add" and not any(isinstance(t, gs.Constant) for t in n.inputs)
    ]
    cut = adds[0].outputs[0]
    before = needed_nodes([cut])
    after = needed_nodes(graph.outputs) - before
    return [extract(graph, before, [cut.name]), extract(graph, after, [graph.outputs[0].name])]


@pytest.mark.parametrize("name", ["jetson-orin-nano", "rtx-4090"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_parts_add_up_to_the_whole(vit, name, precision):
    device = device_of(load_target(name), precision)
    whole = modelled(vit(), device, precision=precision).ms
    parts = sum(modelled(p, device, precision=precision).ms for p in halves(vit()))
    assert parts == pytest.approx(whole, rel=0.05)


def test_the_whole_is_the_sum_of_its_kernels(vit):
    found = modelled(vit(), ORIN, precision="fp16")
    assert found.ms == pytest.approx(sum(k.ms for k in found.kernels))
    assert all(k.ms >= k.launches * ORIN.launch * 1e3 for k in found.kernels)
    assert all(k.nodes and k.name == k.nodes[0] for k in found.kernels)


def test_every_node_is_in_at_most_one_kernel(vit):
    names = [n for k in modelled(vit(), ORIN, precision="fp16").kernels for n in k.nodes]
    assert len(names) == len(set(names))
    assert set(names) <= {n.name for n in vit().nodes}


def test_bounds_say_what_limits(vit):
    idle = replace(ORIN, launch=1.0)
    assert {k.bound for k in modelled(vit(), idle, precision="fp16").kernels} == {"launch"}
    starved = replace(ORIN, memory=1e6, launch=0.0)
    gemms = [k for k in modelled(vit(), starved, precision="fp16").kernels if k.kind == "gemm"]
    assert {k.bound for k in gemms} == {"memory"}
    fed = replace(ORIN, memory=1e15, launch=0.0)
    gemms = [k for k in modelled(vit(), fed, precision="fp16").kernels if k.kind == "gemm"]
    assert "compute" in {k.bound for k in gemms}


def test_never_beyond_either_roof(vit):
    flops = 2 * 197 * 12 * 768**2 + 4 * 197**2 * 768
    weights = 12 * 768**2 * 2
    added = (
        modelled(vit(depth=2), ORIN, precision="fp16").ms
        - modelled(vit(), ORIN, precision="fp16").ms
    )
    assert added > flops / (8 * 1.02e9 * 2048) * 1e3
    assert added > weights / 102e9 * 1e3


def test_a_batch_costs_more_but_less_than_its_number(vit):
    ms = {b: modelled(vit(), ORIN, precision="fp16", batch=b).ms for b in (1, 2, 8)}
    assert ms[1] < ms[2] < ms[8] < 8 * ms[1]


@pytest.mark.parametrize("precision", ["fp16", "fp32", "int8"])
def test_better_devices_are_never_slower(vit, precision):
    base = device_of(load_target("t4"), precision)
    for tokens in (65, 197, 577):
        ms = modelled(vit(tokens), base, precision=precision).ms
        for cores in (41, 48, 60, 80, 120):
            more = replace(base, cores=cores, cache=base.feed * cores)
            assert modelled(vit(tokens), more, precision=precision).ms <= ms
        faster = replace(base, memory=base.memory * 2)
        assert modelled(vit(tokens), faster, precision=precision).ms <= ms


def test_mistakes_are_named(vit):
    with pytest.raises(UsageError, match="read for fp16, not int8"):
        modelled(vit(), ORIN, precision="int8")
    with pytest.raises(UsageError, match="batch of 0"):
        modelled(vit(), ORIN, precision="fp16", batch=0)
