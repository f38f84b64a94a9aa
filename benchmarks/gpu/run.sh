#!/usr/bin/env bash
# Builds the kernels for this machine's GPU, checks them on it, and measures them.
# Needs nvcc, and python3 with torch and numpy: tcompile itself need not be installed.
#   benchmarks/gpu/run.sh [OUT]     writes OUT/gpu.md and OUT/gpu.json [docs/benchmarks]
#   benchmarks/gpu/run.sh --dry     the host build instead (g++), tiny, nothing timed
#   PYTHON, NVCC, CASES (500) choose.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
cases=${CASES:-500}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1

say() { printf '== %s\n' "$*" >&2; }
stop() { printf 'run.sh: %s\n' "$*" >&2; exit 2; }

"$python" -c 'import numpy, torch' 2> /dev/null || stop "$python has no torch or no numpy; set PYTHON"

if [ "${1:-}" = --dry ]; then
    say "building for the host"
    library=$("$python" -c "
import sys
from pathlib import Path
from benchmarks.gpu.host_build import build
print(build(Path(sys.argv[1])))" "$work")
    "$python" -m benchmarks.gpu.run --library "$library" --dry --cases "$cases"
    exit
fi

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || stop "no nvcc found; set NVCC"
arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2> /dev/null) ||
    stop "torch sees no GPU here; 'benchmarks/gpu/run.sh --dry' runs everything but the clock"

say "building for sm_$arch"
objects=()
for file in plugins/cuda/*.cu plugins/cuda/*.cpp; do
    object=$work/$(basename "$file").o
    "$nvcc" -std=c++17 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden \
        -gencode "arch=compute_$arch,code=sm_$arch" -I plugins/cuda -c "$file" -o "$object" &
    objects+=("$object")
done
for job in $(jobs -p); do wait "$job"; done
"$nvcc" -shared -gencode "arch=compute_$arch,code=sm_$arch" "${objects[@]}" -o "$work/kernels.so"

sanitizer="not installed"
if tool=$(command -v compute-sanitizer); then
    sanitizer=""
    ours=()
    # PyTorch's own kernels are not what is looked at, where the tool can tell.
    if "$tool" --help 2>&1 | grep -q -e --kernel-regex; then ours=(--kernel-regex kns=tc); fi
    for kind in memcheck racecheck synccheck initcheck; do
        say "compute-sanitizer --tool $kind"
        few=$([ "$kind" = memcheck ] && echo 24 || echo 6)
        # PyTorch's caching allocator would hide what lies beyond a tensor.
        if PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$kind" --error-exitcode 9 \
            "${ours[@]}" "$python" -m benchmarks.gpu.run --library "$work/kernels.so" \
            --check "$few" > "$work/$kind.log" 2>&1; then
            sanitizer+="$kind clean ($few cases an op); "
        else
            tail -n 30 "$work/$kind.log" >&2
            sanitizer+="**$kind failed**; "
        fi
    done
    sanitizer=${sanitizer%; }
fi

say "correctness and times"
"$python" -m benchmarks.gpu.run --library "$work/kernels.so" --cases "$cases" \
    --sanitizer "$sanitizer" -o "${1:-docs/benchmarks}"
