"""`view`, `maps` and `compare`, and what is said where something is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from tcompile.api.maps import maps
from tcompile.api.view import view
from tcompile.artifact.directory import PAGE
from tcompile.core.errors import ModelError, UsageError
from tcompile.models.preprocess import load_image
from tcompile.report.token_maps import counts_of
from tcompile.runtime.signature import signature
from tests.acceptance.test_report import text_of
from tests.support.command import Command


def test_maps_of_other_images(glyphs_reports: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "two").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ("one.png", "two/one.png")
    for name in names:
        Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(photos / name)
    found = maps(glyphs_reports / "topk", tmp_path / "maps", photos)
    assert [p.file for p in found.pictures] == [
        "000-one-00-topk-at-attn-1.png",
        "001-one-00-topk-at-attn-1.png",
    ]
    assert tuple(p.image for p in found.pictures) == names
    session = ort.InferenceSession(glyphs_reports / "topk" / "model.onnx")
    for picture, name in zip(found.pictures, names, strict=True):
        pixels = load_image(
            photos / name, signature(glyphs_reports / "topk" / "model.onnx").preprocessing
        )
        (index,) = session.run(["token_index"], {"image": pixels})
        assert {i for i, r in enumerate(picture.region) if r >= 0} == set(map(int, index[0]))
        assert Image.open(tmp_path / "maps" / picture.file).size == (392, 392)
    listed = json.loads((tmp_path / "maps" / "maps.json").read_text(encoding="utf-8"))
    assert listed["grid"] == [14, 14]
    assert listed["pictures"][0]["patches"]["dropped"] == 78


def test_where_the_source_is_gone_the_artifact_tells_the_last_map(
    glyphs_reports: Path, tmp_path: Path, tcompile: Command
) -> None:
    whole = maps(glyphs_reports / "tome", tmp_path / "whole")
    alone = shutil.copytree(glyphs_reports / "tome", tmp_path / "elsewhere" / "tome")
    manifest = json.loads((alone / "manifest.json").read_text(encoding="utf-8"))
    manifest["source"]["file"] = "gone.onnx"
    (alone / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    said = tcompile("maps", alone, "-o", tmp_path / "last", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["notes"] == [
        "this is what the artifact says is left at the end: the dense model is not where it was, "
        "or was changed since: 'gone.onnx' (--against names one)"
    ]
    last = [p for p in whole.pictures if p.step == "merge at attn:5"]
    assert [p["region"] for p in found["pictures"]] == [list(p.region) for p in last]
    assert counts_of(np.array(last[0].region)).merged > 0
    assert tcompile("view", alone, "--no-open").code == 0


def test_a_report_that_is_not_there_is_made_from_the_manifest(
    glyphs_reports: Path, tmp_path: Path, tcompile: Command
) -> None:
    old = shutil.copytree(glyphs_reports / "tome", tmp_path / "old")
    (old / PAGE).unlink()
    said = tcompile("view", old, "--no-open")
    assert said.code == 2  # it is in the manifest
    assert "'report.html' is missing" in said.err
    manifest = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = [f for f in manifest["files"] if f["path"] != PAGE]
    (old / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    said = tcompile("view", old, "--no-open")
    assert said.code == 0
    assert "made from the manifest alone" in said.err
    text = text_of(Path(said.out.strip()).read_text(encoding="utf-8"))
    assert "There are no token maps: the artifact has no report.html" in text
    assert "Tokens kept 60%" in text


def test_a_report_that_was_changed_is_not_opened(glyphs_reports: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(glyphs_reports / "tome", tmp_path / "changed")
    with (changed / PAGE).open("a", encoding="utf-8") as stream:
        stream.write("<script>1</script>")
    with pytest.raises(ModelError, match="was changed since it was written"):
        view(changed)


def test_maps_leave_nothing_half_done(glyphs_reports: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists and is not empty"):
        maps(glyphs_reports / "tome", tmp_path / "full")
    with pytest.raises(UsageError, match="no such file"):
        maps(glyphs_reports / "tome", tmp_path / "new", tmp_path / "none.png")
    assert not (tmp_path / "new").exists()
