"""Imported measurements of a whole model: tables of (tokens, ms), and what trtexec writes.

A file holds latencies of whole models; a profile is of parts. `imported_profile` spreads the one
over the other, and says so in its note.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import read_json

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
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot be read", where=str(path)) from error
    lines = [(i, line.split("#", 1)[0].strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line]
    mark = next((m for m in (",", ";", "\t") if lines and m in lines[-1][1]), ",")
    found = []
    for place, (number, line) in enumerate(lines):
        cells = [c.strip() for c in next(csv.reader([line], delimiter=mark))]
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
