"""A profile from others' measurements: latencies of whole models, spread over their parts.

They come as tables of (tokens, ms), or as what trtexec writes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis.flops import node_flops
from tcompile.analysis.model import Analysis
from tcompile.core.decode import read_json
from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.methods.method import Method
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import Conditions, MeasuredProfile, Subject
from tcompile.profiling.sizing import Sized, Structures, structures
from tcompile.profiling.structure import Layout, layout_of

NOTE = (
    "latencies of whole models that carry n tokens from the first block to the last; their parts "
    "are assumed to take time in proportion to FLOPs"
)
FREE = "steps were not measured and are taken to cost nothing"


@dataclass(frozen=True, eq=False)
class Work:
    """FLOPs of a model's parts by token count.

    Attributes:
        found: the parts.
        later: half of the dense model → what it becomes behind a step, where that differs.
    """

    found: Structures
    later: Mapping[str, str]

    @classmethod
    def of_model(cls, dense: gs.Graph, found: Structures, method: Method) -> Work:
        """Return the work of a model; `method` shows what halves with sides of their own (masks,
        tables) become behind a step."""
        return cls(found, _later(layout_of(dense, method)))

    @property
    def stem(self) -> float:
        """All before the blocks."""
        return sum(_flops(g) for g in self.found.stem.values())

    def of(self, signature: str, tokens: int) -> float:
        """One part; 0 for the stem."""
        parts = {**self.found.halves, **self.found.heads}
        if signature not in parts:
            return 0.0
        known = tokens in parts[signature].graphs
        return _at(parts[signature if known else self.later.get(signature, signature)], tokens)

    def total(self, tokens: int) -> float:
        """All halves and the head of the dense model, were there so many tokens."""
        return sum(uses * self.of(s, tokens) for s, uses in self.found.uses.items())


def imported_profile(
    dense: gs.Graph,
    analysis: Analysis,
    methods: Sequence[Method],
    curve: Curve,
    conditions: Conditions,
    *,
    source: str,
    steps: Mapping[str, StepCost] | None = None,
    found: Structures | None = None,
) -> MeasuredProfile:
    """A measured profile whose parts add up to a curve of whole models.

    With F the FLOPs of parts, t the curve and N the dense model's tokens: the stem, which always
    sees N tokens, takes t(N) · F_stem / F(N). What is left of each t(n) is spread over halves and
    head by their share of the FLOPs at n, and so is the fit of t that does not decrease. So the
    parts of a model with n tokens throughout add up to t(n), and a plan's latency follows from
    where its tokens leave.

    Args:
        curve: whole models by token count, prefix included; counts beyond N only help to find t(N).
        conditions: whose note says where the curve is from, unless it is empty, and is filled in.
        steps: by key of a method; those that are missing cost nothing, and the note says so.
        found: the model's structures under the methods, where they are known already.

    Raises:
        UsageError: no method; a curve that lies beyond N.
    """
    shape = analysis.shape
    if not methods:
        raise UsageError("no method can be planned on this model", where="--method")
    if curve.counts[0] >= shape.tokens:
        raise UsageError(
            f"has no latency below the model's {shape.tokens} tokens", where="--import"
        )
    found = found or structures(dense, analysis, methods)
    whole = dict(curve.points)
    # A count that was not measured lies on the curve's line, without a spread.
    between = float(curve.at([shape.tokens])[0])
    whole.setdefault(shape.tokens, Figure(between, between, between, 1))
    points = {n: f for n, f in sorted(whole.items()) if shape.prefix < n <= shape.tokens}
    work = Work.of_model(dense, found, methods[0])
    all_flops = work.stem + work.total(shape.tokens)
    stem_ms = points[shape.tokens].ms * work.stem / max(all_flops, 1.0)

    # The whole is fitted, not its parts: where it is flat, the share of one part falls.
    fitted = Curve.of(points.items()).fit

    def spread(part: Sized) -> Curve:
        shares = [_at(part, n) / max(work.total(n), 1.0) for n in points]
        return Curve(
            tuple(
                (n, _scaled(f.minus(stem_ms), share))
                for (n, f), share in zip(points.items(), shares, strict=True)
            ),
            tuple(
                float(max(ms - stem_ms, 0.0) * share)
                for ms, share in zip(fitted, shares, strict=True)
            ),
        )

    given = dict(steps or {})
    free = StepCost(((shape.tokens, shape.prefix + 1, Figure(0.0, 0.0, 0.0)),))
    unknown = [m.key for m in methods if m.key not in given]
    note = "; ".join(
        [conditions.note or NOTE, *([f"{', '.join(unknown)}: {FREE}"] if unknown else [])]
    )
    if shape.tokens not in curve.counts:
        note += f"; {shape.tokens} tokens were not measured, but follow from what was"
    return MeasuredProfile(
        replace(conditions, note=note),
        Subject(source, shape.tokens, shape.prefix, shape.blocks),
        {
            s: _scaled(points[shape.tokens], _flops(g) / max(all_flops, 1.0))
            for s, g in found.stem.items()
        },
        {s: spread(part) for s, part in found.halves.items()},
        {s: spread(part) for s, part in found.heads.items()},
        {m.key: given.get(m.key, free) for m in methods},
        points[shape.tokens],
    )


def _later(layout: Layout) -> dict[str, str]:
    pairs = [(layout.head_dense, layout.head)]
    for before, after in zip(layout.dense, layout.reduced, strict=True):
        pairs += zip(before, after, strict=True)
    return {a: b for a, b in pairs if a and b and a != b}


def _flops(graph: gs.Graph) -> float:
    """Return FLOPs for one image; a batch that is free counts as one."""
    return float(sum(node_flops(n) for n in graph.nodes))


def _at(part: Sized, tokens: int) -> float:
    """FLOPs at a count; of a part that was never seen there, in proportion to tokens."""
    graph = part.at(tokens)
    if graph is not None:
        return _flops(graph)
    seen = min(part.graphs, key=lambda n: abs(n - tokens))
    return _flops(part.graphs[seen]) * tokens / seen


def _scaled(figure: Figure, share: float) -> Figure:
    return Figure(figure.ms * share, figure.lower * share, figure.upper * share, figure.runs)


#: Of one run in `--exportTimes`, the first that is there: transfers included (TensorRT 8 to 10).
_RUN = ("latencyMs", "computeMs")
#: Of one layer in `--exportProfile`.
_MEDIAN, _MEAN = "medianMs", "averageMs"


def read_csv(path: str | Path) -> Curve:
    """Read a curve from lines of `tokens, ms` or `tokens, ms, lower, upper` (quartiles).

    A first line of words is a header; empty lines and those that begin with # are left out. Commas,
    semicolons or tabs lie between.

    Raises:
        UsageError: cannot be read, or holds a line that is neither; names it.
    """
    points: dict[int, Figure] = {}
    for number, (n, *rest) in _rows(path, (2, 4), "tokens, ms or tokens, ms, lower, upper"):
        tokens = _count(n, path, number)
        if tokens in points:
            raise UsageError(f"has {tokens} tokens twice", where=f"{path}, line {number}")
        points[tokens] = _figure(rest, path, number)
    if len(points) < 2:
        raise UsageError("needs latencies at two token counts at least", where=str(path))
    return Curve.of(points.items())


def read_steps(path: str | Path) -> StepCost:
    """Read what a method's steps take, from lines of `before, after, ms` (and perhaps quartiles).

    Raises:
        UsageError: as `read_csv`.
    """
    points: dict[tuple[int, int], Figure] = {}
    for number, (n, k, *rest) in _rows(path, (3, 5), "tokens before, tokens after, ms"):
        before, after = _count(n, path, number), _count(k, path, number)
        if not after < before:
            raise UsageError(
                "a step leaves fewer tokens than there were", where=f"{path}, line {number}"
            )
        points[before, after] = _figure(rest, path, number)
    return StepCost(tuple((n, k, f) for (n, k), f in sorted(points.items())))


def read_trtexec(path: str | Path) -> Figure:
    """Read what trtexec measured of one engine, from its `--exportTimes` or `--exportProfile`.

    Times of runs give a median and quartiles: `latencyMs`, transfers included, or else `computeMs`.
    Times of layers give the sum of their medians; between that and the sum of their means lies what
    is told of their spread. Layers are timed one by one, which takes longer than the engine as a
    whole: prefer `--exportTimes`.

    Raises:
        UsageError: cannot be read, or is neither; names the record.
    """
    records = read_json(path, "JSON")
    if not isinstance(records, list) or not records:
        raise UsageError("is not a list of trtexec's records", where=str(path))
    names = [set(r) if isinstance(r, dict) else set() for r in records]
    if any(n & {_MEDIAN, _MEAN} for n in names):
        return _of_layers(records, path)
    name = next((n for n in _RUN if n in names[0]), None)
    if name is None:
        raise UsageError(
            "is neither of trtexec's --exportTimes nor of its --exportProfile", where=str(path)
        )
    return Figure.of([_ms(r, name, f"{path}, run {i}") for i, r in enumerate(records, 1)])


def _of_layers(records: Sequence[Any], path: str | Path) -> Figure:
    """Add up layers: `[{"count": runs}, {"name": …, "averageMs": …, "medianMs": …}, …]`."""
    runs, medians, means = 1, list[float](), list[float]()
    for i, record in enumerate(records, 1):
        where = f"{path}, record {i}"
        if isinstance(record, dict) and set(record) == {"count"}:
            runs = int(_ms(record, "count", where))
            continue
        mean = _MEDIAN if isinstance(record, dict) and _MEAN not in record else _MEAN
        means.append(_ms(record, mean, where))
        medians.append(_ms(record, _MEDIAN, where) if _MEDIAN in record else means[-1])
    total = math.fsum(medians)
    return Figure(total, min(total, math.fsum(means)), max(total, math.fsum(means)), runs)


def whole_curve(files: Mapping[int, str | Path]) -> Curve:
    """Read a curve from one file of trtexec for each token count.

    Raises:
        UsageError: as `read_trtexec`.
    """
    if len(files) < 2:
        raise UsageError(
            "needs latencies at two token counts at least",
            where="--import",
            hint="--import 197=FILE --import 100=FILE",
        )
    return Curve.of((n, read_trtexec(path)) for n, path in files.items())


def _rows(path: str | Path, widths: Sequence[int], form: str) -> Iterable[tuple[int, list[str]]]:
    text = read_text(path)
    lines = [(i, line.split("#", 1)[0].strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line]
    mark = next((m for m in (",", ";", "\t") if lines and m in lines[-1][1]), ",")
    found = []
    for place, (number, line) in enumerate(lines):
        try:
            cells = [c.strip() for c in next(csv.reader([line], delimiter=mark))]
        except csv.Error as error:
            raise UsageError(f"is not {form}: {error}", where=f"{path}, line {number}") from error
        if place == 0 and not any(_is_number(c) for c in cells):
            continue
        if len(cells) not in widths or not all(map(_is_number, cells)):
            raise UsageError(f"'{line}' is not {form}", where=f"{path}, line {number}")
        found.append((number, cells))
    if not found:
        raise UsageError(f"holds no line of {form}", where=str(path))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _count(text: str, path: str | Path, number: int) -> int:
    value = float(text)
    if not value.is_integer() or not 1 <= value < 1e7:
        raise UsageError(f"{text} is not a number of tokens", where=f"{path}, line {number}")
    return int(value)


def _figure(cells: Sequence[str], path: str | Path, number: int) -> Figure:
    times = [float(c) for c in cells]
    ms, lower, upper = times if len(times) == 3 else (times[0],) * 3
    if not all(math.isfinite(t) and t >= 0 for t in times) or not lower <= ms <= upper:
        raise UsageError(
            f"{', '.join(cells)} are not milliseconds",
            where=f"{path}, line {number}",
            hint="ms, or ms, lower and upper quartile",
        )
    return Figure(ms, lower, upper, 1)


def _ms(record: Any, name: str, where: str) -> float:
    value = record.get(name) if isinstance(record, dict) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise UsageError(f"has no time '{name}'", where=where)
