"""Lowering: from a graph that any runtime could take to what one target takes best.

The passes are listed below, in their order, each with when it applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.core.copies import copied
from tcompile.core.errors import ModelError
from tcompile.core.rounding import BFLOAT16, FLOAT16, DType
from tcompile.passes.lower.eight_bits import OPSETS, EightBits
from tcompile.passes.lower.inline import inline_calls
from tcompile.passes.lower.names import rename_nodes
from tcompile.passes.lower.opset import lower_opset, raise_opset
from tcompile.passes.lower.pixels import cast_pixels_first
from tcompile.passes.lower.precision import to_half
from tcompile.passes.lower.ranges import Wide
from tcompile.passes.lower.scales import fold_scales
from tcompile.passes.lower.spell import (
    decompose_attention,
    decompose_rms_norm,
    query_rows,
    spell_products,
)
from tcompile.passes.lower.stream import widen_merges
from tcompile.passes.lower.token_casts import move_casts
from tcompile.passes.lower.token_fuse import fuse_calls
from tcompile.passes.lower.token_ops import TokenOps, lower_token_ops
from tcompile.passes.lower.turns import merge_turns
from tcompile.passes.lower.types import complete
from tcompile.passes.runner import Dump, Pass, run
from tcompile.targets.devices import ROUNDED, Precision, Target

__all__ = ["decompose_attention", "decompose_rms_norm", "lower", "lower_opset", "to_half"]

#: Raised when a graph is written in another way than before, so that latencies that were measured
#: of it no longer hold.
REVISION = 2
#: What TensorRT 10.3, the oldest on a supported JetPack, was made for.
_JETSON_OPSET = 20


@dataclass
class Lowering:
    """The graph that the passes work on, and what they share.

    Attributes:
        target, precision, token_ops: what to lower for.
        fp32_nodes: names of nodes that stay fp32, as they are called by now.
        wide: finds more of them by the ranges of their values; None: nothing is measured.
        eight_bits: puts into int8 or fp8 what may be.
    """

    graph: gs.Graph
    target: Target
    precision: Precision
    token_ops: TokenOps
    fp32_nodes: frozenset[str]
    wide: Wide | None = None
    eight_bits: EightBits | None = None

    @property
    def tensorrt(self) -> bool:
        return not self.target.on_cpu

    @property
    def spelled(self) -> bool:
        """Tell whether every `Attention` is spelled out."""
        return self.target.runtime != "onnxruntime"

    @property
    def jetson(self) -> bool:
        return self.target.runtime == "jetson"

    @property
    def turing(self) -> bool:
        """Tell whether TensorRT-RTX builds for a Turing GPU."""
        return self.target.runtime == "tensorrt-rtx" and self.target.compute_capability == "7.5"

    @property
    def half(self) -> DType | None:
        """Return the floats of 16 bits that most is in; None where all stays fp32."""
        if self.precision == "fp32" or (self.target.on_cpu and self.precision in ROUNDED):
            return None
        return BFLOAT16 if self.precision == "bf16" else FLOAT16

    @property
    def kernels(self) -> bool:
        """Tell whether token ops run as kernels, not as function bodies."""
        return self.token_ops != "native"

    def replaced(self, nodes: Mapping[str, frozenset[str]]) -> None:
        """Take note of which nodes are in the place of others, which may have to stay fp32."""
        self.fp32_nodes = self.fp32_nodes.union(
            *(names for old, names in nodes.items() if old in self.fp32_nodes)
        )


def lower(
    graph: gs.Graph,
    *,
    target: Target,
    precision: Precision,
    fp32_nodes: frozenset[str] = frozenset(),
    token_ops: TokenOps = "native",
    wide: Wide | None = None,
    eight_bits: EightBits | None = None,
    dump: Dump | None = None,
) -> gs.Graph:
    """A copy of the graph in the form that the target takes best.

    - `Attention` is spelled out for TensorRT, which fuses the plain spelling into the same kernels
      and builds it too where it has none (fp32, one query row, wide heads), and for OpenVINO; for
      ONNX Runtime only where all queries share a mask, which ONNX allows and ONNX Runtime 1.32 does
      not.
    - `RMSNormalization` is spelled out for a Jetson.
    - For TensorRT 8-bit images are cast to float before they are moved: see `cast_pixels_first`.
    - fp16, and bf16 for a GPU: see `to_half`; inputs and outputs stay fp32. mixed: as fp16, fp32
      being also what leaves its range on images, see `ranges`. int8 and fp8 for a GPU: as mixed,
      with Q/DQ, see `eight_bits`. On a CPU the graph stays fp32 in int8 and bf16: the file that it
      is written to is quantised, see `int8`, or its runtime rounds.
    - For a Jetson the opset becomes 20, unless an operator does not allow it (logged).
    - Products of fp32 matrices are spelled as sums for a Turing GPU.
    - Token ops get the form asked for: see `token_ops`, `token_fuse` and `token_casts`. On a CPU
      they become standard operators, so that any reader of ONNX takes the file: `inline`.
    - Node names become unique and printable, since an engine's kernels refer to them.

    Args:
        graph: reduced, fp32, topologically sorted. It is left as it is.
        target: what to lower for.
        precision: of most of the result.
        fp32_nodes: names of nodes that stay fp32 in an fp16 graph.
        token_ops: as `choose_token_ops` gave it.
        wide: of mixed, int8 and fp8, what measures ranges; it tells afterwards what it found.
        eight_bits: of int8 and fp8, what measures rounding; it tells afterwards what it did.
        dump: takes the graph after each pass.

    Raises:
        UsageError: the target does not know the precision.
        ModelError: an attention that has to be spelled out cannot be; control flow in half
            precision; an operator that cannot be said in the opset of fp8.
    """
    target.check_precision(precision)
    lowered = copied(graph)
    lowered.functions = [function.copy() for function in graph.functions]
    state = Lowering(lowered, target, precision, token_ops, fp32_nodes, wide, eight_bits)
    run(state, PASSES, "lower", dump)
    return state.graph


def _rename(state: Lowering) -> None:
    state.fp32_nodes = rename_nodes(state.graph, state.fp32_nodes)


def _spell_attention(state: Lowering) -> None:
    state.replaced(decompose_attention(state.graph, lambda n: state.spelled or _has_shared_mask(n)))


def _has_shared_mask(node: gs.Node) -> bool:
    """Tell whether one mask row serves all queries of an `Attention` node."""
    masks = [t for t in node.inputs[3:4] if not t.is_empty()]
    return any(not t.shape or len(t.shape) < 2 or t.shape[-2] != query_rows(node) for t in masks)


def _keep_wide(state: Lowering) -> int:
    assert state.wide is not None
    found = state.wide.look(state.graph, state.fp32_nodes)
    state.fp32_nodes |= found
    return len(found)


def _raise_opset(state: Lowering) -> None:
    assert state.eight_bits is not None
    kind = state.eight_bits.kind
    stubborn = raise_opset(state.graph, OPSETS[kind])
    if stubborn:
        raise ModelError(
            f"{kind} needs opset {OPSETS[kind]}, in which {', '.join(stubborn)} cannot be said as "
            f"in the file's opset {state.graph.opset}",
            hint=f"export it with opset {OPSETS[kind]} or newer, or build with --precision int8",
        )


def _to_eight_bits(state: Lowering) -> int:
    assert state.eight_bits is not None
    kind, done = state.eight_bits.kind, state.eight_bits.quantize(state.graph, state.fp32_nodes)
    if not done:
        left = state.eight_bits.left
        why = (
            f"8 bits are too few for all of its {len(left)} products"
            if left
            else ("it has no product of a stored matrix and an activation of several rows")
        )
        raise ModelError(f"nothing can be {kind}: {why}", hint="build with --precision mixed")
    return done


def _to_half(state: Lowering) -> None:
    assert state.half is not None
    state.graph = to_half(state.graph, half=state.half, fp32_nodes=state.fp32_nodes)


PASSES: tuple[Pass[Lowering], ...] = (
    Pass("complete-shapes", lambda s: complete(s.graph)),
    Pass("rename-nodes", _rename),
    Pass("fuse-token-ops", lambda s: fuse_calls(s.graph), when=lambda s: s.kernels),
    Pass("spell-attention", _spell_attention),
    Pass(
        "spell-rms-norm", lambda s: s.replaced(decompose_rms_norm(s.graph)), when=lambda s: s.jetson
    ),
    Pass(
        "fold-scales",  # in fp16 a small scale would make the weights subnormal
        lambda s: fold_scales(s.graph),
        when=lambda s: not s.tensorrt and s.half is None,
    ),
    Pass("merge-turns", lambda s: merge_turns(s.graph), when=lambda s: not s.tensorrt),
    Pass("cast-pixels-first", lambda s: cast_pixels_first(s.graph), when=lambda s: s.tensorrt),
    Pass("complete-shapes", lambda s: complete(s.graph)),
    Pass("keep-wide-ranges", _keep_wide, when=lambda s: s.wide is not None),
    Pass("raise-opset", _raise_opset, when=lambda s: s.eight_bits is not None),
    Pass("to-eight-bits", _to_eight_bits, when=lambda s: s.eight_bits is not None),
    Pass("to-half", _to_half, when=lambda s: s.half is not None),
    Pass("spell-fp32-matmul", lambda s: len(spell_products(s.graph)), when=lambda s: s.turing),
    Pass(
        "lower-opset", lambda s: len(lower_opset(s.graph, _JETSON_OPSET)), when=lambda s: s.jetson
    ),
    Pass(
        "move-token-casts",
        lambda s: move_casts(s.graph, s.half or FLOAT16),
        when=lambda s: s.kernels,
    ),
    Pass("widen-merges", lambda s: widen_merges(s.graph), when=lambda s: not s.tensorrt),
    Pass("inline-token-ops", lambda s: inline_calls(s.graph), when=lambda s: not s.tensorrt),
    Pass("token-ops", lambda s: lower_token_ops(s.graph, s.token_ops)),
)
