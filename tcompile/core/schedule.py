"""The schedule: which tokens leave where. `plan` prints it as the JSON that `build` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tcompile.core.decode import Count, Positive, checked, read_json, read_yaml
from tcompile.core.errors import UsageError, bounded
from tcompile.core.site import SiteName

SCHEMA = 1

#: The row that each dense token gets with restored outputs, by rule; a token that was merged has
#: that of the token it is part of, unless the rule says more.
RESTORES: Mapping[str, str] = {
    "owner": "that of the token it was merged or fused into, or that stands for it",
    "nearest": "that of the kept token most like it when it left",
    "similar": "the mean of the kept tokens, weighted by how like it they were when it left",
    "interpolate": "the mean of the kept tokens near it in the grid, a Gaussian of the distance",
    "stale": "its own from when it left, and what has changed since in the tokens like it, or in "
    "the one it was merged into",
}


@dataclass(frozen=True)
class Spec:
    """A score or reducer by name, with its parameters."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.parameters}


@dataclass(frozen=True)
class Reduction:
    """One point where tokens leave.

    Attributes:
        site: `attn:3`, `block:3`, `around:3`, `inside:3` or `output`.
        score: importance per token; None where the reducer needs none (ToMe).
        reducer: what happens to the tokens that leave.
        keep: non-prefix tokens that go on (around a block: through it; inside it: into its
            attention), a fused one included.
    """

    site: SiteName
    score: Spec | None
    reducer: Spec
    keep: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", SiteName(self.site))  # people write text

    def to_json(self) -> dict[str, Any]:
        return {
            "site": str(self.site),
            "score": self.score.to_json() if self.score else None,
            "reducer": self.reducer.to_json(),
            "keep": self.keep,
        }


@dataclass(frozen=True)
class Shape:
    """The model that a schedule is for: token counts and number of blocks."""

    tokens: int
    prefix: int
    patches: int
    blocks: int


@dataclass(frozen=True)
class BlockTokens:
    """Tokens that enter a block, prefix tokens included.

    Attributes:
        attention: tokens entering the attention.
        mlp: tokens entering the MLP.
    """

    block: Count
    attention: Positive
    mlp: Positive


@dataclass(frozen=True)
class TowerSchedule:
    """The tokens that leave another tower of the model; see `tcompile.analysis.towers`.

    Attributes:
        tower: its name.
        dense: why nothing leaves it; empty where tokens do.
        outputs: the model's outputs that hold its tokens; known once they were reduced.
    """

    tower: str
    model: Shape
    reductions: tuple[Reduction, ...] = ()
    dense: str = ""
    outputs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "tower": self.tower,
            "model": vars(self.model).copy(),
            "reductions": [r.to_json() for r in self.reductions],
            "dense": self.dense,
            "outputs": list(self.outputs),
        }


@dataclass(frozen=True)
class Resized:
    """The image on a smaller grid of patches.

    Attributes:
        grid: rows and columns of patches now.
        patches: of all frames.
        size: rows and columns of the image now.
        image: who resizes it: the `graph`, or the `host`, so that the input has this size.
        table, relative, rotary: the rules by which positions are had for the grid, as
            `tcompile.passes.resize.rules` names them; None: as the file shows.
    """

    grid: tuple[int, int]
    patches: int
    size: tuple[int, int]
    image: Literal["graph", "host"] = "graph"
    table: str | None = None
    relative: str | None = None
    rotary: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "grid": list(self.grid), "size": list(self.size)}


@dataclass(frozen=True)
class Schedule:
    """A method's reductions on a model of a given shape, in execution order.

    Attributes:
        notes: where it differs from the paper or from what was asked.
        tower: the tower that it is for, where the model has several or one was asked for.
        towers: what leaves the others; None: derived from this when it is applied.
        restore: what restored outputs give dropped tokens, one of `RESTORES`; None: by the methods
            (`passes.reduce.restoring.default_rule`).
        resized: the smaller image that it is about, in place of reductions; None: as it is.
    """

    method: str
    model: Shape
    reductions: tuple[Reduction, ...]
    notes: tuple[str, ...] = ()
    tower: str | None = None
    towers: tuple[TowerSchedule, ...] | None = None
    restore: str | None = None
    resized: Resized | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(bounded, self.notes)))

    @property
    def dense(self) -> bool:
        """Return whether it leaves the model as it is."""
        return not self.reductions and self.resized is None

    def tokens_per_block(self) -> tuple[BlockTokens, ...]:
        """Tokens entering each block's attention and MLP, prefix included."""
        fixed = self.model.tokens - self.model.patches
        keep: dict[str, int] = {r.site: r.keep for r in self.reductions}
        count, rows = self._first, []
        for block in range(self.model.blocks):
            around = keep.get(SiteName.of("around", block))
            if around is not None:
                rows.append(BlockTokens(block, around + fixed, around + fixed))
                continue
            inside = keep.get(SiteName.of("inside", block))
            if inside is not None:
                rows.append(BlockTokens(block, inside + fixed, count + fixed))
                continue
            attention = count
            count = keep.get(SiteName.of("attn", block), count)
            rows.append(BlockTokens(block, attention + fixed, count + fixed))
            count = keep.get(SiteName.of("block", block), count)
        return tuple(rows)

    @property
    def final(self) -> int:
        """Non-prefix tokens that leave the encoder."""
        leaving = [r for r in self.reductions if not r.site.returns]
        return leaving[-1].keep if leaving else self._first

    @property
    def _first(self) -> int:
        """Patch tokens that enter the first block."""
        return self.model.patches if self.resized is None else self.resized.patches

    def to_json(self) -> dict[str, Any]:
        """The document that `from_json` reads."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "model": vars(self.model).copy(),
            "reductions": [r.to_json() for r in self.reductions],
            "tokens_per_block": [vars(b).copy() for b in self.tokens_per_block()],
            "notes": list(self.notes),
            **({} if self.tower is None else {"tower": self.tower}),
            **({} if self.towers is None else {"towers": [t.to_json() for t in self.towers]}),
            **({} if self.restore is None else {"restore": self.restore}),
            **({} if self.resized is None else {"resized": self.resized.to_json()}),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any], where: str = "schedule") -> Schedule:
        """Read a schedule; `tokens_per_block` is derived and ignored.

        Raises:
            UsageError: a field is missing or of the wrong type.
        """
        try:
            checked(document)
            if document["schema"] != SCHEMA:
                raise UsageError(f"schema {document['schema']} is not {SCHEMA}", where=where)
            shape, reductions = _shape(document["model"]), _reductions(document["reductions"])
            notes = tuple(map(str, document.get("notes", ())))
            tower, others = document.get("tower"), document.get("towers")
            towers = None if others is None else tuple(map(_tower, others))
            resized = document.get("resized")
            return Schedule(
                str(document.get("method", "custom")),
                shape,
                reductions,
                notes,
                None if tower is None else str(tower),
                towers,
                known_rule(document.get("restore"), where),
                None if resized is None else _resized(resized),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"not a schedule: {type(error).__name__} {error}",
                where=where,
                hint="see `tcompile plan --json` for the form",
            ) from error


def known_rule(rule: Any, where: str) -> str | None:
    """The rule by which tokens are given back, or None.

    Raises:
        UsageError: there is no such rule.
    """
    if rule is None or rule in RESTORES:
        return None if rule is None else str(rule)
    raise UsageError(
        f"'{rule}' is not a rule to give tokens back by", where=where, hint=", ".join(RESTORES)
    )


def _shape(document: Mapping[str, Any]) -> Shape:
    return Shape(*(whole_number(document[k]) for k in ("tokens", "prefix", "patches", "blocks")))


def _reductions(documents: Any) -> tuple[Reduction, ...]:
    return tuple(
        Reduction(
            SiteName(r["site"]),
            _spec(r["score"]) if r.get("score") else None,
            _spec(r["reducer"]),
            whole_number(r["keep"]),
        )
        for r in documents
    )


def _tower(document: Mapping[str, Any]) -> TowerSchedule:
    return TowerSchedule(
        str(document["tower"]),
        _shape(document["model"]),
        _reductions(document["reductions"]),
        str(document.get("dense", "")),
        tuple(map(str, document.get("outputs", ()))),
    )


def _resized(document: Mapping[str, Any]) -> Resized:
    image = document.get("image", "graph")
    if image not in ("graph", "host"):
        raise ValueError(f"{image!r} is not graph or host")
    rules = (document.get(name) for name in ("table", "relative", "rotary"))
    return Resized(
        _pair(document["grid"]),
        whole_number(document["patches"]),
        _pair(document["size"]),
        image,
        *(None if rule is None else str(rule) for rule in rules),
    )


def _pair(numbers: Any) -> tuple[int, int]:
    rows, columns = map(whole_number, numbers)
    return rows, columns


def whole_number(number: Any) -> int:
    """A whole number, which `true`, 8.5 and infinity are not."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number % 1 != 0:
        raise ValueError(f"{number!r} is not a whole number")
    return int(number)


def _spec(document: Mapping[str, Any]) -> Spec:
    parameters = {k: v for k, v in document.items() if k != "name"}
    return Spec(str(document["name"]), parameters)


def read_schedule(path: str | Path) -> Schedule:
    """Read a schedule file, JSON or YAML.

    Raises:
        UsageError: no such file, or not a schedule.
        MissingExtraError: a YAML file without PyYAML.
    """
    path = Path(path)
    read = read_yaml if path.suffix in (".yaml", ".yml") else read_json
    document = read(path, "a schedule")
    if not isinstance(document, dict):
        raise UsageError("not a schedule", where=str(path))
    return Schedule.from_json(document.get("schedule", document), str(path))
