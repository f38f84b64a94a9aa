"""Hints that name options are followed to the letter, and what they promise comes true.

A case is a command that is refused. `followed` reads the options off its message, puts them into
the command in place of those that they contradict, and runs it again.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tcompile.models.onnx_vit import (
    GraphWriter,
    VitSpec,
    build_vit,
    patch_tokens,
    prefix_tokens,
    random_weights,
)
from tests.support.command import Command, Outcome

ROOT = Path(__file__).parents[3]
#: What stands for what a reader is to put in.
FILLED = {
    "R": "0.5",
    "DIR": "data.npz",
    "MS": "100",
    "FILE.npz": "data.npz",
    "H,W": "32,32",
    "…": "0.5",
}
#: Options without a value.
FLAGS = ("--exact", "--version-compatible", "--exclude-lean-runtime")
SPEC = VitSpec(depth=3)


def free_image(model: onnx.ModelProto, dims: Sequence[int | str]) -> onnx.ModelProto:
    image = model.graph.input[0].type.tensor_type.shape
    del image.dim[:]
    for dim in dims:
        image.dim.add(**{"dim_value" if isinstance(dim, int) else "dim_param": dim})
    return model


def any_size() -> onnx.ModelProto:
    return free_image(build_vit(SPEC, random_weights(SPEC), batch=None), ["n", "c", "h", "w"])


def frames() -> onnx.ModelProto:
    """[B, H, W, 3] of any size, brought to 32 × 32 inside."""
    model = build_vit(SPEC, random_weights(SPEC))
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    conv.input[0] = "planes"
    sizes = onnx.numpy_helper.from_array(np.asarray([1, 3, 32, 32]), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node.insert(0, helper.make_node("Resize", ["first", "", "", "sizes"], ["planes"]))
    turn = helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, turn)
    return free_image(model, [1, "h", "w", 3])


def squeezed() -> onnx.ModelProto:
    """`logits.squeeze(0)` of a free batch, as TorchScript writes it."""
    model = build_vit(SPEC, random_weights(SPEC), batch=None)
    last = model.graph.node[-1]
    last.output[0] = "all"
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[N,10] all) => (float[M] logits) {
        s = Shape (all) i = Constant <value = int64 {0}> () b = Gather (s, i)
        o = Constant <value = int64 {1}> () c = Equal (b, o)
        logits = If (c) <
            then_branch = t () => (float[K] u) {
                a = Constant <value_ints = [0]> () u = Squeeze (all, a)
            },
            else_branch = e () => (float[L] w) { w = Identity (all) }>
    }"""
    model.graph.node.extend(onnx.parser.parse_model(text).graph.node)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def head_of_maps() -> onnx.ModelProto:
    """A transposed convolution over the map of all tokens."""
    spec = VitSpec(prefix=0, depth=3)
    weights = random_weights(spec)
    weights["up"] = np.random.default_rng(0).normal(size=(32, 2, 2, 2)).astype(np.float32)
    writer = GraphWriter(weights)
    x = patch_tokens(writer, spec, "image")
    x = writer.op("Add", prefix_tokens(writer, spec, x, 1), writer.weight("pos_embed"))
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    turned = writer.op("Transpose", writer.layer_norm(x, "norm"), perm=[0, 2, 1])
    square = writer.op("Reshape", turned, writer.const([1, 32, 4, 4]))
    up = writer.op("ConvTranspose", square, writer.weight("up"), strides=[2, 2])
    return writer.model(spec.image, {"map": (up, [1, 2, 8, 8])})


def named_like_ours() -> onnx.ModelProto:
    """An output of all tokens, and a tensor with the name that tells which were kept."""
    spec = VitSpec(pool="none", depth=2)
    model = build_vit(spec, random_weights(spec))
    erf = next(n for n in model.graph.node if n.op_type == "Erf")
    (reader,) = (n for n in model.graph.node if erf.output[0] in n.input)
    reader.input[list(reader.input).index(erf.output[0])] = erf.output[0] = "token_index"
    return model


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "vit.onnx": lambda: build_vit(SPEC, random_weights(SPEC)),
    "deep.onnx": lambda: build_vit(VitSpec(depth=6), random_weights(VitSpec(depth=6))),
    "any_size.onnx": any_size,
    "frames.onnx": frames,
    "squeezed.onnx": squeezed,
    "head_of_maps.onnx": head_of_maps,
    "named_like_ours.onnx": named_like_ours,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with data and a schedule beside the models that a case asks for."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("data.npz", image=rng.normal(size=(4, 3, 32, 32)).astype(np.float32))
    from PIL import Image

    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save("photo.png")
    return tmp_path


def followed(arguments: Sequence[str], message: str) -> list[str]:
    """The command with what the hint of a message says first; a hint is the last bracket."""
    asked = re.match(r"tcompile: error: (--[a-z-]+)", message)
    hint = message[message.rindex(" (") + 2 :].rstrip().removesuffix(")")
    hint = re.split(r",? or |; |, (?=--)", hint)[0]
    found = list(arguments)

    def put(option: str, value: str | None) -> None:
        """Give an option another value, or take it away."""
        if option in found:
            at = found.index(option)
            del found[at : at + (1 if option in FLAGS else 2)]
        found.extend([] if value is None else [option, FILLED.get(value, value)])

    if near := re.search(r"did you mean '(.+?)'|nearest: ([^,]+)|this model has: ([^,]+)", hint):
        put(asked[1], near[1] or near[2] or near[3])  # type: ignore[index]
    elif part := re.search(r"omit (\w+=\S+)", hint):
        found = [a.replace(f",{part[1]}", "") for a in found]
    elif "omit it" in hint:
        put(asked[1], None)  # type: ignore[index]
    elif "omit --" in hint:
        for option in re.findall(r"--[a-z-]+", message[message.rindex(" (") :]):
            put(option, None)
    elif "give one of them" in hint:
        put("--keep", None)
    else:
        if "in its place" in hint:
            found = [a.partition(":")[0] for a in found]
        if "no other budget" in hint:
            put("--latency", None)
        for option, value in re.findall(r"(--[a-z-]+) (\S+)", hint):
            put(option, value.rstrip(",:"))
    return found


BUNDLE = "build vit.onnx --target jetson-orin --method topk --keep 0.5"
#: A command that is refused, its model first, and words of its hint.
CASES: list[tuple[str, str]] = [
    ("plan vit.onnx --target cpu --method topk", "say --keep R"),
    ("plan vit.onnx --target cpu", "say --keep R, --latency MS or --max-drop D"),
    ("plan vit.onnx --target cpu --method tome:r=3 --keep 0.5", "give one of them"),
    ("plan vit.onnx --target cpu --exact --method evit:rate=0.7", "omit it"),
    ("plan vit.onnx --target cpu --method tomee --keep 0.5", "did you mean 'tome'"),
    ("plan vit.onnx --keep 0.5 --method topk --calibration data.npz --target cpu", "omit it"),
    (
        "plan deep.onnx --target cpu --keep 0.5 --latency 9 --profile model --objective pomt "
        "--calibration data.npz",
        "omit --keep, --latency",
    ),
    ("plan vit.onnx --target cpu --latency 9 --method bypass", "own schedule"),
    ("plan vit.onnx --target cpu --latency 1e-6 --profile model", "ask for --latency "),
    (
        "plan vit.onnx --target cpu --keep 0.5 --method fitprune --calibration none",
        "say --calibration DIR, FILE.npz",
    ),
    ("plan vit.onnx --target cpu --method resolution", "say one of --keep R"),
    (
        "plan vit.onnx --target cpu --keep 0.5 --method topk --profile model --plot x.svg",
        "omit --method, or give --latency or --max-drop",
    ),
    ("plan vit.onnx --target cpu --keep 0.1 --method tomesd", "--method tomesd:sx=3,sy=3"),
    ("plan vit.onnx --target cpu --method pyra:level=low", "say --keep R in its place"),
    ("plan vit.onnx --target cpu --method diffrate:table=deit-b", "say --keep R in its place"),
    ("inspect any_size.onnx", "--shape image=n,3,32,32"),
    ("inspect any_size.onnx --shape image=batch,3,64,64", "--shape image=n,3,32,32"),
    ("inspect frames.onnx", "--shape image=1,32,32,3"),
    ("inspect squeezed.onnx", "--shape image=1,3,32,32"),
    ("inspect vit.onnx --tower left", "this model has"),
    ("inspect vit.onnx --why erff_29", "nearest"),
    *(
        (f"plan head_of_maps.onnx --target cpu --keep 0.5 --method {method}", "--outputs restored")
        for method in ("topk", "tome", "evit", "auto")
    ),
    ("plan head_of_maps.onnx --target cpu --method tome:r=2", "works"),
    ("plan head_of_maps.onnx --target cpu --latency 100 --profile model", "works"),
    (
        "plan named_like_ours.onnx --target cpu --method topk --keep 0.5",
        "build with --outputs restored",
    ),
    ("run vit.onnx --input photo.png", "say --preprocess imagenet, clip, siglip, …"),
    ("run vit.onnx --input photo.png --preprocess clip,size=48,48", "omit size=48,48"),
    (f"{BUNDLE} --exclude-lean-runtime", "omit it, or say --version-compatible"),
    (f"{BUNDLE} --version-compatible --token-ops aot", "say --token-ops native"),
    (
        f"{BUNDLE} --version-compatible --exclude-lean-runtime --token-ops plugin",
        "omit it, or say --token-ops native",
    ),
]


#: Hints that are not followed here, and why.
ELSEWHERE = {
    "export it with a number of images, --batch 1": "`export` needs PyTorch: tests/unit/models",
    "e.g. --steps 3000": "of the script that trains the demo's model",
    "add --random-weights, or name a checkpoint: hf:OWNER/MODEL or hf:FOLDER": "needs a network",
    "say --preprocess, or give the input as .npy or .npz": "of a damaged record: test_preprocess",
    "build with --precision fp32": "the normal form has nothing that fp16 cannot hold",
    "build with --precision fp32; --keep-failed writes the artifact all the same, to look "
    "into": "of int8: tests/unit/builder/test_rounded.py",
    "build with --target cpu, which is ONNX Runtime; --keep-failed writes the artifact all the "
    "same, to look into": "test_openvino_builds.py",
    "--precision bf16 or fp32, or --runtime onnxruntime": "test_openvino_builds.py",
    "--precision mixed": "of 8 bits on a GPU: test_engines.py",
    "build with --precision mixed": "where 8 bits are too few for everything: test_engines.py",
    "export it with opset {} or newer, or build with --precision int8": "test_eight_bits.py",
    "measure one: tcompile profile --target {}": "test_openvino_builds.py",
    "build with --precision fp32, allow more drop, or give more images": "test_precisions",
    "measure one: tcompile profile --precision {}": "test_precisions: it takes a minute",
    "say --latency or --max-drop, or {}": "test_precisions",
    "give some, --calibration DATA, or {}": "test_precisions",
    "say --profile measure": "of int8 on a CPU: it takes a minute",
    "bind it with --shape {}=DIMS": "where no size fits, which nothing shorter can say",
    "apt install libnvinfer-headers-dev, or --tensorrt DIR with DIR/include/NvInfer.h": "a toolkit",
    "--token-ops native, the default, needs no library": "needs a toolkit",
    "name the architecture: --arch 87 for Jetson Orin": "needs a toolkit",
    "export it with a free batch: tcompile export --batch dynamic": "tests/unit/models",
    "build it with --min-batch 1, of an export with --batch dynamic or 1": "test_serving.py",
    "give their numbers, in labels.csv or a list with rows file,number; or do without, "
    "--no-labels": "tests/acceptance/cli/test_evaluate.py",
    "a sample is (image, class); or do without, --no-labels": "tests/unit/api/test_evaluate.py",
    "classes are counted from 0; --no-labels does without": "tests/unit/api/test_evaluate.py",
    "give it as --against": "tests/unit/api/test_verify.py, test_evaluate.py",
    "give the dense model as --against": "test_evaluate.py, test_view.py",
    "`tcompile demo -o DIR` writes the model; `tcompile build` takes --calibration": "test_demo.py",
    "add --method {}": "test_profile.py",
    "add --method topk": "of a kit: test_kit.py",
    "add --kit DIR, or omit it": "test_kit.py",
    "--counts 197,148,99": "test_kit.py",
    "without --kit the profile is measured on this machine, or modelled": "test_kit.py",
    "--force replaces it all the same": "test_directory.py",
    "say --method {}:{}=…": "a file of weights: tests/unit/methods",
    "--debug shows where": "of the code of others",
    "ask for more, or another --method": "how much more is in the message",
    "`tcompile profile MODEL --target T{}` measures it": "test_planner.py",
    "--import 197=FILE --import 100=FILE": "test_profile.py",
    "see `tcompile plan --json` for the form": "a form, not an option",
    "say --outputs restored: it is interpolated to the old grid": "planning/test_resolution.py",
    "say a smaller --keep, or resolution:grid=HxW": "how much smaller is in `inspect`",
    "--restore nearest": "of a tail with attention: passes/reduce/test_restoring.py",
    "--restore similar": "of patches in no grid: passes/reduce/test_restoring.py",
    "--cpp, --python, --triton or --deepstream": "tests/unit/deploy/test_app.py",
    "build it again with --token-ops native": "tests/unit/deploy/test_serving.py",
    "build it for a Jetson: --target jetson-orin, …": "tests/unit/deploy/test_serving.py",
    "build it again with --preprocess imagenet, clip, siglip, …": "tests/unit/deploy/test_app.py",
    "build it without --version-compatible: the engine is made where it runs": "test_serving.py",
    "say --precision fp16, or omit it": "of fp8: tests/unit/targets/test_compatibility.py",
}


@pytest.mark.parametrize(("line", "words"), CASES)
def test_a_hint_works_when_it_is_followed(
    line: str, words: str, tcompile: Command, folder: Path
) -> None:
    arguments = line.split()
    onnx.save(MODELS[arguments[1]](), folder / arguments[1])
    refused = tcompile(*arguments)
    assert refused.code == 2, refused
    assert words in refused.err
    again = tcompile(*followed(arguments, refused.err))
    assert again.code == 0, again.err


def hints() -> set[str]:
    """Every hint of the code that names an option, `{}` for what is put in."""
    found = set()
    for folder in ("tcompile", "passes", "models", "targets", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "hint":
                    found |= {t for t in _texts(node.value) if "--" in t}
    return found


def _texts(node: ast.expr) -> set[str]:
    if isinstance(node, ast.IfExp):
        return _texts(node.body) | _texts(node.orelse)
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.JoinedStr):
        parts = (str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        return {"".join(parts)}
    return set()


def test_every_hint_that_names_an_option_is_followed_here_or_elsewhere() -> None:
    met = [words for _, words in CASES]
    unmet = hints() - set(ELSEWHERE)
    assert {h for h in unmet if not any(_fits(h, words) for words in met)} == set()
    assert set(ELSEWHERE) <= hints()


def _fits(hint: str, words: str) -> bool:
    """Tell whether the words are the beginning of a hint, or all of it."""
    pattern = ".*?".join(re.escape(part) for part in hint.split("{}"))
    return hint.startswith(words) or re.match(pattern, words) is not None


def test_a_schedule_is_told_where_its_step_may_be(tcompile: Command, folder: Path) -> None:
    """What is said of a site or of the outputs, in a schedule that a person wrote."""
    onnx.save(head_of_maps(), folder / "vit.onnx")
    step = {"site": "attn:1", "score": {"name": "norm"}, "reducer": {"name": "topk"}, "keep": 8}
    shape = {"tokens": 16, "prefix": 0, "patches": 16, "blocks": 3}
    document = {"schema": 1, "method": "own", "model": shape, "reductions": [step]}
    Path("s.json").write_text(json.dumps(document))
    command = ["plan", "vit.onnx", "--target", "cpu", "--schedule", "s.json"]
    refused: Outcome = tcompile(*command)
    assert "--outputs restored makes it legal" in refused.err
    assert tcompile(*followed(command, refused.err)).code == 0
