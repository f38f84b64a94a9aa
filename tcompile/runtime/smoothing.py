"""What is done to a file before it becomes int8 on a CPU: outliers of single channels behind a norm
go into the weights that read them (SmoothQuant, see `passes.lower.eight_bits.smooth`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from tcompile.core.drafts import scratch
from tcompile.core.save import save
from tcompile.passes.lower.eight_bits import smooth
from tcompile.passes.lower.int8 import check_size, quantizable
from tcompile.passes.lower.types import complete
from tcompile.runtime.samples import Array, feeds
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.targets.backends.ort import OrtRunner

#: Scenes that channels are weighed on, and their seed: none that anything is judged on. Always the
#: same ones, so that what a plan was made with is what is built.
_SCENES, _SEED = 8, 7
#: The same in words.
WEIGHED_ON = f"{_SCENES} procedural scenes (seed {_SEED})"


def smooth_file(source: Path, made: Path) -> int:
    """Write the plain fp32 file `source` to `made`, its norms smoothed for what may be int8;
    returns how many are. What is computed stays.

    Raises:
        ModelError: its weights take 2 GB or more.
    """
    model = onnx.load(source)
    check_size(sum(t.ByteSize() for t in model.graph.initializer))
    names = set(quantizable(model))
    graph = gs.import_onnx(model)
    complete(graph)
    described = signature(source)
    scenes = scenes_for(described, count=_SCENES, seed=_SEED)

    def run(probe: gs.Graph) -> Iterator[Mapping[str, Array]]:
        with scratch() as folder:
            save(probe, folder / "probe.onnx")
            runner = OrtRunner(folder / "probe.onnx")
            for arrays in feeds(described, scenes):
                yield runner.run(arrays)

    found = smooth(graph, [n for n in graph.nodes if n.name in names], run)
    save(graph, made, {p.key: p.value for p in model.metadata_props})
    return found
