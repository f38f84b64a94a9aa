"""Which TensorRT and which GPU run which engine: one list of cases for every loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tcompile.targets.compatibility import Compatibility

#: Nothing was asked; version-compatible, with the lean runtime in the engine, without it, and with
#: our plugins in it as well; an engine of TensorRT-RTX for several compute capabilities.
PLAIN = Compatibility()
WITH = Compatibility(version=True, lean_runtime=True)
WITHOUT = Compatibility(version=True)
PLUGINS = Compatibility(version=True, lean_runtime=True, plugins=True)
SEVERAL = Compatibility(hardware="ampere-plus", capabilities=("8.0", "8.6", "12.0"))


@dataclass(frozen=True)
class Case:
    """An engine, and the machine that is to run it.

    Attributes:
        made: what it was made compatible with.
        built, installed: versions of TensorRT.
        says: words of the refusal; empty: it is run.
        lean: whether the lean runtime is named.
        asks_lean: whether it is run by that.
        on_device: whether `build_engine.sh` made it: the manifest does not list it.
        digest: whether it then wrote the sha256 too.
        capability: of the GPU.
        rtx: whether it is one of TensorRT-RTX, for an RTX 3060.
    """

    made: Compatibility
    built: str
    installed: str
    says: str = ""
    lean: bool = False
    asks_lean: bool = False
    on_device: bool = False
    digest: bool = True
    capability: str = "8.7"
    rtx: bool = False

    def __str__(self) -> str:
        kind = "".join(n for n in ("version", "lean_runtime", "plugins") if getattr(self.made, n))
        more = [n for n in ("lean", "on_device", "rtx") if getattr(self, n)]
        more += [] if self.digest else ["no_digest"]
        return "-".join([self.built, self.installed, kind or "plain", *more, self.capability])


def _rows() -> Iterator[Case]:
    other = "the engine was built by TensorRT {}, installed is {}"
    for built, installed, runs in (
        ("10.3.0", "10.3.0", True),
        ("10.3.0.26", "10.3.0", True),
        ("10.3.0", "10.3.1", False),
        ("10.3.0", "10.16.2", False),
        ("10.16.2", "10.3.0", False),
        ("10.16.2", "11.1.0", False),
    ):
        yield Case(PLAIN, built, installed, "" if runs else other.format(built, installed))
    for built, installed, rule in (
        ("10.3.0", "10.3.0", ""),
        ("10.3.0", "10.3.1", ""),
        ("10.3.0", "10.16.2", ""),
        ("10.3.0", "11.4.1", ""),
        ("10.16.2.10", "11.1.0", ""),
        ("11.0.0", "11.4.1", ""),
        ("8.6.1", "10.3.0", ""),
        ("10.13.3", "10.13.2", "10.x from 10.13.3 on and 11"),
        ("10.16.2", "10.3.0", "10.x from 10.16.2 on and 11"),
        ("10.3.0", "12.0.0", "10.x from 10.3.0 on and 11"),
        ("8.6.1", "11.1.0", "8.x from 8.6.1 on and 10"),
        ("9.3.0", "10.3.0", "9.x from 9.3.0 on"),
        ("11.1.0", "10.16.2", "11.x from 11.1.0 on"),
        ("11.2.1", "11.2.0", "11.x from 11.2.1 on"),
    ):
        says = f"built by TensorRT {built} and runs in {rule}, installed is {installed}"
        yield Case(WITH, built, installed, says if rule else "")
    alone = "was built by TensorRT {} without its lean runtime, installed is {}"
    yield Case(WITHOUT, "10.3.0", "10.3.0")
    yield Case(WITHOUT, "10.3.0", "10.3.0", lean=True)
    yield Case(WITHOUT, "10.3.0", "10.16.2", alone.format("10.3.0", "10.16.2"))
    yield Case(WITHOUT, "10.3.0", "10.16.2", lean=True, asks_lean=True)
    yield Case(WITHOUT, "10.3.0", "11.1.0", lean=True, asks_lean=True)
    says = "and runs in 10.x from 10.16.2 on and 11, installed is 10.3.0"
    yield Case(WITHOUT, "10.16.2", "10.3.0", says, lean=True)
    for made in (PLAIN, WITH, WITHOUT, PLUGINS):
        yield Case(made, "10.3", "10.3.0", on_device=True)
        code = "holds code that would run in this process, and there is no sha256 of it"
        says = code if made.host_code else ""
        yield Case(made, "10.3", "10.3.0", says, on_device=True, digest=False)
    yield Case(WITH, "10.3", "10.16.2", on_device=True)
    yield Case(PLUGINS, "10.3", "11.1.0", on_device=True)
    says = "and runs in 10.x from 10.16 on and 11, installed is 10.3.0"
    yield Case(WITH, "10.16", "10.3.0", says, on_device=True)
    gpu = "is for compute capability 8.7 (jetson-orin), this GPU has 11.0"
    for made in (PLAIN, WITH):
        yield Case(made, "10.3.0", "10.3.0", gpu, capability="11.0")
    for capability in ("8.0", "8.6", "12.0"):
        yield Case(SEVERAL, "1.7.1", "1.7.1", capability=capability, rtx=True)
    gpu = "is for compute capability 8.0, 8.6, 12.0 (rtx-3060), this GPU has 8.9"
    yield Case(SEVERAL, "1.7.1", "1.7.1", gpu, capability="8.9", rtx=True)
    yield Case(PLAIN, "1.7.1", "1.7.1", "is for compute capability 8.6", capability="8.0", rtx=True)
    says = "was built by TensorRT-RTX 1.7.1, installed is 1.8.0"
    yield Case(SEVERAL, "1.7.1", "1.8.0", says, capability="8.6", rtx=True)


CASES = tuple(_rows())
