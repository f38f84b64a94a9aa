"""The main job on a model that comes along: `zoo:glyphs`, which adds up four digits in a scene.

No PyTorch needed: the trained weights are written straight into an ONNX graph.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.core.decode import parse_json
from tcompile.core.drafts import scratch
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.files import read_bytes
from tcompile.core.packages import require
from tcompile.core.progress import Progress, silent
from tcompile.models.onnx_vit import GraphWriter

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from tcompile.runtime.timing import Benchmark

    Array = np.ndarray[Any, np.dtype[Any]]

WIDTH, HEADS, DEPTH = 96, 3, 6
#: Share of the patch tokens that is kept unless told otherwise.
KEEP = Fraction(3, 5)


@dataclass(frozen=True)
class DemoResult:
    """Dense and reduced, side by side. Accuracies are shares of held-out scenes, latencies CPU.

    Attributes:
        method: that was followed.
        notes: of the build.
        emitted: `reduced`, or `dense` where the reduced model was measured to be no faster.
        summary: what was asked, what is kept, and why.
    """

    model: str
    artifact: str
    method: str
    scenes: int
    dense_top1: float
    reduced_top1: float
    tokens_in: int
    tokens_out: int
    benchmark: Benchmark
    notes: tuple[str, ...]
    emitted: str | None
    summary: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**asdict(self), "benchmark": self.benchmark.to_json()}


def demo(
    *,
    keep: Fraction | float | None = None,
    method: str = "auto",
    folder: str | Path | None = None,
    scenes: int = 500,
    progress: Progress = silent,
) -> DemoResult:
    """Make the model, build it for the CPU, and measure accuracy and latency of both.

    Args:
        keep: share of patch tokens to keep; by default 0.6, or what the method's own parameters
            say.
        method: as in `build`; by default what the planner solves for this CPU.
        folder: where model and artifact stay, a new or an empty one; left out, nothing stays.
        scenes: held-out scenes, rendered here (pillow), to score both models on.

    Raises:
        MissingExtraError: onnxruntime or pillow is not installed.
        UsageError: the folder holds something; the method learns from images.
    """
    from tcompile import pipeline
    from tcompile.api.bench import bench
    from tcompile.artifact.directory import load_artifact

    keep = _keep(keep, method)

    require("onnxruntime", "cpu", "running the models")
    require("PIL", "cpu", "rendering the scenes")
    with _empty(folder) as where:
        source = where / "glyphs.onnx"
        progress("writing the trained model as ONNX")
        write_glyphs(source)
        progress(f"tcompile build {source} --target cpu")
        directory = pipeline.build(
            source,
            target="cpu",
            keep=keep,
            method=method,
            output=where / "glyphs-cpu",
            progress=progress,
        )
        artifact = load_artifact(directory)
        progress(f"rendering {scenes} scenes that the model has never seen")
        dense, reduced = (top1(path, scenes) for path in (source, artifact.model))
        manifest = artifact.manifest
        blocks = manifest.tokens_per_block
        return DemoResult(
            model=str(source),
            artifact=str(directory),
            method=manifest.schedule["method"],
            scenes=scenes,
            dense_top1=dense,
            reduced_top1=reduced,
            tokens_in=blocks[0].attention,
            tokens_out=blocks[-1].mlp,
            benchmark=bench(directory, against=source, rounds=100, progress=progress),
            notes=manifest.notes,
            emitted=manifest.emitted,
            summary=manifest.summary,
        )


def _keep(keep: Fraction | float | None, method: str) -> Fraction | float | None:
    """Return the share that is kept where none was asked for: None if the method says it itself.

    Raises:
        UsageError: the method learns its counts from images, which the demo does not take.
    """
    from tcompile.methods.composition import parse_method
    from tcompile.planning.request import AUTO

    if method == AUTO:
        return KEEP if keep is None else keep
    preset, values = parse_method(method)
    if preset.scheduler.observes:
        raise UsageError(
            f"{preset.name} learns its counts from images, which the demo does not take",
            where="--method",
            hint="`tcompile demo -o DIR` writes the model; `tcompile build` takes --calibration",
        )
    own = any(values[key] is not None for key in preset.budget)
    return KEEP if keep is None and not own else keep


def top1(model: str | Path, scenes: int) -> float:
    """Share of held-out scenes whose sum the model gets right, on ONNX Runtime."""
    from tcompile.models.glyphs.evaluate import evaluate
    from tcompile.targets.backends.ort import OrtRunner

    runner = OrtRunner(Path(model))
    return evaluate(lambda images: runner.run({"image": images}), n=scenes, batch_size=50).top1


def write_glyphs(path: str | Path, weights: Mapping[str, Array] | None = None) -> None:
    """Write `zoo:glyphs` as ONNX, batch free: `image` [B, 3, 56, 56] to logits and patch logits.

    Args:
        weights: the state dict as numpy arrays; by default the trained one that comes with us.
    """
    import onnx

    from tcompile.models.glyphs import WEIGHTS

    onnx.save(glyphs_model(read_safetensors(WEIGHTS) if weights is None else weights), str(path))


def glyphs_model(weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph of `tcompile.models.glyphs.model.GlyphViT` with these weights."""
    from tcompile.models.glyphs import data
    from tcompile.models.preprocess import PREPROCESS_KEY, SOURCE_KEY

    writer = GraphWriter(weights)
    patches, tokens = data.GRID**2, data.GRID**2 + 1
    x = _stem(writer)
    x = writer.op("Reshape", x, writer.const([0, WIDTH, patches]))
    x = writer.op("Transpose", x, perm=[0, 2, 1])
    batch = writer.op("Gather", writer.op("Shape", x), writer.const([0]), axis=0)
    shape = writer.op("Concat", batch, writer.const([1, WIDTH]), axis=0)
    x = writer.op("Concat", writer.op("Expand", writer.weight("cls_token"), shape), x, axis=1)
    x = writer.op("Add", x, writer.weight("pos_embed"))
    for i in range(DEPTH):
        x = writer.block(x, f"blocks.{i}", tokens, WIDTH, HEADS, ("mlp.0", "mlp.2"))
    x = writer.layer_norm(x, "norm")
    cls = writer.op("Gather", x, writer.const(0), axis=1)
    bounds = (writer.const([1]), writer.const([tokens]), writer.const([1]))
    rest = writer.op("Slice", x, *bounds)
    preprocessing = {
        "input": "image",
        "size": [data.IMAGE_SIZE] * 2,
        "mean": data.MEAN,
        "std": data.STD,
        "interpolation": "bilinear",
        "labels": [str(data.SUM_MIN + i) for i in range(data.CLASSES)],
    }
    return writer.model(
        data.IMAGE_SIZE,
        {
            "logits": (writer.linear(cls, "head"), ["batch", data.CLASSES]),
            "patch_logits": (
                writer.linear(rest, "patch_head"),
                ["batch", patches, data.PATCH_CLASSES],
            ),
        },
        {SOURCE_KEY: "zoo:glyphs", PREPROCESS_KEY: json.dumps(preprocessing)},
    )


def _stem(writer: GraphWriter) -> str:
    """Two stride-2 3x3 convolutions with BatchNorm and GELU: 56x56 to 14x14."""
    x = "image"
    for conv, norm in (("stem.0", "stem.1"), ("stem.3", "stem.4")):
        x = writer.op(
            "Conv",
            x,
            writer.weight(f"{conv}.weight"),
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
        )
        parts = ("weight", "bias", "running_mean", "running_var")
        x = writer.op("BatchNormalization", x, *(writer.weight(f"{norm}.{p}") for p in parts))
        x = writer.gelu(x)
    return x


def read_safetensors(path: str | Path) -> dict[str, Array]:
    """The fp32 tensors of a safetensors file, which is a JSON header and raw bytes.

    Raises `ModelError` for a file that is anything else.
    """
    import numpy as np

    try:
        raw = read_bytes(path, most=1 << 30)
        (length,) = struct.unpack_from("<Q", raw)
        if length > len(raw) - 8:
            raise ValueError("its header is longer than the file")
        header = parse_json(raw[8 : 8 + length].decode())
        header.pop("__metadata__", None)
        body, found = raw[8 + length :], {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if entry["dtype"] == "F32":
                values = np.frombuffer(body[start:end], dtype="<f4")
                found[name] = values.reshape(entry["shape"])
    except UsageError as error:
        raise ModelError(error.what, where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"not a safetensors file: {error}", where=str(path)) from error
    return found


@contextmanager
def _empty(folder: str | Path | None) -> Iterator[Path]:
    """An empty folder that stays, if the body succeeds, or a temporary one if none is named."""
    if folder is None:
        with scratch() as temporary:
            yield temporary
        return
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError("exists and is not empty", where=str(path), hint="choose another -o")
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # below a file, or a link that leads back to itself
        reason = os.strerror(error.errno or 0)
        raise UsageError(
            f"cannot be made: {reason}", where=str(path), hint="choose another -o"
        ) from error
    try:
        yield path
    except BaseException:
        for left in path.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not existed:
            path.rmdir()
        raise
