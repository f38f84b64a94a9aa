"""JSON documents to data classes and back, and what is said of those that do not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tcompile.core.decode import Count, decode, encode
from tcompile.core.site import SiteName


@dataclass(frozen=True)
class Figure:
    kind: Literal["measured", "modelled"]
    runs: Count = 1
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Document:
    name: str
    figures: tuple[Figure, ...] = ()
    best: Figure | None = None
    shape: tuple[int | str, ...] = ()
    free: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def test_there_and_back() -> None:
    document = Document(
        "vit",
        (Figure("measured", 3, (0.5, np.float64(1.5))), Figure("modelled")),
        shape=("batch", 3),
        free={SiteName("attn:3"): [SiteName("output"), {"score": None}]},
    )
    plain = json.loads(json.dumps(encode(document), allow_nan=False))
    assert list(plain) == ["name", "figures", "best", "shape", "free", "versions"]
    assert plain["free"] == {"attn:3": ["output", {"score": None}]}
    assert decode(Document, plain) == document


def test_a_number_may_be_whole() -> None:
    found = decode(Figure, {"kind": "measured", "spread": [1, 2]})
    assert found.spread == (1.0, 2.0)
    assert isinstance(found.spread[0], float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name: expected str, found 3"),
        ({"figures": 3}, "figures: expected array, found 3"),
        ({"figures": [{}]}, r"figures\[0\]\.kind: missing"),
        (
            {"figures": [{"kind": "modelled"}, {"kind": "guessed"}]},
            r"figures\[1\]\.kind: expected one of measured, modelled, found 'guessed'",
        ),
        ({"best": {"kind": "guessed"}}, "best.kind: expected one of measured, modelled"),
        ({"best": {"kind": "measured", "runs": -1}}, r"best\.runs: expected int >= 0, found -1"),
        ({"best": {"kind": "measured", "runs": True}}, "best.runs: expected int, found True"),
        ({"best": {"kind": "measured", "spread": [1]}}, "best.spread: expected array of length 2"),
        ({"best": {"kind": "measured", "mean": 1}}, "best.mean: unknown field"),
        ({"figures": [{"kind": "measured", "mean": 1}]}, r"figures\[0\]\.mean: unknown field"),
        ({"shape": [1.5]}, r"shape\[0\]: expected int \| str, found 1\.5"),
        ({"versions": {"onnx": 1}}, r"versions\[\.\.\.\]: expected str, found int"),
        ({"name": ["x" * 100]}, r"name: expected str, found \['xxx[x]*\.\.\.$"),
        ({"more": 1}, "more: unknown field"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        decode(Document, {"name": "vit", **change})


def test_what_is_not_an_object() -> None:
    with pytest.raises(ValueError, match=r"^document: expected object, found \[\]"):
        decode(Document, [])
    with pytest.raises(ValueError, match=r"^name: missing"):
        decode(Document, {})


def test_what_is_not_json() -> None:
    with pytest.raises(TypeError, match="Path is not a JSON type"):
        encode(Document("vit", free={"path": Path("x")}))
