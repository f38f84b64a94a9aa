"""Pictures: they are made, twice alike, and hold what they should."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.planning.front import FrontPlan, front_of
from tcompile.planning.optimise.tables import Plan, Step
from tcompile.profiling.plateaus import Plateau
from tcompile.report.plots import check_picture, plot_front, plot_latency, plot_schedule

pytest.importorskip("matplotlib")

COUNTS = tuple(range(8, 66))
MS = np.asarray([float(-(-n // 16)) for n in COUNTS])
PLAN = Plan(
    (Step("attn:0", 65, 48, 0.1, 0.2), Step("block:1", 48, 32, 0.1, 0.4)),
    (65, 48, 32),
    (48, 48, 32),
    32,
    7.5,
    0.6,
    12.0,
)
FRONT = front_of(
    [
        FrontPlan("fp32", "tome", 20, 6.0, 9.0, "fp32", 8),
        FrontPlan("fp32", "tome", 32, 7.5, 0.6, "fp32", 8, chosen=True),
        FrontPlan("int8", "evit", 40, 9.0, 0.3, "fp32", 8),
        FrontPlan("fp32", "dense", 64, 12.0, 0.0),
        FrontPlan("int8", "dense", 64, 8.0),
    ]
)


def latency(path: Path) -> Path:
    return plot_latency(
        COUNTS,
        MS,
        path,
        lower=0.9 * MS,
        upper=1.1 * MS,
        halves={"attention halves": MS / 3, "MLP halves": MS / 2},
        chosen=[48, 32, 48],
        measured=[16],
        title="a ViT on a clock",
    )


def schedule(path: Path) -> Path:
    return plot_schedule(PLAN, 65, path, title="plan")


def pareto(path: Path) -> Path:
    return plot_front(FRONT, path, losses="1 - cosine")


PICTURES = {"latency": latency, "schedule": schedule, "front": pareto}


@pytest.mark.parametrize("name", PICTURES)
def test_pngs_are_large_enough_to_print(tmp_path: Path, name: str) -> None:
    from PIL import Image

    with Image.open(PICTURES[name](tmp_path / "a.png")) as image:
        assert image.width >= 1200
        assert image.height >= 700
        grey = np.asarray(image.convert("RGB"), np.int64)
    assert np.ptp(grey, axis=2).max() == 0, "told apart without colour"
    assert (grey.mean(axis=2) > 250).mean() > 0.4, "on white"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


@pytest.mark.parametrize("name", PICTURES)
def test_svgs_are_alike_and_their_text_is_text(tmp_path: Path, name: str) -> None:
    first = PICTURES[name](tmp_path / "a.svg").read_bytes()
    assert PICTURES[name](tmp_path / "b.SVG").read_bytes() == first
    text = first.decode()
    assert "<dc:date>" not in text
    words = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", text))
    for word in {
        "latency": ("tokens", "ms", "whole model", "MLP halves", "plateau", "48", "32", "clock"),
        "schedule": ("block", "tokens", "48", "32", "dense: 65", "7.5 of 12"),
        "front": ("predicted latency", "ms", "1 - cosine", "chosen", "dense fp32", "dense int8"),
    }[name]:
        assert word in words, words


def test_plateaus_are_those_given_or_those_of_the_curve(tmp_path: Path) -> None:
    def shaded(path: Path) -> int:
        return path.read_text().count("fill: #f0f0f0; opacity") or len(
            re.findall(r"fill: #f0f0f0", path.read_text())
        )

    found = shaded(plot_latency(COUNTS, MS, tmp_path / "a.svg"))
    none = shaded(plot_latency(COUNTS, MS, tmp_path / "b.svg", plateaus=()))
    narrow = (Plateau(20, 22, 2.0),)
    assert found > none
    assert shaded(plot_latency(COUNTS, MS, tmp_path / "c.svg", plateaus=narrow)) == none


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.pdf", "none/a.png"])
def test_other_suffixes_and_folders_are_refused(tmp_path: Path, name: str) -> None:
    for make in PICTURES.values():
        with pytest.raises(UsageError):
            make(tmp_path / name)
    with pytest.raises(UsageError):
        check_picture(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_a_link_leads_to_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.svg").symlink_to(tmp_path / "other")
    assert plot_latency(COUNTS, MS, tmp_path / "a.svg") == tmp_path / "a.svg"
    assert (tmp_path / "a.svg").is_symlink()
    assert "<svg" in (tmp_path / "other").read_text()
    os.mkfifo(tmp_path / "b.svg")
    with pytest.raises(UsageError, match="is a pipe"):
        check_picture(tmp_path / "b.svg")


def test_lengths_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="as many"):
        plot_latency(COUNTS, MS[1:], tmp_path / "a.png")
    with pytest.raises(UsageError, match="no plan"):
        plot_front((), tmp_path / "a.png")


def test_what_is_drawn_does_not_change_how_others_draw(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    latency(tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


def test_pictures_without_extras(tmp_path: Path) -> None:
    plot_front(FRONT, tmp_path / "a.png")
    plot_schedule(Plan((), (9,), (9,), 9, 1.0, 0.0, 1.0), 9, tmp_path / "b.png")
    plot_latency((5, 9), (1.0, 2.0), tmp_path / "c.png")
    plot_latency((9,), (0.0,), tmp_path / "d.png")
    assert len(list(tmp_path.iterdir())) == 4
