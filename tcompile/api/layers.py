"""Layer by layer: where does a lowered model leave the reduced fp32 graph?

The rows are the residual stream behind every attention and every MLP of every tower, and the
outputs; where one departs, also the tensors between it and the last good row that are furthest
away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from tcompile.analysis.structure import Block
from tcompile.api.reference import analyse_again, reduce_again
from tcompile.artifact.directory import Artifact
from tcompile.core.drafts import scratch
from tcompile.core.load import load
from tcompile.core.memory import release
from tcompile.passes.normalize.infer import infer
from tcompile.runtime.samples import Samples
from tcompile.verify.lowered import Difference, difference, each_tensor
from tcompile.verify.owners import Owners
from tcompile.verify.pair import Pair, Shared, write_pair

#: Samples that are looked at, and tensors between two rows that are shown.
_SAMPLES, _BETWEEN = 4, 5


@dataclass(frozen=True)
class Layer:
    """One tensor of the lowered model against the reduced fp32 graph, the worst of all samples.

    Attributes:
        layer: which it is, in words: "block 3, attention"; of several towers with its name first.
        tensor, node: its name, and the node that gives it, as the user's file calls it if it is the
            user's.
        largest: the largest magnitude in fp32.
        relative: the largest difference, over `largest`.
        cosine: between the two.
        not_finite: NaN and Inf that fp32 does not have.
        departs: whether a build would call it another tensor.
    """

    layer: str
    tensor: str
    node: str
    largest: float
    relative: float
    cosine: float
    not_finite: int
    departs: bool


def layers_of(artifact: Artifact, dense: Path, samples: Samples) -> tuple[Layer, ...]:
    """Compare an artifact's model with the reduced graph, made again from its source.

    Args:
        dense: the source.
        samples: inputs; the first few are used.
    """
    first, reduced = analyse_again(artifact, dense).analysis, reduce_again(artifact, dense)
    towers = {a.tower: a.blocks for a in (first, *first.others)}
    lowered = gs.import_onnx(load(artifact.model))
    if any(t.dtype is None for n in lowered.nodes for t in n.outputs):
        infer(lowered, symbolic=True)
    few = {name: array[:_SAMPLES] for name, array in samples.arrays.items()}
    with scratch() as folder:
        owners = Owners(dense, reduced.dense, reduced.written)
        pair = write_pair(reduced.graph, lowered, folder, owners)
        del first, reduced, lowered
        release()
        found = _differences(pair, Samples(few, samples.source, samples.real))
    return tuple(_rows(pair, towers, found, artifact.manifest.precision))


def _differences(pair: Pair, samples: Samples) -> dict[str, Difference]:
    worst: dict[str, Difference] = {}
    for tensors, want, have in each_tensor(pair, samples, pair.shared):
        for tensor in tensors:
            how = difference(tensor.compared(want[tensor.name]), have[tensor.name])
            old = worst.get(tensor.name)
            if old is None or _badness(how) > _badness(old):
                worst[tensor.name] = how
    return worst


def _badness(how: Difference) -> tuple[int, float, float]:
    return how.not_finite, -how.cosine, how.distance


def _rows(
    pair: Pair,
    towers: Mapping[str, Sequence[Block]],
    found: Mapping[str, Difference],
    precision: str,
) -> list[Layer]:
    labels = _labels(pair, towers)
    rows: list[Layer] = []
    between: list[Shared] = []
    for tensor in pair.shared:
        if tensor.name not in labels:
            between.append(tensor)
            continue
        row = _row(labels[tensor.name], tensor, found[tensor.name], precision)
        good = not rows or not rows[-1].departs
        if row.departs and good:
            bad = [t for t in between if found[t.name].departs(precision)]
            # The first is what the fault begins with; of the others, the furthest.
            kept = bad[:1] + sorted(bad[1:], key=lambda t: _badness(found[t.name]))[1 - _BETWEEN :]
            names = {t.name for t in kept}
            rows += [_row("", t, found[t.name], precision) for t in bad if t.name in names]
        rows.append(row)
        between = []
    return rows


def _labels(pair: Pair, towers: Mapping[str, Sequence[Block]]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for tower, blocks in towers.items():
        of = f"{tower}, " if len(towers) > 1 else ""
        for block in blocks:
            if block.after_attention != block.stream_out:
                labels[block.after_attention] = f"{of}block {block.index}, attention"
            labels[block.stream_out] = f"{of}block {block.index}, MLP"
    for name in pair.outputs:
        labels[name] = f"output {name}"
    return labels


def _row(label: str, tensor: Shared, how: Difference, precision: str) -> Layer:
    node = tensor.node if tensor.own or tensor.owner is None else tensor.owner
    return Layer(
        label or tensor.op,
        tensor.name,
        node,
        how.largest,
        how.relative,
        how.cosine,
        how.not_finite,
        how.departs(precision),
    )
