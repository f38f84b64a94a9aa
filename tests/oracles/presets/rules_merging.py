"""Which formula each preset follows at each of its sites: those that merge, spread or pool.

Only sites and counts come from a schedule; everything else is the papers' (METHODS section 1), by
the block that the site lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from tests.oracles.choices import Step
from tests.oracles.presets import assigning, grids, gtp, merging
from tests.oracles.presets.walking import Grid, Plan, Rule, View
from tests.oracles.stream import gather

Values = Mapping[str, Any]
Preset = Callable[[View, Values], Step]


def _tome(view: View, values: Values) -> Step:
    return merging.tome(view.x, view.sizes, view.keys, view.keep)


def _pitome(view: View, values: Values) -> Step:
    margin = values.get("margin", 0.75) * (1 - view.block / view.blocks)
    energies = merging.energy(view.keys, margin, values.get("energy_form", "elu"))
    mode = values.get("mode", "mixed")
    protected = mode == "protected" or (mode == "mixed" and view.block >= ceil(view.blocks / 2))
    return merging.pitome(view.x, view.sizes, view.keys, energies, view.keep, protected)


def _tofu(view: View, values: Values) -> Step:
    late = view.block >= values.get("switch", view.blocks // 2)
    combine = values.get("combine", "mlerp") if late else "drop"
    return merging.tome(view.x, view.sizes, view.keys, view.keep, combine=combine)


def _turbo(view: View, values: Values) -> Step:
    weights = (values.get("alpha", 1.0), values.get("beta", 1.0), values.get("gamma", 0))
    penalty = merging.turbo_penalty(view.cls, view.block, *weights)
    return merging.tome(view.x, view.sizes, view.keys, view.keep, penalty=penalty)


def _mctf(view: View, values: Values) -> Step:
    received = view.own.attention.mean(dim=(1, 2))[:, view.prefix : view.end]
    return merging.mctf(view.x, view.sizes, view.keys, received, view.keep)


def _diffrate(view: View, values: Values) -> Step:
    prune = values["prune"][view.block]
    return assigning.diffrate(view.x, view.sizes, view.cls, prune, view.keep)


def _algm(view: View, values: Values) -> Step:
    if view.number == 0:
        return grids.algm_windows(view.x, view.sizes, _flat(view.grid), view.keep)
    return merging.tome(view.x, view.sizes, view.x, view.keep)


def _atme(view: View, values: Values) -> Step:
    depths = {view.blocks // 4, view.blocks // 2, 3 * view.blocks // 4}
    at = sorted(depths | {d + 1 for d in depths if d + 1 < view.blocks})
    vertical = at.index(view.block) % 2 == 1
    # Columns leave a number of rows as it was, rows a number of columns.
    high = values["grids"].get("now", _flat(view.grid))
    step = grids.atme(view.x, view.sizes, high, view.keep, vertical)
    h, w = high
    values["grids"]["now"] = (view.keep // w, w) if vertical else (h, view.keep // h)
    return step


def _visionzip(view: View, values: Values) -> Step:
    score = view.own.attention[:, :, 0, view.prefix : view.end].sum(dim=1)
    return assigning.visionzip(view.x, score, view.keys, view.keep, values["contextual"])


def _prumerge(view: View, values: Values) -> Step:
    own = view.own
    q, k = (part.transpose(1, 2).flatten(2) for part in (own.q, own.k))
    logits = q[:, :1] @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    score = logits.softmax(dim=-1)[:, 0, view.prefix : view.end]
    keys = k[:, view.prefix : view.end]
    return assigning.prumerge(view.x, score, keys, view.keep)


def _ficoco(view: View, values: Values) -> Step:
    raw = (view.own.q @ view.own.k.transpose(-1, -2)).mean(dim=1)
    patches = raw[:, view.prefix : view.end, view.prefix : view.end]
    cls = raw[:, 0, view.prefix : view.end]
    score = assigning.ficoco_score(cls, patches, view.places, _flat(view.grid))
    return assigning.ficoco(view.x, score, patches, view.keep, values.get("targets", 1))


def _llava_zip(view: View, values: Values) -> Step:
    return grids.pool(view.x, _flat(view.grid), values["side"])


def _tomesd(view: View, values: Values) -> Step:
    return grids.tomesd(view.x, _flat(view.grid), view.keep)


def _gtp(view: View, values: Values) -> Step:
    links, gap = gtp.graph(view.start, _flat(view.grid), values.get("semantic", 8))
    mine = gather(gather(links, view.places).transpose(1, 2), view.places).transpose(1, 2)
    score = gtp.mixed_attention(view.own.attention, view.prefix)[:, : view.x.shape[1]]
    step = gtp.gtp(view.x, score, mine, view.keep, values.get("alpha", 0.2))
    return Step(step.x, None, step.source, step.owner, (*step.margins, ("target", gap)))


def _flat(grid: Grid) -> tuple[int, int]:
    high, wide = grid
    return high, wide


RULES: dict[str, Preset] = {
    "tome": _tome,
    "pyra": _tome,
    "pitome": _pitome,
    "tofu": _tofu,
    "turbo": _turbo,
    "mctf": _mctf,
    "diffrate": _diffrate,
    "algm": _algm,
    "atme": _atme,
    "visionzip": _visionzip,
    "prumerge": _prumerge,
    "ficoco": _ficoco,
    "llava-zip": _llava_zip,
    "tomesd": _tomesd,
    "gtp": _gtp,
}
#: Those after which attention does not count keys by size.
PLAIN = {"pitome", "algm"}


def plan(
    name: str, values: Values, schedule: Mapping[str, Any], grid: Grid, proportional: bool = True
) -> Plan:
    """A preset's rules at the sites of a schedule."""
    run = RULES[name]
    known = {**values, "grids": {}}
    rule: Rule = lambda view: run(view, known)  # noqa: E731
    keep = {step["site"]: step["keep"] for step in schedule["reductions"]}
    rules = dict.fromkeys(keep, rule)
    return Plan(rules, keep, grid, proportional and name not in PLAIN)
