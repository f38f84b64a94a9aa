"""Plain ONNX on the CPU of this machine, in the runtime and the precision of a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tcompile.targets.backends import openvino, ort
from tcompile.targets.backends.base import Runner
from tcompile.targets.devices import Target


@dataclass(frozen=True)
class OnCpu:
    """A way to run files on this CPU.

    Attributes:
        runtime: onnxruntime or openvino.
        precision: in which OpenVINO computes what a file has in fp32: fp32 or bf16.
    """

    runtime: str = "onnxruntime"
    precision: str = "fp32"

    def open(
        self, path: str | Path, threads: int | None = None, *, in_turn: bool = False
    ) -> Runner:
        """A file, ready to run.

        Args:
            threads: at most, as OpenVINO leaves hyper-threads alone; None leaves it to the runtime.
            in_turn: several are open and run one after another; ONNX Runtime has to know.

        Raises:
            MissingExtraError: the runtime is not installed.
            ModelError: it does not accept the file.
        """
        if self.runtime == "openvino":
            return openvino.OpenVinoRunner(path, threads, precision=self.precision)
        return ort.OrtRunner(path, threads=threads, in_turn=in_turn)

    @property
    def exact(self) -> OnCpu:
        """The same runtime in fp32."""
        return replace(self, precision="fp32")

    @property
    def words(self) -> str:
        """`ONNX Runtime 1.32.0 on the CPU`."""
        if self.runtime == "openvino":
            return f"OpenVINO {openvino.version()} on the CPU"
        return f"ONNX Runtime {ort.version()} on the CPU"


#: What the reference of everything else is run in.
ORT = OnCpu()


def on_cpu(target: Target | str, precision: str) -> OnCpu:
    """How what is built for a target is run on this CPU.

    Args:
        target: or its runtime. What is built for a GPU is run in ONNX Runtime.
        precision: of the build.
    """
    runtime = target if isinstance(target, str) else target.runtime
    if runtime != "openvino":
        return ORT
    return OnCpu(runtime, "bf16" if precision == "bf16" else "fp32")
