"""Which build to take, by manifests that were written by hand."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tcompile.api.compare import compare, page_of, table_of
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import Fidelity, Latency, OutputFidelity, SpeedUp, TargetEntry
from tcompile.core.errors import UsageError
from tests.support.artifacts import make_artifact
from tests.support.tiny_vit import save_tiny_vit


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("compare") / "vit.onnx")


def made(
    source: Path, name: str, ratio: float, loss: float, *, data: str = "8 images", **more: Any
) -> Path:
    """A build that is so many times as fast, and loses so much."""
    schedule = {"schema": 1, "method": name, "reductions": [{"site": "attn:0", "keep": 8}]}
    output = OutputFidelity("logits", "all", 1 - loss, 1 - 2 * loss, top1_agreement=0.75)
    both = (("dense", 20.0), ("reduced", 20.0 / ratio))
    latency = tuple(
        Latency(which, "measured", ms, "here", "it")  # type: ignore[arg-type]
        for which, ms in both
    )
    changes = {
        "schedule": schedule,
        "latency": latency,
        "speedup": SpeedUp(ratio, 0.9 * ratio, 1.1 * ratio, "the dense model as it came"),
        "fidelity": Fidelity(data, 8, (output,), "data", sha256(data.encode()).hexdigest()),
        **more,
    }
    return make_artifact(source.parent / name, source, **changes)


def test_what_no_other_beats_is_named_by_its_loss(source: Path) -> None:
    paths = [
        made(source, "slow", 1.2, 0.001),
        made(source, "fast", 3.0, 0.03),
        made(source, "worse", 2.0, 0.05),
        made(source, "middle", 1.25, 0.02),
    ]
    found = compare(paths)
    assert [b.name for b in found.builds] == ["fast", "worse", "middle", "slow"]
    assert {b.name: b.beaten for b in found.builds} == {
        "fast": "",
        "worse": "fast",
        "middle": "",
        "slow": "",
    }
    assert found.figure == "1 - cosine of logits"
    assert found.take == (
        "for a loss of at most 0.001: slow, 1.20 ×; not shown to be slower than middle",
        "for a loss of at most 0.02: middle, 1.25 ×",
        "for a loss of at most 0.03: fast, 3.00 ×",
    )
    assert compare(paths, max_loss=0.025).take == ("take middle, 1.25 × with a loss of 0.02",)
    assert compare(paths, latency=17).take == ("take slow, 1.20 × with a loss of 0.001",)
    assert compare(paths, max_loss=1e-4).take == ("none loses at most 0.0001",)
    assert compare(paths, latency=1).take == ("none takes at most 1 ms",)
    head, rows = table_of(found)
    row = dict(zip(head, rows[0], strict=True))
    assert row["speed"] == "3.00 ×"
    assert row["95 %"] == "2.70–3.30"
    assert row["loss"] == "0.03"
    assert row["worst"] == "0.06"
    assert row["latency"] == "6.67 ms, measured"
    assert row["top-1 same"] == "75%"


def test_the_dense_model_in_int8_is_one_of_them(source: Path) -> None:
    dense = made(
        source,
        "dense",
        1.0,
        0.0005,
        precision="int8",
        speedup=None,
        schedule={"schema": 1, "method": "none", "reductions": []},
        latency=(
            Latency("dense", "measured", 20.0, "here", "it"),
            Latency("dense int8", "measured", 8.0, "here", "it"),
        ),
    )
    found = compare([dense, made(source, "slower", 2.0, 0.01)])
    first = found.builds[0]
    assert (first.name, first.method, first.speed) == ("dense", "dense", 2.5)
    assert found.take == (
        "take dense, 2.50 × with a loss of 0.0005: none is faster, and none loses less",
    )


def test_losses_on_other_images_are_not_compared(source: Path) -> None:
    found = compare([made(source, "one", 2.0, 0.1), made(source, "two", 3.0, 0.01, data="others")])
    assert [b.beaten for b in found.builds] == ["", ""]
    assert found.take[0].startswith("which to take cannot be said")
    assert any("not seen on the same images: 8 images; others" in note for note in found.notes)


@pytest.mark.parametrize(
    ("kind", "digests", "same"),
    [
        ("data", ("0" * 64, "0" * 64), True),
        ("data", ("0" * 64, "1" * 64), False),
        ("data", ("0" * 64, None), False),
        ("data", (None, None), False),
        (None, (None, None), False),
        ("scenes", (None, None), True),
        ("scenes", (None, "1" * 64), True),
    ],
)
def test_images_are_the_same_by_their_digest(
    kind: Any, digests: tuple[str | None, str | None], same: bool, source: Path
) -> None:
    """Folders of one name hold other images."""
    paths = [made(source, "worse", 2.0, 0.1), made(source, "better", 3.0, 0.01)]
    for path, digest in zip(paths, digests, strict=True):
        fidelity = load_artifact(path).manifest.fidelity
        assert fidelity is not None
        made(
            source,
            path.name,
            *((2.0, 0.1) if path.name == "worse" else (3.0, 0.01)),
            fidelity=replace(fidelity, kind=kind, digest=digest),
        )
    found = compare(paths)
    assert [b.beaten for b in found.builds] == (["", "better"] if same else ["", ""])
    assert found.take[0].startswith("take better" if same else "which to take cannot be said")
    assert any("the same images" in note for note in found.notes) is not same


def test_what_is_not_one_model_or_one_target_is_said(source: Path, tmp_path: Path) -> None:
    other = save_tiny_vit(tmp_path / "other.onnx", seed=1)
    found = compare([made(source, "here", 2.0, 0.1), made(other, "there", 3.0, 0.2)])
    assert "they are not builds of one model file" in found.notes
    away = made(source, "away", 4.0, 0.01, target=TargetEntry("orin", "jetson"))
    other_target = compare([made(source, "here", 2.0, 0.1), away])
    for ranked, why in (
        (compare([made(source, "here", 2.0, 0.1), made(other, "better", 3.0, 0.01)]), "one model"),
        (other_target, "several targets"),
    ):
        assert [b.beaten for b in ranked.builds] == ["", ""]
        (line,) = ranked.take
        assert line.startswith("which to take cannot be said: they are ")
        assert why in line
    failed = made(other, "failed", 4.0, 0.01, fault="it")
    assert compare([made(source, "here", 2.0, 0.1), failed]).take[0].startswith("take here, 2.00 ×")


def test_a_build_that_failed_is_never_one_to_take(source: Path) -> None:
    failed = made(source, "failed", 5.0, 0.0001, fault="output 'logits' differs")
    found = compare([failed, made(source, "sound", 2.0, 0.01)])
    first, sound = found.builds
    assert (first.name, first.verdict, first.fault) == (
        "failed",
        "failed",
        "output 'logits' differs",
    )
    assert sound.verdict == "not beaten"
    assert found.take == (
        "take sound, 2.00 × with a loss of 0.01: none is faster, and none loses less",
    )
    assert "failed failed and is kept for debugging only: output 'logits' differs" in found.notes
    assert [row[-1] for row in table_of(found)[1]] == ["failed", "not beaten"]
    assert page_of(found).count('class="ring"') == 1
    unseen = made(source, "unseen", 5.0, 0.1, fault="it", fidelity=None)
    assert compare([unseen, made(source, "seen", 2.0, 0.01)]).builds[1].loss == pytest.approx(0.01)
    assert compare([failed, unseen]).take == ("none can be taken: all of them failed a check",)


def test_names_tell_builds_apart(source: Path, tmp_path: Path) -> None:
    a, b = (made(source, f"{one}/out", 2.0, 0.1) for one in ("a", "b"))
    assert [x.name for x in compare([a, b]).builds] == ["a/out", "b/out"]
    for wrong, words in (([a], "two artifacts"), ([a, a], "the same artifact twice")):
        with pytest.raises(UsageError, match=words):
            compare(wrong)


def test_its_page_has_every_figure(source: Path) -> None:
    found = compare([made(source, "p<i>", 2.0, 0.1), made(source, "q", 3.0, 0.2)])
    page = page_of(found)
    assert "p&lt;i&gt;" in page
    assert "<i>" not in page
    _, rows = table_of(found)
    for cell in (c for row in rows for c in row if c):
        assert cell.replace("<", "&lt;").replace(">", "&gt;") in page
