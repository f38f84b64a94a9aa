"""Holding a rewritten ONNX model against the oracle: structure, decisions, numbers.

Tolerances come from the dense export itself: the reduced graph may be ten times as far from the
oracle as the dense file is from the dense model, both against float64, on the same images. A fixed
tolerance would be too loose to see a wrong row and too tight for a deep model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from tests.oracles.adapters import adapt, select_outputs
from tests.oracles.methods import Reduction, Result, run
from tests.support.onnx_models import plain_options

Arrays = dict[str, np.ndarray[Any, Any]]

#: How many times the dense export's own error is allowed.
FACTOR = 10.0
#: Dense error below this fraction of the output's largest magnitude is taken for this: one more
#: operation in float32 costs about as much.
FLOOR = 1e-6
#: The least margin of a decision (see `methods.Margin`) at which it is beyond doubt. In float32 the
#: scores of these models are off by up to 2e-8 and cosines by up to 1e-6, so this is some fifty
#: times the noise. Images whose decisions are closer are not used.
CLEAR = {
    "kept": 1e-6,
    "relative": 2e-5,  # of the largest score
    "length": 5e-4,
    "merged": 5e-5,
    "target": 5e-5,
    "owner": 5e-5,
}
#: Images to choose from.
POOL = 32
EXTRA = ("token_index", "token_owner", "token_size")
#: Operators that give something else at each run of a session: with these, each run has a new one.
DRAWN = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Bernoulli", "Multinomial", "Dropout"),
)


class MismatchError(AssertionError):
    """The model does not do what the oracle does."""


class Subject:
    """A module, the float64 oracle of it, and images on which the oracle has no doubts."""

    def __init__(self, module: nn.Module, image_shape: Sequence[int]) -> None:
        """image_shape: [3, H, W]. Raises AssertionError when the adapter is not the module."""
        generator = torch.Generator().manual_seed(7)
        self.pool = torch.randn(POOL, *image_shape, generator=generator)
        with torch.no_grad():
            self.chosen = select_outputs(adapt(module), module, self.pool[:1], atol=1e-5)
        self.encoder = adapt(copy.deepcopy(module).double())

    @property
    def patches(self) -> int:
        """Tokens besides prefix and suffix."""
        with torch.no_grad():
            tokens = self.encoder.embed(self.pool[:1].double()).shape[1]
        return tokens - self.encoder.prefix - self.encoder.suffix

    @property
    def score(self) -> str:
        """The score that the methods use on this model."""
        return "cls" if self.encoder.cls else "attn"

    def run(
        self,
        images: Tensor,
        reductions: Sequence[Reduction] = (),
        outputs: str = "reduced",
        rule: str = "owner",
    ) -> Result:
        """The oracle on float32 images, in float64; outputs are those of the module, in order."""
        with torch.no_grad():
            result = run(self.encoder, images.double(), reductions, outputs, rule)
        values = tuple(result.outputs[i] for i in self.chosen)
        return Result(
            values, result.index, result.owner, result.size, result.entering, result.margins
        )

    def images(
        self,
        reductions: Sequence[Reduction],
        count: int,
        *,
        owners: bool = False,
        rule: str = "owner",
    ) -> Tensor:
        """The first `count` images of the pool, [count, 3, H, W], whose decisions are all clear.

        owners: whether outputs are restored, so that it matters, too, who owns a dropped token.
        rule: by which they are.
        Raises MismatchError when there are not so many: the test could then not tell an error from
        a tie.
        """
        outputs = "restored" if owners else "reduced"
        found: list[Tensor] = []
        for part in self.pool.split(4):
            clear = torch.ones(len(part), dtype=torch.bool)
            for margin in self.run(part, reductions, outputs, rule).margins:
                if owners or margin.what != "owner":
                    clear &= margin.gap > CLEAR[margin.what]
            found += part[clear]
            if len(found) >= count:
                return torch.stack(found[:count])
        raise MismatchError(f"undecidable: {len(found)} of {POOL} images are clear, {count} needed")


@dataclass(frozen=True)
class Verdict:
    """error and tolerance: the largest absolute difference of each output, and what is allowed."""

    error: tuple[float, ...]
    tolerance: tuple[float, ...]


def infer(model: onnx.ModelProto, feed: Arrays, *, optimized: bool = False) -> Arrays:
    """Run a model in ONNX Runtime on one thread, by output name.

    It runs as it is written, without optimisations: what is held against the oracle is what
    tcompile wrote, and to optimise these models takes two thirds of the time of a session. Tests of
    builds run what ships `optimized`. In half precision there is no other
    way: ONNX Runtime 1.32 crashes on LayerNormalization -> Transpose -> MatMul in float16
    (nn.MultiheadAttention) when it optimises, and its second run of a float16 LayerNormalization
    under a memory pattern is wrong (its issue 27768).
    """
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    drawn = any(node.op_type in DRAWN for node in model.graph.node)
    make = _session.__wrapped__ if drawn else _session
    session = make(model.SerializeToString(), half, optimized and not half)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@lru_cache(maxsize=4)
def _session(model: bytes, half: bool, optimized: bool) -> onnxruntime.InferenceSession:
    """Return a session; to make one takes ten times as long as to run these models."""
    options = plain_options()
    if optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = not half
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed_of(model: onnx.ModelProto, images: Tensor) -> Arrays:
    """The images under the name of the model's only input."""
    (only,) = model.graph.input
    return {only.name: images.numpy()}


def infer_in_batches(model: onnx.ModelProto, images: Tensor, *, optimized: bool = False) -> Arrays:
    """Run all images, at the batch size that a static model insists on.

    Of a model without a batch axis, [patches, values], each image alone.
    """
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if len(dims) < images.ndim:
        alone = [infer(model, feed_of(model, one), optimized=optimized) for one in images]
        joined = {name: [part[name] for part in alone] for name in alone[0]}
        # What tcompile adds has a batch axis all the same.
        return {n: np.concatenate(v) if n in EXTRA else np.stack(v) for n, v in joined.items()}
    step = dims[0].dim_value or len(images)
    if len(images) % step:
        raise ValueError(f"{len(images)} images do not fill batches of {step}")
    given = (feed_of(model, part) for part in images.split(step))
    parts = [infer(model, feed, optimized=optimized) for feed in given]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dense_errors(dense: onnx.ModelProto, subject: Subject, images: Tensor) -> tuple[float, ...]:
    """Return how far the dense file is from the dense model, output by output: largest
    difference."""
    found = list(infer_in_batches(dense, images).values())
    truth = subject.run(images).outputs
    if len(found) != len(truth):
        raise MismatchError(f"the dense file has {len(found)} outputs, the module {len(truth)}")
    return tuple(_distance(f, t.value.numpy(), "dense") for f, t in zip(found, truth, strict=True))


def check(
    model: onnx.ModelProto,
    subject: Subject,
    images: Tensor,
    reductions: Sequence[Reduction],
    dense_error: Sequence[float],
    outputs: str = "reduced",
    rule: str = "owner",
    *,
    optimized: bool = False,
) -> Verdict:
    """Compare a reduced model with the oracle. Raises MismatchError, saying where they differ."""
    result = subject.run(images, reductions, outputs, rule)
    found = infer_in_batches(model, images, optimized=optimized)
    _check_declared(model, found)
    extra = {name: found.pop(name) for name in EXTRA if name in found}
    if len(found) != len(result.outputs):
        raise MismatchError(f"outputs {list(found)} where the model has {len(result.outputs)}")
    _check_tokens(extra, result, outputs, subject.encoder.groups)
    errors, tolerances = [], []
    pairs = zip(found.items(), result.outputs, dense_error, strict=True)
    for (name, value), output, dense in pairs:
        expected = (result.restored(output) if outputs == "restored" else output.value).numpy()
        errors.append(_distance(value, expected, name))
        tolerances.append(FACTOR * max(dense, FLOOR * float(np.abs(expected).max())))
        if not errors[-1] <= tolerances[-1]:  # so that NaN is a mismatch
            raise MismatchError(f"{name}: error {errors[-1]:.2e}, allowed {tolerances[-1]:.2e}")
    return Verdict(tuple(errors), tuple(tolerances))


def _check_declared(model: onnx.ModelProto, found: Arrays) -> None:
    """The outputs have the shapes that the model says they have, batch aside."""
    for info in model.graph.output:
        declared = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if declared[1:] != list(found[info.name].shape[1 - len(declared) :]):
            raise MismatchError(f"{info.name} is {found[info.name].shape}, declared {declared}")


def _check_tokens(extra: Arrays, result: Result, outputs: str, groups: Tensor | None) -> None:
    """The token outputs are there when an output has a token axis, and say what the oracle says.

    Where rows are made of groups, `token_index` names groups.
    """
    with_tokens = [o for o in result.outputs if o.first is not None]
    if outputs == "restored" or not with_tokens:
        return
    if result.index.shape == result.owner.shape:  # nobody has left: bypass
        if extra:
            raise MismatchError(f"{list(extra)}, though every token is in its place")
        return
    if "token_index" not in extra:
        raise MismatchError(
            f"an output has a token axis, but of {EXTRA} there is only {list(extra)}"
        )
    output = with_tokens[0]
    first = output.first or 0
    expected = {
        "token_index": output.part(torch.where(result.index < 0, -1, result.index - first)),
        "token_owner": output.part(result.owner) - first,
        "token_size": output.part(result.size),
    }
    if output.members > 1 and groups is not None:
        number = groups.flatten().argsort() // output.members
        expected = {"token_index": number[expected["token_index"][:, :: output.members]]}
    if output.rows is not None:
        expected["token_index"] = output.rows
    for name, value in extra.items():
        if name not in expected:
            continue
        want = expected[name].numpy()
        exact = name != "token_size"  # some sizes are sums of similarities
        if value.shape != want.shape or not np.allclose(
            value, want, rtol=0 if exact else 1e-5, atol=0
        ):
            raise MismatchError(
                f"{name} differs: {value.tolist()} where the oracle has {want.tolist()}"
            )


def _distance(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], name: str) -> float:
    if found.shape != expected.shape:
        raise MismatchError(f"{name}: shape {found.shape}, expected {expected.shape}")
    return float(np.abs(found.astype(np.float64) - expected).max())


def check_structure(model: onnx.ModelProto) -> None:
    """`onnx.checker` in full, and every shape known once the batch is. Raises MismatchError."""
    onnx.checker.check_model(model, full_check=True)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    for size in (batch.dim_value,) if batch.dim_value else (1, 3):
        bound = onnx.ModelProto()
        bound.CopyFrom(model)
        del bound.graph.value_info[:]
        for info in (*bound.graph.input, *bound.graph.output):
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param and dim.dim_param == batch.dim_param:
                    dim.dim_value = size
        _check_known(
            onnx.shape_inference.infer_shapes(
                bound, check_type=True, strict_mode=True, data_prop=True
            )
        )


def _check_known(model: onnx.ModelProto) -> None:
    """Raises MismatchError unless every output of every node has a shape of numbers."""
    known = {
        info.name: info.type.tensor_type.shape
        for info in (*model.graph.value_info, *model.graph.output)
        if info.type.tensor_type.HasField("shape")
    }
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name not in known:
                raise MismatchError(f"{node.op_type} {node.name}: shape of {name} is unknown")
            dims = known[name].dim
            if not all(dim.HasField("dim_value") for dim in dims):
                text = [dim.dim_value or dim.dim_param or "?" for dim in dims]
                raise MismatchError(f"{node.op_type} {node.name}: {name} has shape {text}")
