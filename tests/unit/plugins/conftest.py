"""Fixtures that the tests of the plugin library share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.plugins.plugin_probe import (
    ENV,
    Plugins,
    build_objects,
    build_plugins,
    cuda_include,
    includes,
)


@pytest.fixture(scope="session")
def plugin_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object files of the kernels for the host."""
    folder = tmp_path_factory.mktemp("plugin_kernels")
    build_objects(folder)
    return folder


@pytest.fixture(
    scope="session",
    params=includes() or [pytest.param(None, marks=pytest.mark.skip(f"{ENV} names no headers"))],
    ids=lambda p: p.parent.name if p else "none",
)
def plugin_library(
    request: pytest.FixtureRequest, plugin_kernels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Plugins:
    """The plugins by each of the headers in turn."""
    if cuda_include() is None:
        pytest.skip("cuda_runtime_api.h is nowhere")
    return Plugins(
        *build_plugins(tmp_path_factory.mktemp("plugins"), plugin_kernels, request.param)
    )


@pytest.fixture
def library(plugin_library: Plugins) -> Plugins:
    """The same, with nothing said yet."""
    plugin_library.listen()
    plugin_library.log()
    return plugin_library
