"""`tcompile.load`: what it takes, what it gives, and what it refuses before anything is opened."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import tcompile
from tcompile.api.run import run
from tcompile.artifact.manifest import TargetEntry
from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.deploy.inputs import samples_of
from tcompile.deploy.load import Model
from tcompile.models.preprocess import PREPROCESS_KEY, load_image
from tcompile.targets.backends.cpu import OnCpu
from tcompile.targets.backends.ort import OrtRunner
from tests.support.artifacts import make_artifact
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit

LABELS = [f"class {i}" for i in range(10)]
PREPROCESSING: dict[str, Any] = {
    "input": "image",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "size": [32, 32],
    "crop_pct": 0.9,
    "resize": "crop",
    "interpolation": "bilinear",
}


def save_vit(path: Path, spec: VitSpec | None = None, batch: int | None = 1, **record: Any) -> Path:
    """A tiny ViT that says how images are prepared for it."""
    spec = spec or VitSpec(depth=1)
    model = build_vit(spec, random_weights(spec), batch=batch)
    text = json.dumps({**PREPROCESSING, "labels": LABELS, **record})
    helper.set_model_props(model, {PREPROCESS_KEY: text})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def free(sources: Path) -> Path:
    """An artifact of any batch."""
    return make_artifact(sources / "free", save_vit(sources / "free.onnx", batch=None))


@pytest.fixture(scope="module")
def pictures(sources: Path) -> tuple[Path, ...]:
    rng = np.random.default_rng(0)
    paths = tuple(sources / f"{i}.png" for i in range(5))
    for path in paths:
        Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def edit(artifact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = artifact / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_every_form_of_the_same_images_gives_the_same(
    free: Path, pictures: tuple[Path, ...]
) -> None:
    """Against the session itself, on images prepared one by one."""
    prepared = np.concatenate([load_image(p, PREPROCESSING) for p in pictures])
    want = OrtRunner(free / "model.onnx").run({"image": prepared})["logits"]
    pixels = np.stack([np.asarray(Image.open(p)) for p in pictures])
    model = tcompile.load(free)
    for given in (
        pictures,
        [str(p) for p in pictures],
        [Image.open(p) for p in pictures],
        [pictures[0], Image.open(pictures[1]), pixels[2], *pictures[3:]],
        pixels,
        list(pixels),
        prepared,
        prepared.astype(np.float64),
        list(prepared),
        list(prepared[:, None]),
        {"image": prepared},
        {"image": list(pictures)},
    ):
        np.testing.assert_array_equal(model(given)["logits"], want)
    for one in (pictures[0], str(pictures[0]), Image.open(pictures[0]), pixels[0], prepared[0]):
        np.testing.assert_allclose(model(one).logits, want[:1], atol=1e-5)
    assert model(pictures[0]).logits.shape == (1, 10)


def test_a_fixed_batch_is_filled_up_and_cut_off(
    free: Path, tmp_path: Path, pictures: tuple[Path, ...]
) -> None:
    fixed = tcompile.load(make_artifact(tmp_path / "two", save_vit(tmp_path / "m.onnx", batch=2)))
    assert fixed.batch == 2
    result = fixed(pictures)
    assert result.logits.shape == (5, 10)
    np.testing.assert_allclose(result.logits, tcompile.load(free)(pictures).logits, atol=1e-5)


def test_a_free_batch_is_run_as_given(free: Path, pictures: tuple[Path, ...]) -> None:
    model = tcompile.load(free)
    seen: list[int] = []
    runner = OrtRunner(free / "model.onnx")

    class Watched:
        path, inputs, outputs, metadata = runner.path, runner.inputs, runner.outputs, {}
        batches = (2, 3)

        def run(self, feed: Any) -> Any:
            seen.append(len(feed["image"]))
            return runner.run(feed)

    other = Model(Watched(), model.signature, "tensorrt")
    np.testing.assert_allclose(other(pictures).logits, model(pictures).logits, atol=1e-5)
    assert other(pictures[0]).logits.shape == (1, 10)
    assert seen == [3, 3, 2]  # of an engine for 2 to 3
    samples = samples_of(model.signature, pictures)
    np.testing.assert_allclose(other.run(samples).logits, model(pictures).logits, atol=1e-5)
    assert seen[3:] == [3, 3]
    del Watched.batches
    Model(Watched(), model.signature, "onnxruntime")(np.zeros((19, 3, 32, 32), np.float32))
    assert seen[5:] == [19]


def test_tensors_of_pytorch_are_arrays(free: Path) -> None:
    model = tcompile.load(free)
    pixels = torch.zeros(32, 32, 3, dtype=torch.uint8)
    np.testing.assert_array_equal(model(pixels).logits, model(pixels.numpy()).logits)
    with pytest.raises(TcompileError, match=r"Tensor does not become an array: .*grad"):
        model(torch.zeros(1, 3, 32, 32, requires_grad=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "empty list"),
        ("no.png", r"no\.png: no such file"),
        (5, "int is not understood"),
        (b"bytes", "bytes is not understood"),
        (np.zeros((1, 3, 5, 5), np.float32), "is n × 3 × 32 × 32, the data 1 × 3 × 5 × 5"),
        (np.zeros((32, 32, 3), np.float32), "the data 1 × 32 × 32 × 3"),
        (np.zeros((3, 32, 32), np.uint8), r"uint8 \[3, 32, 32\] is neither pixels"),
        (np.full((3, 32, 32), np.nan), "9|not finite"),
        (np.array(["text"]), "not real numbers"),
        (np.zeros((0, 3, 32, 32), np.float32), "holds no samples"),
        ([np.zeros((3, 32, 32)), np.zeros((3, 16, 16))], "several shapes"),
        ([np.zeros((9, 9, 3), np.uint8), np.zeros((3, 32, 32))], "images and ndarray in one list"),
        ({"pixels": np.zeros((1, 3, 32, 32))}, "has no 'image'; the model takes image"),
        ({"image": np.zeros((1, 3, 32, 32)), "mask": np.zeros(1)}, "has 'mask'"),
    ],
)
def test_what_does_not_fit_is_one_error(free: Path, given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        tcompile.load(free)(given)
    assert "\n" not in caught.value.one_line()


def test_a_model_that_does_not_say_how_images_are_prepared(
    tmp_path: Path, pictures: tuple[Path, ...]
) -> None:
    plain = make_artifact(tmp_path / "plain", save_tiny_vit(tmp_path / "m.onnx", VitSpec(depth=1)))
    with pytest.raises(UsageError, match="say preprocess='imagenet'"):
        tcompile.load(plain)(pictures[0])
    model = tcompile.load(plain, preprocess="imagenet")
    assert (model.labels, model.preprocessing["size"]) == ((), [32, 32])
    assert model(pictures[0]).top(1)[0][0].label == ""
    note = tcompile.load(save_vit(tmp_path / "r.onnx"), preprocess="clip").notes
    assert "images are prepared as --preprocess says" in note[0]


def test_several_inputs_are_given_by_name(tmp_path: Path) -> None:
    shapes = {"image": ["b", 3, 4, 4], "scale": ["b", 1]}
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Cast", ["scale"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mean", "real"], ["out"]),
    ]
    kinds = (TensorProto.FLOAT, TensorProto.INT64)
    values = [
        helper.make_tensor_value_info(n, k, s)
        for (n, s), k in zip(shapes.items(), kinds, strict=True)
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", 3])
    opset = helper.make_opsetid("", 17)
    graph = helper.make_graph(nodes, "g", values, [out])
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    onnx.save(model, tmp_path / "two.onnx")
    loaded = tcompile.load(tmp_path / "two.onnx")
    images = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    found = loaded({"image": images, "scale": np.array([[2], [3]])})
    np.testing.assert_allclose(found.out, images.mean((2, 3)) * [[2], [3]], rtol=1e-5)
    with pytest.raises(UsageError, match="has no 'scale'; the model takes image, scale"):
        loaded(images)
    with pytest.raises(UsageError, match=r"which is not a value of the input's type int64"):
        loaded({"image": images, "scale": np.array([[2.5], [3]])})


def test_the_best_classes_have_their_names(free: Path, pictures: tuple[Path, ...]) -> None:
    result = tcompile.load(free)(pictures)
    best = result.top(3)
    assert [len(row) for row in best] == [3] * 5
    for row, logits in zip(best, result["logits"], strict=True):
        order = np.argsort(-logits)[:3]
        assert [c.index for c in row] == order.tolist()
        assert [c.label for c in row] == [LABELS[i] for i in order]
        shares = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose([c.probability for c in row], shares[order], rtol=1e-5)
    with pytest.raises(KeyError, match="there are logits"):
        result.top(output="nothing")
    with pytest.raises(AttributeError, match="no output 'nothing'"):
        _ = result.nothing
    again = pickle.loads(pickle.dumps(result))
    assert dict(again)["logits"] is again.logits
    assert "logits float32[5, 10]" in repr(result)


def test_labels_of_another_number_than_the_classes_are_not_used(tmp_path: Path) -> None:
    model = tcompile.load(save_vit(tmp_path / "m.onnx", labels=["only", "two"]))
    assert model.labels == ("only", "two")
    (best,) = model(np.zeros((3, 32, 32), np.float32)).top()
    assert {c.label for c in best} == {""}


def test_a_build_says_its_labels_tokens_and_preprocessing(
    tmp_path: Path, pictures: tuple[Path, ...]
) -> None:
    source = save_vit(tmp_path / "m.onnx", VitSpec(pool="none"), batch=None)
    built = tcompile.build(source, target="cpu", method="tome:r=3", force=True)
    with tcompile.load(built) as model:
        assert model.manifest is not None
        assert model.manifest.labels == model.labels == tuple(LABELS)
        assert model.manifest.preprocess == model.preprocessing == PREPROCESSING
        result = model(pictures[:2])
        (output,) = model.token_index
        tokens = result.tokens(output)
    assert tokens is not None
    assert result[output].shape[:2] == tokens.index.shape == (2, 8)
    assert tokens.owner is not None
    assert tokens.size is not None
    # Each of the 17 tokens belongs to one that stays, which knows how many it stands for.
    for owner, size in zip(tokens.owner, tokens.size, strict=True):
        assert np.bincount(owner, minlength=8).tolist() == size.tolist()
    with pytest.raises(UsageError, match="no output holds classes"):
        result.top()
    assert tcompile.load(source)(pictures[:2]).tokens(output) is None
    with pytest.raises(UsageError, match=r"the model is closed \(load it again\)"):
        model(pictures[0])


def test_openvino_runs_it_too(free: Path, pictures: tuple[Path, ...]) -> None:
    with tcompile.load(free, "openvino") as model:
        assert model.runtime == "openvino"
        found = threaded(lambda: model(pictures).logits, 4)
    want = tcompile.load(free)(pictures).logits
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    np.testing.assert_allclose(found[0], want, atol=1e-4)


def test_an_artifact_for_openvino_is_opened_in_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_vit(tmp_path / "m.onnx")
    target = TargetEntry("cpu-openvino", "openvino")
    built = make_artifact(tmp_path / "bf16", source, target=target, precision="bf16")
    seen = []
    monkeypatch.setattr(OnCpu, "open", lambda how, *_: seen.append(how) or OrtRunner(source))
    assert tcompile.load(built).runtime == "openvino"
    assert seen == [OnCpu("openvino", "bf16")]


def test_what_openvino_refuses_of_another_target_has_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TargetEntry("rtx-4090", "tensorrt-rtx", "8.9")
    built = make_artifact(tmp_path / "a", save_vit(tmp_path / "m.onnx"), target=target)

    def refuse(how: OnCpu, path: Path, threads: int | None) -> None:
        raise ModelError("OpenVINO does not accept the model", where=str(path))

    monkeypatch.setattr(OnCpu, "open", refuse)
    with pytest.raises(ModelError, match=r'written for rtx-4090; runtime="onnxruntime" runs it'):
        tcompile.load(built, "openvino")


def threaded(call: Callable[[], Any], times: int) -> list[Any]:
    """What each of so many threads gets that call at the same time."""
    barrier = threading.Barrier(times)

    def one() -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(times) as pool:
        return [f.result() for f in [pool.submit(one) for _ in range(times)]]


def resident() -> int:
    """MiB of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def test_eight_threads_get_what_one_gets_and_memory_stays(
    free: Path, pictures: tuple[Path, ...]
) -> None:
    model = tcompile.load(free, threads=1)
    images = [(p, *pictures[:i]) for i, p in enumerate(pictures)]
    want = [model(each).logits for each in images]

    def all_of_them() -> list[Any]:
        return [model(each).logits for each in images]

    first = threaded(all_of_them, 8)
    before = resident() if sys.platform == "linux" else 0
    for _ in range(20):
        for found in (*threaded(all_of_them, 8), *first):
            for have, one in zip(found, want, strict=True):
                np.testing.assert_array_equal(have, one)
    if sys.platform == "linux":
        assert resident() - before < 8  # the images of these runs would be 30


def test_nothing_heavy_is_imported(free: Path) -> None:
    code = (
        "import sys, time; start = time.process_time(); import tcompile\n"
        "imported = time.process_time() - start; assert imported < 0.5, imported\n"
        "import numpy as np\n"
        f"tcompile.load({str(free)!r})(np.zeros((3, 32, 32), np.float32)).top()\n"
        "slow = {'torch', 'scipy', 'PIL', 'openvino', 'timm', 'tensorrt_rtx', 'cuda'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["[]"], found.stderr


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "a", save_vit(tmp_path / "m.onnx"))


def test_older_artifacts_load(artifact: Path, pictures: tuple[Path, ...]) -> None:
    """Of a manifest without labels and preprocessing, the model's metadata says them."""
    want = tcompile.load(artifact)(pictures).logits
    edit(artifact, lambda m: [m.pop(k) for k in ("labels", "preprocess", "token_index", "fault")])
    model = tcompile.load(artifact)
    assert model.labels == tuple(LABELS)
    np.testing.assert_array_equal(model(pictures).logits, want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema="tcompile.manifest/2"), "not a tcompile.manifest/1 document"),
        (
            lambda m: m.update(novel=1, tool="tcompile 99.0"),
            r"novel: unknown field \(written by tcompile 99\.0, this is tcompile ",
        ),
        (lambda m: m.pop("target"), "target: missing"),
        (lambda m: m.update(fault="NaN in logits"), r"kept for debugging: NaN in logits \(build"),
        (lambda m: m["inputs"][0].update(name="x"), "its inputs are 'image'.*manifest says 'x'"),
        (lambda m: m["outputs"][0].update(shape=[1, 11]), "its outputs are"),
        (lambda m: m["files"].clear(), r"model\.onnx: is not in the manifest"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "its sha256 is not that in the manifest"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(
    artifact: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(artifact, change)
    with pytest.raises(ModelError, match=words) as caught:
        tcompile.load(artifact)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], r"is truncated: \d+ of \d+ bytes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "its sha256 is not that"),
        (lambda data: data + b" ", "its sha256 is not that"),
    ],
)
def test_a_model_that_is_not_as_it_was_is_not_opened(
    artifact: Path, damage: Callable[[bytes], bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact / "model.onnx"
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.delattr("tcompile.deploy.load.signature")
    with pytest.raises(ModelError, match=words):
        tcompile.load(artifact)
    path.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: is missing \(copy the whole"):
        tcompile.load(artifact)


def test_weights_beside_the_model_are_looked_at_too(tmp_path: Path) -> None:
    source = save_vit(tmp_path / "m.onnx")
    model = onnx.load(source)
    options: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 1024}

    def fill(folder: Path) -> None:
        onnx.save(model, folder / "model.onnx", location="model.onnx.data", **options)

    built = make_artifact(tmp_path / "a", source, engine=fill)
    assert len(tcompile.load(built)(np.zeros((3, 32, 32), np.float32))) == 1
    data = built / "model.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(ModelError, match=r"model\.onnx\.data: is not as it was written"):
        tcompile.load(built)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "caffe"}, "there is no runtime 'caffe'"),
        ({"runtime": "tensorrt"}, "was built for cpu, there is no engine for tensorrt"),
        ({"providers": ["NoSuchProvider"]}, r"has no NoSuchProvider \(it has .*CPUExecution"),
        ({"cuda_graphs": True}, "cuda_graphs: says nothing to onnxruntime"),
        ({"device": 1}, "device: says nothing to onnxruntime, it is for tensorrt-rtx and tensorrt"),
        ({"runtime": "openvino", "providers": ["X"]}, "says nothing to openvino"),
        ({"preprocess": "nonsense"}, "there is no 'nonsense'"),
    ],
)
def test_options_that_do_not_fit(artifact: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tcompile.load(artifact, **options)


def test_what_is_no_artifact(tmp_path: Path) -> None:
    for path, words in (("", "there is no manifest"), ("gone", "no such directory")):
        with pytest.raises(UsageError, match=words):
            tcompile.load(tmp_path / path)
    for name in ("gone.onnx", "text.onnx"):
        (tmp_path / "text.onnx").write_text("text")
        with pytest.raises(TcompileError) as caught:
            tcompile.load(tmp_path / name)
        assert caught.value.exit_code == 2


def test_a_provider_that_is_there_by_name(free: Path, pictures: tuple[Path, ...]) -> None:
    model = tcompile.load(free, providers=["CPUExecutionProvider"])
    want = tcompile.load(free)(pictures).logits
    np.testing.assert_array_equal(model(pictures).logits, want)


def test_a_provider_of_a_plugin_is_found_by_its_devices(
    free: Path, pictures: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the CPU's own, as if ONNX Runtime did not have it built in."""
    import onnxruntime

    if not hasattr(onnxruntime, "get_ep_devices"):
        pytest.skip("this ONNX Runtime knows no plugins")
    want = tcompile.load(free)(pictures).logits
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    model = tcompile.load(free, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(model(pictures).logits, want)
    with pytest.raises(UsageError, match=r"has no CUDA.* \(it has CPUExecutionProvider;"):
        tcompile.load(free, providers=["CUDAExecutionProvider"])


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_not_passed_over(
    free: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would warn, and run everything on the CPU."""
    import onnxruntime

    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(UsageError, match="cannot start CUDAExecutionProvider"):
        tcompile.load(free, providers=names[:1])


def test_a_failed_build_is_loaded_where_it_is_asked_for(
    artifact: Path, pictures: tuple[Path, ...]
) -> None:
    edit(artifact, lambda m: m.update(fault="NaN in logits"))
    with tcompile.load(artifact, allow_failed=True) as model:
        assert model.notes == ("this build failed and was kept for debugging: NaN in logits",)
    assert run(artifact, pictures[0]).notes == model.notes
