"""The masked-dense oracle: the dense file, unreduced, made to ignore the tokens that were dropped.

Every attention after a cut gets −1e9 added to the logits of dropped keys, every mean over tokens
counts the kept ones alone, and outputs with a token axis are read at the kept rows (EXPORTS 5). That
is what dropping tokens must compute, and it needs no PyTorch and nothing of the passes: this file
finds attentions and pools in the *source* file by itself, from the shapes that a run shows.

Which tokens are kept is read from the reduced model; that they are the ones with the best scores is
checked against the probabilities of the dense file.

Not for: merging and fusing, which no mask expresses; attention whose probabilities are mixed or
biased after the softmax (CaiT); windows. These raise `InapplicableError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.oracles.compare import EXTRA, MismatchError, infer

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

#: What hides a key; exp of it is 0 in float32.
HIDDEN = -1e9
#: Both sides compute in float32, in another order: this many times the file's own noise is allowed.
FACTOR = 10.0
#: The file's noise is taken for at least this fraction of the output's largest magnitude.
FLOOR = 1e-6
#: Scores this close, relative to the largest, are a tie.
TIE = 2e-5

#: What may stand between Softmax and ·V, without mixing one key's probability into another's.
_AFTER_SOFTMAX = {"Cast", "Identity", "Dropout", "Transpose", "Reshape", "Where", "IsNaN"}
_SUMS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
_POOLS = {"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", *_SUMS}


class InapplicableError(Exception):
    """No mask says what this reduction does, or the oracle cannot find where to put it."""


@dataclass(frozen=True)
class Cut:
    """Tokens leave after the attention of `block`; `keep` patches go on.

    Attributes:
        block: number of the self-attention that the site follows.
        keep: patch tokens, not groups.
        score: `cls` or `attn`, or another name, which is not checked.
    """

    block: int
    keep: int
    score: str


@dataclass(frozen=True)
class Tokens:
    """How the token axis is laid out: `before` fixed tokens, `patches`, `after` fixed tokens.

    `group`: how many consecutive patches are kept or dropped as one.
    """

    before: int
    patches: int
    after: int = 0
    group: int = 1

    @property
    def total(self) -> int:
        return self.before + self.patches + self.after

    def full(self, kept: Array) -> Array:
        """[B, K] kept patches → [B, before+K+after] positions on the token axis."""
        rows = len(kept)
        first = np.broadcast_to(np.arange(self.before), (rows, self.before))
        last = np.arange(self.before + self.patches, self.total)
        last = np.broadcast_to(last, (rows, self.after))
        return np.concatenate([first, kept + self.before, last], axis=1)


@dataclass(frozen=True)
class _Core:
    """An attention of the dense file. logits: name of the softmax's input (or the Attention's
    query); shape: of the logits at the batch that was run."""

    node: int
    form: str
    logits: str
    shape: tuple[int, ...]

    @property
    def square(self) -> bool:
        return self.shape[-1] == self.shape[-2]


@dataclass(frozen=True)
class Verdict:
    """error and tolerance: the largest absolute difference of each output, and what is allowed."""

    error: tuple[float, ...]
    tolerance: tuple[float, ...]


# ---- a graph and what runs through it ------------------------------------------------------------


class _File:
    """The dense file, with the values of its tensors on some images."""

    def __init__(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> None:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        self.model, self.feed = model, dict(feed)
        self.nodes = list(model.graph.node)
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.stored = {t.name: t for t in model.graph.initializer}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in _reads(node):
                self.readers.setdefault(name, []).append(i)
        self.live = self._descendants(feed)
        wanted = [n for node in self.nodes for n in self._interesting(node) if n in self.live]
        self.values = self.run(model, wanted)

    def _interesting(self, node: onnx.NodeProto) -> list[str]:
        if node.op_type == "Softmax":
            return [node.input[0]]
        if node.op_type == "Attention":
            return list(node.input[:2])
        return [node.input[0]] if node.op_type in _POOLS else []

    def _descendants(self, names: Iterable[str]) -> set[str]:
        """Every tensor that depends on one of these; nodes need not be in order."""
        found, todo = set(names), list(names)
        while todo:
            for i in self.readers.get(todo.pop(), ()):
                fresh = [n for n in self.nodes[i].output if n and n not in found]
                found.update(fresh)
                todo.extend(fresh)
        return found

    def below(self, node: int) -> set[str]:
        """Every tensor that depends on the node's outputs, these included."""
        return self._descendants(self.nodes[node].output)

    def run(self, model: onnx.ModelProto, extra: Sequence[str], **more: Array) -> Arrays:
        """Outputs and further tensors of the model."""
        return infer(exposing(model, extra), {**self.feed, **more})

    def constant(self, name: str) -> Array | None:
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        made = self.nodes[self.maker[name]] if name in self.maker else None
        if made is not None and made.op_type == "Constant":
            for attribute in made.attribute:
                if attribute.name == "value":
                    return numpy_helper.to_array(attribute.t)
                if attribute.name in ("value_ints", "value_int"):
                    return np.asarray(helper.get_attribute_value(attribute))
        return None


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors a node reads, those that its branches take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            for inner in graph.node:
                yield from _reads(inner)


def exposing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with these tensors as further outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # dims written there may hold for another batch
    known = {o.name for o in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


# ---- finding attentions and pools ----------------------------------------------------------------


def _cores(file: _File) -> list[_Core]:
    """Every attention over live keys, in the file's order."""
    found = []
    for i, node in enumerate(file.nodes):
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            q, k = (file.values.get(name) for name in node.input[:2])
            if q is None or k is None:
                continue
            heads = q.shape[1] if q.ndim == 4 else int(_attribute(node, "q_num_heads", 0))
            shape = (q.shape[0], heads, q.shape[-2], k.shape[-2])
            found.append(_Core(i, "op", node.input[0], shape))
        elif node.op_type == "Softmax" and node.input[0] in file.values:
            shape = file.values[node.input[0]].shape
            axis = int(_attribute(node, "axis", -1)) % max(len(shape), 1)
            if len(shape) >= 3 and axis == len(shape) - 1 and _weighs(file, node):
                found.append(_Core(i, "softmax", node.input[0], tuple(shape)))
    return found


def _weighs(file: _File, softmax: onnx.NodeProto) -> bool:
    """Whether the probabilities are the left operand of a product with live values."""
    todo, seen = [softmax.output[0]], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for i in file.readers.get(name, ()):
            node = file.nodes[i]
            if node.op_type in ("MatMul", "Einsum") and node.input[0] == name:
                if node.input[1] in file.live:
                    return True
            elif node.op_type in _AFTER_SOFTMAX and node.output[0] not in seen:
                todo.append(node.output[0])
    return False


def _pooled_axes(file: _File, node: onnx.NodeProto, tokens: Tokens) -> tuple[int, ...] | None:
    """The axes of the input that a pool reduces, where these are the token axis."""
    shape = file.values[node.input[0]].shape
    rank = len(shape)
    if node.op_type == "GlobalAveragePool":
        axes: Any = range(2, rank)
    else:
        axes = _attribute(node, "axes", None)
        if axes is None and len(node.input) > 1 and node.input[1]:
            axes = file.constant(node.input[1])
            if axes is None:
                raise InapplicableError(f"{node.op_type} over axes computed at run time")
        axes = range(1, rank) if axes is None else np.ravel(axes)
    gone = tuple(sorted(int(a) % rank for a in axes))
    sizes = (tokens.total, tokens.patches)
    if prod(shape[a] for a in gone) not in sizes or 0 in gone:
        return None
    # The norm of a row reduces the last axis; so does a mean over [B, C, N].
    rows = [a for a in range(1, rank - 1) if a not in gone and shape[a] in sizes]
    return None if gone == (rank - 1,) and (rows or rank < 3) else gone


# ---- the masked model ----------------------------------------------------------------------------


def _mask_of(kept: Array, length: int, tokens: Tokens) -> Array:
    """[B, length] bool over all tokens or over the patches alone."""
    positions = tokens.full(kept) if length == tokens.total else kept
    mask = np.zeros((len(kept), length), dtype=bool)
    np.put_along_axis(mask, positions, True, axis=1)
    return mask


def _key_mask(core: _Core, kept: Array, tokens: Tokens) -> Array:
    """What is added to the logits of a core: HIDDEN at the keys that were dropped."""
    *lead, rows, length = core.shape
    if length not in (tokens.total, tokens.patches):
        raise InapplicableError(f"an attention has {length} keys, the model {tokens.total} tokens")
    batch = len(kept)
    if lead[0] % batch:
        raise InapplicableError(f"logits of shape {core.shape} for {batch} images")
    mask = np.where(_mask_of(kept, length, tokens), 0.0, HIDDEN).astype(np.float32)
    mask = np.repeat(mask, lead[0] // batch, axis=0)  # heads merged with the batch
    mask = mask.reshape(lead[0], *[1] * (len(lead) - 1), 1, length)
    return np.broadcast_to(mask, (*lead, rows, length))


def _masked(
    file: _File, cores: Sequence[_Core], kept: Mapping[int, Array], pools: Mapping[int, Array],
    tokens: Tokens,
) -> tuple[onnx.ModelProto, Arrays]:  # fmt: skip
    """The dense model with masks as further inputs, and what to feed them.

    kept, pools: node → kept patches [B, K] that hold for this core or pool.
    """
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    del model.graph.value_info[:]
    feed: Arrays = {}
    nodes: list[onnx.NodeProto] = []
    by_node = {core.node: core for core in cores}

    def given(value: Array) -> str:
        name = f"masked_{len(feed)}"
        feed[name] = np.ascontiguousarray(value)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        return name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"masked_{len(nodes)}_{kind}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    for i, node in enumerate(model.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if i in kept:
            dtype = file.values[by_node[i].logits].dtype
            mask = _key_mask(by_node[i], kept[i], tokens)
            bias = given(np.maximum(mask, -3e4 if dtype == np.float16 else HIDDEN).astype(dtype))
            if by_node[i].form == "softmax":
                copy.input[0] = op("Add", node.input[0], bias)
            else:
                _mask_attention(file, copy, bias, op, given, dtype)
        if i in pools:
            value = file.values[node.input[0]]
            axes = _pooled_axes(file, node, tokens)
            assert axes is not None
            length = prod(value.shape[a] for a in axes)
            mask = _mask_of(pools[i], length, tokens)
            dims = [d if a in axes else 1 for a, d in enumerate(value.shape)]
            dims[0] = len(mask)
            _mask_pool(copy, mask.reshape(dims), length, mask[0].sum(), op, given, value.dtype)
            nodes.append(copy)
            if node.op_type in ("ReduceMean", "GlobalAveragePool"):
                final = copy.output[0]
                copy.output[0] = f"{final}__all"
                scale = given(np.asarray(length / mask[0].sum(), value.dtype))
                nodes.append(helper.make_node("Mul", [copy.output[0], scale], [final]))
            continue
        nodes.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, feed


def _mask_attention(
    file: _File, node: onnx.NodeProto, bias: str, op: Any, given: Any, dtype: Any
) -> None:
    """Add `bias` to the mask of an ai.onnx Attention."""
    while len(node.input) < 4:
        node.input.append("")
    if node.input[3]:
        before = node.input[3]
        values = file.run(file.model, [before])[before]
        if values.dtype == bool:
            nothing = given(np.asarray(0, dtype))
            hidden = given(np.asarray(-np.inf, dtype))
            before = op("Where", before, nothing, hidden)
        bias = op("Add", before, bias)
    node.input[3] = bias


def _mask_pool(
    node: onnx.NodeProto, mask: Array, length: int, count: int, op: Any, given: Any, dtype: Any
) -> None:
    """Let a pool read neutral values where tokens were dropped."""
    neutral = {"ReduceMax": -np.inf, "ReduceMin": np.inf}.get(node.op_type, 0.0)
    node.input[0] = op("Where", given(mask), node.input[0], given(np.asarray(neutral, dtype)))


# ---- the reduced model ---------------------------------------------------------------------------


def kept_patches(reduced: onnx.ModelProto, feed: Arrays, tokens: Tokens) -> list[Array]:
    """The original patches that each cut keeps, [B, K] each, as the reduced model chooses."""
    names = [node.output[0] for node in reduced.graph.node if node.op_type == "TcTopKTokens"]
    values = infer(exposing(reduced, names), feed)
    found: list[Array] = []
    for name in names:
        index = values[name]
        if tokens.group > 1:
            members = np.arange(tokens.group)
            index = (index[..., None] * tokens.group + members).reshape(len(index), -1)
        found.append(index if not found else np.take_along_axis(found[-1], index, axis=1))
    return found


def cuts_of(schedule: Mapping[str, Any]) -> list[Cut]:
    """A schedule's JSON as cuts. Raises InapplicableError where a reducer is not `topk`."""
    blocks = schedule["model"]["blocks"]
    found = []
    for step in schedule["reductions"]:
        if step["reducer"]["name"] != "topk":
            raise InapplicableError(f"{step['reducer']['name']} is no mask")
        place, _, number = step["site"].partition(":")
        if place not in ("attn", "block", "output"):
            raise InapplicableError(f"site {step['site']}")
        found.append(Cut(int(number or blocks - 1), step["keep"], step["score"]["name"]))
    return found


def layout_of(schedule: Mapping[str, Any], after: int = 0, group: int = 1) -> Tokens:
    """The token axis of a schedule's model, `after` of its fixed tokens being a suffix."""
    model = schedule["model"]
    return Tokens(model["prefix"] - after, model["patches"], after, group)


# ---- scores --------------------------------------------------------------------------------------


def _probabilities(core: _Core, file: _File, values: Arrays, batch: int) -> Array:
    """softmax(logits) of the masked dense run, [B, h, N, N] in float64."""
    node = file.nodes[core.node]
    if core.form == "op":
        if len(node.input) > 3 and node.input[3]:
            raise InapplicableError("scores of an Attention op with a mask are not recomputed")
        q, k = (values[name].astype(np.float64) for name in node.input[:2])
        if q.ndim == 3:
            heads = [int(_attribute(node, f"{x}_num_heads", 1)) for x in ("q", "kv")]
            q, k = (x.reshape(*x.shape[:2], h, -1).swapaxes(1, 2)
                    for x, h in zip((q, k), heads, strict=True))  # fmt: skip
        k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
        scale = float(_attribute(node, "scale", q.shape[-1] ** -0.5)) or q.shape[-1] ** -0.5
        logits = scale * (q @ k.swapaxes(-1, -2))
    else:
        logits = values[core.logits].astype(np.float64)
    logits = logits.reshape(batch, -1, *logits.shape[-2:])
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _scores(name: str, chances: Array, before: Array, tokens: Tokens) -> Array:
    """[B, T'] score of each patch that entered the cut. `before`: [B, T'] these patches."""
    batch, heads, _, length = chances.shape
    columns = tokens.full(before)
    if name == "cls":
        rows = np.zeros((batch, 1), dtype=np.int64)
    else:
        count = before.shape[1]
        m = isqrt(count - 1) + 1
        picks = [((2 * i + 1) * count) // (2 * m) for i in range(m)]
        rows = before[:, picks] + tokens.before
    chances = np.take_along_axis(chances, rows[:, None, :, None], axis=2)
    # Keys that an earlier cut dropped have no part in the softmax.
    alive = np.zeros((batch, 1, 1, length))
    np.put_along_axis(alive, columns[:, None, None], 1.0, axis=3)
    chances = chances * alive / (chances * alive).sum(-1, keepdims=True)
    mean = chances.mean(axis=(1, 2))
    score = np.take_along_axis(mean, before + tokens.before, axis=1)
    return score.reshape(batch, -1, tokens.group).mean(-1)


def _check_choice(score: Array, before: Array, kept: Array, what: str, group: int) -> None:
    """The kept are those with the best scores, ascending. Raises MismatchError."""
    if (np.diff(kept, axis=1) <= 0).any():
        raise MismatchError(f"{what}: kept tokens are not in order")
    for row in range(len(before)):
        inside = np.isin(before[row, ::group], kept[row])
        worst, best = score[row][inside].min(), score[row][~inside].max()
        if worst < best - TIE * np.abs(score[row]).max():
            raise MismatchError(
                f"{what}: kept a token of score {worst:.6g} and dropped one of {best:.6g}"
            )


# ---- the comparison ------------------------------------------------------------------------------


def check_masked(
    dense: onnx.ModelProto,
    reduced: onnx.ModelProto,
    cuts: Sequence[Cut],
    tokens: Tokens,
    feed: Arrays,
) -> Verdict:
    """Compare a reduced model with the dense file made to ignore the dropped tokens.

    Args:
        dense: the file as it was given to the compiler.
        cuts: what the reduced model does.
        feed: the images, as many as a static batch takes.

    Raises:
        MismatchError: saying where the two differ.
        InapplicableError: the oracle says nothing of this model.
    """
    file = _File(dense, feed)
    kept = kept_patches(reduced, feed, tokens)
    if [k.shape[1] for k in kept] != [cut.keep for cut in cuts]:
        raise MismatchError(f"keeps {[k.shape[1] for k in kept]} where {cuts} were asked for")
    cores = _cores(file)
    blocks = [c for c in cores if c.square and c.shape[-1] == tokens.total]
    if not blocks or max(cut.block for cut in cuts) >= len(blocks):
        raise InapplicableError(f"{len(blocks)} self-attentions were found in the dense file")
    below = [file.below(blocks[cut.block].node) for cut in cuts]

    def stage(node: int) -> int:
        return sum(any(n in under for n in file.nodes[node].input) for under in below)

    hidden = {c.node: kept[stage(c.node) - 1] for c in cores if stage(c.node)}
    pools = {
        i: kept[stage(i) - 1]
        for i, node in enumerate(file.nodes)
        if node.op_type in _POOLS and node.input[0] in file.values and stage(i)
        and _pooled_axes(file, node, tokens) is not None
    }  # fmt: skip
    model, masks = _masked(file, cores, hidden, pools, tokens)
    looked_at = [name for cut in cuts for name in _seen_by(file, blocks[cut.block])]
    values = file.run(model, looked_at, **masks)
    batch = len(next(iter(feed.values())))
    before = np.broadcast_to(np.arange(tokens.patches), (batch, tokens.patches))
    for cut, after in zip(cuts, kept, strict=True):
        if cut.score in ("cls", "attn"):
            try:
                chances = _probabilities(blocks[cut.block], file, values, batch)
            except InapplicableError:
                break
            score = _scores(cut.score, chances, before, tokens)
            _check_choice(score, before, after, f"block {cut.block}", tokens.group)
        before = after
    return _compare(file, reduced, values, kept[-1], tokens)


def _seen_by(file: _File, core: _Core) -> list[str]:
    return list(file.nodes[core.node].input[:2]) if core.form == "op" else [core.logits]


def _compare(
    file: _File, reduced: onnx.ModelProto, masked: Arrays, kept: Array, tokens: Tokens
) -> Verdict:
    found = infer(reduced, file.feed)
    names = [o.name for o in file.model.graph.output]
    noise = _noise(file)
    errors, tolerances = [], []
    for name in names:
        if name not in found:
            raise MismatchError(f"output '{name}' is gone")
        expected = _rows(masked[name], found[name], kept, tokens, name)
        if not np.isfinite(expected).all():
            raise InapplicableError(f"the dense '{name}' is not finite")
        error = float(np.abs(found[name].astype(np.float64) - expected).max(initial=0))
        scale = float(np.abs(expected).max(initial=0))
        errors.append(error)
        tolerances.append(FACTOR * max(noise[name], FLOOR * scale))
        if not error <= tolerances[-1]:  # so that NaN is a mismatch
            raise MismatchError(f"{name}: error {error:.2e}, allowed {tolerances[-1]:.2e}")
    if "token_index" in found:
        _check_index(found, masked, names, kept, tokens)
    unknown = found.keys() - set(names) - set(EXTRA)
    if unknown:
        raise MismatchError(f"outputs {sorted(unknown)} are in no plan")
    return Verdict(tuple(errors), tuple(tolerances))


def _rows(dense: Array, reduced: Array, kept: Array, tokens: Tokens, name: str) -> Array:
    """The dense output at the kept tokens, along the one axis that got shorter."""
    if dense.shape == reduced.shape:
        return dense
    axes = [i for i, (a, b) in enumerate(zip(dense.shape, reduced.shape, strict=False)) if a != b]
    if dense.ndim != reduced.ndim or len(axes) != 1:
        raise MismatchError(f"{name}: shape {reduced.shape} for a dense {dense.shape}")
    (axis,) = axes
    rows = _positions(dense.shape[axis], kept, tokens)
    if rows is None or rows.shape[1] != reduced.shape[axis]:
        raise MismatchError(f"{name}: axis {axis} went from {dense.shape} to {reduced.shape}")
    other = next(i for i in range(dense.ndim) if i != axis)
    if dense.shape[other] != len(rows):
        if len(rows) > 1:
            raise InapplicableError(f"{name}: of {dense.shape}, which axis is the batch?")
        return np.take(dense, rows[0], axis=axis)
    return np.stack(
        [np.take(part, row, axis=axis - (axis > other))
         for part, row in zip(np.moveaxis(dense, other, 0), rows, strict=True)], axis=other,
    )  # fmt: skip


def _positions(length: int, kept: Array, tokens: Tokens) -> Array | None:
    """Which of `length` dense rows stay: of all tokens, patches, or groups."""
    if length == tokens.total:
        return tokens.full(kept)
    if length == tokens.patches:
        return kept
    if tokens.group > 1 and length == tokens.patches // tokens.group:
        return np.asarray(kept[:, :: tokens.group] // tokens.group)
    # Some of the fixed tokens stripped, from the front.
    if tokens.patches < length < tokens.total and not tokens.after:
        return tokens.full(kept)[:, tokens.total - length :] - (tokens.total - length)
    return None


def _check_index(
    found: Arrays, dense: Arrays, names: Sequence[str], kept: Array, tokens: Tokens
) -> None:
    """`token_index` names the rows of the first output that has a token axis."""
    for name in names:
        for a, b in zip(dense[name].shape, found[name].shape, strict=True):
            if a != b:
                expected = _positions(a, kept, tokens)
                if expected is None or not np.array_equal(found["token_index"], expected):
                    raise MismatchError("token_index does not name the kept rows")
                return
    raise MismatchError("token_index, but no output with fewer rows")


def _noise(file: _File) -> dict[str, float]:
    """How far the dense file is from itself when ONNX Runtime computes in another order."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        file.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in file.model.graph.output]
    plain = dict(zip(names, session.run(names, file.feed), strict=True))
    return {
        name: float(np.abs(plain[name].astype(np.float64) - file.values[name]).max(initial=0))
        for name in names
    }


def feed_for(model: onnx.ModelProto, batch: int = 2, seed: int = 0) -> Arrays:
    """Random inputs for a model: images from N(0, 1), integers 0 and 1, `batch` where it is free."""
    rng = np.random.default_rng(seed)
    feed: Arrays = {}
    stored = {t.name for t in model.graph.initializer}
    for info in model.graph.input:
        if info.name in stored:
            continue
        kind = info.type.tensor_type
        dims = [
            d.dim_value or (int(d.dim_param) if d.dim_param.isdigit() else batch)
            for d in kind.shape.dim
        ]
        if kind.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            value = rng.standard_normal(dims)
        else:
            value = rng.integers(0, 2, dims)
        feed[info.name] = value.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feed
