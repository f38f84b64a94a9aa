"""Stages of a build that work on files: write the models, judge them, emit; and the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.analysis.flops import graph_flops
from tcompile.artifact.directory import MODEL
from tcompile.artifact.manifest import (
    BatchEntry,
    Flops,
    Manifest,
    Quantization,
    TargetEntry,
    installed_versions,
)
from tcompile.builder.checks import Evidence, check_normal_form
from tcompile.builder.device_check import write_device_check
from tcompile.core.errors import TcompileError
from tcompile.core.model_files import SourceFile, TensorInfo, describe_tensors
from tcompile.core.progress import Progress
from tcompile.core.save import save, without_weights
from tcompile.core.schedule import Schedule
from tcompile.passes.lower.token_ops import TokenOpsChoice, is_call
from tcompile.planning.memory import Memory, as_written
from tcompile.report.token_maps import Trace
from tcompile.runtime.signature import signature
from tcompile.runtime.token_outputs import tower_of_outputs
from tcompile.targets.backends import EmittedFiles, emit
from tcompile.targets.backends.base import UNBOUND, RefusedError
from tcompile.verify.lowered import Judgement, judge
from tcompile.verify.owners import Owners, blamed
from tcompile.verify.pair import Pair, write_pair

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from tcompile.builder.job import Job
    from tcompile.passes.stages import Reduced
    from tcompile.runtime.samples import Samples

#: Images that a model of 8 bits is judged on.
_JUDGED = 4


@dataclass(frozen=True)
class Models:
    """Files of one build, and what is known of their models once the graphs are gone.

    Attributes:
        source: the user's model.
        shipped: the lowered model, in the artifact's folder.
        dense: the normal form of the source, for OpenVINO lowered.
        pair: the reduced and the lowered model, made comparable.
        owners: tells the user's nodes from those that tcompile wrote.
        schedule: what was applied.
        token_ops: their form, and why.
        memory: that it needs, predicted.
        widened: whether the source computes in fp16.
        quantized: whether the source quantises while it runs.
        token_index: output with fewer tokens → the output that says which tokens its rows are.
        quantization: how the lowered graph was put into 8 bits; None: it was not.
        trace: tells the tokens of every step; None where there is none, and `untraced` says why.
    """

    source: SourceFile
    shipped: Path
    dense: Path
    pair: Pair
    owners: Owners
    schedule: Schedule
    token_ops: TokenOpsChoice
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    flops: Flops
    memory: Memory
    widened: bool
    quantized: bool = False
    token_index: Mapping[str, str] = field(default_factory=dict)
    quantization: Quantization | None = None
    trace: Trace | None = None
    untraced: str = ""

    @property
    def free_batch(self) -> bool:
        """Tell whether the batch of an input is free."""
        return any(isinstance(dim, str) for t in self.inputs for dim in t.shape[:1])


@dataclass(frozen=True)
class Built:
    """Results of judging and emitting.

    Attributes:
        emitted: what the target's backend wrote; nothing where it refused the model.
        notes: of both.
        fault: what is wrong with a model that is kept all the same; None where nothing is.
    """

    emitted: EmittedFiles
    notes: tuple[str, ...]
    fault: TcompileError | None


def write_models(
    reduced: Reduced,
    lowered: gs.Graph,
    source: SourceFile,
    owners: Owners,
    job: Job,
    folder: Path,
    scratch: Path,
    memory: Memory,
    plain: gs.Graph | None = None,
    quantization: Quantization | None = None,
) -> Models:
    """Write all that the later stages read, so that the graphs can go.

    Args:
        lowered: what became of the reduced graph. It is changed, and of no use afterwards.
        source, owners: of the user's file. They were made before lowering, since that file is read
            for them, and there is memory for one more model only.
        job: says what it was lowered for, and the form of the token ops that was asked for.
        folder: takes the model to ship.
        scratch: takes the others.
        memory: that the model needs, by the reduced graph.
        plain: the dense graph as the target's runtime takes it, in place of its normal form.
        quantization: see `Models`.
    """
    form = job.token_ops
    if form.form != "native" and not any(is_call(node) for node in lowered.nodes):
        # The dense model where a plan declined, say: the device then needs no library for it.
        form = TokenOpsChoice("native", f"{form.form} was asked for, and there are no token ops")
    flops = Flops(graph_flops(reduced.dense), graph_flops(reduced.graph))
    if job.target.on_cpu:  # this file is what runs there, and lowering may change what it takes
        flops = replace(flops, reduced=graph_flops(lowered))
        memory = as_written(memory, lowered, job.target, job.precision)
    inputs, outputs = describe_tensors(without_weights(lowered))
    shipped, dense, compared = folder / MODEL, scratch / "dense" / MODEL, scratch / "pair"
    dense.parent.mkdir()
    compared.mkdir()
    save(lowered, shipped, reduced.metadata)
    save(reduced.dense if plain is None else plain, dense)
    return Models(
        source=source,
        shipped=shipped,
        dense=dense,
        pair=write_pair(reduced.graph, lowered, compared, owners),
        owners=owners,
        schedule=reduced.schedule,
        token_ops=form,
        inputs=inputs,
        outputs=outputs,
        flops=flops,
        memory=memory,
        widened=reduced.widened,
        quantized=reduced.quantized,
        token_index=reduced.token_index,
        quantization=quantization,
    )


def judge_models(models: Models, job: Job, samples: Samples, say: Progress) -> Judgement:
    """Hold the normal form against the source, and the lowered model against the reduced one.

    Files that no later stage reads are removed.

    Args:
        samples: images, on the first of which a lowered model of 8 bits is judged: noise is beyond
            the ranges of its scales.

    Raises:
        ModelError: ONNX Runtime rejects the source.
        FailedBuildError: the lowered model does not compute what the reduced one does.
        InternalError: the normal form does not compute what the source does.
    """
    say("checking the normal form against the source")
    check_normal_form(job.path, models.dense, half=models.widened, quantized=models.quantized)
    if timed_against(models, job) is None and not job.rounds:
        shutil.rmtree(models.dense.parent)
    say("checking the lowered model against the reduced one")
    judged = judge(
        models.pair,
        models.shipped,
        precision=job.graph_precision,
        source=str(job.path),
        precisions=job.target.precisions,
        samples=samples.first(_JUDGED) if models.quantization is not None else None,
        progress=say,
    )
    if job.target.runtime == "jetson":
        say("storing what the engine should give")
        write_device_check(
            models.pair.reference,
            models.shipped,
            job.precision,
            reduced=not models.schedule.dense,
            smallest=job.batches.settled.smallest,
            towers=tower_of_outputs(models.schedule.to_json()),
            compatibility=job.compatibility,
        )
    shutil.rmtree(models.pair.reference.parent)
    if judged.fault is not None and not job.keep_failed:
        raise judged.fault
    return judged


def timed_against(models: Models, job: Job) -> Path | None:
    """The fp32 normal form of the source, which latency is compared with on a CPU where that
    computes in fp16, or where it may be more than plain ONNX; None: it is compared with the source
    itself."""
    apart = models.widened or job.target.runtime == "openvino"
    return models.dense if apart and job.target.on_cpu else None


def emit_model(models: Models, judged: Judgement, job: Job, say: Progress) -> Built:
    """Write what the target needs beside the lowered model.

    Raises:
        ModelError: the target's runtime does not accept one of the user's nodes.
        InternalError: it does not accept one that tcompile wrote.
    """
    say(f"emitting for {job.target.name}")
    fault: TcompileError | None = judged.fault
    folder, source = models.shipped.parent, str(job.path)
    try:
        emitted = emit(
            models.shipped,
            folder,
            target=job.target,
            precision=job.precision,
            batch=job.batches.settled,
            token_ops=models.token_ops.form,
            workspace=job.workspace,
            compatibility=job.compatibility,
            progress=say,
        )
    except RefusedError as error:
        fault = fault or blamed(error, models.owners, source)
        if not job.keep_failed:
            raise fault from error
        emitted = EmittedFiles()
    except TcompileError as error:
        if error.where.startswith(str(folder)):  # a folder that is gone when the error is read
            error.where = source
            error.args = (error.one_line(),)
        raise
    notes = [*judged.notes, *emitted.notes]
    if job.workspace is not None:
        notes.append(f"kernels of the engine may use {job.workspace} MiB while they run")
    if models.free_batch and job.target.on_cpu and job.batches.asked:
        notes.append(f"{', '.join(job.batches.asked)}: {UNBOUND}")
    return Built(emitted, tuple(notes), fault)


def manifest_of(models: Models, built: Built, evidence: Evidence, job: Job) -> Manifest:
    """Say what was built, and what was measured of it; how it was planned is not in it yet."""
    schedule, reduced = models.schedule, not models.schedule.dense
    target, asked = job.target, job.batches.asked
    bounded = models.free_batch and (asked or not target.on_cpu)
    shapes: Mapping[str, tuple[int | str, ...]] = job.request.shapes or {}
    # The dense model is as fast as itself: nothing is said of its latency.
    notes = (*schedule.notes, *built.notes, *(evidence.notes if reduced else ()))
    preprocess = dict(signature(models.shipped).preprocessing)
    labels = tuple(preprocess.pop("labels", ()))
    return Manifest(
        source=models.source,
        target=TargetEntry(target.name, target.runtime, target.compute_capability),
        precision=job.precision,
        outputs_mode=job.request.outputs,  # type: ignore[arg-type]
        inputs=models.inputs,
        outputs=models.outputs,
        token_index=dict(models.token_index),
        schedule=schedule.to_json(),
        tokens_per_block=schedule.tokens_per_block(),
        flops=models.flops,
        memory=_with_files(models.memory, models.shipped),
        versions={**installed_versions(), **built.emitted.versions},
        latency=evidence.latency,
        fidelity=evidence.fidelity,
        fused_attention=built.emitted.fused,
        token_ops=models.token_ops,
        batch_sizes=BatchEntry(*job.batches.settled.sizes) if bounded else None,
        notes=notes,
        faster=evidence.faster if reduced else None,
        speedup=evidence.speedup if reduced else None,
        shapes={name: tuple(dims) for name, dims in shapes.items()},
        prefix=job.request.prefix,
        preprocess=preprocess or None,
        labels=labels,
        fault=None if built.fault is None else built.fault.what,
        quantization=models.quantization,
        compatibility=built.emitted.compatibility,
    )


def _with_files(memory: Memory, shipped: Path) -> Memory:
    """What a model needs, with the bytes of what was written."""
    file = sum(p.stat().st_size for p in shipped.parent.glob(f"{shipped.name}*"))
    engine = sum(p.stat().st_size for p in shipped.parent.glob("engine/*.engine"))
    return replace(memory, file=file, engine=engine or None)
