"""Presets that merge, spread or pool tokens: which formula each follows where tokens leave, with
the published parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from tests.oracles.choices import Step
from tests.oracles.moments import Moment
from tests.oracles.presets import assigning, grids, gtp, lists, merging
from tests.oracles.presets.base import PresetOracle, relative
from tests.oracles.presets.scores import cls, per_head
from tests.oracles.stream import gather


def _tome(m: Moment) -> Step:
    before = m.inner.start if m.values.get("parity") == "reference" else 0
    return merging.tome(m.x, m.sizes, m.keys, m.cut.keep, before=before)


def _pitome(m: Moment) -> Step:
    margin = m.values["margin"] * (1 - m.block / m.blocks)
    energies = merging.energy(m.keys, margin, m.values["energy_form"])
    late = m.block >= ceil(m.blocks / 2)
    protected = {"mixed": late, "protected": True, "parity": False}[m.values["mode"]]
    return merging.pitome(m.x, m.sizes, m.keys, energies, m.cut.keep, protected)


def _tofu(m: Moment) -> Step:
    late = m.block >= m.values.get("switch", m.blocks // 2)
    combine = m.values["combine"] if late else "drop"
    return merging.tome(m.x, m.sizes, m.keys, m.cut.keep, combine=combine)


def _turbo(m: Moment) -> Step:
    weights = (m.values["alpha"], m.values["beta"], m.values["gamma"])
    penalty = merging.turbo_penalty(cls(m), m.block, *weights)
    return merging.tome(m.x, m.sizes, m.keys, m.cut.keep, penalty=penalty)


def _mctf(m: Moment) -> Step:
    received = m.attention.weights.mean(dim=(1, 2))[:, m.inner]
    return merging.mctf(m.x, m.sizes, m.keys, received, m.cut.keep)


def _diffrate(m: Moment) -> Step:
    """prune: by block, how many patches are left before the others merge."""
    score = cls(m)
    prune = min(m.values["prune"][m.block], m.total)
    return relative(assigning.diffrate(m.x, m.sizes, score, prune, m.cut.keep), score)


def _algm(m: Moment) -> Step:
    """Windows in the first block, pairs in the fifth of twelve."""
    if m.block == 0:
        return grids.algm_windows(m.x, m.sizes, m.grid, m.cut.keep)
    return merging.tome(m.x, m.sizes, m.x, m.cut.keep)


def _atme(m: Moment) -> Step:
    """At three depths columns, in the block behind each of them rows."""
    depths = {m.blocks // 4, m.blocks // 2, 3 * m.blocks // 4}
    at = sorted(depths | {d + 1 for d in depths if d + 1 < m.blocks})
    vertical = at.index(m.block) % 2 == 1
    h, w = m.state.get("grid", m.grid)
    m.state["grid"] = (m.cut.keep // w, w) if vertical else (h, m.cut.keep // h)
    return grids.atme(m.x, m.sizes, (h, w), m.cut.keep, vertical)


def _visionzip(m: Moment) -> Step:
    score = per_head(m).sum(dim=1)
    contextual = m.values["contextual"]
    return relative(assigning.visionzip(m.x, score, m.keys, m.cut.keep, contextual), score)


def _prumerge(m: Moment) -> Step:
    q, k = (part.transpose(1, 2).flatten(2) for part in (m.attention.q, m.attention.k))
    logits = q[:, :1] @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    score = logits.softmax(dim=-1)[:, 0, m.inner]
    return relative(assigning.prumerge(m.x, score, k[:, m.inner], m.cut.keep), score)


def _ficoco(m: Moment) -> Step:
    raw = (m.attention.q @ m.attention.k.transpose(-1, -2)).mean(dim=1)
    patches = raw[:, m.inner, m.inner]
    score = assigning.ficoco_score(raw[:, 0, m.inner], patches, m.places, m.grid)
    return relative(assigning.ficoco(m.x, score, patches, m.cut.keep), score)


def _pool(m: Moment) -> Step:
    return grids.pool(m.x, m.grid, m.values["side"])


def _tomesd(m: Moment) -> Step:
    return grids.tomesd(m.x, m.grid, m.cut.keep)


def _gtp(m: Moment) -> Step:
    """The graph is that of the patches as they came in, of which the rows and columns stay that
    belong to tokens that are left."""
    links, close = gtp.graph(m.embedded, m.grid, m.values["semantic"])
    mine = gather(gather(links, m.places).transpose(1, 2), m.places).transpose(1, 2)
    score = gtp.mixed_attention(m.attention.weights)[:, m.inner]
    step = relative(gtp.gtp(m.x, score, mine, m.cut.keep, m.values["alpha"]), score)
    return replace(step, margins=(*step.margins, ("target", close)))


def pruned(schedule: Mapping[str, Any], table: str | None) -> dict[int, int]:
    """DiffRate: patches left in each block after pruning; those published, or the schedule's."""
    if table is not None:
        return {block: count - 1 for block, count in enumerate(lists.DIFFRATE[table][0])}
    found = {}
    for row in schedule["reductions"]:
        steps = row["reducer"].get("steps") or [row]
        prunes = steps[0]["reducer"]["name"] == "topk"
        block = int(row["site"].partition(":")[2])
        found[block] = steps[0]["keep"] if prunes else schedule["model"]["patches"]
    return found


JOINING: tuple[PresetOracle, ...] = (
    PresetOracle("tome", step=_tome),
    PresetOracle("pyra", step=_tome),
    PresetOracle(
        "pitome",
        step=_pitome,
        proportional=False,
        defaults={"margin": 0.75, "energy_form": "elu", "mode": "mixed"},
    ),
    PresetOracle("tofu", step=_tofu, defaults={"combine": "mlerp"}),
    PresetOracle("turbo", step=_turbo, defaults={"alpha": 1.0, "beta": 1.0, "gamma": 0}),
    PresetOracle("mctf", step=_mctf),
    PresetOracle("diffrate", step=_diffrate),
    PresetOracle("algm", step=_algm, proportional=False),
    PresetOracle("atme", step=_atme, proportional=False),
    PresetOracle("visionzip", step=_visionzip),
    PresetOracle("prumerge", step=_prumerge),
    PresetOracle("ficoco", step=_ficoco),
    PresetOracle("llava-zip", step=_pool, proportional=False, defaults={"side": 2}),
    PresetOracle("tomesd", step=_tomesd),
    PresetOracle("gtp", step=_gtp, defaults={"alpha": 0.2, "semantic": 8}),
)
