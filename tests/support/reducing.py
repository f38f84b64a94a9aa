"""One reducer on given tokens: the graph that it writes, run by ONNX Runtime with a free batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from tcompile.core.schedule import Spec
from tcompile.passes.lower.precision import to_half
from tcompile.passes.normalize.infer import infer
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers import Ask, ReducerInput, filled_reducer, find_reducer
from tcompile.passes.reduce.segments import by_segment
from tcompile.passes.reduce.token_state import TokenState
from tcompile.plugins.ops import add_functions
from tests.support.half import run_as_written
from tests.support.onnx_models import plain_options, to_onnx

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tokens:
    """Inputs of a reducer.

    Attributes:
        x: [B, prefix + T + suffix, C] f32.
        keys: [B, prefix + T + suffix, D] f32.
        score, size: [B, T] f32; None: none.
        grid: of the tokens; of the dense model it is `whole`, or the same.
        index: [B, T] i64, where the tokens are among the dense model's; None: all are there.
        owner: [B, T0] i64; None as index is.
        logits: [B, H, N, N] f32, of the attention; None: nobody reads them.
        entered: [B, prefix + T0 + suffix, C] f32, x as it enters the first block; None: x itself.
        beside: as x, inside an attention the stream beside it; None: x is the stream.
    """

    x: Array
    keys: Array
    score: Array | None = None
    size: Array | None = None
    prefix: int = 0
    suffix: int = 0
    grid: tuple[int, ...] = ()
    index: Array | None = None
    owner: Array | None = None
    logits: Array | None = None
    entered: Array | None = None
    whole: tuple[int, ...] = ()
    beside: Array | None = None

    @property
    def count(self) -> int:
        return int(self.x.shape[1]) - self.prefix - self.suffix

    @property
    def patches(self) -> Array:
        return self.x[:, self.prefix : self.prefix + self.count]

    @property
    def metric(self) -> Array:
        return self.keys[:, self.prefix : self.prefix + self.count]


@dataclass(frozen=True)
class Reduced:
    """Results of a reducer; `size` and `local` are empty where the stage has none."""

    x: Array
    index: Array
    size: Array
    owner: Array
    local: Array
    prop_attn: bool
    ops: tuple[str, ...] = field(repr=False, default=())


class Keys:
    """An attention of which only the keys and the logits are read."""

    attention = node = product = batch = None
    builder: Builder

    def __init__(self, keys: gs.Tensor, logits: gs.Tensor | None = None) -> None:
        self._keys, self._logits = keys, logits
        self.width = int(keys.shape[-1])
        # For what asks how many heads `head_keys` has: one, that is as wide as the keys.
        self.matched = SimpleNamespace(heads=1)

    def keys(self) -> gs.Tensor:
        return self._keys

    def head_keys(self) -> gs.Tensor:
        """Keys of two heads: the halves."""
        return self.builder.transpose(
            self.builder.reshape(self._keys, [0, 0, 2, self.width // 2]), [0, 2, 1, 3]
        )

    def logits(self) -> gs.Tensor:
        assert self._logits is not None
        return self._logits


def problem(name: str, count: int, keep: int, grid: Sequence[int] = (), **parameters: Any) -> str:
    """Return why the reducer cannot do that; empty if it can."""
    values = filled_reducer(Spec(name, parameters))
    return find_reducer(name).problem(ask_of(count, keep, values, tuple(grid), tuple(grid)))


def ask_of(
    count: int,
    keep: int,
    values: dict[str, Any],
    grid: tuple[int, ...],
    dense_grid: tuple[int, ...] = (),
) -> Ask:
    """Return what is asked of a reducer."""
    return Ask(
        count=count,
        keep=keep,
        parameters=values,
        find=find_reducer,
        grid=grid,
        dense_grid=dense_grid,
    )


def reduced(
    name: str,
    tokens: Tokens,
    keep: int,
    *,
    opset: int = 18,
    segments: int = 1,
    half: bool = False,
    **parameters: Any,
) -> Reduced:
    """Run a reducer.

    Args:
        segments: of the tokens, as many of which are kept in each.
        half: in fp16 as it is written, but for what the reducer keeps in fp32.
    """
    names = ("x", "keys", "score", "size", "index", "owner", "logits", "entered", "beside")
    feeds = {k: getattr(tokens, k) for k in names}
    feeds = {k: v for k, v in feeds.items() if v is not None}
    inputs = {k: gs.Variable(k, v.dtype, ["batch", *v.shape[1:]]) for k, v in feeds.items()}
    graph = gs.Graph(inputs=list(inputs.values()), opset=opset)
    builder = Builder(graph)
    values = filled_reducer(Spec(name, parameters))
    whole = tokens.whole or tokens.grid
    each = ask_of(tokens.count // segments, keep // segments, values, tokens.grid, whole)
    assert not find_reducer(name).problem(each)
    of_stage = {k: inputs[k] for k in ("size", "index", "owner") if k in inputs}
    total = tokens.count if tokens.owner is None else tokens.owner.shape[1]
    attention: Any = Keys(inputs["keys"], inputs.get("logits"))
    attention.builder = builder

    def unscored(spec: Spec) -> gs.Tensor:
        raise AssertionError(f"no score {spec}")

    given = ReducerInput(
        builder=builder,
        x=inputs["x"],
        width=tokens.x.shape[2],
        score=inputs.get("score"),
        attention=attention,
        state=TokenState(tokens.count, **of_stage),
        prefix=tokens.prefix,
        suffix=tokens.suffix,
        dense_count=total,
        dense_grid=whole,
        keep=keep,
        parameters=values,
        find=find_reducer,
        score_fn=unscored,
        encoder_input=lambda: inputs["entered" if "entered" in inputs else "x"],
        grid=tokens.grid,
        residual=inputs.get("beside"),
    )
    reducer = find_reducer(name)
    stream, after = by_segment(reducer, given, segments) if segments > 1 else reducer.run(given)
    assert after.count == keep
    named = {"x": stream, **{k: getattr(after, k) for k in ("index", "size", "owner", "local")}}
    for key, tensor in named.items():
        if tensor is not None:
            out = gs.Variable(f"{key}_out", tensor.dtype)
            graph.nodes.append(gs.Node("Identity", f"{key}_id", {}, [tensor], [out]))
            graph.outputs.append(out)
    graph.cleanup(remove_unused_graph_inputs=True).toposort()
    add_functions(graph)
    if half:
        infer(graph, symbolic=True)
        graph = to_half(graph, fp32_nodes=frozenset(builder.fp32))
    model = to_onnx(graph)
    read = {i.name: feeds[i.name] for i in model.graph.input}
    arrays = run_as_written(model, read) if half else _run(model, read)
    none = np.zeros(0)
    parts = {k: arrays.get(f"{k}_out", none) for k in ("index", "size", "owner", "local")}
    ops = tuple(n.op for n in graph.nodes)
    return Reduced(arrays["x_out"], prop_attn=after.prop_attn, ops=ops, **parts)


def _run(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(
        model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
