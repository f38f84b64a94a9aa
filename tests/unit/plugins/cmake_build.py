"""Builds the plugin library by CMake, installs it, and builds a program that uses what is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tcompile._version import __version__
from tcompile.plugins.build import SOURCES

_PROJECT = """
cmake_minimum_required(VERSION 3.24)
project(user LANGUAGES CXX)
find_package(tcompile REQUIRED CONFIG)
add_executable(user user.cpp)
target_link_libraries(user PRIVATE tcompile::@TARGET@)
"""
# Prints the ops of the library, and how many plugins a registry takes from it.
_PROGRAM = """
#include <tcompile_plugins.h>
#include <cstdio>
using namespace nvinfer1;
int main() {
  for (int i = 0; i < tc_op_count(); ++i) std::printf("%s\\n", tc_op_at(i)->name);
  int32_t (*const take)(IPluginRegistry&) noexcept = tcompile::register_plugins;
  std::printf("%d\\n", take != nullptr ? tc_op_count() : 0);
}
"""


def build_and_use(include: Path, folder: Path) -> tuple[Path, str]:
    """The installed library, and what programs that link it print (shared and static alike).

    Args:
        include: folder with TensorRT's headers.
    """
    root, prefix = folder / "root", folder / "prefix"
    root.mkdir()
    (root / "include").symlink_to(include.resolve())
    run(
        "cmake",
        "-S",
        SOURCES,
        "-B",
        folder / "build",
        f"-DTENSORRT_ROOT={root}",
        "-DCMAKE_CUDA_ARCHITECTURES=86",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DTCOMPILE_PACKAGE_VERSION={__version__}",
        f"-DCMAKE_INSTALL_PREFIX={prefix}",
    )
    run("cmake", "--build", folder / "build")
    run("cmake", "--install", folder / "build")
    said = []
    for target in ("plugins", "plugins_static"):
        user = folder / target
        user.mkdir()
        (user / "CMakeLists.txt").write_text(_PROJECT.replace("@TARGET@", target))
        (user / "user.cpp").write_text(_PROGRAM)
        run(
            "cmake",
            "-S",
            user,
            "-B",
            user / "build",
            f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DTENSORRT_ROOT={root}",
        )
        run("cmake", "--build", user / "build")
        said.append(run(user / "build" / "user"))
    assert said[0] == said[1]
    return next(prefix.rglob("libtcompile_plugins.so")), said[0]


def run(*command: str | Path) -> str:
    """Return what it prints."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
