"""A headless Chromium for pages of a report, where there is one."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

#: As distributions name them.
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of 1280 × 800; the test is skipped where there is none."""
    selenium = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver here (apt install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it refuses to be root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = selenium.ChromeService(executable_path=driver)
    browser = selenium.Chrome(options=options, service=service)
    try:
        size(browser, 1280, 800)
        yield browser
    finally:
        browser.quit()


def size(browser: Any, width: int, height: int) -> None:
    """Give the window another size, in pixels of CSS."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def dark(browser: Any, on: bool) -> None:
    """Prefer dark colours, or light ones."""
    feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def asked_for(browser: Any) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = (json.loads(e["message"])["message"] for e in browser.get_log("performance"))
    return [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]


def axe(browser: Any) -> list[str]:
    """What axe-core finds wrong with the page, a line each."""
    pytest.importorskip("axe_core_python")
    code = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(code)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document).then(r => done(r), e => done({error: String(e)}));"
    )
    assert "error" not in found, found
    assert len(found["passes"]) > 10  # it did look at the page
    return [
        f"{v['id']}: {v['help']}: {[n['html'][:120] for n in v['nodes'][:3]]}"
        for v in found["violations"]
    ]


def pages_in_print(browser: Any) -> int:
    """How many pages of A4 the page is on paper."""
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    data = base64.b64decode(printed["data"])
    return data.count(b"/Type /Page\n") + data.count(b"/Type /Page ")


def address(page: Path) -> str:
    """Of a file."""
    return page.resolve().as_uri()
