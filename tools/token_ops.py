"""The page of the token ops, made from their specifications.

python -m tools.token_ops > docs/token-ops.md
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu.compare import TOLERANCES
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import KINDS, MAX_TOKENS, PLUGIN_NAMESPACE, PLUGIN_VERSION, TokenOp
from tcompile.targets.versions import TENSORRT

#: Kernels that engines of TensorRT-RTX gain by one step of a method, with native token ops: made by
#: `python -m benchmarks.gpu.native --write`.
NATIVE = Path(__file__).parents[1] / "benchmarks" / "gpu" / "native_kernels.json"

_HEAD = f"""# Token ops

Made from the specifications by `python -m tools.token_ops > docs/token-ops.md`.

A reduced model chooses, gathers and merges tokens by {{count}} custom operators, in the ONNX
domain `tcompile`. Each has one specification (`plugins/ops/`), and three bodies that compute the
same: an ONNX function of standard operators; numpy; and a CUDA
kernel, which TensorRT runs as the plugin of the same name, version `{PLUGIN_VERSION}`, namespace
`{PLUGIN_NAMESPACE}`. No op has a dimension that depends on data, and none takes more than
{MAX_TOKENS} tokens.

## Which body runs

`tcompile build --token-ops FORM` decides. `native`, the default everywhere, writes calls of
functions and nothing else; for the target `cpu` the functions are inlined, so that `model.onnx` is
plain ONNX, which OpenVINO, quantizers and converters take as well. `plugin` says in each call which
plugin it means; the library has to be built (`tcompile plugins build`) and loaded before an engine
is built or read. `aot` puts the kernels into the engine, which then needs no library. The manifest
says which, and why.

TensorRT's parser goes by version:

{{rules}}

So a `plugin` model keeps its bodies, as the last bytes of the file: ONNX Runtime runs it as it
is, and TensorRT 10.7 and newer take the plugin where it is registered and the body where it is
not. A TensorRT that takes bodies first reads the file without them, `head -c N model.onnx`; the
bundle for a Jetson does this by itself. In a model of fp16 the casts around an op that computes
in fp32 move into its body, and the plugin reads and writes fp16.

`plugin` and `aot` are refused for `cpu` targets, where only standard operators are left, and for
`rtx` ones: TensorRT-RTX 1.7.1 registers the library, but its parser ends the process when a call
dispatches to it, and it has no way to take kernels compiled ahead.

## Types

| kind | element types of plugin and kernel | in ONNX |
|---|---|---|
{{kinds}}

All `data` tensors of one call are of one type, all `index` tensors as well. Sums are in fp32 and
in a fixed order. Tolerances against the numpy body, |got - want| <= relative |want| + absolute
scale, where the scale is that of the terms; indices agree exactly, but that of two candidates
whose similarities differ by less than rounding either may be taken:

| data | relative | absolute |
|---|---|---|
{{tolerances}}

NaN, infinities and denormals are among the cases that all bodies are tested on
(`benchmarks/gpu/cases.py`). An index beyond its range never reads or writes out of bounds in a
kernel; in ONNX it is an error.
"""


def page() -> str:
    """The text of docs/token-ops.md."""
    kinds = "\n".join(
        f"| `{name}` | {', '.join(types)} | {_IN_ONNX[name]} |" for name, types in KINDS.items()
    )
    tolerances = "\n".join(
        f"| {name} | {t.relative:g} | {t.absolute:g} |" for name, t in TOLERANCES.items()
    )
    head = _HEAD.format(count=len(OPS), kinds=kinds, tolerances=tolerances, rules=_rules())
    ops = "\n".join(_op(op) for op in OPS)
    return f"{head}\n{_native()}\n## The ops\n\n{ops}"


_IN_ONNX = {
    "data": "float32; float16 as well where the body only moves it",
    "table": "any float type",
    "f32": "float32",
    "index": "int64",
}


def _rules() -> str:
    rows = [
        f"| {rule.versions} | {', '.join(rule.order)} | {_yes(not rule.takes_body_first)} | "
        f"{_yes(rule.aot)} |"
        for rule in TENSORRT.parsers
    ]
    names = ("TensorRT", "a name is looked up as, in this order", "plugin beside a body", "aot")
    return "\n".join([f"| {' | '.join(names)} |", "|---|---|---|---|", *rows])


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _native() -> str:
    data = json.loads(NATIVE.read_text(encoding="utf-8"))
    names = list(data["capabilities"])
    head = f"| method | step | {' | '.join(f'{n[:-1]}.{n[-1]}' for n in names)} | at most |"
    rows = [
        f"| `{r['method']}` | {r['step']} | "
        f"{' | '.join(str(r['added'][n]) for n in names)} | {r['bound']} |"
        for r in data["rows"]
    ]
    return "\n".join(
        [
            "## Kernels that one step adds, natively\n",
            f"{data['about']} With {data['runtime']}, by compute capability; tests hold the "
            "engines to the last column.\n",
            head,
            "|---" * (len(names) + 3) + "|",
            *rows,
            "",
        ]
    )


def _op(op: TokenOp) -> str:
    rows = [("input", t) for t in op.takes] + [("output", t) for t in op.gives]
    table = "\n".join(
        f"| {role} | `{t.name}` | [{', '.join(t.dims)}] | {t.kind} | {t.doc}"
        f"{' (read by the ONNX body only)' if role == 'input' and t.name in op.unused else ''} |"
        for role, t in rows
    )
    fields = "; ".join(
        f"`{a.split(':', 1)[0]}`: {a.split(':', 1)[1].strip()}" for a in op.attributes
    )
    limits = ", ".join(f"`{limit}`" for limit in op.limits)
    return (
        f"### {op.name}\n\n{op.doc}\n\n"
        f"| | name | shape | kind | |\n|---|---|---|---|---|\n{table}\n\n"
        f"Fields: {fields or 'none'}. Holds in every call: {limits}.\n"
    )


if __name__ == "__main__":
    print(page(), end="")
