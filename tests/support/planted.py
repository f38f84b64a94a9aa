"""Tiny models with profiles made by hand: every part's latency is planted, nothing is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from tempfile import mkdtemp

from tcompile.core.schedule import Schedule
from tcompile.methods.method import Method, method_for
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.constraints import site_constraints
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.partition import partition
from tcompile.profiling.profile import (
    Conditions,
    MeasuredProfile,
    ModelledProfile,
    Profile,
    Subject,
)
from tcompile.profiling.structure import layout_of
from tests.support.tiny_vit import VitSpec, save_tiny_vit

CONDITIONS = Conditions("cpu", "a device", "a runtime", {"python": "3"}, "fp32", 1, threads=1)
STEM = 0.5


@lru_cache(maxsize=8)
def model(spec: VitSpec | None = None) -> Analysed:
    """A tiny ViT, three blocks and 16 patches unless told, in a file of its own."""
    return read(save_tiny_vit(Path(mkdtemp()) / "vit.onnx", spec))


def method(given: Analysed, text: str, outputs: str = "reduced") -> Method:
    return method_for(given.analysis, site_constraints(given.analysis, outputs), text, outputs)


@dataclass(frozen=True)
class Planted:
    """Latencies of parts, by role: halves a staircase of so many tokens, the head a line.

    Attributes:
        tile: tokens on a step.
        rise: ms of a step of an attention half; an MLP half takes twice as much.
        launch: ms of a reducer; `each` per token before it.
        whole: factor by which the whole model takes longer than its parts.
    """

    tile: int = 4
    rise: float = 1.0
    launch: float = 0.25
    each: float = 0.01
    whole: float = 1.0

    def half(self, role: str, tokens: int) -> float:
        return self.rise * (1 + (role == "mlp")) * ceil(tokens / self.tile)

    def head(self, tokens: int) -> float:
        return 0.05 * tokens

    def step(self, before: int) -> float:
        return self.launch + self.each * before

    def profile(
        self,
        given: Analysed,
        methods: Sequence[Method],
        *,
        kind: str = "measured",
        dense: bool = False,
    ) -> Profile:
        """With all that the model has under the methods.

        Args:
            dense: whether the whole was timed too.
        """
        shape = given.analysis.shape
        counts = range(shape.prefix + 1, shape.tokens + 1)

        def curve(ms: Callable[[int], float]) -> Curve:
            return Curve.of((n, figure(ms(n))) for n in counts)

        stem: dict[str, Figure] = {}
        halves: dict[str, Curve] = {}
        heads: dict[str, Curve] = {}
        for one in methods:
            layout = layout_of(given.graph, one)
            stem[layout.stem] = figure(STEM)
            for pair in (*layout.dense, *layout.reduced):
                for role, sign in zip(("attn", "mlp"), pair, strict=True):
                    halves[sign] = curve(lambda n, role=role: self.half(role, n))  # type: ignore[misc]
            for sign in (layout.head_dense, layout.head):
                heads[sign] = curve(self.head)
        for found in (stem, halves, heads):
            found.pop("", None)
        steps = StepCost(tuple((n, n // 2, figure(self.step(n))) for n in counts))
        made = MeasuredProfile if kind == "measured" else ModelledProfile
        return made(
            CONDITIONS,
            Subject(Path(given.source).name, shape.tokens, shape.prefix, shape.blocks),
            stem,
            halves,
            heads,
            {m.key: steps for m in methods},
            figure(self.whole * self.dense(given)) if dense else None,
        )

    def dense(self, given: Analysed) -> float:
        """ms of the dense model's parts."""
        return self.latency(given, Schedule("none", given.analysis.shape, ()))

    def latency(self, given: Analysed, schedule: Schedule) -> float:
        """ms of the parts of a model that follows a schedule, found by cutting its graph."""
        made = reduce_graph(given.graph, given.analysis, schedule)
        keeps = {r.site: r.keep for r in schedule.reductions}
        tokens, total = given.analysis.shape.tokens, 0.0
        for part in partition(given.graph, given.analysis, made):
            if part.role == "stem":
                total += STEM
            elif part.role == "reducer" and part.site in keeps:
                total += self.step(tokens)
                tokens = given.analysis.shape.prefix + keeps[part.site]
            elif part.role == "head":
                total += self.head(tokens)
            elif part.role != "reducer":  # Of no site: what outputs are told of tokens.
                total += self.half(part.role, tokens)
        return total


def looked_up(given: Analysed, schedule: Schedule, profile: Profile, key: str) -> float:
    """Return what a profile has for a model that follows a schedule: the parts of its graph,
    each by its own signature."""
    made = reduce_graph(given.graph, given.analysis, schedule)
    keeps = {r.site: r.keep for r in schedule.reductions}
    tokens, total = given.analysis.shape.tokens, 0.0
    for part in partition(given.graph, given.analysis, made):
        if part.role == "stem":
            total += profile.stem[part.signature].ms
        elif part.role == "reducer" and part.site in keeps:
            after = given.analysis.shape.prefix + keeps[part.site]
            total += float(profile.reducers[key].at(tokens, after))
            tokens = after
        elif part.role != "reducer":  # Of no site: what outputs are told of tokens.
            curves = profile.heads if part.role == "head" else profile.halves
            total += float(curves[part.signature].at(tokens))
    return total


def figure(ms: float) -> Figure:
    return Figure(ms, ms, ms, 10)


__all__ = ["CONDITIONS", "STEM", "Planted", "figure", "looked_up", "method", "model"]
