"""Optional packages: what each enables, which extra brings it, and importing one where it is used.

The table is data for `tcompile doctor`; a test holds it against pyproject.toml.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from tcompile.core.errors import BrokenPackageError, MissingExtraError


@dataclass(frozen=True)
class Package:
    """An optional package.

    Attributes:
        name: as pip knows it.
        module: as Python imports it.
        extra: the smallest extra of tcompile that brings it.
        least: the oldest version that is supported; empty: any.
        enables: what it is for.
        others: packages of another name that hold the same module.
    """

    name: str
    module: str
    extra: str
    least: str
    enables: str
    others: tuple[str, ...] = ()


OPTIONAL = (
    Package(
        "onnxruntime",
        "onnxruntime",
        "cpu",
        "1.20",
        "reading, building, checking and running models; measuring this CPU",
        ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    ),
    Package("openvino", "openvino", "openvino", "2025.3", "--runtime openvino"),
    Package("pillow", "PIL", "cpu", "10.1", "reading images, drawing token maps"),
    Package("jinja2", "jinja2", "cpu", "3.1", "report.html"),
    Package("scipy", "scipy", "cpu", "1.12", "profiles, losses and budgets"),
    Package("tensorrt-rtx", "tensorrt_rtx", "rtx", "1.4", "engines for RTX GPUs; parsing bundles"),
    Package("tensorrt", "tensorrt", "tensorrt", "10.3", "engines on a Jetson itself"),
    Package("cuda-bindings", "cuda", "cuda", "12.6", "running engines from Python"),
    Package("torch", "torch", "export", "2.6", "exporting models"),
    Package("torchvision", "torchvision", "export", "", "export torchvision:NAME"),
    Package("timm", "timm", "export", "1.0.15", "export timm:NAME"),
    Package("transformers", "transformers", "export", "4.50", "export hf:ID_OR_DIR"),
    Package("open_clip_torch", "open_clip", "export", "2.30", "export open_clip:ARCH"),
    Package("onnxscript", "onnxscript", "export", "0.3", "exporting models"),
    Package("safetensors", "safetensors", "export", "", "export zoo:glyphs"),
    Package("matplotlib", "matplotlib", "plot", "3.8", "--plot"),
    Package("av", "av", "data", "12", "evaluating on videos"),
    Package("datasets", "datasets", "data", "3", "data sets of Hugging Face on disk"),
    Package("pycocotools", "pycocotools", "data", "2.0.7", "average precision of boxes"),
    Package("pyyaml", "yaml", "yaml", "6", "schedules written as YAML"),
)
_NAMES = {package.module: package.name for package in OPTIONAL}


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Raises:
        MissingExtraError: it is not installed; or, as `BrokenPackageError`, it is and cannot be
            loaded.
    """
    own = module.partition(".")[0]
    name = _NAMES.get(own, own)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or own).partition(".")[0]
        raise MissingExtraError(_NAMES.get(missing, missing), extra, purpose) from error
    except Exception as error:  # whatever the import of a damaged package raises
        raise BrokenPackageError(name, extra, purpose, error) from error
