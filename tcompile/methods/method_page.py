"""Everything about a preset, for `tcompile methods NAME` and docs/methods.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from tcompile.core.schedule import Reduction, Shape, Spec
from tcompile.core.site import SiteName
from tcompile.methods.composition import names_in
from tcompile.methods.context import Context, SiteConstraints, Step, Values
from tcompile.methods.presets.base import Preset

#: What the example is composed for: ViT at 224, and 8 frames of a quarter of that.
_IMAGE, _VIDEO = Shape(197, 1, 196, 12), Shape(393, 1, 392, 12)

_NEEDS = {
    "cls": "a CLS token; without one, what evenly strided patches attend to stands in (score attn)",
    "grid": "patches in a grid of rows and columns",
    "frames": "the frames of a video",
    "probe": "a learned query that pools the tokens",
    "calibration": "images: --calibration DIR, FILE.npz or loader.py",
}


@dataclass(frozen=True)
class Row:
    """Steps of the example that differ in numbers only, as text."""

    sites: str
    score: str
    reducer: str
    keep: str


@dataclass(frozen=True)
class MethodPage:
    """The facts that cannot be read from the preset itself.

    Attributes:
        preset: what it is about.
        rows: the example.
        needs: of the model, and of the person, in words.
        fused: whether TensorRT can fuse the attention.
    """

    preset: Preset
    rows: tuple[Row, ...]
    needs: tuple[str, ...]
    fused: bool

    @property
    def example(self) -> str:
        """The model that the rows were composed for."""
        video = "frames" in self.preset.needs
        return f"12 blocks, {'8 frames of 49' if video else 'CLS and 196'} patches, --keep 0.5"

    def to_json(self) -> dict[str, Any]:
        return {
            **self.preset.to_json(),
            "needs": list(self.needs),
            "attention_stays_fused": self.fused,
            "example": self.example,
            "composition": [vars(row).copy() for row in self.rows],
        }


def method_page(preset: Preset) -> MethodPage:
    """Compose a preset for an example and describe it."""
    from tcompile.passes.reduce.scores import leaves

    reductions = _example(preset)
    specs = [r.score for r in reductions if r.score is not None]
    found = [leaf for spec in specs for leaf in leaves(spec)]
    needs = {need for score, values in found for need in score.needs(values)}
    fused = all(score.fused(values) for score, values in found)
    # What else needs a CLS token has a preset that does without.
    asked = {*needs, *preset.needs} - {"cls"}
    asked |= {"cls"} if any("cls" in names_in(s.to_json()) for s in specs) else set()
    words = [_NEEDS[n] for n in _NEEDS if n in asked]
    words += [f"{key}: {preset.parameters[key].meaning}" for key in preset.required]
    return MethodPage(preset, tuple(_rows(reductions)), tuple(words), fused)


def _example(preset: Preset) -> list[Reduction]:
    from tcompile.methods.composition import composed

    values: Values = {k: p.default for k, p in preset.parameters.items()}
    values = {**values, **dict.fromkeys(preset.required, "FILE")}
    room: SiteConstraints | None = None
    shape = _VIDEO if "frames" in preset.needs else _IMAGE
    if shape is _VIDEO:
        room = SiteConstraints(frozenset({SiteName.of("output")}), grid=(8, 7, 7))
    context = Context(preset.name, shape, True, Fraction(1, 2), room)
    if not preset.scheduler.observes:
        return list(composed(preset, context, values))
    # Its counts come from images: one step stands for all.
    site = SiteName.of("attn", 0)
    step = Step(context, values, site, shape.patches, 0, 0, shape.blocks)
    return [Reduction(site, preset.score_at(step), preset.reducer_at(step), 0)]


def _rows(reductions: Sequence[Reduction]) -> list[Row]:
    rows: list[Row] = []

    def kind(r: Reduction) -> tuple[str, str, str]:
        return (r.site.kind, r.score.name if r.score else "", _kind(r.reducer))

    for (place, score, _), group in groupby(reductions, kind):
        steps = list(group)
        first = steps[0]
        sites, keep = _listed([s.site for s in steps]), _listed([str(s.keep) for s in steps])
        scores = [s.score.to_json() for s in steps if s.score]
        reducers = [s.reducer.to_json() for s in steps]
        learned = "learned" if not first.keep else keep
        rows.append(
            Row(
                f"{place} of every block" if not first.keep else sites,
                spelled(scores) if score else "",
                spelled(reducers),
                learned,
            )
        )
    return rows


def _listed(texts: Sequence[str]) -> str:
    """All of a few, the first and the last of more; one where they are all the same."""
    if len(set(texts)) == 1:
        return texts[0]
    return ", ".join(texts) if len(texts) <= 3 else f"{texts[0]} … {texts[-1]}"


def _kind(reducer: Spec) -> str:
    """Reducers that go in one row: those of one name, or a chain of the same ones."""
    words = {"split", "combine", "fill", "axis"}
    own = [reducer.name, *(str(v) for k, v in reducer.parameters.items() if k in words)]
    steps = reducer.parameters.get("steps", [])
    return " ".join([*own, *(s["reducer"]["name"] for s in steps)])


def spelled(documents: Sequence[Mapping[str, Any]]) -> str:
    """Scores or reducers of one kind as text, `cls(agg=max)`; numbers that differ as `a … b`."""
    first, last = documents[0], documents[-1]
    name = str(first["name"])
    if name == "chain":
        return " then ".join(_one(s["reducer"]) for s in first["steps"])
    if "terms" in first:
        return f"{name}({', '.join(_term(t) for t in first['terms'])})"
    parts = []
    for key, value in first.items():
        if key == "name":
            continue
        text = _value(value) if value == last[key] else f"{_value(value)} … {_value(last[key])}"
        parts.append(f"{key}={text}")
    return f"{name}({', '.join(parts)})" if parts else name


def _one(document: Mapping[str, Any]) -> str:
    return spelled([document])


def _term(term: Mapping[str, Any]) -> str:
    norm = f"/{term['norm']}" if term.get("norm", "none") != "none" else ""
    power = f"^{term['power']:g}" if term.get("power", 1) != 1 else ""
    weight = f"{term['weight']:g}·" if term.get("weight", 1) != 1 else ""
    return f"{weight}{_one(term['score'])}{norm}{power}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _one(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
