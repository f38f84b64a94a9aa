"""Scores that read the attention, against numpy, in every spelling and with any prefix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Spec
from tcompile.passes.reduce import reduce_graph
from tests.unit.passes.reduce.scores.graphs import (
    SPEC,
    SPELLINGS,
    Array,
    Taps,
    VitSpec,
    analysed,
    close,
    images,
    schedule,
    scored,
    softmax,
    taps,
)

Parameters = dict[str, Any]


def spec(prefix: int) -> VitSpec:
    return VitSpec(depth=3, pool="none", prefix=prefix)


def over_heads(x: Array, agg: str) -> Array:
    """[B, h, …] → [B, …]."""
    if agg == "rms":
        return np.asarray(np.sqrt((x**2).mean(1)))
    return np.asarray({"mean": np.mean, "sum": np.sum, "max": np.max}[agg](x, axis=1))


def cls(t: Taps, p: Parameters, prefix: int) -> Array:
    row = (t.logits if p.get("softmax") == "pre" else t.attention)[:, :, 0]
    values = np.abs(t.v).sum(-1)
    if p.get("heads") == "joined":
        wide = [
            a.transpose(0, 2, 1, 3).reshape(*a.shape[::2][:1], a.shape[2], -1) for a in (t.q, t.k)
        ]
        row = (wide[0][:, :1] @ wide[1].swapaxes(1, 2)) / np.sqrt(wide[0].shape[-1])
        row = row if p.get("softmax") == "pre" else softmax(row)
        values = values.sum(1, keepdims=True)
    if p.get("weight") == "context":
        length = np.linalg.norm(t.context, axis=-1)
        row = row * length / length.sum(1, keepdims=True)
    if p.get("value") == "l1":
        row = row * values
    found = over_heads(row, p.get("agg", "mean"))
    if p.get("value") == "l2":
        found = found * np.sqrt((t.v**2).sum((1, 3)))
    return found[:, prefix:]


CLS: tuple[Parameters, ...] = (
    {},
    {"agg": "sum"},
    {"agg": "max"},
    {"agg": "rms"},
    {"weight": "context", "agg": "sum"},
    {"value": "l2", "agg": "sum"},
    {"value": "l1", "agg": "sum"},
    {"softmax": "pre"},
    {"heads": "joined"},
    {"heads": "joined", "softmax": "pre", "value": "l1"},
)


@pytest.mark.parametrize("parameters", CLS, ids=str)
@pytest.mark.parametrize(("batch", "prefix"), [(3, 1), (1, 5)])
def test_cls(parameters: Parameters, batch: int, prefix: int) -> None:
    x, vit = images(batch), spec(prefix)
    found = scored(Spec("cls", parameters), x, spec=vit)
    close(found, cls(taps(x, "attn:1", vit), parameters, prefix))


COLSUM: tuple[Parameters, ...] = (
    {},
    {"agg": "max"},
    {"agg": "max", "heads": "after"},
    {"queries": "all", "agg": "sum"},
    {"queries": "all", "agg": "max", "diagonal": True},
    {"queries": "patches", "agg": "mean", "diagonal": True},
    {"queries": "strided", "agg": "max"},
    {"queries": "strided", "m": 3},
    {"queries": "strided", "m": 99, "agg": "sum"},
)


def colsum(t: Taps, p: Parameters, prefix: int) -> Array:
    rows, count = t.attention, t.x.shape[1] - prefix
    if p.get("queries") == "strided":
        m = min(p.get("m", int(np.ceil(np.sqrt(count)))), count)
        rows = rows[:, :, [prefix + int((i + 0.5) * count / m) for i in range(m)]]
    elif p.get("queries") != "all":
        rows = rows[:, :, prefix:]
    agg = p.get("agg", "mean")
    if p.get("heads") == "after":
        return over_heads(rows.sum(2), agg)[:, prefix:]
    if not p.get("diagonal"):
        return over_heads(rows, agg).sum(1)[:, prefix:]
    own = np.diagonal(t.attention, axis1=2, axis2=3)
    return (over_heads(own, agg) * over_heads(rows.sum(2), agg))[:, prefix:]


@pytest.mark.parametrize("parameters", COLSUM, ids=str)
@pytest.mark.parametrize(("batch", "prefix"), [(3, 1), (1, 0)])
def test_colsum(parameters: Parameters, batch: int, prefix: int) -> None:
    x, vit = images(batch), spec(prefix)
    found = scored(Spec("colsum", parameters), x, spec=vit)
    close(found, colsum(taps(x, "attn:1", vit), parameters, prefix))


def test_strided_attention_is_a_colsum_divided() -> None:
    x = images(2)
    close(scored(Spec("attn"), x) * 4, scored(Spec("colsum", {"queries": "strided"}), x))


def pagerank(t: Taps, p: Parameters, prefix: int) -> Array:
    attention, n = t.attention, t.x.shape[1]
    s = np.ones((*attention.shape[:2], n))
    if p.get("cls_boost", True):
        s[..., 0] = np.sqrt(n)
    s = s / s.mean(-1, keepdims=True)
    for _ in range(p.get("iterations", 5)):
        s = np.einsum("bhqk,bhq->bhk", attention, s)
    variance = s.var(-1, keepdims=True)
    good = (variance >= p.get("vmin", 0.01)) & (variance <= p.get("vmax", 0.7))
    good = np.where(good.any(1, keepdims=True), good, True)
    return np.asarray(np.sqrt((good * s**2).sum(1) / good.sum(1)))[:, prefix:]


@pytest.mark.parametrize(
    ("parameters", "batch", "prefix"),
    [
        ({}, 3, 1),
        ({"iterations": 1}, 1, 5),
        ({"iterations": 30, "cls_boost": False}, 3, 0),
        ({"vmin": 0.0, "vmax": 1e6}, 2, 1),
        ({"vmin": 0.0, "vmax": 0.0}, 2, 1),
    ],
    ids=str,
)
def test_pagerank(parameters: Parameters, batch: int, prefix: int) -> None:
    x, vit = images(batch), spec(prefix)
    found = scored(Spec("pagerank", parameters), x, spec=vit)
    close(found, pagerank(taps(x, "attn:1", vit), parameters, prefix))


def test_pagerank_leaves_out_heads() -> None:
    """Where one head's variance lies between the bounds and the other's does not."""
    x = images(3)
    t = taps(x, "attn:1")
    attention, s = t.attention, np.ones((3, 2, 17))
    for _ in range(5):
        s = np.einsum("bhqk,bhq->bhk", attention, s)
    variances = np.sort(s.var(-1)[0])
    p = {"cls_boost": False, "vmin": float(variances.mean()), "vmax": 10.0}
    assert variances[0] < p["vmin"] < variances[1]
    found = scored(Spec("pagerank", p), x)
    close(found, pagerank(t, p, 1))
    assert np.abs(found - pagerank(t, {"cls_boost": False, "vmin": 0}, 1)).max() > 1e-3


def others(name: str, t: Taps, prefix: int) -> Array:
    if name == "value_mass":
        return softmax(t.v.max(1).sum(-1))[:, prefix:]
    if name == "rowmean":
        return np.asarray(t.logits[:, :, prefix:, prefix:].mean((1, 3)))
    of, p = name.split()
    wide = np.abs({"k": t.k, "v": t.v}[of])
    return np.asarray((wide ** int(p)).sum((1, 3)) ** (1 / int(p)))[:, prefix:]


OTHERS = {
    "value_mass": Spec("value_mass"),
    "rowmean": Spec("rowmean"),
    "k 1": Spec("norm", {"of": "k", "p": 1}),
    "v 2": Spec("norm", {"of": "v"}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("batch", "prefix"), [(3, 1), (1, 5), (3, 0)])
def test_others(name: str, batch: int, prefix: int) -> None:
    x, vit = images(batch), spec(prefix)
    close(scored(OTHERS[name], x, spec=vit), others(name, taps(x, "attn:1", vit), prefix))


@pytest.mark.parametrize("spelling", SPELLINGS[1:])
@pytest.mark.parametrize("site", ["attn:1", "around:1"])
def test_spellings(spelling: str, site: str) -> None:
    """All that a score may read of an attention, however it is written."""
    x = images(3)
    t = taps(x, site, spelling=spelling)
    cases: list[tuple[Spec, Array]] = [
        (Spec("cls", p), cls(t, p, 1))
        for p in ({"weight": "context"}, {"value": "l1"}, {"softmax": "pre"}, {"heads": "joined"})
    ]
    cases += [(Spec("colsum", p), colsum(t, p, 1)) for p in COLSUM[:4:3]]
    cases += [(Spec("pagerank"), pagerank(t, {}, 1))]
    cases += [(given, others(name, t, 1)) for name, given in OTHERS.items()]
    for score, expected in cases:
        close(scored(score, x, site, spelling=spelling), expected)


@pytest.mark.parametrize("spelling", ["plain", "op4"])
@pytest.mark.parametrize("name", ["cls", "colsum", "pagerank", "rowmean", "value_mass"])
def test_the_attention_is_left_alone(name: str, spelling: str) -> None:
    """Nothing else reads the probabilities, whatever is computed beside them."""
    read = analysed(SPEC, spelling)
    parameters = {"weight": "context", "value": "l2"} if name == "cls" else {}
    steps = [("attn:1", Spec(name, parameters), "topk", 5)]
    made = reduce_graph(read.graph, read.analysis, schedule(read, steps)).graph
    kinds = [n for n in made.nodes if n.op in ("Softmax", "Attention")]
    own = [n for n in kinds if not n.name.startswith("tcompile/")]
    assert len(own) == 3
    for node in own:
        allowed = 2 if node.op == "Attention" and name == "cls" and node is own[1] else 1
        assert len(node.outputs[0].outputs) <= allowed


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (Spec("cls", {"heads": "joined", "weight": "context"}), "heads=joined has one"),
        (Spec("colsum", {"queries": "strided", "diagonal": True}), "the row of every patch"),
        (Spec("cls", {"agg": "median"}), "is not mean, sum, max or rms"),
        (Spec("cls", {"tau": 2.0}), "is more than 1"),
        (Spec("pagerank", {"iterations": 0}), "is less than 1"),
    ],
)
def test_refusals(score: Spec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        scored(score, images(1))


def test_without_cls_there_is_no_cls_score() -> None:
    vit = VitSpec(depth=2, pool="avg", prefix=0)
    for score in (Spec("cls"), Spec("pagerank")):
        with pytest.raises(UsageError, match="needs a CLS token"):
            scored(score, images(1), spec=vit)
