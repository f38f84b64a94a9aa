"""Results of a dense file when tokens leave, computed op by op: the counting oracle.

Every tensor keeps its dense shape and says which of its elements are there: those made of tokens
that have left are not. Views move that along with the elements, so that a permuted branch carries
the right tokens; sums, means, products and softmaxes go over what is there. What a mean divides by
is followed: a sum over n tokens of which k are left is divided by a count somewhere (a literal n,
n - 1 or its inverse, Shape, the sum of a mask), and that count is then one of the k.

Where none of this has a meaning there is no right reduction: a join of different tokens, neighbours
in the batch, a sum that nothing counts. These raise `IllegalError`: tcompile must refuse.

Nothing here knows of passes, names or normal forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from tests.oracles.dense_file import Array, Arrays, File, InapplicableError, Tokens
from tests.oracles.masked_graph import spread
from tests.oracles.present import Held, IllegalError, Total, kept
from tests.oracles.present_ops import Ops, wide

#: What becomes of the stream, given the walk so far.
Cut: TypeAlias = "Callable[[Walk, Held], Held]"


class Walk(Ops):
    """The file with tokens gone behind some tensors.

    Args:
        cuts: tensor → the patches [B, K] that are left from there on, or what becomes of it.
        around: stream behind a block → stream before it and the patches [B, K] that the block sees;
            the others have after it what they had before.
    """

    def __init__(
        self,
        file: File,
        tokens: Tokens,
        cuts: Mapping[str, Array | Cut],
        around: Mapping[str, tuple[str, Array]] | None = None,
    ) -> None:
        versions = [o.version for o in file.model.opset_import if o.domain in ("", "ai.onnx")]
        super().__init__(max(versions, default=17))
        self.file, self.tokens, self.cuts, self.around = file, tokens, cuts, around or {}
        self.held: dict[str, Held] = {}
        for name, value in file.feed.items():
            self.held[name] = Held(wide(value))
        for name, tensor in file.stored.items():
            if name not in self.held:
                self.held[name] = Held(wide(numpy_helper.to_array(tensor)), fixed=True)
        read = self._read()
        if self.around and any(node.op_type == "If" for node in file.nodes):
            raise InapplicableError("what an If reads is not seen")
        insides = {end: self._inside(start, end) for end, (start, _) in self.around.items()}
        apart: dict[str, dict[str, Held]] = {end: {} for end in self.around}
        for i, node in enumerate(file.nodes):
            try:
                made = self._at(i, insides, apart)
            except IllegalError as error:
                if i in read:
                    raise
                raise InapplicableError(f"only the shape of it is read: {error}") from error
            self.held |= {
                n: self._leaving(h, self.cuts[n]) if n in self.cuts else h for n, h in made.items()
            }
            self.after(node)

    def _at(
        self, i: int, insides: Mapping[str, set[int]], apart: Mapping[str, dict[str, Held]]
    ) -> dict[str, Held]:
        """Return what a node makes, for all tokens and inside the blocks that some bypass."""
        node = self.file.nodes[i]
        made = self._made(node, {})
        for end, (start, few) in self.around.items():
            if i in insides[end]:
                inner = apart[end]
                inner.setdefault(start, self._cut(self.held[start], few))
                inner |= self._made(node, inner)
            if end in made:
                made[end] = self._back(self.held[start], apart[end][end])
        return made

    def _read(self) -> set[int]:
        """The nodes whose values, and not only their shapes, an output depends on."""
        found: set[int] = set()
        todo = [o.name for o in self.file.model.graph.output]
        while todo:
            i = self.file.maker.get(todo.pop())
            if i is None or i in found:
                continue
            found.add(i)
            if any(a.HasField("g") for a in self.file.nodes[i].attribute):
                return set(range(len(self.file.nodes)))
            if self.file.nodes[i].op_type not in ("Shape", "Size"):
                todo += self.file.nodes[i].input
        return found

    def _made(self, node: onnx.NodeProto, inner: Mapping[str, Held]) -> dict[str, Held]:
        """The node's outputs; its inputs are those of `inner`, or else the model's."""
        if node.op_type == "If":
            return self._branch(node, inner)
        given: list[Held | None] = []
        for name in node.input:
            if name and name not in self.held and name not in inner:
                raise InapplicableError(f"'{name}' was not computed")
            given.append(inner.get(name, self.held.get(name)) if name else None)
        return {n: h for n, h in zip(node.output, self.apply(node, given), strict=False) if n}

    def _branch(self, node: onnx.NodeProto, inner: Mapping[str, Held]) -> dict[str, Held]:
        """The branch of an If whose condition does not depend on the image."""
        condition = inner.get(node.input[0], self.held.get(node.input[0]))
        if condition is None or not condition.fixed:
            raise InapplicableError(f"If '{node.name}' decides at run time")
        wanted = "then_branch" if condition.value.all() else "else_branch"
        (graph,) = (a.g for a in node.attribute if a.name == wanted)
        known = dict(inner)
        known |= {
            t.name: Held(wide(numpy_helper.to_array(t)), fixed=True) for t in graph.initializer
        }
        for one in graph.node:
            known |= self._made(one, known)
        pairs = zip(node.output, graph.output, strict=True)
        return {n: known.get(o.name, self.held.get(o.name)) or known[o.name] for n, o in pairs}

    @staticmethod
    def _back(start: Held, end: Held) -> Held:
        """The tokens that a block saw, and the others as they were."""
        return Held(np.where(end.full, end.value, start.value))

    def _inside(self, start: str, end: str) -> set[int]:
        """The nodes between two tensors."""
        above, todo = set(), [end]
        while todo:
            i = self.file.maker.get(todo.pop())
            if i is not None and i not in above:
                above.add(i)
                todo += self.file.nodes[i].input
        return above & self.file.readers_of(self.file.behind(start))

    def after(self, node: onnx.NodeProto) -> None:
        """Look at what a node made."""

    def _leaving(self, held: Held, cut: Array | Cut) -> Held:
        return cut(self, held) if callable(cut) else self._cut(held, cut)

    def token_axis(self, shape: tuple[int, ...]) -> int | None:
        """The axis of a tensor that every token has a place on, where it is one axis."""
        axes = [i for i, n in enumerate(shape[:-1]) if n == self.tokens.total and i]
        return axes[0] if len(axes) == 1 else None

    def _cut(self, held: Held, few: Array) -> Held:
        shape = held.value.shape
        spans = [
            tuple(range(i, j))
            for i in range(len(shape) - 1)
            for j in range(i + 1, len(shape))
            if prod(shape[i:j]) == self.tokens.total
        ]
        if not spans:
            raise InapplicableError(f"a stream of shape {shape} for {self.tokens.total} tokens")
        mask = np.broadcast_to(spread(few, shape, spans[-1], self.tokens), shape)
        return kept(held.value, mask & held.full)

    # -- what the rules ask ------------------------------------------------------------------------

    def presence(self, name: str) -> Array | None:
        return self.held[name].there

    def counted(self, total: Total, name: str, divisor: Held) -> Held:
        """The divisor worked out again, with what multiplied the tokens cut as they are."""
        if total.counted or total.tokens is None or not total.others:
            return divisor
        masks = self._ancestors(total.others) & self._ancestors([name])
        changed = {n: h for n in masks if (h := self._gone(n, total.tokens)) is not None}
        return self._again(name, changed)

    def _ancestors(self, names: Iterable[str]) -> set[str]:
        found, todo = set(names), list(names)
        while todo:
            made = self.file.maker.get(todo.pop())
            for name in self.file.nodes[made].input if made is not None else ():
                if name and name not in found:
                    found.add(name)
                    todo.append(name)
        return found

    def _again(self, name: str, changed: dict[str, Held]) -> Held:
        made = self.file.maker.get(name)
        if name in changed or made is None:
            return changed.get(name, self.held[name])
        node = self.file.nodes[made]
        given = [self._again(n, changed) if n else None for n in node.input]
        if all(h is None or h is self.held[n] for n, h in zip(node.input, given, strict=True)):
            return self.held[name]
        found = self.apply(node, given)[list(node.output).index(name)]
        changed[name] = found
        return found

    def _gone(self, name: str, tokens: Array) -> Held | None:
        """A tensor with the tokens gone that `tokens` [B, n] says; None where it has none."""
        held, (batch, count) = self.held[name], tokens.shape
        shape = held.value.shape
        axes = [i for i, n in enumerate(shape) if n == count]
        if held.there is not None or len(axes) != 1:
            return None
        form, full = [1] * len(shape), list(shape)
        form[axes[0]] = count
        rows = [i for i in range(axes[0]) if shape[i] in (1, batch)]
        if rows:
            form[rows[0]] = full[rows[0]] = batch
        elif (tokens != tokens[:1]).any():
            return None
        there = np.broadcast_to((tokens if rows else tokens[:1]).reshape(form), full)
        return kept(np.broadcast_to(held.value, full).copy(), there.copy())


def outputs_of(walk: Walk, file: File) -> dict[str, Held]:
    """The outputs, by name. Raises IllegalError where one is a sum that nothing counts."""
    found = {}
    for info in file.model.graph.output:
        held = walk.held[info.name]
        if held.total is not None:
            held.total.settle(f"output '{info.name}'")
        found[info.name] = held
    return found


def values_of(walk: Walk, names: Iterable[str]) -> Arrays:
    """Tensors with what is not there at -1e9, as logits are."""
    return {n: walk.held[n].filled(-1e9) for n in names if n in walk.held}


def batch_axis(shape: tuple[int, ...], axis: int, batch: int) -> int | None:
    """The axis of the images in a tensor with tokens along `axis`; None where they share it, or
    have all the same. Raises InapplicableError where that cannot be told."""
    found = [i for i, n in enumerate(shape) if n == batch and i != axis]
    before = [i for i in found if i < axis]
    if batch == 1 or not axis:
        return None
    if before or found:
        return (before or found)[0]
    raise InapplicableError(f"of {shape}, which axis is the batch?")


def taken(value: Array, index: Array, axis: int, lead: int | None) -> Array:
    """Positions [B, K] along an axis, of each image others; [1, K] where there is no other axis."""
    if lead is None:
        return np.take(value, index[0], axis)
    form = [1] * value.ndim
    form[lead], form[axis] = index.shape
    if lead > axis:
        index = index.T
    return np.take_along_axis(value, index.reshape(form), axis)
