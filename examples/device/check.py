"""Run this bundle's engine on the inputs that lie here, and compare with what they should give.

python3 check.py [ENGINE]     needs numpy and TensorRT's Python package, as JetPack has them;
                              ENGINE is a path from the bundle, by default the newest one that the
                              installed TensorRT runs
python3 check.py --onnx       runs the bundle's model.onnx in ONNX Runtime instead, on any machine
python3 check.py --which      says which engine that is, for other programs

Nothing of tcompile or PyTorch is needed. check.json says what is compared and how near it must be,
scenes.npz holds the inputs, data.npz what the reduced model gave for them in fp32.

Exit codes: 0 every output is as it should be; 1 one is not; 2 it cannot be run.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError as missing:
    print(f"error: {missing}: sudo apt install python3-numpy", file=sys.stderr)
    sys.exit(2)

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent
PLUGINS = "plugins/libtcompile_plugins.so"
#: What TensorRT calls a type → what numpy reads it as; bfloat16 is the upper half of a float32.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "uint16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class CannotRunError(Exception):
    """The check cannot be made here; the text says why and what to do."""


class Cuda:
    """CUDA's runtime by ctypes: memory and copies. The default stream is enough for a check."""

    def __init__(self) -> None:
        names = ("libcudart.so", "libcudart.so.12", "libcudart.so.13")
        folders = ("", "/usr/local/cuda/lib64/")
        for name in (f"{folder}{name}" for folder in folders for name in names):
            try:
                self.library = ctypes.CDLL(name)
                return
            except OSError:
                continue
        raise CannotRunError("libcudart.so is not found: add CUDA's folder to LD_LIBRARY_PATH")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns an error code."""
        error = getattr(self.library, name)(*arguments)
        if error:
            raise CannotRunError(f"{name} failed with CUDA error {error}")

    def allocate(self, size: int) -> int:
        """Bytes of the GPU's memory; its address."""
        address = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Give it back."""
        self.call("cudaFree", ctypes.c_void_p(address))

    def upload(self, address: int, array: Any) -> None:
        """Copy an array to the GPU."""
        self._copy(address, array.ctypes.data, array.nbytes, 1)

    def download(self, address: int, array: Any) -> None:
        """Copy what lies on the GPU into an array."""
        self._copy(array.ctypes.data, address, array.nbytes, 2)

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        ends = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self.call("cudaMemcpy", *ends, ctypes.c_size_t(size), ctypes.c_int(kind))

    def wait(self) -> None:
        """Wait until everything is done."""
        self.call("cudaDeviceSynchronize")


class Engine:
    """The engine, in TensorRT.

    Args:
        path: of it.
        made: what it was made compatible with, as check.json says.
    """

    def __init__(self, path: Path, made: dict[str, Any]) -> None:
        try:
            import tensorrt as trt
        except ImportError as error:
            raise CannotRunError(no_tensorrt(error)) from error
        content = path.read_bytes()  # once: what is checked is what TensorRT is given
        lean = check_engine(path, content, trt.__version__, made)
        self.trt, self.cuda = trt, Cuda()
        self.logger = trt.Logger(trt.Logger.ERROR)
        if not made["plugins"]:
            self.load_plugins()
        runtime = self.owner = self.runtime = trt.Runtime(self.logger)
        if made["lean_runtime"] or made["plugins"]:  # code in it, whose sha256 was checked
            runtime.engine_host_code_allowed = True
        if lean:
            self.runtime = runtime.load_runtime(lean)
            if self.runtime is None:
                raise CannotRunError(f"TensorRT does not load the lean runtime {lean}")
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise CannotRunError(
                f"TensorRT {trt.__version__} does not load {path}: build it again with "
                "build_engine.sh on this device"
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise CannotRunError("there is not enough memory for the engine")
        self.name = f"{path} in TensorRT {trt.__version__}"

    def load_plugins(self) -> None:
        """Load the bundle's plugins, where it has any."""
        library = Path(os.environ.get("PLUGINS", BUNDLE / PLUGINS))
        if not library.is_file():
            return
        if self.trt.get_plugin_registry().load_library(str(library)) is None:
            raise CannotRunError(f"TensorRT does not load the plugins of {library}")

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Every output of one run."""
        engine, context, mode = self.engine, self.context, self.trt.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == mode.INPUT]
        for name in inputs:
            if not context.set_input_shape(name, feed[name].shape):
                raise CannotRunError(f"the engine does not take {feed[name].shape} for '{name}'")
        arrays: dict[str, Any] = {}
        buffers: dict[str, int] = {}
        try:
            for name in names:
                kind = DTYPES.get(engine.get_tensor_dtype(name).name)
                if kind is None:
                    raise CannotRunError(f"'{name}' is {engine.get_tensor_dtype(name).name}")
                if name in inputs:
                    arrays[name] = np.ascontiguousarray(_as(feed[name], kind))
                else:
                    arrays[name] = np.empty(tuple(context.get_tensor_shape(name)), kind)
                buffers[name] = self.cuda.allocate(arrays[name].nbytes)
                context.set_tensor_address(name, buffers[name])
            for name in inputs:
                self.cuda.upload(buffers[name], arrays[name])
            if not context.execute_async_v3(0):
                raise CannotRunError("TensorRT cannot run the engine")
            self.cuda.wait()
            for name in names:
                if name not in inputs:
                    self.cuda.download(buffers[name], arrays[name])
        finally:
            for address in buffers.values():
                self.cuda.free(address)
        return {n: _float(a) for n, a in arrays.items() if n not in inputs}


class Onnx:
    """The ONNX model that the engine is built from, in ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise CannotRunError(
                "ONNX Runtime is not installed: pip install onnxruntime"
            ) from error
        cpu, options = ["CPUExecutionProvider"], onnxruntime.SessionOptions()
        # In fp16 its further fusions are not sound on a CPU, nor is what it plans of memory.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=cpu)
        except Exception as error:  # ONNX Runtime has an exception for each reason
            reason = str(error).splitlines()[0]
            raise CannotRunError(f"ONNX Runtime does not run {path}: {reason}") from error
        self.name = f"{path} in ONNX Runtime {onnxruntime.__version__}"

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Every output of one run."""
        outputs = [value.name for value in self.session.get_outputs()]
        kinds = {"tensor(float16)": "float16", "tensor(float)": "float32"}
        given = {
            i.name: feed[i.name].astype(kinds.get(i.type, feed[i.name].dtype))
            for i in self.session.get_inputs()
        }
        return dict(zip(outputs, self.session.run(outputs, given), strict=True))


def _as(array: Any, kind: str) -> Any:
    """An input in the type that the engine takes."""
    if kind != "uint16":
        return array.astype(kind)
    bits = array.astype("float32").view("uint32").astype("uint64")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")  # to the nearest bfloat16


def _float(array: Any) -> Any:
    """An output as numpy has it: bfloat16 as float32."""
    return (array.astype("uint32") << 16).view("float32") if array.dtype == "uint16" else array


def cosine(want: Any, have: Any) -> float:
    """Between two arrays, whatever their shape. Two of zeros agree, one alone with nothing."""
    a, b = want.astype("float64").ravel(), have.astype("float64").ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms:
        return float(a @ b) / norms
    return 1.0 if not a.any() and not b.any() else 0.0


def overlap(want: Any, have: Any) -> float:
    """Share of the tokens that two sets have in common; negative numbers stand for none."""
    first, second = ({int(i) for i in each.ravel() if i >= 0} for each in (want, have))
    return len(first & second) / len(first | second) if first | second else 1.0


def grouped_alike(want: Any, have: Any) -> float:
    """Share of the tokens that two owner maps put together with the same ones."""

    def canonical(owner: Any) -> Any:
        _, first, slots = np.unique(owner, return_index=True, return_inverse=True)
        return np.where(owner >= 0, first[slots.reshape(owner.shape)], -1)

    return float((canonical(want) == canonical(have)).mean())


def compare_values(want: Any, have: Any, rule: dict[str, Any], flipped: bool) -> tuple[str, bool]:
    """One sample of an output of floats: words, and whether it is near enough.

    Where rounding flipped a token at the edge of what is kept, two outputs do not hold the same
    tokens, and only their direction says anything.
    """
    if want.shape != have.shape:
        return f"has shape {list(have.shape)}, not {list(want.shape)}", False
    same = (np.isnan(want) & np.isnan(have)) | (np.isinf(want) & (want == have))
    want, have = (np.where(same, 0, each).astype("float64") for each in (want, have))
    if not np.isfinite(have).all() or not np.isfinite(want).all():
        return "has NaN or Inf where the reference has none, or the other way round", False
    similar = cosine(want, have)
    least = rule["flipped_cosine"] if flipped else rule["cosine"]
    words, near = f"cosine {similar:.6f} (at least {least:g})", similar >= least
    if rule["error"] is not None and not flipped:
        scale = float(abs(want).max()) if want.size and abs(want).max() else 1.0
        apart = abs(want - have) / scale
        pick = np.max if rule["statistic"] == "max" else np.mean
        error = float(pick(apart)) if want.size else 0.0
        words += f", {rule['statistic']} error {error:.1e} (at most {rule['error']:g})"
        near = near and error <= rule["error"]
    return words, near


def common_rows(want: Any, have: Any, index: tuple[Any, Any]) -> tuple[Any, Any]:
    """The rows of the tokens that both hold, in one order."""
    common, rows, others = np.intersect1d(*index, return_indices=True)
    real = common >= 0
    return want[rows[real]], have[others[real]]


def compare(
    want: dict[str, Any], have: dict[str, Any], plan: dict[str, Any]
) -> list[tuple[str, str, bool]]:
    """Compare all outputs of one run: (output, words, whether it is as it should be) each."""
    found: list[tuple[str, str, bool]] = []
    rule, outputs = plan["tolerance"], plan["outputs"]
    same: dict[int, bool] = {}
    for name, how in outputs.items():
        if name not in have:
            found.append((name, "is missing", False))
        elif how["kind"] in ("index", "owner"):
            measure = overlap if how["kind"] == "index" else grouped_alike
            shares = [measure(a, b) for a, b in zip(want[name], have[name], strict=False)]
            same.update({i: same.get(i, True) and s == 1.0 for i, s in enumerate(shares)})
            share, least = float(np.mean(shares)), rule["token_overlap"]
            words = f"{share:.1%} of tokens the same (at least {least:.0%})"
            found.append((name, words, share >= least))
    for name, how in outputs.items():
        if how["kind"] != "values" or name not in have:
            continue
        worst = "", True
        if len(have[name]) < len(want[name]):
            worst = (f"has {len(have[name])} rows, not {len(want[name])}", False)
        for i, (a, b) in enumerate(zip(want[name], have[name], strict=False)):
            flipped = not same.get(i, not plan["unseen_choice"])
            index = how.get("index")
            if flipped and index in have and a.shape == b.shape and a.ndim > 1:
                a, b = common_rows(a, b, (want[index][i], have[index][i]))
            words, near = compare_values(a, b, rule, flipped)
            if not worst[0] or (worst[1] and not near):
                worst = (words, near)
        found.append((name, worst[0] or "no rows", worst[1]))
    return found


def as_rows(array: Any, how: dict[str, Any]) -> Any:
    """An output with its samples first; of packed patches there is one sample."""
    return array[None] if how.get("one_sample") or not np.ndim(array) else array


def numbers(version: str) -> list[int]:
    """The first three numbers of a version."""
    return [int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:3]]


def built_by(path: Path) -> str:
    """The TensorRT that built an engine, by the name that build_engine.sh gives it; else empty."""
    known = re.fullmatch(r"model\.trt(\d+(?:\.\d+)+)\.engine", path.name)
    return known[1] if known else ""


def runs_in(built: str, installed: str, made: dict[str, Any]) -> bool:
    """Whether that TensorRT runs an engine: the one that built it, or a newer one where the engine
    is version-compatible."""
    digits = min(len(built.split(".")), len(installed.split(".")), 3)
    old, new = numbers(built)[:digits], numbers(installed)[:digits]
    if not made["version"]:
        return old == new
    return old <= new if old[0] == new[0] else [old[0], new[0]] in made["across"]


def check_engine(path: Path, content: bytes, installed: str, made: dict[str, Any]) -> str:
    """Everything that can be known of an engine before TensorRT reads it, of its file's name and
    content. Returns the lean runtime that it needs beside itself; empty: none."""
    built = built_by(path)
    if built and not runs_in(built, installed, made):
        raise CannotRunError(
            f"{path} was built by TensorRT {built}, installed is {installed}: run build_engine.sh"
        )
    known = digest_of(path)
    if known is None and (made["lean_runtime"] or made["plugins"]):
        raise CannotRunError(
            f"{path} holds code that would run in this process, and there is no sha256 of it: "
            "run build_engine.sh"
        )
    if known not in (None, hashlib.sha256(content).hexdigest()):
        raise CannotRunError(f"{path} is not as it was written: its sha256 is another")
    same = not built or runs_in(built, installed, {**made, "version": False})
    if not made["version"] or made["lean_runtime"] or same:
        return ""
    lean = os.environ.get("TCOMPILE_LEAN_RUNTIME", "")
    if not Path(lean).is_file():
        raise CannotRunError(
            f"{path} was built by TensorRT {built} without its lean runtime, installed is "
            f"{installed}: TCOMPILE_LEAN_RUNTIME names libnvinfer_lean.so of {built}"
        )
    return lean


def no_tensorrt(error: ImportError) -> str:
    """What to do where it is not there."""
    return (
        f"TensorRT's Python package cannot be imported ({error}): "
        "sudo apt install python3-libnvinfer, and use the system's python3"
    )


def digest_of(path: Path) -> str | None:
    """The SHA-256 that build_engine.sh, or else the manifest, has of an engine."""
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        return (beside.read_text(encoding="utf-8").split() or [""])[0]
    file = BUNDLE / "manifest.json"
    if not file.is_file():
        return None
    manifest = json.loads(file.read_text(encoding="utf-8"))
    listed = {(BUNDLE / each["path"]).resolve(): each["sha256"] for each in manifest["files"]}
    return listed.get(path.resolve())


def newest_engine(made: dict[str, Any]) -> Path:
    """The newest engine that the installed TensorRT runs."""
    there = sorted(
        (BUNDLE / "engine").glob("*.engine"), key=lambda p: (numbers(built_by(p)), p.name)
    )
    fits = []
    if there:
        try:
            import tensorrt as trt
        except ImportError as error:
            raise CannotRunError(no_tensorrt(error)) from error
        fits = [p for p in there if built_by(p) and runs_in(built_by(p), trt.__version__, made)]
    if not fits:
        others = f"; there is {', '.join(p.name for p in there)}" if there else ""
        raise CannotRunError(
            f"there is no engine for this TensorRT{others}: run sh build_engine.sh"
        )
    return fits[-1]


def main(arguments: list[str]) -> int:
    """Run and compare; one line an output. Returns the exit code."""
    plan = json.loads((HERE / "check.json").read_text(encoding="utf-8"))
    if arguments == ["--which"]:
        print(newest_engine(plan["compatibility"]).relative_to(BUNDLE).as_posix())
        return 0
    data, scenes = np.load(HERE / "data.npz"), np.load(HERE / "scenes.npz")
    onnx = "--onnx" in arguments
    paths = [Path(each) for each in arguments if each != "--onnx"]
    if onnx:
        runner: Any = Onnx(paths[0] if paths else BUNDLE / plan["model"])
    else:
        made = plan["compatibility"]
        runner = Engine(paths[0] if paths else newest_engine(made), made)
    print(f"{runner.name}, against {plan['reference']}")
    results: dict[str, tuple[str, bool]] = {}
    for run in range(plan["runs"]):
        feed = {
            name: scenes[f"{run}|{how['dtype']}|{name}"].astype(how["dtype"])
            for name, how in plan["inputs"].items()
        }
        want = {name: data[f"{run}/out/{name}"] for name in plan["outputs"]}
        have = {n: as_rows(a, plan["outputs"].get(n, {})) for n, a in runner.run(feed).items()}
        for name, words, near in compare(want, have, plan):
            if name not in results or (results[name][1] and not near):
                results[name] = (words, near)
    for name, (words, near) in results.items():
        print(f"{'ok  ' if near else 'FAIL'} {name}: {words}")
    if plan["unseen_choice"]:
        print("(the outputs do not tell which tokens were kept: directions are compared alone)")
    return 0 if all(near for _, near in results.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CannotRunError as reason:
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    except Exception as reason:  # of damaged files, TensorRT and CUDA it may be anything
        print(f"error: {type(reason).__name__}: {reason}", file=sys.stderr)
        sys.exit(2)
