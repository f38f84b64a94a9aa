"""Compiling every kernel for every architecture, and what each needs: registers, spills, memory.

    python -m tcompile.plugins.matrix            compile, check the bounds, print a table
    python -m tcompile.plugins.matrix --json F   the figures besides

Takes minutes: five sources, and five for TensorRT's ahead-of-time form, for nine architectures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

CUDA = Path(__file__).parent / "cuda"
#: sm_75 Turing, 80 and 86 Ampere, 87 Orin, 89 Ada, 90 Hopper, 100 and 120 Blackwell, 110 Thor.
ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "110", "120")
SOURCES = ("select.cu", "gather.cu", "fuse.cu", "match.cu", "merge.cu")
AOT_SOURCES = tuple(f"aot/{name}" for name in SOURCES)
FLAGS = ("-std=c++17", "--expt-relaxed-constexpr", "-I", str(CUDA))

#: What a kernel may need at most on any architecture, by the start of its name, longest first.
#: Registers a thread: 64 is all that a block of 1024 threads can have; 128 leaves four blocks of
#: 128 threads on a multiprocessor.
REGISTERS = {
    "tc_aot_merge": 128,
    "tc_aot_combine": 128,
    "merge_kernel": 96,
    "partner_kernel": 128,
    "tc_aot_partner": 128,
    "tc_aot_nearest": 128,
    "tc_aot_match": 168,
    "fuse_kernel": 80,
    "tc_aot_fuse": 80,
    "": 64,
}
#: Bytes spilled, stores and loads: none where rows are copied. A selection from more than 4096 by
#: one block keeps 8 numbers or more a thread in 64 registers, and may put some aside once; so may a
#: merge what it needs before and after the loop over its channels.
SPILLS = {
    "select_kernel": 64,
    "tc_aot_top_k": 64,
    "tc_aot_select": 64,
    "match_kernel": 128,
    "merge_kernel": 128,
    "tc_aot_merge": 128,
    "tc_aot_combine": 128,
    "tc_aot_match": 128,
    "tc_aot_nearest": 64,
    "tc_aot_partner": 64,
    "": 0,
}
#: Bytes that a block can have without asking.
SHARED = 48 * 1024


@dataclass(frozen=True)
class Need:
    """The figures of ptxas for one kernel on one architecture; memory in bytes.

    Attributes:
        spills: bytes that registers are spilled to memory, stores and loads.
        shared: static shared memory; what a launch adds is not in it.
    """

    kernel: str
    arch: str
    registers: int
    spills: int
    stack: int
    shared: int


def find_nvcc() -> str:
    """nvcc: `$CUDACXX`, on the path, where CUDA installs it, or in PyPI's nvidia-cuda-nvcc.

    Raises:
        RuntimeError: there is none.
    """
    packaged = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    places = [
        Path("/usr/local/cuda/bin/nvcc"),
        Path("/opt/cuda/bin/nvcc"),
        *sorted(packaged.glob("*/bin/nvcc")),
    ]
    named = os.environ.get("CUDACXX")
    found = shutil.which(named or "nvcc")
    if found is None and not named:
        found = next((str(p) for p in places if os.access(p, os.X_OK)), None)
    if found is None:
        raise RuntimeError(
            "no nvcc: install CUDA, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl"
        )
    return found


def compile_source(source: str) -> list[Need]:
    """Compile one source of `SOURCES` or `AOT_SOURCES`; what its kernels need.

    Raises:
        RuntimeError: there is no nvcc, or it fails or warns.
    """
    generate = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    with tempfile.TemporaryDirectory(prefix="tcompile-") as folder:
        command = [
            find_nvcc(),
            *FLAGS,
            *generate,
            "-Xptxas",
            "-v",
            "-Werror",
            "all-warnings",
            "-c",
            str(CUDA / source),
            "-o",
            str(Path(folder) / "made.o"),
        ]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    if done.returncode:
        raise RuntimeError(f"nvcc cannot compile {source}: {done.stderr[-4000:]}")
    return list(read_needs(done.stderr))


def read_needs(text: str) -> Iterator[Need]:
    """Return what `ptxas -v` printed, kernel by kernel."""
    blocks = re.split(r"(?=ptxas info\s*: Compiling entry function)", text)
    for block in blocks:
        head = re.search(r"entry function '(\S+)' for 'sm_(\w+)'", block)
        used = re.search(r"Used (\d+) registers", block)
        if head is None or used is None:
            continue
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", block)
        shared = re.search(r"(\d+) bytes smem", block)
        frame, stores, loads = map(int, stack.groups()) if stack else (0, 0, 0)
        yield Need(
            readable(head[1]),
            head[2],
            int(used[1]),
            stores + loads,
            frame,
            int(shared[1]) if shared else 0,
        )


#: Pieces of mangled names.
_PIECES = {
    "6__half": " f16 ",
    "13__nv_bfloat16": " bf16 ",
    "5uint4": " 16B ",
    "5uint2": " 8B ",
    "LNS_7CombineE0E": " mean ",
    "LNS_7CombineE1E": " plain ",
    "LNS_7CombineE2E": " mlerp ",
    "LNS_7CombineE3E": " drop ",
    "Lb0E": " 0 ",
    "Lb1E": " 1 ",
}


def readable(mangled: str) -> str:
    """`merge_kernel<f16,8,mlerp>` of a mangled name; a C name as it is."""
    match = re.match(r"_ZN2tc(\d+)(\w+)", mangled)
    if match is None:
        # A static function has its file in its name.
        plain = re.search(r"\d([a-z]+_kernel)E", mangled)
        return plain[1] if plain else mangled
    name, rest = match[2][: int(match[1])], match[2][int(match[1]) :]
    arguments = re.match(r"I(.*?E?)EEv", rest)
    if arguments is None:
        return name
    text = arguments[1]
    # A built-in type is one letter, in front of everything.
    if text[0] in "fjt":
        text = f" {({'f': 'f32', 'j': '4B', 't': '2B'})[text[0]]} {text[1:]}"
    for old, new in _PIECES.items():
        text = text.replace(old, new)
    text = re.sub(r"Li(\d+)E?", r" \1 ", text)
    return f"{name}<{','.join(text.split())}>"


def beyond(needs: Iterable[Need]) -> list[str]:
    """Return what is not within the bounds."""
    found = []
    for n in needs:
        for what, value, bound in (
            ("registers", n.registers, _bound(REGISTERS, n.kernel)),
            ("bytes spilled", n.spills, _bound(SPILLS, n.kernel)),
            ("bytes of shared memory", n.shared, SHARED),
        ):
            if value > bound:
                found.append(f"{n.kernel} on sm_{n.arch}: {value} {what}, {bound} at most")
    return found


def _bound(bounds: Mapping[str, int], kernel: str) -> int:
    """That of the first beginning that fits."""
    return next(bound for start, bound in bounds.items() if kernel.startswith(start))


def table(needs: list[Need]) -> str:
    """Registers by kernel and architecture, bytes spilled behind a plus; static shared memory."""
    archs = [a for a in ARCHITECTURES if any(n.arch == a for n in needs)]
    rows = [f"| kernel | {' | '.join(archs)} | shared |", "|---" * (len(archs) + 2) + "|"]
    for kernel in dict.fromkeys(n.kernel for n in needs):
        own = {n.arch: n for n in needs if n.kernel == kernel}
        cells = [
            f"{own[a].registers}{f'+{own[a].spills}' if own[a].spills else ''}" if a in own else ""
            for a in archs
        ]
        shared = max(n.shared for n in own.values())
        rows.append(f"| `{kernel}` | {' | '.join(cells)} | {shared} |")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """Compile everything; 1 where a bound is exceeded."""
    needs = [n for source in (*SOURCES, *AOT_SOURCES) for n in compile_source(source)]
    if "--json" in arguments:
        Path(arguments[arguments.index("--json") + 1]).write_text(
            json.dumps([asdict(n) for n in needs], indent=1), encoding="utf-8"
        )
    sys.stdout.write(table(needs) + "\n")
    wrong = beyond(needs)
    sys.stderr.write("".join(f"{line}\n" for line in wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
