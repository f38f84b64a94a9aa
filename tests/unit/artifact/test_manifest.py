"""The manifest, its published schema, and the way back from JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest

import tcompile
from tcompile.analysis.memory import Need
from tcompile.api.reference import DenseModel, find_dense
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import (
    BatchEntry,
    Fidelity,
    Latency,
    Manifest,
    OutputFidelity,
    Quantization,
    Rival,
    SpeedUp,
    TargetEntry,
)
from tcompile.artifact.page import render
from tcompile.core.decode import encode
from tcompile.core.errors import ModelError
from tcompile.core.model_files import FileEntry, describe_source, describe_tensors, is_source
from tcompile.planning.front import FrontPlan, front_of
from tcompile.planning.memory import Memory
from tcompile.planning.options.outcome import Share
from tcompile.targets.backends.base import FusedAttention
from tests.support.artifacts import make_artifact, manifest_for
from tests.support.tiny_vit import VitSpec, build_vit, save_tiny_vit
from tools import manifest_schema

SCHEMA = json.loads((Path(tcompile.__file__).parent / "manifest.schema.json").read_text())


@pytest.fixture
def full(tmp_path: Path) -> Manifest:
    """A manifest in which every field holds something."""
    source = save_tiny_vit(tmp_path / "vit.onnx", batch=None)
    return manifest_for(
        source,
        source,
        target=TargetEntry("rtx-4090", "tensorrt-rtx", "8.9"),
        precision="fp16",
        schedule={
            "schema": 1,
            "method": "evit:rate=0.7",
            "reductions": [
                {"site": "attn:3", "score": {"name": "cls"}, "reducer": {"name": "fuse"}, "keep": 9}
            ],
        },
        latency=(
            Latency("dense", "modelled", 1.5, "GeForce RTX 4090", "TensorRT-RTX 1.7"),
            Latency("reduced", "measured", 1.0, "this", "that", spread=(0.9, 1.1), note="warm"),
        ),
        fidelity=Fidelity(
            "8 images",
            8,
            (
                OutputFidelity("logits", "all", 0.99, 0.9, 0.875),
                OutputFidelity(
                    "map", "all", 0.99, 0.9, None, 0.9, 0.5, 0.1, 0.3, 0.7, "cat.jpg", "a remark"
                ),
            ),
            "data",
            "1" * 64,
        ),
        fused_attention=FusedAttention(12, 11, ("softmax_3",)),
        batch_sizes=BatchEntry(1, 4, 16),
        memory=Memory(
            Need(86_000_000, 9_000_000), Need(86_100_000, 8_000_000), 16, 24 << 30, 86_200_000, None
        ),
        quantization=Quantization(
            "static", "it is faster", 49, "8 procedural scenes", "4 norms, weighed on 8 scenes"
        ),
        rival=Rival(
            "dynamic",
            Fidelity("8 images", 8, (OutputFidelity("logits", "all", 0.99, 0.98),)),
            SpeedUp(1.5, 1.4, 1.6, "the dense model in int8"),
        ),
        notes=("made from a modelled profile",),
        files=(FileEntry("model.onnx", 3, "0" * 64),),
    )


def test_older_fidelity_is_read(full: Manifest) -> None:
    """Figures that came later are missing, and what they rest on is not known."""
    document = json.loads(json.dumps(full.to_json()))
    del document["fidelity"]["kind"], document["fidelity"]["digest"]
    later = ("correlation", "error", "token", "worst", "remark")
    for out in document["fidelity"]["outputs"]:
        for name in [n for n in out if n.startswith(later)]:
            del out[name]
    found = Manifest.from_json(document).fidelity
    assert found is not None
    assert (found.kind, found.reminder, found.known_by) == (None, "", "")
    assert found.outputs[1] == OutputFidelity("map", "all", 0.99, 0.9)
    assert "| map | all | 0.99000 |" in render(replace(full, fidelity=found))


def test_memory_is_on_the_page_and_older_manifests_have_none(full: Manifest) -> None:
    page = render(full)
    assert "| dense | 86 MB | 9 MB | 95 MB |" in page
    assert "| reduced | 86.1 MB | 8 MB | 94.1 MB |" in page
    assert "Predicted, in fp16, of a batch of 16; at least: what the runtime needs" in page
    assert "Written: model.onnx 86.2 MB. The device has 25.8 GB." in page
    document = json.loads(json.dumps(full.to_json()))
    del document["memory"]
    older = Manifest.from_json(document)
    assert older.memory is None
    assert "## Memory" not in render(older)


def test_plans_that_were_looked_at_are_on_the_page(full: Manifest) -> None:
    """As a manifest has them, and with what older ones have: nothing."""
    front = front_of(
        [
            FrontPlan("int8", "tome", 143, 20.0, 0.002, "int8", 32, chosen=True),
            FrontPlan("int8", "dense", 196, 30.0),
            FrontPlan("fp32", "dense", 196, 80.0, 0.0),
        ]
    )
    plan = {"losses": "1 - cosine, measured on 32 images", "latency_kind": "measured"}
    given = replace(full, plan={**plan, "front": encode(front)})
    page = render(Manifest.from_json(json.loads(json.dumps(given.to_json()))))
    assert "| int8 | tome | 143 | 20 ms | 0.002 | int8, 32 images | chosen |" in page
    assert "| int8 | dense | 196 | 30 ms | not run |  |  |" in page
    assert "Loss: 1 - cosine, measured on 32 images. Of the plans that were looked at" in page
    assert "Plans by latency" not in render(replace(full, plan=plan))


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_schema_accepts_what_we_write(full: Manifest, tmp_path: Path) -> None:
    minimal = manifest_for(tmp_path / "vit.onnx", tmp_path / "vit.onnx")
    for manifest in (full, minimal):
        document = json.loads(json.dumps(manifest.to_json()))
        jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
        assert Manifest.from_json(document) == manifest


def test_schema_is_made_from_the_classes() -> None:
    committed = (Path(tcompile.__file__).parent / "manifest.schema.json").read_text()
    assert committed == manifest_schema.text(), "run `python -m tools.manifest_schema`"


def test_schema_describes_every_field(full: Manifest) -> None:
    assert set(SCHEMA["properties"]) == set(full.to_json())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("tokens_per_block"),
        lambda d: d["latency"][0].update(kind="guessed"),
        lambda d: d["source"].update(sha256="abc"),
        lambda d: d["files"][0].update(path="../up"),
        lambda d: d["files"][0].update(path="/etc/passwd"),
        lambda d: d.update(another=1),
    ],
)
def test_schema_rejects(full: Manifest, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(json.dumps(full.to_json()))
    change(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_report_says_what_the_manifest_says(full: Manifest) -> None:
    report = render(full)
    for text in (
        "for rtx-4090",
        "fp16",
        "evit:rate=0.7",
        "modelled",
        "measured",
        "87.5%",
        "11 of 12 attention layers",
        "softmax_3",
        "made from a modelled profile",
        "50.0% less",
    ):
        assert text in report


def test_report_says_what_was_asked_and_what_it_brings(full: Manifest) -> None:
    """Budget, share kept, sites and scores, speed-up, prediction beside measurement."""
    report = render(
        replace(
            full,
            emitted="reduced",
            kept=Share(0.5, 98, 196),
            latency=(
                Latency("dense", "measured", 90.0, "this CPU", "ONNX Runtime"),
                Latency("reduced", "measured", 60.0, "this CPU", "ONNX Runtime"),
            ),
            speedup=SpeedUp(1.5, 1.44, 1.57, "the dense model as it came"),
            plan={
                "budget": {"keep": 0.5, "latency_ms": 62, "max_drop": 0.01},
                "latency_kind": "measured",
                "profile": "measured here in July",
                "band": 0.1,
                "predicted_ms": 58.0,
                "dense_ms": 91.0,
            },
            schedule={
                "schema": 1,
                "method": "chained",
                "tower": "left",
                "reductions": [
                    {
                        "site": "attn:3",
                        "score": {"name": "sum", "of": [{"name": "cls"}, {"name": "norm"}]},
                        "reducer": {"name": "merge", "metric": "k"},
                        "keep": 98,
                    }
                ],
                "towers": [
                    {
                        "tower": "right",
                        "reductions": [{"site": "block:1", "reducer": {"name": "topk"}, "keep": 9}],
                    }
                ],
            },
        )
    )
    for line in (
        "| asked | --keep 0.5, --latency 62 ms, --max-drop 0.01 |",
        "| kept | 50.0%: 98 of 196 patch tokens |",
        "| tower | site | score | reducer | patch tokens kept |",
        "| left | attn:3 | sum(cls, norm) | merge(metric=k) | 98 |",
        "| right | block:1 |  | topk | 9 |",
        "Speed-up of the reduced model over the dense model as it came, measured: 1.50 × "
        "[1.44, 1.57] (95 %).",
        "| predicted, measured profile | 91 ms | 58 ms | 1.57 |",
        "| measured | 90 ms | 60 ms | 1.50 |",
        "Predicted within 10%, from: measured here in July.",
    ):
        assert line in report.splitlines(), report
    assert "tensorrt_rtx" not in report


def test_tensors_of_a_symbolic_batch() -> None:
    inputs, outputs = describe_tensors(build_vit(VitSpec(), batch=None))
    assert [(t.name, t.dtype, t.shape) for t in (*inputs, *outputs)] == [
        ("image", "float32", ("batch", 3, 32, 32)),
        ("logits", "float32", ("batch", 10)),
    ]


def test_source_lists_external_data(tmp_path: Path) -> None:
    path = tmp_path / "vit.onnx"
    onnx.save(
        build_vit(VitSpec()),
        str(path),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    source = describe_source(path)
    assert [entry.path for entry in source.external_data] == ["w.bin"]
    assert source.external_data[0].bytes == (tmp_path / "w.bin").stat().st_size


def test_a_file_is_hashed_once_for_each_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx")
    first = describe_source(path)
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", None)
        assert describe_source(path) == first
        assert is_source(path, first)
    path.write_bytes(path.read_bytes() + onnx.ModelProto(doc_string="more").SerializeToString())
    changed = describe_source(path)
    assert changed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first.sha256
    assert not is_source(path, first)


def test_a_source_that_is_not_a_model_is_one_line(tmp_path: Path) -> None:
    """A manifest may name any file; its digest is all that is read of it."""
    made = make_artifact(tmp_path / "out", save_tiny_vit(tmp_path / "vit.onnx"))
    (tmp_path / "text").write_text("not a model")
    manifest = json.loads((made / "manifest.json").read_text())
    shape = {"tokens": 17, "prefix": 1, "patches": 16, "blocks": 3}
    manifest["schedule"]["model"] = shape
    digest = hashlib.sha256((tmp_path / "text").read_bytes()).hexdigest()

    def source(file: str, sha256: str) -> DenseModel | None:
        manifest["source"] = {**manifest["source"], "file": file, "sha256": sha256}
        (made / "manifest.json").write_text(json.dumps(manifest))
        return find_dense(load_artifact(made), None)

    text = str(tmp_path / "text")
    for file, sha256 in ((text, "0" * 64), ("/dev/zero", digest), (str(tmp_path), digest)):
        assert source(file, sha256) is None
    assert source(text, digest) == DenseModel(Path(text), True)
    with pytest.raises(ModelError, match=r"text: not an ONNX file, or truncated"):
        verify(made)


def test_names_of_files_are_text_in_the_report(full: Manifest) -> None:
    found = (OutputFidelity("logits", "all", 0.99, 0.98, worst="<img|x>.png"),)
    page = render(replace(full, fidelity=Fidelity("8 images", 8, found)))
    assert "| &lt;img&#124;x&gt;.png |" in page
