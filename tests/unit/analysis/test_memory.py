"""Memory of a model: its weights against what is written, its activations against liveness by
brute force over sizes of ONNX Runtime's own profile and of onnx's shape inference."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tcompile import pipeline
from tcompile.analysis.memory import Storage, memory_of, peak_activations, size_words, weight_bytes
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.passes.lower.eight_bits import EightBits
from tcompile.passes.lower.int8 import quantized
from tcompile.passes.normalize import normalize
from tcompile.passes.stages import Reduced
from tcompile.planning.memory import memory_plan, storage_of
from tcompile.targets import load_target
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit

SPEC = VitSpec(image=64, patch=8, width=64, heads=2, depth=3, classes=40, mlp_ratio=4)


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    path = save_tiny_vit(tmp_path_factory.mktemp("vit") / "vit.onnx", SPEC, batch=None)
    return pipeline.reduce(path, method="tome:r=8")


def _random_graph(seed: int) -> onnx.ModelProto:
    """Products, maxima, joins and views of [4, n] and [n, 4]; nothing that may run in place."""
    rng = random.Random(seed)
    shapes = {"x": (4, 8)}
    nodes = []
    for i in range(12):
        source = rng.choice(list(shapes)[-4:])
        rows, columns = shapes[source]
        kind = rng.choice(["Hardmax", "Transpose", "Reshape", "Concat", "MatMul"])
        name, inputs, attributes = f"t{i}", [source], {}
        if kind == "Concat":
            other = rng.choice([n for n, dims in shapes.items() if dims[1] == columns])
            inputs, attributes = [source, other], {"axis": 0}
            shapes[name] = rows + shapes[other][0], columns
        elif kind == "MatMul":
            nodes.append(helper.make_node("Transpose", [source], [f"{name}t"], perm=[1, 0]))
            inputs, shapes[name] = [source, f"{name}t"], (rows, rows)
        elif kind == "Reshape":
            inputs, shapes[name] = [source, "flipped"], (columns, rows)
            nodes.append(helper.make_node("Shape", [source], [f"{name}s"]))
            nodes.append(helper.make_node("Gather", [f"{name}s", "order"], [f"{name}f"], axis=0))
            inputs = [source, f"{name}f"]
        else:
            attributes = {"perm": [1, 0]} if kind == "Transpose" else {}
            shapes[name] = (columns, rows) if kind == "Transpose" else (rows, columns)
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
    ends = [n for n in shapes if not any(n in node.input for node in nodes)]
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes["x"])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ends],
        [onnx.numpy_helper.from_array(np.array([1, 0]), "order")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _brute_force(model: onnx.ModelProto) -> int:
    """At each node, the bytes of all that was made so far and is read there or later."""
    graph = model.graph
    sizes = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        item = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        sizes[value.name] = item * int(np.prod([d.dim_value for d in kind.shape.dim], dtype=int))
    bytes_of = {name: name for name in sizes}  # whose bytes a tensor has
    for node in graph.node:
        if node.op_type == "Reshape":
            bytes_of[node.output[0]] = bytes_of[node.input[0]]
    always = {v.name for v in graph.input}
    most = 0
    for at in range(len(graph.node)):
        made = always | {bytes_of[o] for node in graph.node[: at + 1] for o in node.output}
        later = {bytes_of[i] for n in graph.node[at:] for i in n.input if i in bytes_of}
        later |= {bytes_of[v.name] for v in graph.output} | set(graph.node[at].output)
        most = max(most, sum(sizes[name] for name in made if name in later or name in always))
    return most


@pytest.mark.parametrize("seed", range(20))
def test_most_that_is_alive_is_that_of_brute_force(seed: int) -> None:
    model = _random_graph(seed)
    assert peak_activations(gs.import_onnx(model)) == _brute_force(model)


def _of_ops(*ops: str) -> gs.Graph:
    """x [256 floats] through ops one after the other; `+x` adds the input again, `*` a number."""
    tensors = [gs.Variable("x", np.float32, [256])]
    nodes = []
    for i, op in enumerate(ops):
        made = gs.Variable(f"y{i}", np.float32, [256])
        inputs = {
            "+x": [tensors[-1], tensors[0]],
            "*": [tensors[-1], gs.Constant(f"c{i}", np.ones(1, np.float32))],
        }.get(op, [tensors[-1]])
        nodes.append(gs.Node({"+x": "Add", "*": "Mul"}.get(op, op), f"n{i}", {}, inputs, [made]))
        tensors.append(made)
    return gs.Graph(nodes, tensors[:1], tensors[-1:], opset=17)


#: 1 is the input, which is there all the time.
@pytest.mark.parametrize(
    ("ops", "runtime", "compiler"),
    [
        (("Hardmax", "Hardmax", "Hardmax"), 3, 3),
        (("Hardmax", "Relu", "*", "Hardmax"), 3, 3),
        (("Hardmax", "Relu", "*"), 2, 2),
        (("Relu", "*"), 2, 2),  # the input is not written over
        (("Hardmax", "Transpose", "Hardmax"), 3, 3),
        (("Hardmax", "Transpose", "Hardmax", "+x"), 3, 3),
        (("Hardmax", "Identity", "Relu"), 2, 2),
        (("Hardmax", "Softmax", "Softmax"), 2, 2),
    ],
)
def test_elementwise_results_take_the_place_of_what_they_are_made_of(
    ops: tuple[str, ...], runtime: int, compiler: int
) -> None:
    graph = _of_ops(*ops)
    found = [peak_activations(graph, Storage(compiled=compiled)) for compiled in (False, True)]
    assert [size / 1024 for size in found] == [runtime, compiler]


def test_a_compiler_stores_nothing_within_a_chain() -> None:
    """x·Φ(x): ONNX Runtime has x and the chain beside it, one kernel x alone."""
    x, out = gs.Variable("x", np.float32, [256]), gs.Variable("out", np.float32, [256])
    h, a, b, y = (gs.Variable(n, np.float32, [256]) for n in "haby")
    nodes = [
        gs.Node("Hardmax", "h", {}, [x], [h]),
        gs.Node("Sigmoid", "a", {}, [h], [a]),
        gs.Node("Mul", "b", {}, [h, a], [b]),
        gs.Node("Relu", "y", {}, [b], [y]),
        gs.Node("Hardmax", "out", {}, [y], [out]),
    ]
    graph = gs.Graph(nodes, [x], [out], opset=17)
    found = [peak_activations(graph, Storage(compiled=compiled)) for compiled in (False, True)]
    assert found == [3 * 1024, 3 * 1024]
    nodes[-1].op = "Relu"
    found = [peak_activations(graph, Storage(compiled=compiled)) for compiled in (False, True)]
    assert found == [3 * 1024, 2 * 1024]


def _profiled(path: Path, feed: Mapping[str, np.ndarray]) -> list[tuple[str, int]]:
    """Nodes in the order in which ONNX Runtime ran them, and the bytes that each gave."""
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(feed))
    events = json.loads(Path(session.end_profiling()).read_text())
    return [
        (e["name"].removesuffix("_kernel_time"), int(e["args"]["output_size"]))
        for e in events
        if e["name"].endswith("_kernel_time")
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_results_are_as_large_as_onnx_runtime_says(
    reduced: Reduced, tmp_path: Path, batch: int
) -> None:
    """Of the dense model: the peak is reached in a node, and no node gives more than is alive."""
    path = tmp_path / "dense.onnx"
    save(reduced.dense, path)
    image = np.zeros((batch, 3, 64, 64), np.float32)
    (name,) = (t.name for t in reduced.dense.inputs)
    sizes = dict(_profiled(path, {name: image}))
    peak = peak_activations(reduced.dense, batch=batch)
    logits = next(size for node, size in sizes.items() if node.startswith("softmax"))
    assert logits == batch * 2 * 65 * 65 * 4
    stream, hidden = batch * 65 * 64 * 4, batch * 65 * 256 * 4
    assert max(sizes.values()) == hidden
    # In the MLP: image, residual stream, hidden layer and what the GELU has beside it.
    assert peak == image.nbytes + stream + 2 * hidden


def _bytes_in(model: onnx.ModelProto) -> int:
    """Bytes of what a file stores: initialisers and constants, as onnx reads them."""
    stored = [*model.graph.initializer]
    stored += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in stored)


@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "fp32"), ("rtx-4090", "fp32"), ("rtx-4090", "fp16")]
)
def test_weights_are_those_of_the_file(reduced: Reduced, target: str, precision: str) -> None:
    device = load_target(target)
    how = storage_of(device, precision, reduced.fp32_nodes)
    for graph in (reduced.dense, reduced.graph):
        lowered = lower(graph, target=device, precision=precision, fp32_nodes=reduced.fp32_nodes)
        stored = sum(_stored(t) for t in lowered.tensors().values() if isinstance(t, gs.Constant))
        assert weight_bytes(graph, how) == pytest.approx(stored, rel=0.03)
        assert weight_bytes(graph, Storage()) == pytest.approx(_fp32(graph), rel=0.001)


def _stored(constant: gs.Constant) -> int:
    return int(np.asarray(constant.values).nbytes)


def _fp32(graph: gs.Graph) -> int:
    return sum(_stored(t) for t in graph.tensors().values() if isinstance(t, gs.Constant))


def test_weights_in_int8_are_those_of_onnx_runtimes_quantizer(reduced: Reduced) -> None:
    device = load_target("cpu")
    predicted = weight_bytes(reduced.dense, storage_of(device, "int8"))
    plain = gs.export_onnx(lower(reduced.dense, target=device, precision="fp32"))
    stored = _bytes_in(quantized(plain, "dynamic"))
    assert predicted == pytest.approx(stored, rel=0.03)
    assert predicted < 0.4 * weight_bytes(reduced.dense, Storage())


def test_what_is_stored_may_be_moved_first() -> None:
    """A table that is split or transposed, by nodes that read nothing else, stays in fp32."""
    table = gs.Constant("table", np.ones((8, 16), np.float32))
    x, turned, y = (gs.Variable(n, np.float32, [1, 8, 8]) for n in ("x", "turned", "y"))
    turned.shape, x.shape = [16, 8], [1, 8, 16]
    nodes = [
        gs.Node("Transpose", "turn", {"perm": [1, 0]}, [table], [turned]),
        gs.Node("MatMul", "product", {}, [x, turned], [y]),
    ]
    graph = gs.Graph(nodes, [x], [y], opset=17)
    for target, precision, size in (("cpu", "int8", 4), ("rtx-4090", "fp16", 2)):
        how = storage_of(load_target(target), precision)
        assert weight_bytes(graph, how) == 8 * 16 * size
        assert peak_activations(graph, how) > 0


def test_weights_in_int8_are_those_of_our_pairs(reduced: Reduced) -> None:
    """A limit of 2: no product is left in 16 bits."""
    device = load_target("rtx-4090")
    feed = {t.name: np.ones((1, 3, 64, 64), np.float32) for t in reduced.dense.inputs}

    def run(graph: gs.Graph) -> list[dict[str, np.ndarray]]:
        model = gs.export_onnx(graph)
        session = ort.InferenceSession(model.SerializeToString())
        names = [o.name for o in session.get_outputs()]
        return [dict(zip(names, session.run(names, feed), strict=True))]

    lowered = lower(
        reduced.dense, target=device, precision="int8", eight_bits=EightBits("int8", run, limit=2)
    )
    stored = sum(_stored(t) for t in lowered.tensors().values() if isinstance(t, gs.Constant))
    assert weight_bytes(reduced.dense, storage_of(device, "int8")) == pytest.approx(
        stored, rel=0.03
    )


def test_half_precision_halves_what_it_holds_and_a_fused_kernel_has_no_logits() -> None:
    spec = VitSpec(image=256, patch=8, width=16, heads=2, depth=2, classes=4)
    graph = normalize(build_vit(spec, random_weights(spec))).graph
    logits = 2 * 1025 * 1025
    cpu, gpu, half = (
        memory_of(graph, storage_of(load_target(target), precision)).activations
        for target, precision in (("cpu", "fp32"), ("rtx-4090", "fp32"), ("rtx-4090", "fp16"))
    )
    assert half < 4 * logits < min(cpu, gpu) < 8 * logits  # probabilities where logits were
    # The image, and in half precision the stream, Q, K and V, Q once more, scaled, and the context.
    assert half == 3 * 256 * 256 * 4 + 6 * (1025 * 16 * 2)


def test_a_plan_counts_a_batch_and_says_where_it_does_not_fit(reduced: Reduced) -> None:
    nano, cpu = load_target("jetson-orin-nano"), load_target("cpu")
    one, many = (memory_plan(reduced, nano, "fp16", batch) for batch in (1, 1000))
    assert (one.batch, many.batch, one.device) == (1, 1000, 8 << 30)
    assert many.dense.activations == pytest.approx(1000 * one.dense.activations, rel=0.01)
    assert one.dense.weights == many.dense.weights
    assert not one.note(nano.title)
    huge = memory_plan(reduced, nano, "fp16", 100_000).note(nano.title)
    assert huge.startswith(f"does not fit on {nano.title}: at least ")
    assert "it has 8.59 GB" in huge
    assert memory_plan(reduced, cpu, "fp32", 100_000).note("this machine") == ""


def test_sizes_have_three_digits() -> None:
    given = (5, 999, 1234, 999_499, 999_600, 86_600_000, 8 << 30, 123_400_000_000)
    shown = [size_words(size) for size in given]
    assert shown == [
        "0.005 kB",
        "0.999 kB",
        "1.23 kB",
        "999 kB",
        "1 MB",
        "86.6 MB",
        "8.59 GB",
        "123 GB",
    ]
