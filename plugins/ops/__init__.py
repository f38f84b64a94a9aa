"""The token ops. Shapes: B batch, T tokens in, K tokens out, C channels, r pairs merged.

Bodies hold only ops that every TensorRT accepts: no scatter-add, no NonZero, no computed shapes.
Where a tie is possible the lower index wins, as in ONNX TopK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcompile.core.domain import DOMAIN
from tcompile.plugins.ops.combine import COMBINE_DROP, COMBINE_MEAN, COMBINE_MLERP, COMBINE_PLAIN
from tcompile.plugins.ops.fuse import FUSE
from tcompile.plugins.ops.gather import GATHER, RETURN, TAKE, UNMERGE
from tcompile.plugins.ops.match import MATCH, MATCH_ALL, NEAREST, PARTNER
from tcompile.plugins.ops.merge import MERGE, MERGE_ALL
from tcompile.plugins.ops.select import SELECT, TOP_K
from tcompile.plugins.ops.stream import MATCH_STREAM, MERGE_STREAM, MERGE_WHOLE
from tcompile.plugins.spec import TokenOp

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

#: The registry.
OPS: tuple[TokenOp, ...] = (
    TOP_K,
    SELECT,
    GATHER,
    TAKE,
    UNMERGE,
    RETURN,
    FUSE,
    PARTNER,
    NEAREST,
    MATCH,
    MATCH_ALL,
    MERGE,
    MERGE_ALL,
    COMBINE_MEAN,
    COMBINE_PLAIN,
    COMBINE_MLERP,
    COMBINE_DROP,
)
#: Bodies for a CPU, which no file calls: they are written to be inlined.
SPELLED: tuple[TokenOp, ...] = (MATCH_STREAM, MERGE_STREAM, MERGE_WHOLE)


def find_op(name: str) -> TokenOp:
    """The op of that name.

    Raises:
        KeyError: there is none.
    """
    return {op.name: op for op in (*OPS, *SPELLED)}[name]


def add_functions(graph: gs.Graph) -> None:
    """Give the graph the function body of every token op that it calls."""
    import onnx
    import onnx_graphsurgeon as gs

    used = {n.op for n in graph.nodes if n.domain == DOMAIN}
    have = {f.name for f in graph.functions}
    shell = onnx.helper.make_model(
        onnx.helper.make_graph([], "functions", [], []),
        functions=[op.function(graph.opset) for op in OPS if op.name in used - have],
        opset_imports=[
            onnx.helper.make_opsetid("", graph.opset),
            onnx.helper.make_opsetid(DOMAIN, 1),
        ],
    )
    graph.functions.extend(gs.import_onnx(shell).functions)
