"""Two profiles side by side: where they agree, by how much they differ, and why they might.

Nothing is refused: what was measured may be held against what was modelled, as long as no reader
puts the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import Profile


@dataclass(frozen=True)
class Ratio:
    """One part at one count in both profiles.

    Attributes:
        tokens: prefix included; of a step, those before it.
        after: of a step; 0 elsewhere.
        first, second: ms.
    """

    tokens: int
    after: int
    first: float
    second: float

    @property
    def ratio(self) -> float | None:
        """Second over first; None where the first takes no time."""
        return self.second / self.first if self.first > 0 else None


@dataclass(frozen=True)
class Row:
    """A part that both profiles have.

    Attributes:
        role: dense, stem, half, head or steps.
        name: its signature, or the method.
        ratios: by count, ascending.
    """

    role: str
    name: str
    ratios: tuple[Ratio, ...]

    @property
    def median(self) -> float | None:
        """The median of all ratios."""
        known = [r.ratio for r in self.ratios if r.ratio is not None]
        return float(np.median(known)) if known else None


@dataclass(frozen=True)
class Comparison:
    """A comparison: what two profiles say of the same model.

    Attributes:
        kinds: measured or modelled, of the first and of the second.
        rows: parts that both have.
        alone: how many parts only the first has, and only the second.
        conditions: field → what it is in both, where they differ.
        closure: of each, ms of the dense model's parts over those of the dense model as a whole;
            None where the whole, a part, or how often it stands in the model is not known.
    """

    kinds: tuple[str, str]
    rows: tuple[Row, ...]
    alone: tuple[int, int]
    conditions: Mapping[str, tuple[str, str]]
    closure: tuple[float | None, float | None]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "kinds": list(self.kinds),
            "parts": [
                {
                    "role": row.role,
                    "name": row.name,
                    "median_ratio": row.median,
                    "points": [{**asdict(r), "ratio": r.ratio} for r in row.ratios],
                }
                for row in self.rows
            ],
            "parts_in_one_only": list(self.alone),
            "conditions_that_differ": {k: list(v) for k, v in self.conditions.items()},
            "closure": list(self.closure),
        }

    def lines(self) -> list[str]:
        """Return the lines of a page for people."""
        first, second = self.kinds
        found = [f"Compared: {second} over {first}"]
        for row in self.rows:
            known = [r for r in row.ratios if r.ratio is not None]
            if not known:
                continue
            low, high = (f(known, key=lambda r: r.ratio or 0.0) for f in (min, max))
            text = f"  {row.role} {row.name}".rstrip() + f": {row.median:.2f}"
            if len(known) > 1:
                text += f" ({_place(low)}: {low.ratio:.2f}, {_place(high)}: {high.ratio:.2f})"
            found.append(text)
        if not self.rows:
            found.append("  they have no part in common")
        if any(self.alone):
            found.append(
                f"  only in the first: {self.alone[0]} parts, only in the second: {self.alone[1]}"
            )
        for name, closure in zip(("first", "second"), self.closure, strict=True):
            if closure is not None:
                found.append(f"  parts over the dense model, {name}: {closure:.3f}")
        for name, (a, b) in self.conditions.items():
            found.append(f"  {name}: {a or 'not told'} / {b or 'not told'}")
        return found


def compare(first: Profile, second: Profile, uses: Mapping[str, int] | None = None) -> Comparison:
    """Hold a profile against another.

    Counts are those of either within what both cover; between points a curve is a line.

    Args:
        uses: signature → how many parts of the dense model have it (`Structures.uses`), for the
            closure.
    """
    mine, theirs = _parts(first), _parts(second)
    tokens = first.subject.tokens
    both = (((*key, _ratios(tokens, mine[key], theirs[key]))) for key in mine if key in theirs)
    rows = [Row(role, name, ratios) for role, name, ratios in both if ratios]
    shared = {(row.role, row.name) for row in rows}
    return Comparison(
        (first.kind, second.kind),
        tuple(rows),
        (len(mine.keys() - shared), len(theirs.keys() - shared)),
        _apart(first, second),
        (_closure(first, uses), _closure(second, uses)),
    )


Part = Figure | Curve | StepCost


def _parts(profile: Profile) -> dict[tuple[str, str], Part]:
    """Return (role, name) → all that a profile has of it."""
    roles: dict[str, Mapping[str, Part]] = {
        "dense": {} if profile.dense is None else {"": profile.dense},
        "stem": profile.stem,
        "half": profile.halves,
        "head": profile.heads,
        "steps": profile.reducers,
    }
    return {(role, name): part for role, parts in roles.items() for name, part in parts.items()}


def _ratios(tokens: int, first: Part, second: Part) -> tuple[Ratio, ...]:
    """Return ratios at the counts of either curve within what both cover; of steps at the points of
    the first, the second as it was seen there, or else as it is fitted."""
    if isinstance(first, Figure) and isinstance(second, Figure):
        return (Ratio(tokens, 0, first.ms, second.ms),)
    if isinstance(first, Curve) and isinstance(second, Curve):
        low = max(first.counts[0], second.counts[0])
        high = min(first.counts[-1], second.counts[-1])
        counts = sorted(n for n in {*first.counts, *second.counts} if low <= n <= high)
        both = zip(counts, first.at(counts), second.at(counts), strict=True)
        return tuple(Ratio(n, 0, float(a), float(b)) for n, a, b in both)
    assert isinstance(first, StepCost)
    assert isinstance(second, StepCost)
    seen = {(n, k): f.ms for n, k, f in second.points}
    return tuple(
        Ratio(n, k, f.ms, seen.get((n, k), float(second.at(n, k)))) for n, k, f in first.points
    )


def _apart(first: Profile, second: Profile) -> dict[str, tuple[str, str]]:
    pairs: dict[str, tuple[str, str]] = {"kind": (first.kind, second.kind)}
    mine, theirs = asdict(first.conditions), asdict(second.conditions)
    pairs |= {name: (_text(mine[name]), _text(theirs[name])) for name in mine}
    subjects = asdict(first.subject), asdict(second.subject)
    pairs |= {f"model's {k}": (_text(subjects[0][k]), _text(subjects[1][k])) for k in subjects[0]}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in sorted(value.items()))
    return str(value)


def _closure(profile: Profile, uses: Mapping[str, int] | None) -> float | None:
    if uses is None or profile.dense is None or profile.dense.ms <= 0:
        return None
    tokens, total = profile.subject.tokens, 0.0
    for sign, times in uses.items():
        curve = profile.halves.get(sign) or profile.heads.get(sign)
        if curve is not None:
            total += times * float(curve.at([tokens])[0])
        elif sign in profile.stem:
            total += times * profile.stem[sign].ms
        else:
            return None
    return total / profile.dense.ms


def _place(ratio: Ratio) -> str:
    return f"{ratio.tokens} to {ratio.after}" if ratio.after else f"{ratio.tokens} tokens"
