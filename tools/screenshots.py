"""The pictures of docs/report.md, of builds of `zoo:glyphs`: `python -m tools.screenshots`.

Needs Chromium, chromedriver and selenium. Builds are measured on the machine that it runs on.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tcompile import pipeline
from tcompile.api.compare import compare, page_of
from tcompile.api.demo import write_glyphs
from tcompile.artifact.directory import PAGE
from tcompile.core.drafts import scratch
from tcompile.models.glyphs import data
from tcompile.models.glyphs.evaluate import HELD_OUT_SEED
from tests.support import browser as browsers

FOLDER = Path(__file__).parents[1] / "docs" / "images"
#: Build → what is asked for it.
BUILDS: dict[str, dict[str, Any]] = {
    "auto": {"keep": 0.5},
    "tome-int8": {"keep": 0.5, "method": "tome", "precision": "int8"},
    "dense-int8": {"keep": 1.0, "precision": "int8"},
    "resolution": {"keep": 0.5, "method": "resolution", "outputs": "restored"},
}
#: Those of which the page is shown, on scenes with digits.
SHOWN: dict[str, dict[str, Any]] = {
    "scenes-auto": {"keep": 0.5, "calibration": "scenes.npz"},
    "scenes-tome": {**BUILDS["tome-int8"], "calibration": "scenes.npz"},
}


def main() -> None:
    """Build, open, and write the pictures."""
    with scratch() as folder, browsers.chromium() as browser:
        os.chdir(folder)  # so that commands that are shown are short
        write_glyphs(Path("glyphs.onnx"))
        images, labels, _ = data.batch(HELD_OUT_SEED, 0, 64)
        np.savez("scenes.npz", image=data.preprocess(images), labels=labels)
        for name, asked in {**BUILDS, **SHOWN}.items():
            print(name, file=sys.stderr)
            pipeline.build("glyphs.onnx", target="cpu", output=name, force=True, **asked)
        browser.get(browsers.address(folder / "scenes-auto" / PAGE))
        _shoot(browser, "report.png")
        browsers.dark(browser, True)
        _shoot(browser, "report-dark.png")
        browsers.dark(browser, False)
        browsers.size(browser, 794, 1990)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        _shoot(browser, "report-print.png")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browsers.size(browser, 1280, 800)
        browser.get(browsers.address(folder / "scenes-tome" / PAGE))
        depth = browser.find_element("id", "depth")
        last = int(depth.get_attribute("max"))
        for name, at in (("first", 1), ("middle", (last + 1) // 2), ("last", last)):
            browser.execute_script(
                "arguments[0].value = arguments[1];"
                "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));",
                depth,
                at,
            )
            picture = browser.find_element("css selector", ".image:not([hidden]) .steps")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
            _write(picture.screenshot_as_png, f"map-{name}.png")
        page = folder / "compare.html"
        page.write_text(page_of(compare(list(BUILDS))), encoding="utf-8")
        browser.get(browsers.address(page))
        size = browser.execute_script("return document.documentElement.scrollHeight")
        browsers.size(browser, 1280, size)
        _shoot(browser, "compare.png")


def _shoot(browser: Any, name: str) -> None:
    _write(browser.get_screenshot_as_png(), name)


def _write(png: bytes, name: str) -> None:
    """A small PNG: with a palette."""
    FOLDER.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
