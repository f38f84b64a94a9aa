"""The counting oracle for merging and fusing.

Merged tokens: the dense file in which each token is, from the cut on, the mean of those it was
merged with. N tokens go on, so that everything counts each merged token as often as its size, and
attention does so too, as ToMe's proportional attention does. Only where members of a group come to
differ again (a table with a row a token) has this no meaning.

Fused tokens: those that stay, and in the place of one that left the sum of score x token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from tests.oracles.compare import MismatchError, infer
from tests.oracles.dense_file import Array, Arrays, File, InapplicableError, Tokens, exposing
from tests.oracles.dense_parts import Core, find_cores
from tests.oracles.masked_choice import check_choice, probabilities, scores, seen_by
from tests.oracles.present import Held, IllegalError, kept
from tests.oracles.present_ops import ELEMENTWISE
from tests.oracles.present_walk import Cut, Walk, batch_axis, outputs_of, taken, values_of

_MERGES = ("TcMergeTokens", "TcMergeAllTokens")


def is_merged(schedule: Mapping[str, Any]) -> bool:
    """Return whether this oracle is for what the schedule does."""
    names = {step["reducer"]["name"] for step in schedule["reductions"]}
    plain = all(set(step["reducer"]) == {"name"} for step in schedule["reductions"])
    return plain and names in ({"merge"}, {"fuse"}) and bool(names)


def expected_merged(
    file: File,
    reduced: onnx.ModelProto,
    schedule: Mapping[str, Any],
    tokens: Tokens,
    places: Mapping[str, str],
) -> Arrays:
    """The outputs that the reduced model must have.

    Raises:
        MismatchError: the model has no meaning with tokens merged so, or others were to be kept.
        InapplicableError: the oracle cannot tell.
    """
    if tokens.group > 1:
        raise InapplicableError("groups of tokens")
    steps = schedule["reductions"]
    streams = [file.origin(places.get(step["site"], "")) for step in steps]
    if not all(s in file.maker for s in streams) or len(set(streams)) < len(streams):
        raise InapplicableError("the streams are not in the file")
    merging = steps[0]["reducer"]["name"] == "merge"
    try:
        if merging:
            groups = _groups(reduced, file.feed, len(steps), tokens)
            cuts: dict[str, Array | Cut] = {
                s: _averaging(g) for s, g in zip(streams, groups, strict=True)
            }
            walk: Walk = _Grouped(file, tokens, cuts, dict(zip(streams, groups, strict=True)))
            rows = [_first_members(group, tokens) for group in groups]
        else:
            fused = _Fused(file, reduced, schedule, tokens)
            walk = _Placed(
                file,
                tokens,
                {s: fused.cut(i) for i, s in enumerate(streams)},  # type: ignore[misc]
            )
            rows = [tokens.full(before) for before in fused.befores]
        held = outputs_of(walk, file)
    except IllegalError as error:
        raise MismatchError(f"should have been refused: {error}") from error
    behind = [file.behind(s) for s in streams]
    shapes = {name: value.shape for name, value in infer(reduced, file.feed).items()}
    found = {}
    for name, one in held.items():
        stages = [r for r, below in zip(rows, behind, strict=True) if name in below]
        changed = stages and shapes.get(name) != one.value.shape
        found[name] = _rows(one, stages[-1], tokens, name) if changed else one.value
    return found


def _read(reduced: onnx.ModelProto, feed: Arrays, names: Sequence[str]) -> Arrays:
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in reduced.graph.initializer}
    made = [n for n in names if n not in stored]
    return {**stored, **infer(exposing(reduced, made), feed)}


def _groups(reduced: onnx.ModelProto, feed: Arrays, steps: int, tokens: Tokens) -> list[Array]:
    """[B, patches] after each merge: the number of the merged token that a patch is in."""
    nodes = [node for node in reduced.graph.node if node.op_type in _MERGES]
    if len(nodes) != steps:
        raise InapplicableError(f"{len(nodes)} merges for {steps} steps")
    values = _read(reduced, feed, [n for node in nodes for n in node.input])
    found: list[Array] = []
    for node in nodes:
        given = [values[n] for n in node.input]
        x, target = given[0], given[-2]
        batch, count = x.shape[:2]
        everyone = np.broadcast_to(np.arange(target.shape[1]), target.shape)
        stay, source = given[2:4] if node.op_type == _MERGES[0] else (everyone[:, :0], everyone)
        owner = np.empty((batch, count), np.int64)
        rest = stay.shape[1]
        owner[:, 1::2] = rest + np.arange(count // 2)
        for b in range(batch):
            owner[b, 2 * stay[b]] = np.arange(rest)
            owner[b, 2 * source[b]] = rest + target[b]
        before = found[-1] if found else np.tile(np.arange(tokens.patches), (batch, 1))
        found.append(np.take_along_axis(owner, before, axis=1))
    return found


def _averaging(group: Array) -> Cut:
    """Each patch becomes the mean of its group."""

    def cut(walk: Walk, held: Held) -> Held:
        axis = walk.token_axis(held.value.shape)
        if axis != 1:
            raise InapplicableError(f"a stream of shape {held.value.shape}")
        first = walk.tokens.before
        value = held.value.copy()
        for b, row in enumerate(group):
            for number in np.unique(row):
                members = first + np.flatnonzero(row == number)
                value[b, members] = held.value[b, members].mean(0)
        return replace(held, value=value)

    return cut


class _Grouped(Walk):
    """Watches whether members of a group stay alike."""

    def __init__(
        self,
        file: File,
        tokens: Tokens,
        cuts: Mapping[str, Array | Cut],
        groups: Mapping[str, Array],
    ) -> None:
        self._behind = {s: file.behind(s) for s in groups}
        self._groups = groups
        super().__init__(file, tokens, cuts)

    def after(self, node: onnx.NodeProto) -> None:
        if node.op_type in ("MatMul", "Gemm", "Einsum"):
            self._check_row(node)
        if node.op_type not in ELEMENTWISE and node.op_type != "Concat":
            return
        name = node.output[0]
        readers = [self.file.nodes[i].op_type for i in self.file.readers.get(name, ())]
        if readers and set(readers) <= {"Shape", "Size"}:
            return  # its values are read by nothing
        group = next(
            (g for s, g in reversed(self._groups.items()) if name in self._behind[s]), None
        )
        if group is None or self._alike(name, group) is not False:
            return
        given = [n for n in node.input if n and self._of_tokens(n)]
        if not any(self._alike(n, group) for n in given if n in self.file.live):
            return  # it was so before
        behind = set().union(*self._behind.values())
        where = f"{node.op_type} '{node.name or name}'"
        others = [n for n in node.input if n and (n not in behind or self._of_shapes(n))]
        if not any(map(self._table, others)):
            raise IllegalError(f"{where}: joins tokens that are not the same")
        raise InapplicableError(f"{where}: a table with a row for each merged token")

    def _check_row(self, node: onnx.NodeProto) -> None:
        """A mask that multiplies tokens as a row: merged tokens may be half hidden."""
        behind = set().union(*self._behind.values())
        for name in node.input:
            mask = name and name not in behind and name in self.file.live and self._table(name)
            if mask and any(n in behind for n in node.input) and np.ptp(self.held[name].value):
                where = f"{node.op_type} '{node.name or node.output[0]}'"
                raise InapplicableError(f"{where}: a mask with a number for each merged token")

    def _of_shapes(self, name: str) -> bool:
        """Return whether all that a tensor has of the streams is how many images there are."""
        pending, seen = [name], set[str]()
        while pending:
            one = pending.pop()
            if one in self._groups:
                return False
            node = self.file.nodes[self.file.maker[one]] if one in self.file.maker else None
            if node is not None and one not in seen and node.op_type not in ("Shape", "Size"):
                pending += [n for n in node.input if n]
            seen.add(one)
        return True

    def _table(self, name: str) -> bool:
        sizes = (self.tokens.total, self.tokens.patches)
        return any(n in sizes for n in self.held[name].value.shape)

    def _of_tokens(self, name: str) -> bool:
        shape = self.held[name].value.shape
        both = len(shape) > 3 and shape[1:-1].count(self.tokens.total) == 2
        return both or self._axis(shape) is not None

    def _axis(self, shape: Sequence[int]) -> int | None:
        """The axis of all tokens, or of the patches alone."""
        found = self.token_axis(shape)
        sizes = (self.tokens.total, self.tokens.patches)
        alone = [i for i, n in enumerate(shape) if i and n in sizes]
        return alone[0] if found is None and len(alone) == 1 else found

    def _alike(self, name: str, group: Array) -> bool | None:
        """Return whether members of a group are alike in a tensor; None where it has no token
        axis."""
        value = self.held[name].value
        axes = [i for i, n in enumerate(value.shape) if i and n == self.tokens.total]
        if value.ndim > 3 and len(axes) == 2 and axes[-1] < value.ndim - 1:
            found = [self._alike_along(value, group, axis) for axis in axes]
            return None if None in found else all(found)
        return self._alike_along(value, group, self._axis(value.shape))

    def _alike_along(self, value: Array, group: Array, axis: int | None) -> bool | None:
        """As `_alike`, along one axis."""
        if axis is None or value.dtype.kind != "f" or value.shape[0] not in (1, len(group)):
            return None
        rows = np.moveaxis(value, axis, 1)
        size = np.abs(rows).max(initial=0)
        before = self.tokens.before if value.shape[axis] == self.tokens.total else 0
        for b, row in enumerate(group):
            inner = rows[b % len(rows), before:][: len(row)]
            first = np.asarray([np.flatnonzero(row == number)[0] for number in row])
            if np.abs(inner - inner[first]).max(initial=0) > 1e-9 * size:
                return False
        return True


def _first_members(group: Array, tokens: Tokens) -> Array:
    """[B, before + K + after] a position of each merged token."""
    count = int(group.max()) + 1
    rows = [[np.flatnonzero(row == k)[0] for k in range(count)] for row in group]
    return tokens.full(np.asarray(rows))


class _Placed(Walk):
    """A fused token has no row in a table."""

    def after(self, node: onnx.NodeProto) -> None:
        given = [self.held[n] for n in node.input if n]
        if node.op_type not in ELEMENTWISE or all(h.there is None for h in given):
            return
        for name in filter(None, node.input):
            held = self.held[name]
            axes = [
                i
                for i, n in enumerate(held.value.shape)
                if n in (self.tokens.total, self.tokens.patches)
            ]
            if held.there is None and held.value.ndim > 1 and axes:
                spread = np.ptp(np.moveaxis(held.value * 1.0, axes[0], 0), axis=0)
                if np.any(spread):
                    raise InapplicableError(f"{node.op_type} '{node.name}': a table of tokens")


class _Fused:
    """Tokens that are fused at each step, in the order of the walk."""

    def __init__(
        self, file: File, reduced: onnx.ModelProto, schedule: Mapping[str, Any], tokens: Tokens
    ) -> None:
        self.file, self.tokens, self.steps = file, tokens, schedule["reductions"]
        nodes = [node for node in reduced.graph.node if node.op_type == "TcTopKTokens"]
        if len(nodes) != len(self.steps):
            raise InapplicableError(f"{len(nodes)} choices for {len(self.steps)} steps")
        values = _read(reduced, file.feed, [node.output[0] for node in nodes])
        self.chosen = [values[node.output[0]] for node in nodes]
        blocks = schedule["model"]["blocks"]
        cores = [c for c in find_cores(file) if c.square and c.shape[-1] == tokens.total]
        if len(cores) != blocks:
            raise InapplicableError(f"{len(cores)} attentions for {blocks} blocks")
        numbers = [int(step["site"].partition(":")[2] or blocks - 1) for step in self.steps]
        self.cores: list[Core] = [cores[i] for i in numbers]
        batch = len(self.chosen[0])
        self.before = np.tile(np.arange(tokens.patches), (batch, 1))
        self.befores: list[Array] = []

    def cut(self, step: int) -> Cut:
        def at(walk: Walk, held: Held) -> Held:
            name = self.steps[step]["score"]["name"]
            if walk.token_axis(held.value.shape) != 1 or name not in ("cls", "attn"):
                raise InapplicableError(f"score {name}, a stream of shape {held.value.shape}")
            core, tokens, before = self.cores[step], self.tokens, self.before
            values = values_of(walk, seen_by(self.file, core))
            score = scores(
                name, probabilities(core, self.file, values, len(before)), before, tokens
            )
            index = self.chosen[step]
            positions = np.take_along_axis(before, index, axis=1)
            if step == 0:  # later on the fused token is out of order
                check_choice(score, before, positions, f"step {step}", tokens)
            left = np.ones_like(before, bool)
            np.put_along_axis(left, index, False, axis=1)
            slot = np.stack([row[gone][:1] for row, gone in zip(before, left, strict=True)])
            rows = np.take_along_axis(held.value, before[..., None] + tokens.before, axis=1)
            value, there = held.value.copy(), np.zeros(held.value.shape, bool)
            made = np.einsum("bt,btc->bc", score * left, rows)
            np.put_along_axis(value, slot[..., None] + tokens.before, made[:, None], axis=1)
            self.before = np.concatenate([positions, slot], axis=1)
            self.befores.append(self.before)
            np.put_along_axis(there, tokens.full(self.before)[..., None], True, axis=1)
            return kept(value, there)

        return at


def _rows(held: Held, rows: Array, tokens: Tokens, name: str) -> Array:
    """An output at these positions [B, K] of the token axis, if it has one."""
    value, there = held.value, held.full
    axes = [i for i, n in enumerate(value.shape) if i and n in (tokens.total, tokens.patches)]
    two = len(axes) > 1
    if two and value.ndim > 3:
        raise InapplicableError(f"output {name}: tokens along two axes")
    axes = axes[:1]
    if axes and value.ndim > 1:
        short = tokens.total - value.shape[axes[0]]
        if short and tokens.after:
            raise InapplicableError(f"output {name}")
        index, axis = rows[:, short:] - short, axes[0]
        lead = batch_axis(value.shape, axis, len(rows))
        value, there = (taken(x, index, axis, lead) for x in (value, there))
    if not there.all() and two:
        raise InapplicableError(f"output {name}: tokens along two axes")
    if not there.all():
        raise MismatchError(f"{name}: some of it is made of tokens that left")
    return value
