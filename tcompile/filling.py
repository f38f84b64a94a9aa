"""What a build writes: the lowered model, the engine, and the evidence in the manifest."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.analysis.flops import graph_flops
from tcompile.artifact import MODEL
from tcompile.manifest import (
    BlockTokens,
    Flops,
    FusedAttentionEntry,
    Manifest,
    Source,
    TargetEntry,
    TokenOpsEntry,
    describe_tensors,
    installed_versions,
)
from tcompile.passes.lower import lower
from tcompile.passes.lower.token_ops import TokenOpsChoice, choose_token_ops, is_call
from tcompile.saving import save, without_weights
from tcompile.targets import Target
from tcompile.targets.backends import FusedAttention, emit

if TYPE_CHECKING:
    from tcompile.stages import Reduced


def fill(
    folder: Path,
    origin: Source,
    target: Target,
    precision: Any,
    held: list[Reduced],
    outputs: Any,
    progress: Callable[[str], None],
    *,
    threads: int | None = None,
    batch: int = 1,
    seconds: float = 0.0,
    token_ops: TokenOpsChoice | None = None,
) -> Manifest:
    """Write model and engine into the folder; returns the manifest.

    Args:
        held: the reduced model, taken out of the list, so that its weights are gone before anything
            is measured.
        threads, batch: to measure with.
        seconds: to measure for at least.
        token_ops: their form, and why; None: the target's own.
    """
    from tcompile.evidence import check_normal_form, measure
    from tcompile.verify.choice import tower_of_outputs

    source, form = Path(origin.file), token_ops or choose_token_ops(target, None)
    reduced = held.pop()
    schedule, layers = reduced.schedule, reduced.attention_layers
    flops = Flops(graph_flops(reduced.dense), graph_flops(reduced.graph))
    lowered = lower(
        reduced.graph, target=target, precision=precision, fp32_nodes=reduced.fp32_nodes,
        token_ops=form.form,
    )  # fmt: skip
    if form.form != "native" and not any(is_call(node) for node in lowered.nodes):
        # The dense model where a plan declined, say: the device then needs no library for it.
        form = TokenOpsChoice("native", f"{form.form} was asked for, and there are no token ops")
    inputs, outs = describe_tensors(without_weights(lowered))
    widened = reduced.widened
    save(lowered, folder / MODEL, reduced.metadata)
    with tempfile.TemporaryDirectory(prefix="tcompile-") as scratch:
        dense = Path(scratch) / MODEL
        save(reduced.dense, dense)
        # Nodes and tensors refer to each other: only the collector frees the weights.
        del lowered, reduced
        gc.collect()
        progress("checking the normal form against the source")
        check_normal_form(source, dense, half=widened)
    progress(f"emitting for {target.name}")
    emitted = emit(folder / MODEL, folder, target=target, precision=precision, token_ops=form.form)
    progress("measuring")
    notes = [*schedule.notes, *emitted.notes]
    if emitted.fused is not None and emitted.fused.expected != layers:
        notes.append(
            f"fusion was checked for {emitted.fused.expected} of {layers} attentions: the others "
            "are spelled in a way that the engine's kernels cannot be matched with"
        )
    evidence = measure(source, folder / MODEL, target, threads=threads, batch=batch,
                       decide=bool(schedule.reductions), seconds=seconds,
                       towers=tower_of_outputs(schedule.to_json()))  # fmt: skip
    return Manifest(
        source=origin,
        target=TargetEntry(target.name, target.runtime, target.compute_capability),
        precision=precision,
        outputs_mode=outputs,
        inputs=inputs,
        outputs=outs,
        schedule=schedule.to_json(),
        tokens_per_block=tuple(
            BlockTokens(b.block, b.attention, b.mlp) for b in schedule.tokens_per_block()
        ),
        flops=flops,
        versions={**installed_versions(), **emitted.versions},
        latency=evidence.latency,
        fidelity=evidence.fidelity,
        fused_attention=_fused_entry(emitted.fused),
        token_ops=TokenOpsEntry(form.form, form.reason),
        # Of the dense model there is nothing to say but that it is as fast as itself.
        notes=(*notes, *(evidence.notes if schedule.reductions else ())),
        faster=evidence.faster if schedule.reductions else None,
    )


def _fused_entry(fused: FusedAttention | None) -> FusedAttentionEntry | None:
    if fused is None:
        return None
    return FusedAttentionEntry(fused.expected, fused.found, tuple(fused.missing))
