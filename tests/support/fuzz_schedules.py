"""Schedules as a person might write them: sound ones, and such as nobody should."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tcompile.core.parameters import Parameter, Parameters
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.reducers import REDUCERS, Ask, find_reducer
from tcompile.passes.reduce.scores import SCORES
from tests.support.grid_vit import GridVit

HeadFile = Callable[[int, random.Random], str]
ODD: tuple[Any, ...] = (
    -1,
    0,
    1,
    2,
    3,
    0.5,
    float("nan"),
    float("inf"),
    1e30,
    "x",
    "",
    True,
    None,
    [],
    {},
    [1, 2],
    [0, 0],
    10**12,
)


def random_schedule(spec: GridVit, rng: random.Random, head_file: HeadFile) -> dict[str, Any]:
    """The JSON of `tcompile plan`: one to four steps, mostly in order, shrinking and possible."""
    kind = rng.choice(("leave", "leave", "leave", "leave", "around", "inside", "mixed"))
    at = Walk(spec, rng, head_file)
    steps: list[dict[str, Any]] = []
    for block in sorted(rng.sample(range(spec.depth), min(spec.depth, rng.randint(1, 4)))):
        place = rng.choice(("attn", "attn", "block"))
        if kind in ("around", "inside") or (kind == "mixed" and rng.random() < 0.3):
            place = rng.choice(("around", "inside")) if kind == "mixed" else kind
        if at.count < spec.patches and place == "block" and rng.random() < 0.6:
            fill = rng.choice(("stale", "owner", "mean", "zero", "upsample"))
            steps.append(
                {
                    "site": f"block:{block}",
                    "score": None,
                    "keep": spec.patches,
                    "reducer": {"name": "return", "fill": fill},
                }
            )
            at = Walk(spec, rng, head_file)
            continue
        steps.append(at.step(f"{place}:{block}"))
    if rng.random() < 0.2 and kind == "leave":
        steps.append(at.step("output"))
    if rng.random() < 0.04:
        rng.shuffle(steps)
    if rng.random() < 0.04:
        steps[rng.randrange(len(steps))][rng.choice(("site", "score", "reducer", "keep"))] = (
            rng.choice(ODD)
        )
    model = {
        "tokens": spec.tokens,
        "prefix": spec.prefix,
        "patches": spec.patches,
        "blocks": spec.depth,
    }
    return {"schema": 1, "method": "custom", "model": model, "reductions": steps}


class Walk:
    """State of a schedule at a site: how many tokens, and in what grid."""

    def __init__(self, spec: GridVit, rng: random.Random, head_file: HeadFile) -> None:
        self.spec, self.rng, self.head_file = spec, rng, head_file
        sides = (spec.frames, spec.rows, spec.columns)
        self.whole = tuple(n for n in sides if n > 1)
        if len(self.whole) < 2:
            self.whole = ()
        self.count, self.grid = spec.patches, self.whole

    def step(self, site: str) -> dict[str, Any]:
        """One more; of a dozen tries the first that the reducer takes, mostly."""
        place, rng = site.partition(":")[0], self.rng
        if place == "around":
            before, grid = self.spec.patches, self.whole
        else:
            before, grid = self.count, self.grid
        after: tuple[int, ...] = ()
        for _ in range(12):
            keep = _keep(before, rng)
            reducer = _reducer(place, before, keep, rng)
            if not 1 <= keep < before:
                break
            try:
                spec = Spec(reducer["name"], _others(reducer))
                found, values = find_reducer(spec.name).bind(spec)
                ask = Ask(
                    count=before,
                    keep=keep,
                    parameters=values,
                    find=find_reducer,
                    grid=grid,
                    dense_grid=self.whole,
                )
                if not found.problem(ask) or rng.random() < 0.02:
                    after = found.grid(ask)
                    break
            except Exception:  # what a person may write, too
                if rng.random() < 0.1:
                    break
        if place in ("attn", "block", "output"):
            self.count, self.grid = keep, after
        return {
            "site": site,
            "score": _score(self.spec, rng, self.head_file),
            "reducer": reducer,
            "keep": keep,
        }


def _others(document: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if k != "name"}


def _keep(count: int, rng: random.Random) -> int:
    if rng.random() < 0.04:
        return rng.choice((0, count, count + 1, -1))
    if rng.random() < 0.5:
        return rng.randint(1, max(count - 1, 1))
    share = rng.choice((0.95, 0.8, 0.5, 0.5, 0.25, 0.05))
    return min(max(1, round(count * share)), max(count - 1, 1))


def _reducer(place: str, count: int, keep: int, rng: random.Random, deep: int = 0) -> Any:
    names = [r.name for r in REDUCERS if r.name not in ("bypass", "return", "chain")]
    if place == "around" and rng.random() < 0.95:
        names = ["bypass"]
    elif place == "inside" and rng.random() < 0.9:
        names = ["merge"]
    elif rng.random() < 0.01:
        names = ["bypass", "return"]
    elif rng.random() < 0.2 and deep < 2:
        counts = sorted({rng.randint(keep, max(count, keep)) for _ in range(2)} - {keep, count})
        counts = [*reversed(counts), keep]
        before, parts = count, []
        for one in counts:
            parts.append({"reducer": _reducer(place, before, one, rng, deep + 1), "keep": one})
            before = one
        return {"name": "chain", "steps": rng.choice(ODD) if rng.random() < 0.05 else parts}
    name = rng.choice(names)
    # These take few counts, so that they would hardly ever be met.
    name = (
        rng.choice([n for n in ("pool", "lines", "windows") if n in names] or [name])
        if (rng.random() < 0.2)
        else name
    )
    reducer = next(r for r in REDUCERS if r.name == name)
    return {"name": name, **_values(reducer.parameters, rng)}


def _score(spec: GridVit, rng: random.Random, head_file: HeadFile, deep: int = 0) -> Any:
    if deep == 0 and rng.random() < 0.04:
        return None
    score = rng.choice(SCORES)
    if rng.random() < 0.97:
        have = {
            "cls": spec.prefix > 0 and spec.pool != "avg",
            "grid": spec.rows * spec.columns > 8,
            "frames": spec.frames > 1,
            "probe": False,
        }
        scores = [s for s in SCORES if all(have[n] for n in s.needs(_defaults(s.parameters)))]
        score = rng.choice(scores)
    found: dict[str, Any] = {"name": score.name, **_values(score.parameters, rng)}
    if "file" in score.parameters:
        found["file"] = head_file(spec.width, rng)
    if "terms" in score.parameters and (deep < 2 or rng.random() < 0.5):
        how = {"sum": ("weight", "norm"), "product": ("power",)}.get(score.name, ())
        choices = {
            "weight": (1.0, -0.5, 0),
            "power": (1.0, 0.5, -1),
            "norm": ("none", "max", "minmax", "l2", "softmax"),
        }
        found["terms"] = [
            {
                "score": _score(spec, rng, head_file, deep + 1),
                **{k: rng.choice(choices[k]) for k in how if rng.random() < 0.5},
            }
            for _ in range(rng.randint(0 if rng.random() < 0.1 else 1, 3))
        ]
    if "score" in score.parameters and (deep < 2 or rng.random() < 0.5):
        found["score"] = _score(spec, rng, head_file, deep + 1)
    return found


def _defaults(parameters: Parameters) -> dict[str, Any]:
    return {k: p.default for k, p in parameters.items()}


def _values(parameters: Parameters, rng: random.Random) -> dict[str, Any]:
    return {k: _value(p, rng) for k, p in parameters.items() if rng.random() < 0.35}


def _value(parameter: Parameter, rng: random.Random) -> Any:
    if rng.random() < 0.02:
        return rng.choice(ODD)
    if parameter.choices:
        return rng.choice(parameter.choices)
    sound: dict[type, tuple[Any, ...]] = {
        int: (1, 2, 3, 4, 8),
        float: (0.0, 0.25, 0.5, 1, 2.0),
        bool: (True, False),
        list: ([2, 2], [1, 2]),
        str: ("frames",),
    }
    values = sound.get(parameter.type, ODD)
    return rng.choice([v for v in values if not parameter.problem(v)] or values)
