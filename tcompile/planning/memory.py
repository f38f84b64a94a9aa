"""Memory that a plan needs, dense and reduced, and whether the device has it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis.memory import Need, Storage, memory_of, size_words
from tcompile.core.decode import Count, Positive
from tcompile.core.graph import batch_dim, settled
from tcompile.passes.stages import Reduced
from tcompile.targets import Target

AT_LEAST = "at least: what the runtime needs for itself is not counted"


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needs at least, predicted from its graph; not what the runtime needs for
    itself.

    Attributes:
        batch: that activations are of.
        device: that the device has; null of a CPU, and of a device whose data do not say.
        file: bytes of the model that was written; null before it is.
        engine: bytes of the engine; null where there is none.
    """

    dense: Need
    reduced: Need
    batch: Positive
    device: Count | None = None
    file: Count | None = None
    engine: Count | None = None

    def words(self, *, reduced: bool = True) -> str:
        """Both needs in a line.

        Args:
            reduced: whether another model than the dense one is meant.
        """
        need, dense = self.reduced if reduced else self.dense, self.dense
        sizes = f"{size_words(dense.weights)} and {size_words(dense.activations)}"
        beside = f"; dense {sizes}" if reduced else ""
        return f"{need.words}{beside}; batch {self.batch}; {AT_LEAST}"

    def note(self, device: str) -> str:
        """A note where it does not fit on the device; empty where it may.

        Args:
            device: its name.
        """
        if self.device is None or self.reduced.total <= self.device:
            return ""
        return (
            f"does not fit on {device}: at least {size_words(self.reduced.total)} are needed "
            f"({self.reduced.words}, batch {self.batch}), and it has {size_words(self.device)}"
        )


def memory_plan(reduced: Reduced, target: Target, precision: str, batch: int) -> Memory:
    """Predict what a reduced model needs, and the dense one in the same precision.

    Args:
        batch: that a free one is taken for.
    """
    how = storage_of(target, precision, reduced.fp32_nodes)
    dense, need = (memory_of(graph, how, batch) for graph in (reduced.dense, reduced.graph))
    has = target.value("memory")  # in GB, each of which is 2³⁰ bytes of DRAM
    images = settled(batch_dim(reduced.graph), batch)
    return Memory(dense, need, images, None if has is None else int(has * 2**30))


def as_written(memory: Memory, lowered: gs.Graph, target: Target, precision: str) -> Memory:
    """The same of a reduced model that was lowered for a CPU, in fp32: what is in its file."""
    return replace(memory, reduced=memory_of(lowered, storage_of(target, precision), memory.batch))


def storage_of(target: Target, precision: str, fp32: frozenset[str] = frozenset()) -> Storage:
    """How a target holds a model in a precision.

    What is only seen on images, such as which products 8 bits are too few for, is not in it: all
    are taken to be in 8 bits, all else of such a model in 16.
    """
    eight = precision in ("int8", "fp8")
    if not target.on_cpu:
        size = 4 if precision == "fp32" else 2
        return Storage(size, size, eight, True, True, size == 2, fp32)
    # OpenVINO reads a file in fp32, and rounds what it computes.
    weight, activation = {"fp16": (2, 2), "bf16": (4, 2)}.get(precision, (4, 4))
    compiled = target.runtime == "openvino"
    return Storage(weight, activation, eight, False, compiled, compiled, fp32)
