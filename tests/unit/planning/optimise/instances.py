"""Small instances, and every plan of one by brute force: written apart from the optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcompile.core.site import SiteName
from tcompile.methods.context import SiteRule
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.tables import Plan, Tables

Key = tuple[float, float, int, int]


def instance(seed: int, *, blocks: int = 3, size: int = 5, ties: bool = True) -> Tables:
    """Random tables. With ties, all values are few multiples of 1/8, whose sums are exact."""
    rng = np.random.default_rng(seed)
    prefix = int(rng.integers(0, 3))
    counts = np.sort(rng.choice(np.arange(prefix + 1, 40), size, replace=False))

    def some(*shape: int, most: int = 8) -> Any:
        return rng.integers(0, most, shape) / 8 if ties else rng.random(shape)

    def falling(*shape: int) -> Any:
        return np.sort(some(*shape), axis=-1) if rng.random() < 0.7 else some(*shape)

    names = [f"{k}:{b}" for b in range(blocks) for k in ("attn", "block")] + ["output"]
    names = [n for n in names if rng.random() < 0.75]
    rules = [SiteRule(n) for n in names]
    return Tables(
        tuple(int(c) for c in counts),
        prefix,
        falling(blocks, size),
        falling(blocks, size),
        falling(size),
        float(some()),
        tuple(rules),
        tuple(some(size, size, most=3) for _ in names),
        tuple(some(size, size, most=6) for _ in names),
    )


def constrained(tables: Tables, seed: int) -> tuple[Tables, Limits]:
    """With random constraints, about half of them."""
    rng = np.random.default_rng(seed)

    def maybe(value: Any, otherwise: Any) -> Any:
        return value if rng.random() < 0.4 else otherwise

    rules = tuple(
        SiteRule(
            s.name,
            int(maybe(rng.integers(1, 4), 1)),
            int(maybe(rng.integers(1, 25), 1)),
            maybe(float(rng.integers(2, 9)) / 10, None),
        )
        for s in tables.sites
    )
    limits = Limits(
        topk=maybe(int(rng.integers(5, 40)), 40),
        final_least=maybe(int(rng.integers(1, 30)), 0),
        final_most=maybe(int(rng.integers(10, 40)), 40),
    )
    return replace(tables, sites=rules), limits


@dataclass(frozen=True)
class Whole:
    """A plan of brute force."""

    counts: tuple[int, ...]
    ms: float
    loss: float
    tokens: int
    steps: int

    @property
    def key(self) -> Key:
        """The order in which plans are better: the least first."""
        return self.loss, self.ms, -self.tokens, self.steps


def key(plan: Plan) -> Key:
    """As `Whole.key`."""
    tokens = sum(plan.attention) + sum(plan.mlp) + plan.final
    return Whole((), plan.latency_ms, plan.loss, tokens, len(plan.steps)).key


def after_sites(tables: Tables, plan: Plan) -> list[int]:
    """Tokens behind each site, as `plan_of` takes them."""
    steps, at, found = {s.site: s.after for s in plan.steps}, tables.tokens, []
    for site in tables.sites:
        at = steps.get(site.name, at)
        found.append(at)
    return found


def every(tables: Tables, limits: Limits) -> Iterator[Whole]:
    """All plans that the limits allow, one part and one site after the other: a step a block."""
    n, last = tables.counts, tables.blocks - 1
    cost = [
        (t[b], f"{k}:{b}")
        for b in range(tables.blocks)
        for k, t in (("attn", tables.attn_ms), ("block", tables.mlp_ms))
    ]
    program: list[tuple[str, Any]] = []
    for part, site in cost:
        program += [("run", part), ("site", site)]
    program += [("site", "output"), ("run", tables.head_ms)]
    numbers = {s.name: i for i, s in enumerate(tables.sites)}

    def fits(rule: SiteRule, i: int, j: int) -> bool:
        here, left = n[i] - tables.prefix, n[j] - tables.prefix
        share = 1.0 if rule.most_dropped is None else rule.most_dropped
        return (
            left % rule.granularity == 0
            and n[j] >= rule.least
            and (here - left) * 10 <= round(share * 10) * here
            and left <= limits.topk
        )

    def walk(at: int, i: int, whole: Whole, used: tuple[int, ...]) -> Iterator[Whole]:
        if at == len(program):
            if limits.final_least <= n[i] <= limits.final_most:
                yield whole
            return
        kind, what = program[at]
        if kind == "run":
            ran = replace(whole, ms=whole.ms + float(what[i]), tokens=whole.tokens + n[i])
            yield from walk(at + 1, i, ran, used)
            return
        number = numbers.get(what)
        if number is None:
            yield from walk(at + 1, i, whole, used)
            return
        block = last if what == "output" else int(what.split(":")[1])
        yield from walk(at + 1, i, replace(whole, counts=(*whole.counts, n[i])), used)
        if block in used:
            return
        for j in range(i):
            if fits(tables.sites[number], i, j):
                step = replace(
                    whole,
                    counts=(*whole.counts, n[j]),
                    steps=whole.steps + 1,
                    ms=whole.ms + float(tables.reducer_ms[number][i, j]),
                    loss=whole.loss + float(tables.loss[number][i, j]),
                )
                yield from walk(at + 1, j, step, (*used, block))

    yield from walk(0, len(n) - 1, Whole((), tables.stem_ms, 0.0, 0, 0), ())


def best(wholes: list[Whole], latency_ms: float) -> Whole | None:
    """The best of them within the budget."""
    fits = [w for w in wholes if w.ms <= latency_ms + 1e-9]
    return min(fits, key=lambda w: w.key, default=None)


def staircase(
    *, blocks: int = 2, tile: int = 8, counts: tuple[int, ...] = tuple(range(4, 41, 2))
) -> Tables:
    """Blocks whose latency rises at multiples of a tile, with an `attn` site each; losses grow by
    what leaves, more in early blocks; reducers cost 1/8 ms."""
    n = np.asarray(counts)
    steps = np.broadcast_to(np.ceil(n / tile), (blocks, len(n)))

    def loss(site: str, before: Any, after: Any) -> Any:
        return (before - after) * (blocks - SiteName(site).depth(blocks)[0]) / 8

    return Tables.of(
        counts,
        1,
        attn_ms=steps,
        mlp_ms=2 * steps,
        head_ms=np.zeros(len(n)),
        stem_ms=1.0,
        sites=[SiteRule(f"attn:{b}") for b in range(blocks)],
        reducer_ms=lambda site, before, after: 0.125,
        loss=loss,
    )
