"""The file of a profile: there and back, damaged, and what may be put together."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tcompile.core.errors import UsageError
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.profile import (
    MeasuredProfile,
    ModelledProfile,
    Subject,
    combine,
    from_json,
    read_profile,
)
from tests.support.profiling import CONDITIONS


def measured(ms: float = 1.0, **changed: Any) -> MeasuredProfile:
    figure = Figure(ms, ms * 0.9, ms * 1.2, 5)
    curve = Curve(((8, figure), (16, replace(figure, ms=ms * 1.1))))
    return MeasuredProfile(
        replace(CONDITIONS, **changed),
        Subject("vit.onnx", 17, 1, 3),
        {"stem1": figure},
        {"attn1": curve, "mlp1": curve},
        {"head1": curve},
        {"topk": StepCost(((17, 9, figure), (9, 5, figure)))},
        Figure(9 * ms, 8 * ms, 10 * ms, 5),
    )


DOCUMENT = measured().to_json()


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for made in (measured(), ModelledProfile(CONDITIONS, Subject("m", 17, 1, 3))):
        path.write_text(json.dumps(made.to_json()))
        again = read_profile(path)
        assert type(again) is type(made)
        assert again == made


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all fields and values below."""
    items = (
        document.items()
        if isinstance(document, dict)
        else (enumerate(document) if isinstance(document, list) else ())
    )
    found = []
    for key, value in items:
        found += [(*path, key), *leaves(value, (*path, key))]
    return found


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


REQUIRED = [
    p
    for p in leaves(DOCUMENT)
    if p not in {("conditions", k) for k in ("threads", "clocks", "power_mode", "date", "note")}
    and p[:2] != ("conditions", "software")
]
#: Names that data chooses: without one of them it is another profile, not a damaged one.
NAMED = {
    ("stem", "stem1"),
    ("halves", "attn1"),
    ("halves", "mlp1"),
    ("heads", "head1"),
    ("reducers", "topk"),
}


@pytest.mark.parametrize(
    "path", [p for p in REQUIRED if isinstance(p[-1], str) and p not in NAMED], ids=str
)
def test_a_missing_field_is_refused(path: tuple[Any, ...]) -> None:
    broken = copy.deepcopy(DOCUMENT)
    del at(broken, path[:-1])[path[-1]]
    with pytest.raises(UsageError) as error:
        from_json(broken, "p.json")
    assert error.value.one_line().startswith("p.json: ")


NUMBERS = [
    p
    for p in leaves(DOCUMENT)
    if p[0] in ("stem", "halves", "heads", "reducers", "dense")
    and isinstance(at(DOCUMENT, p), float | int)
]


@pytest.mark.parametrize("value", ["x", None, [], {}], ids=str)
def test_what_is_no_number_is_refused(value: Any) -> None:
    for path in NUMBERS:
        broken = copy.deepcopy(DOCUMENT)
        at(broken, path[:-1])[path[-1]] = value
        with pytest.raises(UsageError):
            from_json(broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_times_are_finite_and_not_negative(value: float) -> None:
    """Medians, quartiles and runs, which follow the counts."""
    skipped = {"stem": 0, "dense": 0, "halves": 1, "heads": 1, "reducers": 2}
    tried = 0
    for path in NUMBERS:
        if path[-1] >= skipped[path[0]]:
            broken = copy.deepcopy(DOCUMENT)
            at(broken, path[:-1])[path[-1]] = value
            with pytest.raises(UsageError):
                from_json(broken)
            tried += 1
    assert tried == 40


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("conditions", "batch", 0),
        ("conditions", "batch", "1"),
        ("conditions", "threads", -1),
        ("conditions", "device", 3),
        ("conditions", "software", {"a": 1}),
        ("conditions", "software", 1),
        ("subject", "tokens", 1),
        ("subject", "tokens", "17"),
        ("subject", "prefix", -1),
        ("subject", "blocks", 0),
        ("subject", "source", None),
        ("subject", "more", 1),
    ],
)
def test_conditions_and_subject_make_sense(where: str, field: str, value: Any) -> None:
    broken = copy.deepcopy(DOCUMENT)
    broken[where][field] = value
    with pytest.raises(UsageError):
        from_json(broken)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": "other"}', "[" * 99999])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"p\.json"):
        read_profile(path)
    with pytest.raises(UsageError, match="is a directory"):
        read_profile(tmp_path)


def test_other_versions_and_kinds_are_refused() -> None:
    for changed in ({"version": 2}, {"kind": "guessed"}, {"halves": [1]}, {"conditions": {}}):
        with pytest.raises(UsageError):
            from_json({**DOCUMENT, **changed})


def test_two_measurements_together() -> None:
    both = combine(measured(1.0), measured(3.0))
    assert both.stem["stem1"].ms == 2.0
    assert both.stem["stem1"].runs == 10
    assert both.halves["attn1"].at(8) == 2.0
    assert both.reducers["topk"].points[0][2].ms == 2.0
    assert both.dense == Figure(18.0, 16.0, 20.0, 10)
    later = combine(measured(), measured(date="2027-01-01", note="again"))
    assert later.conditions == CONDITIONS


def test_what_only_one_has_is_kept() -> None:
    other = replace(measured(), reducers={"tome": StepCost(((17, 9, Figure.modelled(1.0)),))})
    assert set(combine(measured(), other).reducers) == {"topk", "tome"}
    others = replace(measured(3.0), subject=Subject("other.onnx", 17, 1, 3))
    assert combine(measured(), others).dense is None, "of another model as a whole"


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "x"},
        {"batch": 2},
        {"threads": 2},
        {"precision": "fp16"},
        {"clocks": "2 GHz"},
        {"power_mode": "25 W"},
        {"software": {"fake": "2"}},
        {"target": "t4"},
        {"runtime": "x"},
    ],
)
def test_other_conditions_are_not_put_together(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changed))):
        combine(measured(), measured(**changed))


def test_measured_and_modelled_are_not_put_together() -> None:
    modelled = ModelledProfile(CONDITIONS, Subject("vit.onnx", 17, 1, 3))
    for pair in ((measured(), modelled), (modelled, measured())):
        with pytest.raises(UsageError, match="not put together"):
            combine(*pair)
    assert measured().words.startswith("measured, a clock")
    assert modelled.words.startswith("modelled, ")
