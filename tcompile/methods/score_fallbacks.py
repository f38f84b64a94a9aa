"""Scores that stand in for others, where a model has not what those read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tcompile.core.schedule import Spec
from tcompile.core.site import SiteName
from tcompile.methods.context import Context

#: Scores that read the attention: blind where it sees windows only.
_ATTENTION = {"cls", "attn", "colsum", "pagerank", "rowmean"}


def score_fallback(score: Spec, context: Context, site: SiteName) -> Spec:
    """The score; `norm` where its attention sees windows only; `attn` for `cls` without CLS."""
    names = names_in(score.to_json())
    # Scores of a windowed model's global blocks would need its position bias for every pair.
    windows = context.room is not None and context.room.windows and site.kind == "around"
    if names & _ATTENTION and (windows or context.blind(site)):
        return Spec("norm")
    if context.has_cls or "cls" not in names:
        return score
    document = _without_cls(score.to_json())
    return Spec(document.pop("name"), document)


def score_fallback_notes(wanted: Sequence[Spec | None], got: Sequence[Spec | None]) -> list[str]:
    """What a plan is to say of it."""
    notes, pairs = [], [(w, g) for w, g in zip(wanted, got, strict=True) if w and g and w != g]
    if any(g.name != "norm" for _, g in pairs):
        notes.append(
            "this model reads no CLS token: score attn, the attention that evenly "
            "strided patches pay, stands in for cls"
        )
    if any(g.name == "norm" for _, g in pairs):
        notes.append(
            "attention within windows cannot score: score norm, the token's length, stands in"
        )
    return notes


def names_in(document: Any) -> set[str]:
    """Of a score and all that it is made of."""
    if isinstance(document, Mapping):
        own = {str(document["name"])} if "name" in document else set()
        return own.union(*(names_in(v) for v in document.values()))
    return (
        set[str]().union(*(names_in(v) for v in document)) if isinstance(document, list) else set()
    )


def _without_cls(document: Any) -> Any:
    if isinstance(document, Mapping):
        if document.get("name") == "cls":
            return {"name": "attn"}
        return {k: _without_cls(v) for k, v in document.items()}
    return [_without_cls(v) for v in document] if isinstance(document, list) else document
