"""What a build writes: the lowered model, the engine, and the evidence in the manifest."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.analysis.flops import graph_flops
from tcompile.artifact.directory import MODEL
from tcompile.targets.backends.batch_sizes import UNBOUND, BatchSizes
from tcompile.core.errors import TcompileError
from tcompile.artifact.manifest import BatchEntry, Flops, Manifest, TargetEntry, installed_versions
from tcompile.core.model_files import SourceFile, describe_tensors
from tcompile.passes.lower import lower
from tcompile.passes.lower.token_ops import TokenOpsChoice, choose_token_ops, is_call
from tcompile.core.save import save, without_weights
from tcompile.targets import Target
from tcompile.targets.backends import EmittedFiles, emit
from tcompile.targets.backends.base import RefusedError

if TYPE_CHECKING:
    from tcompile.passes.stages import Reduced


def fill(
    folder: Path,
    origin: SourceFile,
    target: Target,
    precision: Any,
    held: list[Reduced],
    outputs: Any,
    progress: Callable[[str], None],
    *,
    threads: int | None = None,
    batch: int = 1,
    batches: BatchSizes | None = None,
    seconds: float = 0.0,
    token_ops: TokenOpsChoice | None = None,
    keep_failed: bool = False,
) -> Manifest:
    """Write model and engine into the folder; returns the manifest.

    Args:
        held: the reduced model, taken out of the list, so that its weights are gone before anything
            is measured.
        threads, batch: to measure with.
        batches: that an engine takes, where the batch is free.
        seconds: to measure for at least.
        token_ops: their form, and why; None: the target's own.
        keep_failed: return the manifest of a model that failed a check, with the fault in it.

    Raises:
        FailedBuildError: the lowered model does not compute what the reduced one does.
        ModelError: the target's runtime does not accept one of the user's nodes.
        InternalError: it does not accept one that tcompile wrote.
    """
    from tcompile.build.checks import check_normal_form, measure
    from tcompile.runtime.token_outputs import tower_of_outputs
    from tcompile.verify.lowered import judge
    from tcompile.verify.owners import Owners, blamed
    from tcompile.verify.pair import write_pair

    source, form = Path(origin.file), token_ops or choose_token_ops(target, None)
    reduced = held.pop()
    schedule, layers = reduced.schedule, reduced.attention_layers
    owners = Owners(source, reduced.dense)
    flops = Flops(graph_flops(reduced.dense), graph_flops(reduced.graph))
    lowered = lower(
        reduced.graph, target=target, precision=precision, fp32_nodes=reduced.fp32_nodes,
        token_ops=form.form,
    )
    if form.form != "native" and not any(is_call(node) for node in lowered.nodes):
        # The dense model where a plan declined, say: the device then needs no library for it.
        form = TokenOpsChoice("native", f"{form.form} was asked for, and there are no token ops")
    inputs, outs = describe_tensors(without_weights(lowered))
    widened = reduced.widened
    save(lowered, folder / MODEL, reduced.metadata)
    with tempfile.TemporaryDirectory(prefix="tcompile-") as scratch:
        dense = Path(scratch) / MODEL
        save(reduced.dense, dense)
        pair = write_pair(reduced.graph, lowered, Path(scratch), owners)
        # Nodes and tensors refer to each other: only the collector frees the weights.
        del lowered, reduced
        gc.collect()
        progress("checking the normal form against the source")
        check_normal_form(source, dense, half=widened)
        if not (widened and target.runtime == "onnxruntime"):
            dense.unlink()
        progress("checking the lowered model against the reduced one")
        judged = judge(pair, folder / MODEL, precision=precision, source=origin.file,
                       precisions=target.precisions, progress=progress)
        normal = _aside(dense, folder) if dense.exists() else None
    fault: TcompileError | None = judged.fault
    if fault is not None and not keep_failed:
        raise fault
    progress(f"emitting for {target.name}")
    asked = batches or BatchSizes(batch=batch)
    free = any(isinstance(d, str) for t in inputs for d in t.shape[:1])
    try:
        emitted = emit(folder / MODEL, folder, target=target, precision=precision,
                       batch=asked.settled, token_ops=form.form)
    except RefusedError as error:
        fault = fault or blamed(error, owners, origin.file)
        if not keep_failed:
            raise fault from error
        emitted = EmittedFiles()
    except TcompileError as error:
        if error.where.startswith(str(folder)):  # which is gone when anybody reads this
            error.where = origin.file
            error.args = (error.one_line(),)
        raise
    progress("measuring")
    notes = [*schedule.notes, *judged.notes, *emitted.notes]
    unbound = free and target.runtime == "onnxruntime"
    if unbound and asked.asked:
        notes.append(f"{', '.join(asked.asked)}: {UNBOUND}")
    if emitted.fused is not None and emitted.fused.expected != layers:
        notes.append(
            f"fusion was checked for {emitted.fused.expected} of {layers} attentions: the others "
            "are spelled in a way that the engine's kernels cannot be matched with"
        )
    evidence = measure(source, folder / MODEL, target, threads=threads, batch=batch, normal=normal,
                       decide=bool(schedule.reductions), seconds=seconds,
                       towers=tower_of_outputs(schedule.to_json()))
    if normal is not None:
        shutil.rmtree(normal.parent)
    return Manifest(
        source=origin,
        target=TargetEntry(target.name, target.runtime, target.compute_capability),
        precision=precision,
        outputs_mode=outputs,
        inputs=inputs,
        outputs=outs,
        schedule=schedule.to_json(),
        tokens_per_block=schedule.tokens_per_block(),
        flops=flops,
        versions={**installed_versions(), **emitted.versions},
        latency=evidence.latency,
        fidelity=evidence.fidelity,
        fused_attention=emitted.fused,
        token_ops=form,
        batch_sizes=BatchEntry(*asked.settled.sizes)
        if free and (asked.asked or not unbound)
        else None,
        # Of the dense model there is nothing to say but that it is as fast as itself.
        notes=(*notes, *(evidence.notes if schedule.reductions else ())),
        faster=evidence.faster if schedule.reductions else None,
        fault=None if fault is None else fault.what,
    )


def _aside(dense: Path, folder: Path) -> Path:
    """The fp32 normal form of an fp16 source, kept in the folder until it has been timed."""
    kept = folder / ".normal"
    kept.mkdir()
    for file in dense.parent.glob(f"{dense.name}*"):  # weights may lie beside it
        shutil.copyfile(file, kept / file.name)
    return kept / dense.name
