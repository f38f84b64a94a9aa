"""The specifications as C: `plugins/cuda/tcompile_spec.h`.

python -m tcompile.plugins.header          print it
python -m tcompile.plugins.header --write  write it where it belongs
"""

from __future__ import annotations

import sys
from pathlib import Path

from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import PLUGIN_NAMESPACE, PLUGIN_VERSION, Tensor, TokenOp

PATH = Path(__file__).parent / "cuda" / "tcompile_spec.h"


def header() -> str:
    """The text of the header."""
    ops = ",\n".join(_op(op) for op in OPS)
    return f"""/* Made from the specifications by `python -m tcompile.plugins.header --write`. */
#ifndef TCOMPILE_SPEC_H
#define TCOMPILE_SPEC_H

#include "tcompile_ops.h"

#define TC_PLUGIN_VERSION "{PLUGIN_VERSION}"
#define TC_PLUGIN_NAMESPACE "{PLUGIN_NAMESPACE}"

static const tc_op_spec TC_OPS[] = {{
{ops},
}};

#endif
"""


def _op(op: TokenOp) -> str:
    inputs = "".join(f"      {_tensor(t, t.name in op.unused)},\n" for t in op.takes)
    outputs = "".join(f"      {_tensor(t)},\n" for t in op.gives)
    sizes = f"{len(op.takes)}, {len(op.gives)}, {len(op.fields)}, {len(op.limits)}"
    return (
        f'    {{"{op.name}", {sizes},\n     {{\n{inputs}     }},\n     {{\n{outputs}     }},\n'
        f"     {_strings(op.fields)},\n     {_strings(op.limits)}}}"
    )


def _tensor(tensor: Tensor, unused: bool = False) -> str:
    return (
        f'{{"{tensor.name}", "{tensor.kind}", {len(tensor.dims)}, {_strings(tensor.dims)}, '
        f"{int(unused)}}}"
    )


def _strings(texts: tuple[str, ...]) -> str:
    return "{" + (", ".join(f'"{t}"' for t in texts) or "0") + "}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PATH.write_text(header(), encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(header())
