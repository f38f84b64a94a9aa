"""Finding attention by what it computes: two products, and what is between them over keys.

Most are plain, and matched by `analysis.attention`. The others are found by where the axes go: from
a Softmax up to the product that made queries and keys meet, and down to the product that takes the
keys together. In between, heads may be mixed, sink columns joined and cut off, one map be taken
from another. What such an attention is called, and what may not be done with it, is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import (
    AFTER_SOFTMAX,
    BEFORE_SOFTMAX,
    JOINS,
    Attention,
    AttentionMatch,
    match_attention,
)
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts
from tcompile.analysis.shares import in_proportion, shares_in
from tcompile.analysis.transfer import contracted, einsum_contracted, einsum_terms, spelled_out
from tcompile.core.graph import attr, is_const, is_standard, producer
from tcompile.core.op_traits import BROADCASTS, ELEMENTWISE, MOVES

#: So many nodes are looked at on the way up from a Softmax, and down.
_MOST = 64
#: What cuts sink columns off.
CUTS = frozenset({"Slice", "Split"})
_PRODUCTS = ("MatMul", "Einsum")


def find_attention(graph: gs.Graph, facts: Facts) -> list[Attention]:
    """Return every attention of the graph, in execution order."""
    found, mixes = list[Attention](), set[str]()
    for node in graph.nodes:
        match = match_attention(node, facts.is_live)
        one: Attention | None = None
        if match is not None and (node.op == "Attention" or _over_keys(node, facts)):
            one = _attention(match, facts)
        elif node.op == "Softmax" and is_standard(node) and facts.is_live(node.inputs[0]):
            one = _unusual(node, facts)
        elif node.name not in mixes and _of_two(node, facts):
            one = _unnormalised(node, facts)
        if one is not None:
            found.append(replace(_without_learned(one), index=len(found)))
            mixes.add(one.mix)
    return found


def _over_keys(softmax: gs.Node, facts: Facts) -> bool:
    """Tell whether a softmax goes over the last axis of logits that follow from the image."""
    logits = softmax.inputs[0]
    rank = len(logits.shape)
    if int(attr(softmax, "axis", -1)) % rank != rank - 1 or not facts.is_live(logits):
        return False
    return rank >= 3 or len(_pair(logits, facts)) == 2


def _attention(match: AttentionMatch, facts: Facts) -> Attention:
    node, (q, k, v) = match.node, match.operands
    if node.op == "Attention":
        heads = _heads(facts.of(q)[:2]) if len(q.shape) == 4 else int(attr(node, "q_num_heads"))
        rows, columns = facts.of(q)[-2], facts.of(k)[-2]
    else:
        *leading, rows, columns = facts.of(node.inputs[0])
        heads = _heads(leading)
    return Attention(
        index=0,
        form="op" if node.op == "Attention" else "softmax",
        node=node.name,
        q=q.name,
        k=k.name,
        v=v.name,
        product=match.product.name,
        mix=match.mix.name,
        chain=tuple(n.name for n in match.before),
        context=match.mix.outputs[0].name,
        rows=rows,
        columns=columns,
        heads=heads,
        seen=columns,
        valued=facts.of(v)[-2] if len(v.shape) > 1 else columns,
        unweighed="" if node.op == "Attention" else _unweighed(node, match.mix.inputs[0], facts),
    )


def _heads(axes: Sequence[Axis]) -> int:
    """Return the product of the leading axes of the logits, the batch left out."""
    return prod(digit.size for axis in axes for digit in axis if digit.root.kind != "batch")


def _without_learned(one: Attention, what: str = "learned key") -> Attention:
    """The attention with the keys that are tokens for its columns, where fixed ones are beside."""
    parts = ax.pieces(one.columns)
    if one.rows == one.columns or len(parts) < 2:
        return one
    for start in range(len(parts)):
        for stop in range(start + 1, len(parts) + 1):
            others = (*parts[:start], *parts[stop:])
            if ax.from_pieces(parts[start:stop]) == one.rows and not any(map(_tokens, others)):
                count = sum(p.size for p in others)
                if what == "learned key" and not all(p.fixed for p in others):
                    named = "another key" if count == 1 else f"{count} other keys"
                else:
                    named = f"a {what}" if count == 1 else f"{count} {what}s"
                return replace(one, columns=one.rows, unusual=(*one.unusual, named))
    return one


def _tokens(part: ax.Interval) -> bool:
    """Tell whether the positions are of the image."""
    return any(d.root.kind in ("data", "batch") for d in part.axis)


# ---- by where the axes go ------------------------------------------------------------------------


def _pair(tensor: gs.Tensor, facts: Facts) -> list[int]:
    """The dims of a tensor that run over positions: queries and keys, where it has both."""
    return [
        i
        for i, axis in enumerate(facts.of(tensor))
        if ax.size(axis) > 1 and any(d.root.kind in ("data", "fixed") for d in axis)
    ]


def _of_two(node: gs.Node, facts: Facts) -> bool:
    """Tell whether a node is a product of two tensors that follow from the image."""
    return (
        node.op in _PRODUCTS
        and is_standard(node)
        and len(node.inputs) == 2
        and all(facts.is_live(t) for t in node.inputs)
    )


def _of_one(node: gs.Node, facts: Facts) -> bool:
    """Tell whether a node mixes the heads: a product with a weight, a convolution of one pixel."""
    if node.op == "Conv":
        return all(d == 1 for d in node.inputs[1].shape[2:]) and is_const(node.inputs[1])
    return node.op in _PRODUCTS and sum(map(facts.is_live, node.inputs)) == 1


def _passes(node: gs.Node, facts: Facts) -> bool:
    """Tell whether a node may stand between the two products."""
    if node.op == "Einsum" and not spelled_out(node):
        return False
    plain = node.op in ELEMENTWISE | BROADCASTS | MOVES | {"BatchNormalization", "Pad"}
    return is_standard(node) and (plain or node.op == "Transpose" or _of_one(node, facts))


def _up(tensor: gs.Tensor, facts: Facts, left: list[int]) -> list[gs.Node] | None:
    """Walk up from logits to the product of queries and keys; the nodes on the way, that first."""
    node = producer(tensor)
    left[0] -= 1
    if node is None or left[0] < 0 or len(_pair(tensor, facts)) < 2:
        return None
    if _of_two(node, facts):
        return [node]
    if not _passes(node, facts):
        return None
    for operand in node.inputs:
        if not facts.is_live(operand):
            continue
        if node.op in BROADCASTS and list(operand.shape) != list(tensor.shape):
            continue
        path = _up(operand, facts, left)
        if path is not None:
            return [*path, node]
    return None


def _down(softmax: gs.Node, place: int, facts: Facts) -> tuple[gs.Node, int, list[gs.Node]] | None:
    """Walk down from probabilities to the product that sums over the keys; by which operand, and
    the nodes on the way.

    Args:
        place: the dim of the keys.
    """
    out = softmax.outputs[0]
    pending = [out]
    # Views keep the order of dims: it is enough to know which of the two the keys are.
    second = {out.name: place == _pair(out, facts)[1]}
    reached, mix = list[gs.Node](), None
    for chances in pending:
        for node in chances.outputs:
            if _of_two(node, facts):
                if mix is None and _sums(node, chances, second[chances.name], facts):
                    mix = (node, next(i for i, t in enumerate(node.inputs) if t is chances))
            elif _passes(node, facts) and node not in reached and len(reached) < _MOST:
                reached.append(node)
                for made in node.outputs:
                    if made.shape is not None and len(_pair(made, facts)) == 2:
                        pending.append(made)
                        second[made.name] = second[chances.name] != _swaps(node, chances, facts)
    if mix is None:
        return None
    needed, used = {mix[0].inputs[mix[1]].name}, list[gs.Node]()
    for node in reversed(reached):
        if any(o.name in needed for o in node.outputs):
            used.insert(0, node)
            needed.update(t.name for t in node.inputs if t.name in second)
    return (*mix, used)


def _swaps(node: gs.Node, tensor: gs.Tensor, facts: Facts) -> bool:
    """Tell whether queries and keys change places in a node."""
    first, last = _pair(tensor, facts)
    if node.op == "Transpose":
        order = [int(p) for p in attr(node, "perm", list(range(len(tensor.shape)))[::-1])]
        return order.index(first) > order.index(last)
    if node.op == "Einsum":
        terms, out = einsum_terms(node)
        mine = terms[next(i for i, t in enumerate(node.inputs) if t is tensor)]
        return out.find(mine[first]) > out.find(mine[last])
    return False


def _sums(product: gs.Node, tensor: gs.Tensor, second: bool, facts: Facts) -> bool:
    """Tell whether a product sums a map over its keys."""
    keys = _pair(tensor, facts)[1 if second else 0]
    places = _places(product)
    return any(
        t is tensor and places.get(i, keys) % len(t.shape) == keys
        for i, t in enumerate(product.inputs)
    )


def _places(product: gs.Node) -> dict[int, int]:
    """The axis of each operand that a product sums along."""
    if product.op == "Einsum":
        return dict(einsum_contracted(product))
    return dict(enumerate(contracted(product)))


def _unusual(softmax: gs.Node, facts: Facts) -> Attention | None:
    """The attention around a Softmax that is not a plain one; None where it is none at all."""
    logits = softmax.inputs[0]
    place = int(attr(softmax, "axis", -1)) % len(logits.shape)
    pair = _pair(logits, facts)
    path = _up(logits, facts, [_MOST]) if place in pair and len(pair) == 2 else None
    if path is None:
        return None
    keys = facts.of(logits)[place]
    below = _down(softmax, place, facts)
    if below is None:
        return None
    mix, side, after = below
    product, before = path[0], path[1:]
    (row,) = (i for i in pair if i != place)
    one = Attention(
        index=0,
        form="softmax",
        node=softmax.name,
        q=product.inputs[0].name,
        k=product.inputs[1].name,
        v=mix.inputs[1 - side].name,
        product=product.name,
        mix=mix.name,
        chain=tuple(n.name for n in before),
        context=mix.outputs[0].name,
        rows=facts.of(logits)[row],
        columns=keys,
        heads=_heads([a for i, a in enumerate(facts.of(logits)) if i not in pair]),
        seen=keys,
        valued=facts.of(mix.inputs[1 - side])[_places(mix)[1 - side]],
        plain=False,
        unusual=_kinds(before, after, facts),
        unreadable=_unreadable(product, before, after, side, facts),
        unweighed=_unweighed(softmax, mix.inputs[side], facts),
    )
    joins = any(n.op in JOINS for n in before)
    return _without_learned(one, "sink column" if joins else "learned key")


def _kinds(before: Sequence[gs.Node], after: Sequence[gs.Node], facts: Facts) -> tuple[str, ...]:
    """What sets an attention apart, in words."""
    found = [
        f"heads mixed {where} the softmax"
        for where, nodes in (("before", before), ("after", after))
        if any(_of_one(n, facts) for n in nodes)
    ]
    found += [
        f"a {what} of two maps"
        for op, what in (("Sub", "difference"), ("Add", "sum"))
        if any(n.op == op and _both(n, facts) for n in after)
    ]
    return tuple(found)


def _both(node: gs.Node, facts: Facts) -> bool:
    """Tell whether both operands are maps of queries and keys."""
    return all(facts.is_live(t) and len(_pair(t, facts)) >= 2 for t in node.inputs)


def _unreadable(
    product: gs.Node, before: Sequence[gs.Node], after: Sequence[gs.Node], side: int, facts: Facts
) -> str:
    """Return why a score cannot read the probabilities; empty where it can."""
    for node in (*before, *after):
        if _of_one(node, facts):
            return f"mixes its heads ({node.op} '{node.name}')"
        if node.op in ("Add", "Sub") and any(node is n for n in after) and _both(node, facts):
            return f"joins two maps ({node.op} '{node.name}')"
    plain = BEFORE_SOFTMAX | JOINS
    odd = next((n for n in (*before,) if n.op not in plain), None)
    odd = odd or next((n for n in after if n.op not in AFTER_SOFTMAX | CUTS), None)
    if odd is not None:
        return f"has {odd.op} '{odd.name}' between its products"
    return "" if product.op == "MatMul" and side == 0 else "has its keys along another axis"


def _unweighed(softmax: gs.Node, mixed: gs.Tensor, facts: Facts) -> str:
    """Return why merged tokens cannot be weighed by size; empty where they can: a token that stands
    for several has the share of all, which must come through as it is."""
    shares = shares_in(mixed, facts)
    for node in shares.nodes:
        mixes = _of_one(node, facts) and not (node.op == "Conv" and len(node.inputs) > 2)
        if not (mixes or in_proportion(node, shares, facts)):
            return (
                f"{node.op} '{node.name}' changes what each key gets after the softmax, whatever "
                "its size"
            )
    if softmax.outputs[0].name not in shares.names:
        return f"'{mixed.name}' does not show what each key gets"
    logits = softmax.inputs[0]
    before = shares_in(logits, facts)
    if logits.name in before.names:
        first = before.nodes[0]
        return f"{first.op} '{first.name}' takes what each key got on to another softmax"
    return ""


def _unnormalised(mix: gs.Node, facts: Facts) -> Attention | None:
    """The attention whose weights nothing normalises over keys (sigmoid, ReLU), by its second
    product."""
    weights = mix.inputs[0]
    pair = _pair(weights, facts)
    if mix.op != "MatMul" or len(pair) != 2 or pair[1] != len(weights.shape) - 1:
        return None
    path = _up(weights, facts, [_MOST])
    if path is None or any(n.op == "Softmax" for n in path):
        return None
    product, between = path[0], path[1:]
    bent = [n for n in between if n.op in ELEMENTWISE - {"Cast", "Identity", "Dropout", "Neg"}]
    what = f"{bent[-1].op} in place of a softmax" if bent else "no softmax"
    axes = facts.of(weights)
    return Attention(
        index=0,
        form="sum",
        node=(bent[-1] if bent else mix).name,
        q=product.inputs[0].name,
        k=product.inputs[1].name,
        v=mix.inputs[1].name,
        product=product.name,
        mix=mix.name,
        chain=tuple(n.name for n in between),
        context=mix.outputs[0].name,
        rows=axes[pair[0]],
        columns=axes[pair[1]],
        heads=_heads([a for i, a in enumerate(axes) if i not in pair]),
        seen=axes[pair[1]],
        valued=facts.of(mix.inputs[1])[-2],
        plain=False,
        unusual=(what,),
        unreadable="has no softmax",
        unweighed="nothing divides by the sum of its weights",
    )
