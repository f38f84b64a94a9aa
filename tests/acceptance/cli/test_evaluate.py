"""`tcompile evaluate` as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.artifacts import make_artifact
from tests.support.colours import save_colours, save_image
from tests.support.command import Command


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for i, (name, colour) in enumerate((("red", (200, 190, 0)), ("blue", (0, 0, 250)))):
        save_image(Path(f"photos/{name}/{i}.png"), colour)
    save_colours(Path("dense.onnx"))
    save_colours(Path("reduced.onnx"), (0.0, 0.15, 0.0))
    make_artifact(Path("out"), Path("dense.onnx"), Path("reduced.onnx"))
    return "out"


def test_a_page_and_a_document(tcompile: Command, out: str) -> None:
    found = tcompile("evaluate", out, "--data", "photos")
    assert found.code == 0, found.err
    assert (
        "out (onnxruntime, fp32) against dense.onnx, 2 images of photos, 2 with labels" in found.out
    )
    row = next(line.split() for line in found.out.splitlines() if line.startswith("top1"))
    assert row[:4] == ["top1", "1.0000", "0.5000", "-0.5000"]
    assert "red/0.png" in found.out
    assert "red → green" in found.out
    assert "Classes that lose most, 1 of 2" in found.out  # blue loses nothing
    same = tcompile("evaluate", "dense.onnx", "--against", "dense.onnx", "--data", "photos")
    assert "Classes" not in same.out
    plain = tcompile("evaluate", out, "--data", "photos", "--json", "-o", "r.json")
    assert plain.json() == json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert plain.json()["outputs"][0]["measures"][0]["reduced"] == 0.5


def test_names_that_would_move_the_cursor(tcompile: Command, out: str) -> None:
    Path("photos/red/0.png").rename("photos/red/a\x1b[2J.png")
    Path("photos/red/b\x1b[31m.png").write_bytes(b"no image")
    found = tcompile("evaluate", out, "--data", "photos")
    assert "\x1b" not in found.out
    assert r"red/a\x1b[2J.png" in found.out
    assert r"red/b\x1b[31m.png: is not an image" in found.out
    assert tcompile("evaluate", out, "--data", "photos", "--json").json()["images"] == 2


def test_exit_codes(tcompile: Command, out: str) -> None:
    base = ("evaluate", out, "--data", "photos")
    assert tcompile(*base, "--fail-under", "top1=.5", "--fail-drop", "top1=.5").code == 0
    missed = tcompile(*base, "--fail-under", "top1=.75", "-o", "r.json", "--json")
    assert missed.code == 1
    assert missed.err == "tcompile: error: out: top1 of 'logits' is 0.5000, less than 0.75\n"
    assert missed.json()["gates"][0]["passed"] is False  # said in full before the exit
    assert json.loads(Path("r.json").read_text(encoding="utf-8"))["passed"] is False
    for arguments, says in (
        (("--fail-under", "top1"), "is not MEASURE=X"),
        (("--fail-under", "top1=nan"), "is not MEASURE=X"),
        (("--fail-drop", "speed=.1"), "there is no measure 'speed'"),
        (("--data", "nothing"), "no such file"),
        (("-o", "no/r.json"), "the folder does not exist"),
        (("--against", "nothing.onnx"), "no such file"),
    ):
        refused = tcompile(*base, *arguments)
        assert (refused.code, says in refused.err) == (2, True), refused


def test_subfolders_that_are_not_classes(tcompile: Command, out: str) -> None:
    """The hint is followed."""
    Path("photos/red").rename("photos/monday")
    base = ("evaluate", out, "--data", "photos")
    refused = tcompile(*base)
    assert refused.code == 2
    assert "labels 'monday' are none of the classes" in refused.err
    assert "or do without, --no-labels)" in refused.err
    found = tcompile(*base, "--no-labels", "--json")
    assert found.code == 0, found.err
    assert (found.json()["images"], found.json()["labelled"]) == (2, 0)
    assert [m["name"] for m in found.json()["outputs"][0]["measures"]] == ["agreement"]


def test_a_source_that_is_gone(tcompile: Command, out: str) -> None:
    """Figures are the artifact's alone; the hint is followed."""
    Path("dense.onnx").rename("moved.onnx")
    base = ("evaluate", out, "--data", "photos")
    alone = tcompile(*base, "--fail-under", "top1=.5")
    assert (alone.code, alone.err) == (0, "")
    assert "out (onnxruntime, fp32), 2 images of photos, 2 with labels" in alone.out
    row = next(line.split() for line in alone.out.splitlines() if line.startswith("top1"))
    assert row[:2] == ["top1", "0.5000"]
    assert "note: figures are those of the artifact alone: the dense model is not" in alone.out
    missed = tcompile(*base, "--fail-under", "top1=.75", "--json")
    assert (missed.code, missed.json()["dense"]) == (1, None)
    refused = tcompile(*base, "--fail-drop", "top1=.6")
    assert (refused.code, refused.out) == (2, "")
    assert "--fail-drop: 'top1' compares with the dense model, which is not where" in refused.err
    assert "'dense.onnx' (give it as --against)" in refused.err
    assert tcompile(*base, "--fail-drop", "top1=.6", "--against", "moved.onnx").code == 0
    bare = tcompile("evaluate", "reduced.onnx", "--data", "photos")
    assert "(give the dense model as --against)" in bare.err
