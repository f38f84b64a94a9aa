"""`docker run` lines: images against the data, options against those that Docker has.

There is no Docker where tests run: nothing here starts a container.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tcompile.targets import list_targets, load_target
from tcompile.targets.backends import jetson_texts
from tcompile.targets.versions import all_containers, all_jetpacks, containers_for, parse_version

ROOT = Path(__file__).parents[3]
#: Options of `docker run` that take a value, and those that do not (reference of the command line,
#: Docker 20.10 and newer; as far as lines here might want them).
VALUED = {"--runtime", "--gpus", "--name", "--network", "--ipc", "--volume", "--workdir", "--user"}
VALUED |= {"--env", "--entrypoint", "--device", "-v", "-w", "-u", "-e"}
PLAIN = {"--rm", "--privileged", "--interactive", "--tty", "-i", "-t", "-it", "--detach", "-d"}


def parsed(line: str) -> tuple[dict[str, str], str, list[str]]:
    """Options, image and command of a line. Fails for an option that Docker does not have."""
    words = shlex.split(line)
    assert words[:2] == ["docker", "run"]
    options, rest = {}, words[2:]
    while rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in VALUED | PLAIN, f"docker run has no {name}"
        options[name] = rest.pop(0) if name in VALUED else ""
    return options, rest[0], rest[1:]


def lines() -> list[str]:
    """Every line in the pages, and in the README of a bundle for each Jetson."""
    texts = [p.read_text(encoding="utf-8") for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    for target in list_targets():
        if target.runtime == "jetson":
            texts.append(
                jetson_texts.readme(
                    target, [], "TensorRT 10.3", plugins=False, batches="", shapes=()
                )
            )
    return [
        line.strip() for text in texts for line in re.findall(r"^ +(docker run .*)$", text, re.M)
    ]


def test_every_line_is_one_that_docker_takes() -> None:
    found = lines()
    images = {c.image for c in all_containers()}
    assert len(found) >= 4
    for line in found:
        options, image, command = parsed(line)
        assert image in images, line
        assert options["-v"] == "$PWD:/work"
        assert options["-w"] == "/work"
        assert {"--gpus", "--runtime"} & set(options)
        assert command
    assert {parsed(line)[1] for line in found} == images


def test_an_option_or_image_that_is_none_is_seen() -> None:
    with pytest.raises(AssertionError, match="docker run has no --gpu"):
        parsed("docker run --rm --gpu all image sh x")
    assert parsed("docker run --rm --gpus all other:1 sh x")[1] not in {
        c.image for c in all_containers()
    }


def test_an_image_fits_its_jetpacks() -> None:
    known = {row.jetpack: row for row in all_jetpacks()}
    for container in all_containers():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", container.image)
        assert container.confidence == "reported"
        assert container.source
        for pack in container.jetpacks:
            assert known[pack].supported
            assert set(container.families) <= set(known[pack].families)
        if container.tensorrt:
            assert parse_version(container.tensorrt) >= (10, 3)


def test_each_target_has_its_own() -> None:
    orin, thor = (containers_for(load_target(t)) for t in ("jetson-orin", "jetson-agx-thor"))
    assert [c.tensorrt for c in orin] == ["10.3.0"]
    assert [c.tensorrt for c in thor] == ["10.13.2", "11.1.0"]
    assert [c.image for c in containers_for(load_target("rtx-4090"))] == ["python:3.12-slim"]
