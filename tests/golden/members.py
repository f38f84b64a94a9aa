"""Graphs that hold one score or one reducer each, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.core.graph import is_const, value
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers import find_reducer
from tcompile.passes.reduce.reducers.base import Reducer, ReducerInput
from tcompile.passes.reduce.scores import find_score
from tcompile.passes.reduce.scores.base import PastAttention, Score, ScoreInput
from tcompile.passes.reduce.segments import by_segment
from tcompile.passes.reduce.token_state import TokenState
from tests.golden.text import to_text
from tests.support.onnx_models import to_onnx

#: Prefix, patches and their grid, channels, heads and channels of a head.
PREFIX, COUNT, GRID, WIDTH, HEADS, SIZE = 1, 12, (3, 4), 6, 2, 3

_CLS, _NORM = {"name": "cls"}, {"name": "norm"}
#: The parameters that a score is shown with; one dict, a graph.
SCORES: dict[str, Sequence[dict[str, Any]]] = {
    "cls": [
        {},
        {"agg": "rms", "weight": "context", "value": "l2"},
        {"agg": "max", "value": "l1", "softmax": "pre"},
        {"agg": "sum", "heads": "joined"},
        {"source": "previous"},
        {"source": "ema"},
    ],
    "colsum": [
        {},
        {"queries": "strided", "heads": "after", "agg": "max"},
        {"queries": "all", "diagonal": True},
        {"cumulative": True},
    ],
    "dup": [
        {},
        {"reference": "strided", "metric": "keys", "agg": "mean"},
        {"reference": "window", "agg": "max"},
        {"reference": "window", "agg": "mean"},
        {"reference": "frame"},
    ],
    "energy": [{}, {"form": "paper", "metric": "x", "alpha": 0.5}],
    "norm": [{}, {"of": "k", "p": 1}, {"of": "v"}],
    "pagerank": [{"iterations": 2}, {"iterations": 1, "cls_boost": False}],
    "product": [{"terms": [{"score": _CLS}, {"score": _NORM, "power": 2}]}],
    "static": [{}, {"keep": 5}, {"pattern": "radial", "norm": "l1"}, {"pattern": "random"}],
    "sum": [
        {
            "terms": [
                {"score": _CLS, "norm": "max"},
                {"score": _NORM, "norm": "minmax", "weight": -0.5},
            ]
        },
        {"terms": [{"score": _CLS, "norm": "l2"}, {"score": _NORM, "norm": "softmax"}]},
    ],
    "window_penalty": [{"score": _NORM}],
}
#: How many a reducer keeps, and with which parameters.
REDUCERS: dict[str, Sequence[tuple[int, dict[str, Any]]]] = {
    "assign": [
        (5, {}),
        (5, {"sizes": "sum", "combine": "size_mean", "metric": "keys"}),
        (5, {"sizes": "none"}),
    ],
    "chain": [
        (
            4,
            {
                "steps": [
                    {"reducer": {"name": "topk"}, "keep": 8},
                    {"reducer": {"name": "merge"}, "keep": 4, "score": _NORM},
                ]
            },
        )
    ],
    "contextual": [(5, {"contextual": 2})],
    "diverse": [(6, {"step": 3}), (6, {"important": 1.0})],
    "fuse": [(5, {"weights": w}) for w in ("score", "normalised", "mean", "size")],
    "lines": [(9, {"axis": "columns"})],
    "merge": [
        (9, {}),
        (6, {}),
        (9, {"split": "energy", "metric": "x", "penalty": 0.5}),
        (9, {"combine": "mlerp"}),
        (9, {"split": "halves", "combine": "drop", "sizes": False, "criteria": "mctf"}),
        (9, {"split": "grid", "combine": "score"}),
        (9, {"split": "protected", "combine": "plain"}),
        (9, {"parity": "reference", "metric": "x", "combine": "drop"}),
        (9, {"bidirectional": True, "metric": "x", "combine": "drop"}),
    ],
    "neighbours": [(5, {"neighbours": 3}), (5, {"neighbours": 3, "metric": "keys"})],
    "pool": [(4, {})],
    "propagate": [(5, {"semantic": 2}), (5, {"semantic": 2, "sizes": True, "neighbours": 4})],
    "return": [(COUNT, {"fill": f}) for f in ("stale", "owner", "mean", "zero", "upsample")],
    "soft": [(5, {}), (5, {"targets": 2})],
    "topk": [(5, {}), (4, {"unit": "row"}), (6, {"within": [3, 2]}), (6, {"within": "frames"})],
    "windows": [(9, {}), (9, {"sizes": False})],
}


#: What else a reducer is shown with.
MORE: dict[str, Sequence[tuple[int, dict[str, Any], str]]] = {
    "topk": [(6, {}, "groups"), (6, {}, "segments"), (5, {}, "suffix")],
    "merge": [(8, {}, "segments"), (9, {}, "inside")],
    "fuse": [(5, {}, "suffix")],
}


class Bare:
    """A graph with the stream, and one attention, whose parts are inputs."""

    def __init__(self, total: int = PREFIX + COUNT) -> None:
        self.inputs: dict[str, gs.Variable] = {}
        self.graph = gs.Graph(opset=18, ir_version=9)
        self.builder = Builder(self.graph)
        self.x = self.input("x", total, WIDTH)
        self.attentions = [self._attention(f"{name}_") for name in ("earlier", "own")]

    def input(self, name: str, *dims: int, dtype: Any = np.float32) -> gs.Variable:
        self.inputs[name] = gs.Variable(name, dtype, ["batch", *dims])
        return self.inputs[name]

    def _attention(self, name: str) -> AttentionView:
        """Q·Kᵀ, scaled, softmax, ·V of inputs."""
        name = "" if name == "own_" else name
        total = PREFIX + COUNT
        q, v = (self.input(f"{name}{n}", HEADS, total, SIZE) for n in "qv")
        k = self.input(f"{name}k", HEADS, SIZE, total)
        square = ["batch", HEADS, total, total]
        product, logits, p = (
            gs.Variable(f"{name}{n}", np.float32, square) for n in ("qk", "l", "p")
        )
        context = gs.Variable(f"{name}context", np.float32, q.shape)
        scale = gs.Constant(f"{name}scale", np.asarray(0.5, np.float32))
        nodes = [
            gs.Node("MatMul", f"{name}product", {}, [q, k], [product]),
            gs.Node("Mul", f"{name}mul", {}, [product, scale], [logits]),
            gs.Node("Softmax", f"{name}softmax", {"axis": -1}, [logits], [p]),
            gs.Node("MatMul", f"{name}by_v", {}, [p, v], [context]),
        ]
        self.graph.nodes += nodes
        found = Attention(
            0,
            "softmax",
            nodes[2].name,
            q.name,
            k.name,
            v.name,
            nodes[0].name,
            nodes[3].name,
            (nodes[1].name,),
            context.name,
            (),
            (),
            HEADS,
        )
        return AttentionView(self.builder, found, {n.name: n for n in nodes}, None)

    def finish(self, outputs: dict[str, gs.Tensor | None]) -> str:
        """The text of the nodes that the outputs need, and of the inputs that these need; which of
        them an fp16 graph computes in fp16."""
        for name, tensor in outputs.items():
            if tensor is None:
                continue
            if tensor.inputs and tensor not in self.graph.outputs:
                tensor.name = name
            else:
                out = gs.Variable(name, tensor.dtype)
                self.graph.nodes.append(gs.Node("Identity", f"{name}_is", {}, [tensor], [out]))
                tensor = out
            self.graph.outputs.append(tensor)
        self.graph.inputs = list(self.inputs.values())
        self.graph.cleanup(remove_unused_graph_inputs=True).toposort()
        own = {n for view in self.attentions for n in (view.node.name, view.product.name)}
        half = {n.name for n in self.graph.nodes} - self.builder.fp32 - own
        return to_text(to_onnx(self.graph), half=half)


def score(name: str, parameters: dict[str, Any], *, reduced: bool = False) -> str:
    """The nodes of a score.

    Args:
        reduced: tokens have left before: `index` and `local` say which are there.
    """
    bare, frames = Bare(), parameters.get("reference") == "frame"
    states = [TokenState(COUNT)]
    if reduced:
        states = [TokenState(2 * COUNT)]
        index, local = (bare.input(n, COUNT, dtype=np.int64) for n in ("index", "local"))
        states.append(TokenState(COUNT, index=index, local=local))
    with TemporaryDirectory() as folder:
        if name == "head":
            parameters = {"file": _head(Path(folder))}
        inputs = ScoreInput(
            builder=bare.builder,
            attention=bare.attentions[1],
            x=bare.x,
            prefix=PREFIX,
            count=COUNT,
            find=find_score,
            dense_count=states[0].count,
            dense_grid=(4, 1, 3) if frames else (6, 4) if reduced else GRID,
            states=states,
            past=[PastAttention(view, 0) for view in bare.attentions],
            probe=lambda x: bare.input("probe", PREFIX + COUNT),
        )
        made = inputs.score(Spec(name, parameters))
    if is_const(made):
        made = bare.builder.for_all(value(made), bare.x, np.float32)
    return bare.finish({"score": made})


def declared_score(score: Score, parameters: dict[str, Any]) -> str:
    """Return what a score says of itself, which no graph shows."""
    given = {"file": "head.npz"} if score.name == "head" else parameters
    values = score.filled(Spec(score.name, given))
    said = [
        "reads the attention" if score.reads(values) else "",
        "" if score.fused(values) else "not fused",
        *(f"needs {need}" for need in score.needs(values)),
        *(f"made of {part.name}" for part in score.parts(values)),
    ]
    return ", ".join(filter(None, said)) or "reads no attention"


def declared_reducer(reducer: Reducer, parameters: dict[str, Any]) -> str:
    """Return what a reducer says of itself, which no graph shows."""
    found, values = reducer.bind(Spec(reducer.name, parameters))
    flags = ("scored", "groups", "segments", "around", "returns", "first")
    said = [
        *sorted(found.traits),
        *(flag for flag in flags if getattr(found, flag)),
        *(f"made of {part.name}" for part in found.parts(values)),
        *(f"scores by {part.name}" for part in found.scores(values)),
    ]
    return ", ".join(said) or "takes no score"


def _head(folder: Path) -> str:
    shapes = {"0.weight": (2, WIDTH), "0.bias": (2,), "1.weight": (1, 2), "norm.weight": (WIDTH,)}
    weights = {n: np.arange(np.prod(s), dtype=np.float32).reshape(s) for n, s in shapes.items()}
    np.savez(folder / "head.npz", **weights)
    return str(folder / "head.npz")


def reducer(name: str, keep: int, parameters: dict[str, Any], how: str = "") -> str:
    """The nodes of a reducer.

    Args:
        how: `tokens have sizes`: and owners and places, of a state before; `groups`: tokens leave
            in groups of two; `segments`: two halves of the tokens each lose as many; `suffix`: a
            fixed token is behind the patches; `inside`: the stream is beside an attention.
    """
    found, values = find_reducer(name).bind(Spec(name, parameters))
    count = 4 if found.returns else COUNT
    suffix = int(how == "suffix")
    bare = Bare(PREFIX + count + suffix)
    state = TokenState(count)
    if found.returns or how == "tokens have sizes":
        state = TokenState(
            count,
            index=bare.input("index", count, dtype=np.int64),
            size=None if found.returns else bare.input("size", count),
            owner=bare.input("owner", COUNT, dtype=np.int64),
        )
    frames = values.get("within") == "frames"

    def score_fn(spec: Spec) -> gs.Tensor:
        return bare.input(f"score_{spec.name}", COUNT)

    inputs = ReducerInput(
        builder=bare.builder,
        x=bare.x,
        width=WIDTH,
        score=bare.input("score", COUNT),
        attention=bare.attentions[1],
        state=state,
        prefix=PREFIX,
        suffix=suffix,
        dense_count=COUNT,
        dense_grid=(2, 6) if found.returns else GRID,
        keep=keep,
        parameters=values,
        find=find_reducer,
        score_fn=score_fn,
        encoder_input=lambda: bare.input("encoder_input", PREFIX + COUNT, WIDTH),
        group_table=np.arange(COUNT).reshape(2, -1).T if how == "groups" else None,
        grid=(2, 2) if found.returns else (4, 1, 3) if frames else GRID,
        last_values=bare.input("last_values", COUNT, WIDTH),
        residual=bare.input("residual", PREFIX + COUNT, WIDTH) if how == "inside" else None,
    )
    assert found.around or not found.problem(inputs.ask)
    stream, after = by_segment(found, inputs, 2) if how == "segments" else found.run(inputs)
    assert after.count == keep
    return bare.finish(
        {"stream": stream, **{f"new_{k}": getattr(after, k) for k in ("index", "size", "owner")}}
    )
