"""The page of a build where there is little to show, and its charts and pictures."""

from __future__ import annotations

import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcompile.artifact.manifest import Fidelity, Latency, Manifest, OutputFidelity
from tcompile.core.schedule import BlockTokens
from tcompile.planning.front import FrontPlan
from tcompile.report.build_page import image_views, page_of, render_page
from tcompile.report.charts import Mark, depth_chart, front_chart, latency_chart, scatter
from tcompile.report.map_pictures import cell_of, composed, overlay, picture_of
from tcompile.report.shown import Seen, Shown, chosen_rows
from tcompile.report.token_maps import DROPPED, MapStep
from tcompile.runtime.signature import Signature, signature
from tests.support.artifacts import manifest_for
from tests.support.tiny_vit import save_tiny_vit


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    source = save_tiny_vit(tmp_path / "vit.onnx")
    return manifest_for(source, source)


def test_without_images_the_reason_is_said(manifest: Manifest) -> None:
    page = render_page(manifest, Shown(why="the model takes <no> images"))
    assert "There are no token maps: the model takes &lt;no&gt; images." in page
    assert 'id="depth"' not in page
    assert "not measured" in page
    assert "The command is not known any more" in page


def test_names_of_a_file_are_text(manifest: Manifest) -> None:
    source = replace(manifest.source, file="/x/<script>alert(1)</script>.onnx")
    page = render_page(replace(manifest, source=source, notes=("<b>", "a" * 400)), Shown())
    assert "<script>alert" not in page
    assert "<b>" not in page.partition("<h3>Notes</h3>")[2]
    assert "a" * 301 not in page


def test_names_of_images_and_outputs_are_text(manifest: Manifest) -> None:
    """In texts, in attributes and in charts; none of them opens an element."""
    bad = "\"'></title></svg><img src=x onerror=alert(1)>&amp;"
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 1, 16, 16)
    classes = np.array([[0.9, 0.1]], np.float32)
    outputs = {bad: ramp, f"logits{bad}": classes}
    shown = Shown(
        Seen(
            bad,
            "1 - correlation",
            np.array([0.3]),
            (0,),
            ("worst",),
            (f"{bad}.png",),
            outputs,
            {bad: 1 - ramp, f"logits{bad}": classes},
        ),
        (np.zeros((8, 8, 3), np.uint8),),
        (MapStep(bad, 2, False, np.array([[0, DROPPED, DROPPED, 3]])),),
        (2, 2),
        command=f"tcompile build {bad}",
        labels=(f"cat{bad}", f"dog{bad}"),
    )
    lost = OutputFidelity(bad, "all", 0.9, 0.8, worst=f"{bad}.png", remark=bad)
    fidelity = Fidelity(f"8 samples from {bad}", 8, (lost,), "data")
    latency = (Latency("dense", "measured", 2.0, bad, bad, note=bad),)
    m = replace(manifest, fidelity=fidelity, latency=latency, notes=(bad,))
    page = render_page(m, shown)
    assert "<img src=x" not in page
    assert page.count("</title>") == page.count("<title")
    read = Names()
    read.feed(page)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    told = [value for _, value in read.attributes if value and bad in value]
    assert any(value == f"worst: {bad}.png" for value in told)  # the image, as it is read out
    assert any(value == f"{bad}, dense" for value in told)  # an output that is a map
    said = " ".join("".join(read.texts).split())
    for words in (
        f"worst 0.2 ({bad}.png)",
        f"Worst: {bad}.png.",
        f"on 8 samples from {bad}",
        f"cat{bad} (",
        f"tcompile build {bad}",
    ):
        assert words in said


class Names(HTMLParser):
    """Attributes and texts of a page, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the attributes of an element."""
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Keep a text."""
        self.texts.append(data)


@pytest.mark.parametrize("bad", ["</title><img src=x>", "\"'><img src=x>"])
def test_names_in_charts_are_text(bad: str) -> None:
    mark = Mark(1.0, 0.1, f"series{bad}", f"label{bad}", f"tip{bad}", True)
    svg = scatter("c", f"title{bad}", [mark], (f"x{bad}", f"y{bad}"), upright=[(2.0, f"up{bad}")])
    root = ElementTree.fromstring(f"<div>{svg}</div>")
    assert not root.findall(".//img")
    texts = {element.text for element in root.iter()}
    for name in ("tip", "title", "x", "y", "up"):
        assert f"{name}{bad}" in texts
    assert f"series{bad}" in "".join(root.itertext())


def test_without_jinja2_there_is_a_note(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    page, why = page_of(manifest, Shown())
    assert page == ""
    assert why == (
        "no report.html: report.html needs 'jinja2', which is not installed "
        "(pip install 'tcompile[cpu]')"
    )


def test_which_samples_are_shown() -> None:
    losses = np.array([0.1, 0.5, 0.0, 0.3, np.nan, 0.2, 0.4, 0.05])
    rows, ranks = chosen_rows(losses)
    assert rows == (1, 3, 0, 4)  # of 8 by falling loss: the first, third, fifth and last
    assert ranks == ("worst", "worse than 3 of 4", "typical", "best")
    assert chosen_rows(np.array([0.2])) == ((0,), ("worst",))


def seen(dense: dict[str, np.ndarray], reduced: dict[str, np.ndarray]) -> Seen:
    return Seen(
        "out", "1 - correlation", np.array([0.3]), (0,), ("worst",), ("a.png",), dense, reduced
    )


def test_maps_among_the_outputs_are_shown_on_one_scale() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 1, 16, 16)
    tokens = np.zeros((1, 16, 32), np.float32)
    outputs = {"map": ramp, "rows": tokens}
    step = MapStep("topk at attn:0", 2, False, np.array([[0, DROPPED, DROPPED, 3]]))
    shown = Shown(
        seen(outputs, {"map": 2 * ramp, "rows": tokens}),
        (np.zeros((8, 8, 3), np.uint8),),
        (step,),
        (2, 2),
    )
    (view,) = image_views(shown, frozenset({16}))
    assert [(name, caption) for name, caption, _ in view.maps] == [
        ("map", "dense"),
        ("map", "reduced"),
    ]
    import base64

    dense, reduced = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(int)
        for *_, uri in view.maps
    )
    assert dense.min() == 0
    assert dense.max() == 255
    assert (reduced == 255).mean() > 0.45  # twice as large, on the scale of the dense one
    assert [s.title for s in view.steps] == ["as it came", "topk at attn:0"]
    assert view.steps[1].words == "2 of 4 patch tokens are left; 2 are dropped"


def test_a_map_is_not_told_by_colour_alone() -> None:
    """Dropped: dark with lighter lines; merged: one colour within an outline of black and white."""
    region = np.array([[0, 0, 2, DROPPED], [4, 5, 2, DROPPED], [8, 9, 10, 0], [12, 13, 14, 15]])
    grid = (4, 4)
    cell = cell_of(grid)
    drawn = np.asarray(Image.open(io.BytesIO(overlay(region.ravel(), grid))).convert("RGBA"))
    assert drawn.shape == (4 * cell, 4 * cell, 4)

    def patch(row: int, column: int) -> np.ndarray:
        rows, columns = (slice(n * cell + 3, (n + 1) * cell - 3) for n in (row, column))
        return drawn[rows, columns].reshape(-1, 4)

    assert set(patch(1, 0)[:, 3]) == {0}  # as it came
    dropped = np.unique(patch(0, 3), axis=0)
    assert len(dropped) == 2
    assert np.ptp(dropped[:, :3].mean(axis=1)) > 100
    fills = [tuple(np.unique(p[p[:, 3] == 150], axis=0)[0]) for p in (patch(0, 0), patch(2, 3))]
    assert fills[0] == fills[1]  # one region, in two places
    for place in ((0, 0), (2, 3)):
        p = patch(*place)
        assert (p[:, 3] == 255).any()  # its number
    p = patch(0, 2)
    assert set(p[:, 3]) == {150}  # in one place: no number
    assert tuple(p[0]) != fills[0]
    edge = drawn[cell + cell // 2, 2 * cell - 2 : 2 * cell + 2]
    assert {tuple(e) for e in edge} == {(255, 255, 255, 255), (0, 0, 0, 255)}


def test_a_picture_is_what_was_given(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    model = signature(save_tiny_vit(tmp_path / "vit.onnx"))
    known = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    prepared = (pixels / 255 - known["mean"]) / known["std"]
    model = replace(model, preprocessing=known)
    chw = prepared.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(picture_of(model, chw), pixels)
    np.testing.assert_array_equal(picture_of(model, prepared.astype(np.float32)), pixels)
    np.testing.assert_array_equal(picture_of(model, pixels), pixels)
    assert picture_of(model, np.zeros((4, 3, 32, 32), np.float32)) is None
    region = np.arange(16)
    png = Image.open(io.BytesIO(composed(pixels, region, (4, 4))))
    assert png.size == (392, 392)
    assert isinstance(model, Signature)


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(re.sub(r"<p class.*", "", svg))
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]


def test_charts_hold_their_figures() -> None:
    front = [
        FrontPlan("fp32", "tome", 98, 5.0, 0.25, "fp32", 8, chosen=True),
        FrontPlan("int8", "tome", 98, 3.0, 0.5, "int8", 8),
        FrontPlan("fp32", "dense", 196, 9.0, 0.0),
        FrontPlan("int8", "dense", 196, 4.0),
    ]
    svg = front_chart(front)
    assert "tome in fp32, 98 patch tokens: 5 ms, loss 0.25, chosen" in svg
    assert {"chosen: tome 98", "dense fp32", "dense int8, loss not run"} <= set(texts(svg))
    assert svg.count('class="ring"') == 1
    assert front_chart(front[3:]) == ""
    depth = depth_chart((BlockTokens(0, 197, 150), BlockTokens(1, 150, 100)), 197)
    assert {"dense: 197", "150", "100"} <= set(texts(depth))
    assert "Of 197 tokens: block 0: 197 and 150; block 1: 150 and 100" in depth
    curve = latency_chart([(1, 2.0), (101, 4.0), (197, 8.0)], [150], "measured")
    assert "150" in texts(curve)
    assert "1 tokens 2 ms, 197 tokens 8 ms" in curve
    assert latency_chart([], [150], "measured") == ""
