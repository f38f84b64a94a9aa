"""examples/cpp/tcompile_runtime.hpp without a runtime: what it prepares and refuses.

It is compiled once, and skipped without a compiler or nlohmann's JSON.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import PIL
import pytest
from PIL import Image

import tcompile
from tcompile.artifact.manifest import SCHEMA
from tcompile.core.errors import UsageError
from tcompile.models.preprocess import load_image
from tcompile.plugins.check import specification_digest
from tcompile.plugins.spec import API_VERSION, PLUGIN_VERSION
from tests.support.artifacts import make_artifact
from tests.support.cpp_probe import HEADER, Probe, compiled_probe
from tests.support.tiny_vit import VitSpec, save_tiny_vit


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    return compiled_probe(tmp_path_factory)


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": [32, 32]}
RECORDS: list[dict[str, Any]] = [
    *(
        {**IMAGENET, "interpolation": name, "resize": resize, "crop_pct": crop}
        for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
        for resize, crop in (("crop", 0.875), ("squash", 1.0), ("pad", None))
    ),
    {**IMAGENET, "size": [24, 40]},  # what is not said: bicubic, the middle
    {**IMAGENET, "size": [24, 40], "resize": "pad", "channels": "last"},
    {**IMAGENET, "interpolation": None, "resize": None},
    {**IMAGENET, "mean": 0.5, "std": [0.5], "crop_pct": 384 / 438},
    {**IMAGENET, "crop_pct": 1.25},  # what is cut out is larger than the image
    {
        **IMAGENET,
        "size": [56, 28],
        "resize": "squash",
        "layout": "patches",
        "patch_size": 7,
        "merge_size": 2,
        "temporal_patch_size": 2,
    },
]
#: Height and width; of the tall ones rows are resized first.
SIZES = [(50, 60), (33, 17), (32, 32), (9, 200), (1, 1), (641, 479), (300, 100)]
PILLOW = int(PIL.__version__.partition(".")[0])


def test_images_are_prepared_to_the_pixel_as_in_python(probe: Probe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    jobs, wanted = [], []
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        if number % 2:  # edges of full contrast: what a filter overshoots is cut off
            pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
        pixels.tofile(tmp_path / f"{number}.rgb")
        for record in RECORDS:
            wanted.append(load_image(Image.fromarray(pixels), record))
            jobs.append(
                {
                    "do": "prepare",
                    "record": record,
                    "width": width,
                    "height": height,
                    "pixels": str(tmp_path / f"{number}.rgb"),
                    "dtype": "float32",
                    "out": str(tmp_path / f"{len(jobs)}.f32"),
                }
            )
    for job, want, got in zip(jobs, wanted, probe(jobs), strict=True):
        assert got["ok"]["shape"] == list(want.shape), job
        have = np.fromfile(job["out"], np.float32).reshape(want.shape)
        if PILLOW >= 13:
            np.testing.assert_array_equal(have, want, err_msg=str(job))
        else:  # which took columns first: one step of 255, over the smallest deviation
            np.testing.assert_allclose(have, want, atol=1.01 / 255 / 0.224, err_msg=str(job))


def test_a_uint8_input_gets_whole_pixels(probe: Probe, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(256, size=(40, 30, 3), dtype=np.uint8)
    pixels.tofile(tmp_path / "a.rgb")
    raw = {"mean": 0, "std": 1 / 255, "size": [32, 32], "channels": "last"}
    job = {"do": "prepare", "record": raw, "width": 30, "height": 40, "dtype": "uint8"}
    probe([{**job, "pixels": str(tmp_path / "a.rgb"), "out": str(tmp_path / "a.u8")}])
    want = np.rint(load_image(Image.fromarray(pixels), raw)).astype(np.uint8)
    assert np.array_equal(np.fromfile(tmp_path / "a.u8", np.uint8).reshape(want.shape), want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_halves_and_back(dtype: str, probe: Probe, tmp_path: Path) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    every = np.arange(1 << 16, dtype=np.uint16).view(kind).astype(np.float32)
    every = every[np.isfinite(every)]
    between = np.nextafter(every, np.float32(np.inf)).astype(np.float64) / 2 + every / 2
    drawn = np.random.default_rng(2).standard_normal(4096) * 10.0 ** np.arange(-8, 8).repeat(256)
    ties = (np.sort(every)[1:].astype(np.float64) + np.sort(every)[:-1]) / 2
    edge = [65519.99, 65520.0, -65520.0, 1e38, np.inf, -np.inf, 3e-8, 2**-25]
    values = np.concatenate([every, between, drawn, ties, edge]).astype(np.float32)
    values.tofile(tmp_path / "in")
    files = {"in": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    probe([{"do": "cast", "dtype": dtype, "count": len(values), **files}])
    with np.errstate(over="ignore"):
        want = values.astype(kind).astype(np.float32)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", np.float32), want)


def test_what_a_byte_cannot_hold_is_cut_off(probe: Probe, tmp_path: Path) -> None:
    values = np.array([-1e9, -1, -0.4, 1.5, 254.6, 256, np.inf, np.nan], np.float32)
    values.tofile(tmp_path / "in")
    files = {"in": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    probe([{"do": "cast", "dtype": "uint8", "count": len(values), **files}])
    assert np.fromfile(tmp_path / "out", np.float32).tolist() == [0, 0, 0, 2, 255, 255, 255, 0]


def test_digests(probe: Probe, tmp_path: Path) -> None:
    jobs = []
    for size in (0, 3, 55, 56, 63, 64, 65, (1 << 20) + 1):
        path = tmp_path / str(size)
        path.write_bytes(np.random.default_rng(size).bytes(size))
        jobs.append({"do": "sha256", "path": str(path)})
    want = [hashlib.sha256(Path(job["path"]).read_bytes()).hexdigest() for job in jobs]
    assert [answer["ok"] for answer in probe(jobs)] == want


def test_records_that_cannot_be_used(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "a.rgb").write_bytes(bytes(3))
    record: dict[str, Any]
    patches = {"patch_size": 4, "merge_size": 1, "temporal_patch_size": 1, "layout": "patches"}
    unfilled = "records images that"
    cases = [
        ({"size": [32, 32]}, "does not say how images are prepared"),
        ({**IMAGENET, "std": [0, 1, 1]}, "its numbers cannot be used"),
        ({**IMAGENET, "size": [1 << 15, 1 << 15]}, "its numbers cannot be used"),
        ({**IMAGENET, "size": [0, 32]}, "its numbers cannot be used"),
        ({**IMAGENET, "layout": "video"}, "takes video, not one image"),
        ({**IMAGENET, "layout": "patches"}, "does not say how images are prepared"),
        ({**IMAGENET, **patches, "patch_size": 1 << 16, "merge_size": 1 << 16}, unfilled),
        ({**IMAGENET, **patches, "merge_size": 1e30}, unfilled),
        ({**IMAGENET, "size": [1e30, 32]}, "its numbers cannot be used"),
        ({**IMAGENET, **patches, "temporal_patch_size": 10**9}, unfilled),
        (
            {**IMAGENET, **patches, "size": [8192, 8192], "temporal_patch_size": 4096},
            "its numbers cannot be used",
        ),
    ]
    job = {"do": "prepare", "width": 1, "height": 1, "dtype": "float32", "out": ""}
    given = [{**job, "record": record, "pixels": str(tmp_path / "a.rgb")} for record, _ in cases]
    for (record, words), answer in zip(cases, probe(given), strict=True):
        assert words in answer["error"], record
        assert answer["code"] == 2
        if record.get("temporal_patch_size", 1) > 1:
            continue  # Python has it tried, and ends for want of memory
        with pytest.raises(UsageError):
            load_image(Image.new("RGB", (1, 1)), record)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    save_tiny_vit(tmp_path / "m.onnx", VitSpec(depth=1))
    return make_artifact(tmp_path / "built", tmp_path / "m.onnx")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _short(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-5])


def _loop(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("model.onnx")


def _other(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


DAMAGE: list[tuple[Callable[[Path], object], bool]] = [
    (_short, True),
    (_other, True),
    (lambda folder: (folder / "model.onnx").unlink(), True),
    (_loop, True),
    (lambda folder: (folder / "manifest.json").unlink(), True),
    (lambda folder: _edit(folder, lambda d: d.update(schema="tcompile.manifest/9")), False),
    (lambda folder: _edit(folder, lambda d: d.pop("target")), False),
    (lambda folder: _edit(folder, lambda d: d.pop("versions")), False),
    (lambda folder: _edit(folder, lambda d: d["inputs"][0].update(shape=[1e30])), False),
    (lambda folder: _edit(folder, lambda d: d["inputs"][0].update(shape=[1.5])), False),
    (lambda folder: _edit(folder, lambda d: d["inputs"][0].update(shape=[-7])), False),
    (lambda folder: _edit(folder, lambda d: d["files"][0].update(bytes=-7)), False),
    (lambda folder: _edit(folder, lambda d: d.update(files=[{"path": 3}])), False),
    (lambda folder: _edit(folder, lambda d: d["files"][0].update(path="../x")), False),
    (lambda folder: (folder / "manifest.json").write_text("{"), False),
]


@pytest.mark.parametrize(("damage", "same_words"), DAMAGE)
def test_what_is_damaged_is_refused_in_the_words_of_python(
    damage: Callable[[Path], object], same_words: bool, probe: Probe, built: Path
) -> None:
    damage(built)
    with pytest.raises(tcompile.TcompileError) as error:
        tcompile.load(built)
    (answer,) = probe([{"do": "file", "path": str(built), "name": "model.onnx"}])
    assert answer["code"] == error.value.exit_code == 2
    if same_words:
        assert answer["error"] == str(error.value)
    else:
        start = f"{built / 'manifest.json'}: damaged manifest: "
        assert answer["error"].startswith(start)
        assert str(error.value).startswith(start)


def test_runtimes_that_are_not_there(probe: Probe, built: Path) -> None:
    jobs = [{"do": "load", "path": str(built), "runtime": name} for name in ("", "x", "tensorrt")]
    plain, unknown, engine = (answer["error"] for answer in probe(jobs))
    assert plain.startswith(f"{built}: is for cpu and runs in onnxruntime, this program was built")
    for name, have in (("x", unknown), ("tensorrt", engine)):
        with pytest.raises(UsageError) as error:
            tcompile.load(built, name)
        assert have.partition(" (")[0] == str(error.value).partition(" (")[0]


def test_engines_made_on_a_device(probe: Probe, built: Path) -> None:
    def jetson(document: dict[str, Any]) -> None:
        document["target"]["runtime"] = "jetson"

    _edit(built, jetson)
    (built / "engine").mkdir()
    name = "engine/model.trt10.3.engine"
    (built / name).write_bytes(b"engine")
    ask = {"do": "file", "path": str(built), "name": name}
    digest = hashlib.sha256(b"engine").hexdigest()
    assert "ok" in probe([ask])[0]  # by hand, without the script's digest
    (built / f"{name}.sha256").write_text(f"{digest}  {name}\n")
    assert "ok" in probe([ask])[0]
    (built / name).write_bytes(b"other")
    assert "error" in probe([ask])[0]
    (built / f"{name}.sha256").unlink()
    (built / f"{name}.sha256").symlink_to(f"{Path(name).name}.sha256")  # round and round
    assert "error" in probe([ask])[0]


def _library(path: Path, machine: int = 62, **changes: str) -> str:
    facts = {"package": "0.1", "plugin": "1", "api": "1", "tensorrt": "10.3.0", "cuda": "12.6"}
    facts |= {"architectures": "87-real,90", "specification": specification_digest(), **changes}
    text = " ".join(f"{key}={value}" for key, value in facts.items())
    head = b"\x7fELF\x02\x01".ljust(18, b"\0") + bytes([machine, 0])
    path.write_bytes(head.ljust(64, b"\0") + text.encode() + b"\0more")
    return str(path)


def test_plugin_libraries_are_read_before_they_are_loaded(probe: Probe, tmp_path: Path) -> None:
    machine = {"x86_64": 62, "aarch64": 183}[platform.machine()]
    other = 245 - machine
    cases: list[tuple[str, str, str]] = [
        (_library(tmp_path / "a", machine), "8.7", ""),
        (_library(tmp_path / "a", machine), "12.0", ""),  # by its PTX
        (_library(tmp_path / "a", machine), "7.5", "no code for GPU architecture 7.5"),
        (_library(tmp_path / "b", other), "8.7", "another machine"),
        (_library(tmp_path / "c", machine, tensorrt="11.1.0"), "8.7", "TensorRT 11.1.0, not 10.3"),
        (_library(tmp_path / "d", machine, specification="0"), "8.7", "another specification"),
        (_library(tmp_path / "e", machine, api="2"), "8.7", "another specification"),
        (_library(tmp_path / "f", machine, architectures="9" * 30), "8.7", "no code for GPU"),
        (str(tmp_path / "none"), "8.7", "there is no plugin library"),
        (str(HEADER), "8.7", "not an ELF file"),
    ]
    for path, capability, words in cases:
        job = {"do": "plugins", "path": path, "tensorrt": "10.3.0", "capability": capability}
        (answer,) = probe([job])
        assert words in answer.get("error", ""), (path, capability, answer)
        assert bool(words) == ("error" in answer)


def test_what_the_header_repeats_is_what_python_has() -> None:
    text = HEADER.read_text(encoding="utf-8")
    assert specification_digest() in text
    assert f'"{SCHEMA}"' in text
    assert f'facts["plugin"] != "{PLUGIN_VERSION}" || facts["api"] != "{API_VERSION}"' in text
