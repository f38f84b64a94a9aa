"""`tcompile.load`: an artifact as one object that takes images and gives named outputs.

Nothing of PyTorch or of the compiler's passes runs here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import SupportsInt, cast

from tcompile.artifact.directory import Artifact, is_artifact, load_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core.errors import ModelError, UsageError
from tcompile.deploy.buffers import buffers_of, check_buffers, settled
from tcompile.deploy.checks import (
    ENGINES,
    check_contract,
    check_fault,
    check_model_files,
    runtime_of,
    shown,
)
from tcompile.deploy.inputs import Given, samples_of
from tcompile.deploy.result import Result, Tokens, TopClass
from tcompile.runtime.samples import Samples, run_samples
from tcompile.runtime.signature import Signature, signature
from tcompile.targets.backends.base import Opened
from tcompile.targets.backends.buffers import InPlace
from tcompile.targets.backends.cpu import on_cpu
from tcompile.targets.backends.ort import OrtRunner

__all__ = ["Model", "Result", "Tokens", "TopClass", "load"]


class Model:
    """A loaded artifact: call it with images. Made by `load`.

    Several threads may call one model, and get what one thread gets. In ONNX Runtime they run at a
    time; OpenVINO and engines run one call after another. Let no call be under way when it is
    closed.

    Attributes:
        path: the file that runs.
        runtime: onnxruntime, openvino, tensorrt-rtx or tensorrt.
        manifest: of the artifact; None of a plain ONNX file.
        inputs, outputs: names, dtypes and shapes; a string in a shape is a dim that is free.
        preprocessing: how images are prepared; empty where nothing says it.
        labels: the name of each class; empty where the model's file has none.
        token_index: output with fewer tokens → the output that says which they are.
        batch: images in a run where that is fixed, else None.
        notes: what to know of it, a sentence each.
    """

    def __init__(
        self,
        runner: Opened,
        described: Signature,
        runtime: str,
        manifest: Manifest | None = None,
        notes: Sequence[str] = (),
        close: Callable[[], None] | None = None,
    ) -> None:
        self._runner: Opened | None = runner
        self._described, self._close = described, close
        # What an engine takes; other runtimes take any batch that is not fixed.
        self._batches: tuple[int, int] | None = getattr(runner, "batches", None)
        self.path = runner.path
        self.runtime = runtime
        self.manifest = manifest
        self.notes = (*described.notes, *notes)
        self.inputs, self.outputs = described.inputs, described.outputs
        self.preprocessing = {k: v for k, v in described.preprocessing.items() if k != "labels"}
        self.token_index: Mapping[str, str] = described.token_index
        self.batch = described.batch
        self._told = {t.name: t.shape for t in (*self.inputs, *self.outputs)}
        labels = () if manifest is None else manifest.labels
        self.labels = tuple(labels or described.preprocessing.get("labels", ()))

    @property
    def signature(self) -> Signature:
        """Inputs, outputs and preprocessing, as `tcompile.runtime.samples` takes them."""
        return self._described

    def require(self, outputs: Sequence[str]) -> None:
        """Raise UsageError unless it has the outputs that a program is written for."""
        have = [tensor.name for tensor in self.outputs]
        for name in outputs:
            if name not in have:
                raise UsageError(
                    f"has no output '{name}', which this program is written for; it has "
                    f"{shown(self.outputs)}",
                    where=str(self.path if self.manifest is None else self.path.parent),
                    hint="`tcompile init-app` writes a program for it",
                )

    def __call__(self, images: Given) -> Result:
        """Run it on one image or several.

        Args:
            images: the path of an image, a PIL image, uint8 pixels [H, W, 3] or [B, H, W, 3]: they
                are prepared as the model's record says. Or an array that is prepared: what the
                input takes, [B, 3, H, W] float32 mostly, one sample perhaps without the first axis;
                values are checked and cast to its dtype. Or a list of any of these, or, where there
                are several inputs, a mapping from name to any of these. Any number of samples is
                taken: where the batch is fixed, or an engine's largest is exceeded, they are cut
                into batches and the last one is filled up; else they run at once.

        Returns:
            Every output by name, an array with one row a sample, in the dtype of the model.

        Raises:
            UsageError: another name, shape or dtype than the model takes, values that are NaN, Inf
                or none of that dtype, images for a model that does not say how they are prepared,
                or the model is closed.
            ImageError: (a UsageError) a file that is not an image.
            MissingExtraError: pillow is not installed.
        """
        samples = samples_of(self._described, images)
        return self.run(samples, at_once=len(samples))

    def run(self, samples: Samples, *, at_once: int | None = None) -> Result:
        """Run it on samples that were read before (`tcompile.runtime.samples`).

        Args:
            at_once: samples in a run where any number may be, of an engine at most what it takes;
                None: some, by their size.
        """
        runner = self._runner
        if runner is None:
            raise UsageError("the model is closed", where=str(self.path), hint="load it again")
        if self._batches is not None:
            smallest, largest = self._batches
            at_once = max(smallest, min(at_once or len(samples), largest))
        return Result(run_samples(runner, samples, at_once), self.labels, self.token_index)

    def run_buffers(
        self, inputs: Mapping[str, object], outputs: Mapping[str, object], *, stream: int = 0
    ) -> None:
        """Run it once in memory of the caller's, without copies: each input is read where it lies,
        and outputs, one or more of them, are written where they are wanted.

        An engine takes memory of its GPU and of the CPU, which it copies; ONNX Runtime and OpenVINO
        take the CPU's. Values are not looked at.

        Args:
            inputs: all of them, by name, in their dtypes and contiguous: arrays of numpy, or what
                has `__dlpack__` or `__cuda_array_interface__` (PyTorch, CuPy, numba, JAX).
            outputs: the same, what can be written to; `shape_of` says their shapes.
            stream: a cudaStream_t of the engine's GPU (`torch.cuda.current_stream().cuda_stream`)
                that the run is put into: this returns at once then, and all buffers are the run's
                until the stream is there. 0: what the default stream makes is waited for, and so
                is the run.

        Raises:
            UsageError: before anything runs, for a name, dtype, shape or memory that does not fit,
                or the model is closed.
            TcompileError: the runtime fails.
        """
        if self._runner is None:
            raise UsageError("the model is closed", where=str(self.path), hint="load it again")
        if not isinstance(stream, SupportsInt):
            raise UsageError(
                f"is {type(stream).__name__}, not the address of a cudaStream_t",
                where="stream",
                hint="PyTorch's has .cuda_stream, CuPy's .ptr; 0 for none",
            )
        stream = int(stream)  # cuda-python's is an object
        runner = cast(InPlace, self._runner)
        takes, gives = (
            [replace(t, shape=self._told.get(t.name, t.shape)) for t in tensors]
            for tensors in (runner.inputs, runner.outputs)
        )
        on_cpu = self.runtime not in ENGINES
        with getattr(runner, "used", nullcontext)():
            given = buffers_of("input", inputs, stream, on_cpu=on_cpu)
            wanted = buffers_of("output", outputs, stream, on_cpu=on_cpu)
        check_buffers(given, wanted, takes, gives, str(self.path))
        runner.run_buffers(given, wanted, stream)

    def shape_of(self, name: str, batch: int = 1) -> tuple[int, ...]:
        """The shape of an input or output, with a number in place of every free dim."""
        if name not in self._told:
            known = f"takes {shown(self.inputs)} and gives {shown(self.outputs)}"
            raise UsageError(f"there is no '{name}'; the model {known}", where="shape_of")
        return tuple(settled(dim, batch) for dim in self._told[name])

    def close(self) -> None:
        """Free what the runtime has of it; it cannot be called any more."""
        runner, self._runner = self._runner, None
        if runner is not None and self._close is not None:
            self._close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in self.inputs)
        return f"<Model {self.path} in {self.runtime}: {takes}>"


def load(
    artifact: str | Path,
    runtime: str | None = None,
    *,
    providers: Sequence[str] | None = None,
    preprocess: str | None = None,
    threads: int | None = None,
    device: int = 0,
    cuda_graphs: bool = False,
    allow_failed: bool = False,
) -> Model:
    """Load an artifact, ready to run on images.

    Before anything of it is opened, the manifest is read, and what is going to run is held against
    its sha256; for an engine also the version of TensorRT, driver, compute capability, and the
    plugin library where it needs one.

    Args:
        artifact: the directory that a build wrote; or any ONNX file.
        runtime: onnxruntime, openvino, tensorrt-rtx or tensorrt (a Jetson's engine); by default
            that of the artifact's target. onnxruntime and openvino run the model.onnx of any
            artifact.
        providers: execution providers of ONNX Runtime by their names, best first, such as
            `["CUDAExecutionProvider"]`; those of plugin libraries once they are registered. By
            default the CPU.
        preprocess: how images are prepared, in place of what the model records: what
            `--preprocess` takes, such as `clip` or `imagenet,size=384`.
        threads: of ONNX Runtime's or OpenVINO's operators; by default one for each core.
        device: the GPU that an engine runs on, as CUDA counts them.
        cuda_graphs: launch an engine as one CUDA graph: faster where kernels are short.
        allow_failed: load also a build that failed and was kept (`--keep-failed`).

    Raises:
        UsageError: there is no artifact; an option that does not fit it; another TensorRT, GPU or
            plugin library than the engine is for; no driver.
        ModelError: a manifest that is damaged or of another version; a file of the artifact that is
            missing, truncated or changed; a build that failed; a model that the runtime refuses.
        MissingExtraError: a package is not installed; says which extra brings it.
    """
    path = Path(artifact)
    plain = path.is_file() or (path.suffix == ".onnx" and not is_artifact(path))
    opened = None if plain else load_artifact(path)
    manifest = None if opened is None else opened.manifest
    runtime = runtime_of(manifest, runtime, str(path))
    _check_options(runtime, providers, threads, device, cuda_graphs)
    if opened is not None:
        check_fault(opened, allow_failed)
    if opened is not None and runtime in ENGINES:
        return _engine(opened, runtime, preprocess, device, cuda_graphs)
    file = path
    if opened is not None:
        check_model_files(opened)
        file = opened.model
    described = signature(file)
    if opened is not None:
        check_contract(opened, described.inputs, described.outputs, file)
    described = described.prepared(preprocess)
    runner: Opened
    if runtime == "openvino":
        runner = _in_openvino(file, manifest, threads)
    elif providers is None:
        runner = OrtRunner(file, threads=threads)
    else:
        runner = OrtRunner(file, threads=threads, providers=providers)
    return Model(runner, described, runtime, manifest, _notes(manifest))


def _in_openvino(file: Path, manifest: Manifest | None, threads: int | None) -> Opened:
    how = on_cpu("openvino", "fp32" if manifest is None else manifest.precision)
    try:
        return how.open(file, threads)
    except ModelError as error:
        if manifest is None or manifest.target.runtime == "openvino":
            raise
        hint = f'it is written for {manifest.target.name}; runtime="onnxruntime" runs it'
        raise ModelError(error.what, where=error.where, hint=hint) from error


def _engine(
    opened: Artifact, runtime: str, preprocess: str | None, device: int, graphs: bool
) -> Model:
    from tcompile.deploy.engines import open_engine

    described = _described(opened).prepared(preprocess)
    runner = open_engine(opened, runtime, device=device, graphs=graphs)
    try:
        check_contract(opened, runner.inputs, runner.outputs, runner.path)
    except BaseException:
        runner.close()
        raise
    manifest = opened.manifest
    return Model(runner, described, runtime, manifest, _notes(manifest), runner.close)


def _described(opened: Artifact) -> Signature:
    """Inputs, outputs and preprocessing of an engine, which itself knows little: as the manifest
    says, of an older one as the model that the engine was built from does."""
    manifest = opened.manifest
    found = Signature(
        opened.directory, manifest.inputs, manifest.outputs, {}, token_index=manifest.token_index
    )
    if manifest.preprocess is None and opened.model.is_file():
        check_model_files(opened)
        own = signature(opened.model)
        return replace(own, token_index={**own.token_index, **manifest.token_index})
    return replace(found, preprocessing=manifest.preprocess or {})


def _check_options(
    runtime: str, providers: Sequence[str] | None, threads: int | None, device: int, graphs: bool
) -> None:
    """Refuse options that would do nothing."""
    for name, given, of in (
        ("providers", providers is not None, ("onnxruntime",)),
        ("threads", threads is not None, ("onnxruntime", "openvino")),
        ("device", device != 0, ENGINES),
        ("cuda_graphs", graphs, ENGINES),
    ):
        if given and runtime not in of:
            raise UsageError(f"says nothing to {runtime}, it is for {' and '.join(of)}", where=name)


def _notes(manifest: Manifest | None) -> tuple[str, ...]:
    """What whoever runs it must know."""
    if manifest is None or manifest.fault is None:
        return ()
    return (f"this build failed and was kept for debugging: {manifest.fault}",)
