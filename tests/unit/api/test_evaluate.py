"""`evaluate` from files to figures, each worked out here from the images themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import tcompile
from tcompile import pipeline
from tcompile.api.evaluate import evaluate, write_evaluation
from tcompile.artifact.manifest import TargetEntry
from tcompile.core.errors import TcompileError, UsageError, VerificationError
from tests.support.artifacts import make_artifact
from tests.support.colours import NAMES, save_boxes, save_colours, save_image, save_map
from tests.support.tiny_vit import VitSpec, save_tiny_vit

#: The reduced model says green a little too often.
BIAS = (0.0, 0.15, 0.0)
COLOURS = [(200, 180, 0), (200, 100, 0), (40, 60, 0), (0, 90, 100), (0, 0, 250), (30, 20, 10)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos by class, a dense and a reduced model, and an artifact of the two."""
    monkeypatch.chdir(tmp_path)
    for i, colour in enumerate(COLOURS):
        save_image(Path(f"photos/{NAMES[int(np.argmax(colour))]}/{i}.png"), colour)
    save_colours(Path("dense.onnx"))
    save_colours(Path("reduced.onnx"), BIAS)
    make_artifact(Path("out"), Path("dense.onnx"), Path("reduced.onnx"))
    return tmp_path


def means(bias: tuple[float, ...] = (0.0, 0.0, 0.0)) -> list[list[float]]:
    return [[c / 255 + b for c, b in zip(colour, bias, strict=True)] for colour in COLOURS]


def test_an_artifact_on_a_folder_of_classes(folder: Path) -> None:
    found = evaluate("out", "photos", worst=2)
    truth = [int(np.argmax(colour)) for colour in COLOURS]
    before = [int(np.argmax(row)) for row in means()]
    after = [int(np.argmax(row)) for row in means(BIAS)]
    top1 = found.measure("top1")
    assert top1.dense == sum(a == b for a, b in zip(before, truth, strict=True)) / 6 == 1
    assert top1.reduced == sum(a == b for a, b in zip(after, truth, strict=True)) / 6 == 3 / 6
    assert found.measure("agreement").reduced == 3 / 6
    assert (found.images, found.labelled, found.same_source) == (6, 6, True)
    (output,) = found.outputs
    assert output.remarks == ("labels are names of the model's classes",)
    assert [(r.label, r.images, r.dense, r.reduced) for r in output.classes] == [
        ("red", 3, 1.0, pytest.approx(1 / 3)),
        ("blue", 2, 1.0, 0.5),
        ("green", 1, 1.0, 1.0),
    ]

    def share(row: list[float], label: int) -> float:
        return float(np.exp(row[label]) / sum(np.exp(row)))

    worst = output.worst[0]
    number = int(worst.id.rpartition("/")[2][0])
    drops = [share(a, y) - share(b, y) for a, b, y in zip(means(), means(BIAS), truth, strict=True)]
    assert number == int(np.argmax(drops))
    assert worst.dense == pytest.approx(share(means()[number], truth[number]))
    assert worst.reduced == pytest.approx(share(means(BIAS)[number], truth[number]))


def test_plain_files_arrays_and_data_sets_say_the_same(folder: Path) -> None:
    want = evaluate("out", "photos").measure("top1")
    pixels = np.stack([np.full((3, 8, 8), np.array(c)[:, None, None]) for c in COLOURS]) / 255
    labels = np.array([int(np.argmax(c)) for c in COLOURS])
    np.savez("x.npz", image=pixels.astype(np.float32), labels=labels)
    pairs = [(Image.new("RGB", (8, 8), c), int(y)) for c, y in zip(COLOURS, labels, strict=True)]
    for data in ("x.npz", pairs, {"image": pixels.astype(np.float32), "labels": labels}):
        found = evaluate("reduced.onnx", data, against="dense.onnx")
        assert found.measure("top1") == want
        assert found.same_source is None
    assert tcompile.evaluate is evaluate


def test_fixed_batches_are_filled_up_and_cut(folder: Path) -> None:
    save_colours(Path("four.onnx"), BIAS, batch=4)
    found = evaluate("four.onnx", "photos", against="dense.onnx")
    assert found.images == 6
    assert found.measure("top1") == evaluate("out", "photos").measure("top1")


def test_images_that_cannot_be_read_are_listed(folder: Path) -> None:
    Path("photos/red/torn.png").write_bytes(b"no image")
    found = evaluate("out", "photos")
    assert found.images == 6
    assert [(u.id, u.fault) for u in found.unreadable] == [
        ("red/torn.png", "is not an image that pillow can read")
    ]
    assert found.passed
    bounded = evaluate("out", "photos", fail_under=[("top1", 0.1)])
    assert bounded.gates[0].passed
    assert not bounded.passed  # on six of seven
    with pytest.raises(VerificationError, match="no bound holds: 1 of 7 images could not be read"):
        bounded.require()
    for i in range(4):
        shutil.copy("photos/red/0.png", f"photos/red/more{i}.png")
    assert evaluate("out", "photos", fail_under=[("top1", 0.1)]).passed  # ten of eleven
    Path("torn").mkdir()
    Path("torn/a.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"a\.png: is not an image"):
        evaluate("out", "torn")


def test_bounds(folder: Path) -> None:
    found = evaluate(
        "out",
        "photos",
        fail_under=[("top1", 0.5), ("agreement", 0.6)],
        fail_drop=[("top1", 0.5), ("top1", 0.4), ("agreement", 0.5)],
    )
    assert [(g.measure, g.kind, g.passed) for g in found.gates] == [
        ("top1", "under", True),
        ("agreement", "under", False),
        ("top1", "drop", True),
        ("top1", "drop", False),
        ("agreement", "drop", True),
    ]
    assert not found.passed
    (gate,) = evaluate("dense.onnx", "photos", against="dense.onnx", fail_drop=[("top1", 0)]).gates
    assert (gate.passed, str(gate.found)) == (True, "0.0")  # not -0.0
    with pytest.raises(
        VerificationError, match=r"agreement of 'logits' is 0\.5000, less than 0\.6"
    ):
        found.require()
    for options, says in (
        ({"fail_under": [("top2", 1)]}, "there is no measure 'top2'"),
        ({"fail_under": [("error", 1)]}, "'error' is an error"),
        ({"fail_under": [("miou", 1)]}, "'miou' was not measured"),
        ({"fail_under": [("top1", 95)]}, r"of 95 never holds \(of 95 %: top1=0\.95\)"),
        ({"fail_drop": [("top1", 1)]}, r"of 1 always holds \(of 1 %: top1=0\.01\)"),
    ):
        with pytest.raises(UsageError, match=says):
            evaluate("out", "photos", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"only": "none"}, "no output 'none' that can be compared"),
        ({"task": "boxes"}, "there is no task 'boxes'"),
        ({"label_maps": "photos"}, r"no output has scores \[classes, height, width\]"),
        ({"label_maps": "nothing"}, "nothing: no such folder"),
        ({"texts": "texts.npy"}, r"no output is an embedding of 7 numbers"),
        ({"also": ["nothing"]}, "nothing"),
        ({"runtime": "tensorrt"}, "there is no engine for tensorrt"),
        ({"preprocess": "clip,size=9"}, "size"),
    ],
)
def test_what_cannot_be_asked(folder: Path, options: dict[str, Any], says: str) -> None:
    np.save("texts.npy", np.ones((2, 7)))
    with pytest.raises(UsageError, match=says):
        evaluate("out", "photos", **options)


def test_a_source_that_is_gone(folder: Path) -> None:
    with_dense = evaluate("out", "photos")
    Path("dense.onnx").rename("moved.onnx")
    found = evaluate("out", "photos", fail_under=[("top1", 0.5)])
    assert (found.dense, found.same_source, found.passed) == (None, None, True)
    assert found.notes == (
        "figures are those of the artifact alone: the dense model is not where it was, or was "
        "changed since: 'dense.onnx' (--against names one)",
    )
    (top1,) = found.outputs[0].measures
    assert (top1.dense, top1.difference, top1.interval) == (None, None, "wilson")
    assert top1.reduced == with_dense.measure("top1").reduced == 0.5
    assert top1.low is not None
    assert 0 < top1.low < 0.5
    rows = {row.label: row for row in found.outputs[0].classes}
    assert (rows["blue"].dense, rows["blue"].reduced, rows["blue"].agreement) == (None, 0.5, None)
    assert found.outputs[0].worst == ()
    json.dumps(found.to_json(), allow_nan=False)
    bare = evaluate("out", "photos", labels=False)
    assert bare.outputs[0].measures == ()
    assert "without labels its figures are comparisons with the dense" in bare.outputs[0].remarks[0]
    for options, says in (
        ({"fail_drop": [("top1", 0.5)]}, r"--fail-drop: 'top1' compares with the dense model, .*"),
        ({"fail_under": [("agreement", 0.5)]}, r"--fail-under: 'agreement' compares with the .*"),
        ({"fail_under": [("miou", 0.5)]}, r"'miou' was not measured: .* \(measured: top1\)"),
    ):
        with pytest.raises(UsageError, match=says):
            evaluate("out", "photos", **options)  # type: ignore[arg-type]
    found = evaluate("out", "photos", against="moved.onnx")
    assert found.same_source is True
    with pytest.raises(UsageError, match="give the dense model as --against"):
        evaluate("reduced.onnx", "photos")


def alone(reduced: Path, data: object, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures of an artifact with its dense model, a copy of it, and without."""
    Path("d.onnx").write_bytes(reduced.read_bytes())
    make_artifact(Path("alone"), Path("d.onnx"), reduced)
    both = evaluate("alone", data, **options)
    Path("d.onnx").unlink()
    found = evaluate("alone", data, **options)
    assert len(found.notes) == 1
    assert not any(output.worst for output in found.outputs)
    return tuple(  # type: ignore[return-value]
        {(o.task, m.name): m for o in e.outputs for m in o.measures} for e in (both, found)
    )


def test_each_task_without_the_dense_model(folder: Path) -> None:
    """Figures of the reduced model are what they are beside a dense one; comparisons are out."""
    pytest.importorskip("pycocotools")
    save_colours(Path("e.onnx"), BIAS, output="embedding", labels=())
    np.savez("texts.npz", embeddings=np.eye(3), classes=np.array(NAMES))
    for file in Path("photos").rglob("*.png"):
        Path("maps", file.parent.name).mkdir(parents=True, exist_ok=True)
        label = Image.new("L", (8, 8), NAMES.index(file.parent.name))
        label.save(Path("maps", file.parent.name, file.name))
    document = {
        "images": [{"id": 5, "file_name": "0.png", "width": 8, "height": 8}],
        "annotations": [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 4, 8]}],
        "categories": [{"id": 3, "name": "red"}],
    }
    Path("boxes.json").write_text(json.dumps(document), encoding="utf-8")
    m, e, b = save_map(Path("m.onnx"), (1, 2, 1)), Path("e.onnx"), save_boxes(Path("b.onnx"), 0.25)
    maps, photo = {"label_maps": "maps"}, "photos/red/0.png"
    for model, data, options, task, names in (
        (Path("reduced.onnx"), "photos", {}, "classes", ["top1"]),
        (e, "photos", {"texts": "texts.npz"}, "classes", ["zeroshot1"]),
        (e, "photos", {}, "embedding", ["knn", "recall1", "map"]),
        (m, "photos", maps, "label map", ["miou", "pixel"]),
        (b, photo, {"boxes": "boxes.json"}, "boxes", ["ap", "ap50", "ap75"]),
        (m, "photos", {}, "features", []),
    ):
        both, found = alone(model, data, **options)
        assert [n for t, n in found if t == task] == names, task
        for key, measure in found.items():
            assert measure.reduced == both[key].reduced
            assert (measure.dense, measure.difference, measure.p_value) == (None, None, None)
            assert measure.low is None or measure.low <= measure.reduced <= measure.high


def test_an_engine_that_was_not_run_is_said(folder: Path) -> None:
    target = TargetEntry("rtx-4090", "tensorrt-rtx")
    make_artifact(Path("rtx"), Path("dense.onnx"), Path("reduced.onnx"), target=target)
    found = evaluate("rtx", "photos", runtime="onnxruntime", also=["out"])
    assert found.notes == (
        "its model.onnx ran in onnxruntime on the CPU; the engine was not run",
        "kept tokens are not compared with out: both must tell as many of them",
    )


def test_hints_are_options(folder: Path) -> None:
    """Not the keywords of `tcompile.load`; of --also, which takes no --runtime, none."""
    target = TargetEntry("rtx-4090", "tensorrt-rtx")
    make_artifact(Path("rtx"), Path("dense.onnx"), Path("reduced.onnx"), target=target)
    with pytest.raises(TcompileError, match="--runtime onnxruntime runs its model") as caught:
        evaluate("rtx", "photos")
    assert "runtime=" not in str(caught.value)
    assert evaluate("rtx", "photos", runtime="onnxruntime").images == 6
    with pytest.raises(TcompileError) as caught:
        evaluate("out", "photos", also=["rtx"])
    assert "runtime" not in caught.value.hint
    fault = "logits differ"
    make_artifact(Path("bad"), Path("dense.onnx"), Path("reduced.onnx"), fault=fault)
    with pytest.raises(TcompileError, match=r"for debugging: logits differ \(build it again\)$"):
        evaluate("bad", "photos")


def test_pixels_in_an_array_are_told_from_prepared_inputs(folder: Path) -> None:
    for array, said in ((np.full((2, 3, 8, 8), 200, np.uint8), 1), (np.zeros((2, 3, 8, 8)), 0)):
        np.save("x.npy", array)
        notes = evaluate("out", "x.npy").notes
        assert sum("whole numbers for 'image'" in note for note in notes) == said


def test_names_as_labels_of_arrays(folder: Path) -> None:
    pixels = np.zeros((2, 3, 8, 8), np.float32)
    np.savez("x.npz", image=pixels, labels=np.array(["Red", "blue"]))
    found = evaluate("out", "x.npz")
    assert found.outputs[0].remarks == ("labels are names of the model's classes",)
    assert {row.label for row in found.outputs[0].classes} == {"red", "blue"}
    np.savez("x.npz", image=pixels, labels=np.array([1, 3]))
    says = r"label 3 of sample 2 is none of the classes 0 to 2 of .* \(classes are counted from 0"
    with pytest.raises(UsageError, match=says):
        evaluate("out", "x.npz")
    assert evaluate("out", "x.npz", labels=False).labelled == 0  # the hint is followed


def test_classes_that_are_several_numbers_are_refused(folder: Path) -> None:
    hot = [(Image.new("RGB", (8, 8)), np.eye(3)[0])]
    with pytest.raises(UsageError, match=r"3 numbers for a class, .*or do without, --no-labels"):
        evaluate("out", hot)
    assert evaluate("out", hot, labels=False).labelled == 0


def test_odd_files_of_a_folder(folder: Path) -> None:
    """Whatever people's folders have: each is read as viewers show it, or listed."""
    odd, red = Path("odd"), Image.new("RGB", (40, 30), (200, 30, 20))
    odd.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    red.save(odd / "turned.jpg", exif=turned)
    red.convert("CMYK").save(odd / "cmyk.JPG")
    for mode in ("RGBA", "L", "LA", "P", "1"):
        red.convert(mode).save(odd / f"ünï {mode}.png")
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(odd / "16.png")
    red.save(odd / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 30))] * 2)
    Image.effect_noise((200, 150), 90).save(odd / "whole.jpg")
    data = (odd / "whole.jpg").read_bytes()
    (odd / "torn.jpg").write_bytes(data[: len(data) // 2])
    (odd / "empty.png").touch()
    (odd / "nested.png").mkdir()
    for name in (".DS_Store", "Thumbs.db", "._turned.jpg", "notes.txt"):
        (odd / name).write_bytes(b"no image")
    found = evaluate("out", "odd")
    assert found.images == 10
    assert [u.id for u in found.unreadable] == ["empty.png", "torn.jpg"]
    assert "is truncated" in found.unreadable[1].fault
    for path in odd.iterdir():
        if path.is_file() and path.name not in ("torn.jpg", "empty.png"):
            path.unlink()
    with pytest.raises(UsageError, match="odd: none of the 2 images can be read; the first: odd/e"):
        evaluate("out", "odd")


def test_how_images_are_prepared_is_said_of_images(folder: Path) -> None:
    (note,) = evaluate("out", "photos", preprocess="imagenet").notes
    assert note.startswith("images are prepared as --preprocess says")
    arrays = {"image": np.zeros((2, 3, 8, 8), np.float32)}
    assert evaluate("out", arrays, preprocess="imagenet").notes == ()


def test_json_is_plain_and_whole(folder: Path) -> None:
    found = evaluate("out", "photos", worst=3)
    path = write_evaluation(found, "out.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(found.to_json()))
    assert document["worst"][0] == {"output": "logits", **document["outputs"][0]["worst"][0]}
    assert {"id", "measure", "dense", "reduced"} <= set(document["worst"][0])
    with pytest.raises(UsageError, match="folder does not exist"):
        write_evaluation(found, "no/out.json")
    assert not list(folder.glob(".*part"))


def test_zero_shot_and_label_maps(folder: Path) -> None:
    save_colours(Path("d.onnx"), output="embedding", labels=())
    save_colours(Path("r.onnx"), BIAS, output="embedding", labels=())
    np.savez("texts.npz", embeddings=np.eye(3), classes=np.array(NAMES))
    found = evaluate("r.onnx", "photos", against="d.onnx", texts="texts.npz")
    assert found.measure("zeroshot1").dense == 1
    assert found.measure("zeroshot1").reduced == 3 / 6
    assert [o.task for o in found.outputs] == ["classes", "embedding"]
    save_map(Path("md.onnx"), (1, 1, 1))
    save_map(Path("mr.onnx"), (1, 2, 1))
    for file in Path("photos").rglob("*.png"):
        label = NAMES.index(file.parent.name)
        map_file = Path("maps") / file.parent.name / file.name
        map_file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), label).save(map_file)
    found = evaluate("mr.onnx", "photos", against="md.onnx", label_maps="maps")
    after = [int(np.argmax([r, 2 * g, b])) for r, g, b in COLOURS]
    truth = [int(np.argmax(c)) for c in COLOURS]
    ious = []
    for number in range(3):
        inter = sum(a == t == number for a, t in zip(after, truth, strict=True))
        union = sum(number in (a, t) for a, t in zip(after, truth, strict=True))
        ious.append(inter / union)
    assert found.measure("miou").dense == 1
    assert found.measure("miou").reduced == pytest.approx(np.mean(ious))
    assert found.outputs[0].classes[0].label == NAMES[int(np.argmin(ious))]


def test_boxes(folder: Path) -> None:
    """A red image with one box, its left half: found by the dense model, beside one too many; the
    reduced one's boxes lie a quarter to the right, which overlaps by a third."""
    pytest.importorskip("pycocotools")
    save_boxes(Path("d.onnx"), 0.0)
    save_boxes(Path("r.onnx"), 0.25)
    document = {
        "images": [{"id": 5, "file_name": "0.png", "width": 8, "height": 8}],
        "annotations": [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 4, 8]}],
        "categories": [{"id": 3, "name": "red"}],
    }
    Path("boxes.json").write_text(json.dumps(document), encoding="utf-8")
    found = evaluate("r.onnx", "photos/red/0.png", against="d.onnx", boxes="boxes.json")
    ap = found.measure("ap")
    assert (ap.dense, ap.reduced, ap.low) == (pytest.approx(1.0), 0.0, None)
    assert (found.outputs[0].task, found.outputs[0].output) == ("boxes", "pred_boxes")
    assert found.outputs[0].worst[0].id == "0.png"
    with pytest.raises(UsageError, match="no outputs are scores"):
        evaluate("out", "photos/red/0.png", boxes="boxes.json")


def test_kept_tokens_are_compared_with_another_runtime_and_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = save_tiny_vit(Path("vit.onnx"), VitSpec(depth=4, image=48), batch=None)
    pipeline.build(source, target="cpu", keep=0.6, method="topk", force=True, output="a")
    images = np.random.default_rng(0).normal(size=(5, 3, 48, 48)).astype(np.float32)
    found = evaluate("a", {"image": images}, also=["openvino", "a"], worst=2)
    overlaps = {o.between: o for o in found.overlaps}
    assert overlaps["a"].mean == 1
    assert overlaps["openvino"].images == 5
    assert overlaps["openvino"].mean > 0.9
    logits = [
        np.concatenate([_run(path, row) for row in images]) for path in ("vit.onnx", "a/model.onnx")
    ]
    same = (logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).mean()
    assert found.measure("agreement").reduced == same


def _run(path: str, image: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(onnx.load(path).SerializeToString())
    return np.asarray(session.run(["logits"], {"image": image[None]})[0])


def test_tokens_of_neighbouring_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    source = save_tiny_vit(Path("vit.onnx"), VitSpec(depth=4, image=48), batch=None)
    pipeline.build(
        source, target="cpu", keep=0.6, method="topk", force=True, output="a", preprocess="clip"
    )
    with av.open("still.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    found = evaluate("a", "still.mp4", preprocess="clip", worst=1)
    (overlap,) = found.overlaps
    assert (overlap.between, overlap.images) == ("the next frame", 3)
    assert overlap.mean > 0.8  # a still picture
    assert found.images == 4
