"""report.html of a build: its figures computed again, its maps read back, in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from tcompile.api.compare import compare, page_of
from tcompile.api.view import address_of, server_of
from tcompile.artifact.directory import PAGE, load_artifact
from tcompile.report.build_page import render_page
from tcompile.report.shown import Shown
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tests.support import browser as browsers
from tests.support.artifacts import manifest_for
from tests.support.tiny_vit import save_tiny_vit

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def page(glyphs_reports: Path) -> str:
    return (glyphs_reports / "tome" / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outputs(glyphs_reports: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """What ONNX Runtime makes of the scenes: the source, and the artifact's model."""
    source = glyphs_reports / "glyphs.onnx"
    image = scenes_for(signature(source), count=8, seed=0).arrays["image"]
    found = []
    for path in (source, glyphs_reports / "tome" / "model.onnx"):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        found.append(dict(zip(names, session.run(None, {"image": image}), strict=True)))
    return found[0], found[1]


def text_of(page: str) -> str:
    """The words of a page, one space between them."""
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def losses_of(outputs: tuple[dict[str, Array], dict[str, Array]]) -> tuple[Array, Array]:
    """1 - cosine of each scene's logits, and 1 - correlation of its patch logits, each patch held
    against the token that stands for it."""
    dense, reduced = outputs
    a, b = dense["logits"], reduced["logits"]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    rows = np.stack(
        [r[o] for r, o in zip(reduced["patch_logits"], reduced["token_owner"], strict=True)]
    )
    both = zip(dense["patch_logits"], rows, strict=True)
    return 1 - cosine, np.array([1 - np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in both])


def test_the_figures_of_the_headline_are_those_of_the_models(
    glyphs_reports: Path, page: str, outputs: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    by_logits, by_patches = losses_of(outputs)
    losses = max(by_logits, by_patches, key=lambda each: float(each.mean()))
    text, m = text_of(page), load_artifact(glyphs_reports / "tome").manifest
    assert f"Loss {losses.mean():.3g} " in text
    assert f"worst {losses.max():.3g} (sample {losses.argmax() + 1})" in text
    same = (outputs[0]["logits"].argmax(1) == outputs[1]["logits"].argmax(1)).mean()
    assert f"top-1 the same in {same:.0%} of 8 procedural scenes (seed 0)" in text
    assert "asked 0.6: 118 of 196 patch tokens kept 118 of 196 patch tokens" in text
    times = {f.model: f.milliseconds for f in m.latency}
    assert m.speedup is not None
    assert f"Speed, measured {m.speedup.ratio:.2f} ×" in text
    assert f"dense {times['dense']:.3g} ms" in text
    assert f"reduced {times['reduced']:.3g} ms" in text
    size = (glyphs_reports / "tome" / "model.onnx").stat().st_size
    assert f"now {size / 1e6:.2f} MB" in text.replace("now 2.1 MB", "now 2.10 MB")
    assert "tcompile build" in text
    assert "--target cpu --keep 0.6 --method tome --threads 1 --force" in text


def test_the_images_are_the_worst_the_typical_and_the_best(
    page: str, outputs: tuple[dict[str, Array], dict[str, Array]]
) -> None:
    losses = max(losses_of(outputs), key=lambda each: float(each.mean()))
    order = np.argsort(-losses)
    titles = re.findall(r'<section class="image[^"]*" aria-label="([^"]+)"', page)
    names = [f"sample {order[i] + 1}" for i in (0, 2, 4, 7)]
    ranks = ("worst", "worse than 3 of 4", "typical", "best")
    assert titles == [f"{rank}: {name}" for rank, name in zip(ranks, names, strict=True)]
    for title, row in zip(titles, (order[i] for i in (0, 2, 4, 7)), strict=True):
        part = text_of(page.partition(f'aria-label="{title}">')[2].partition("</section>")[0])
        for each in outputs:
            logits = each["logits"][row].astype(np.float64)
            shares = np.exp(logits - logits.max())
            best = int(logits.argmax())
            # Labels are the sums of the digits, whose least is the number of the first class.
            label = json.loads(signature_labels())[best]
            assert f"{label} ({shares[best] / shares.sum():.0%})" in part


def signature_labels() -> str:
    from tcompile.models.glyphs import data

    return json.dumps([str(data.SUM_MIN + i) for i in range(data.CLASSES)])


def overlays(page: str) -> list[list[Array]]:
    """The PNGs over each image, [H, W, 4], step by step."""
    found = []
    for part in re.findall(r'<section class="image.*?</section>', page, re.DOTALL):
        uris = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="">', part)
        pictures = [Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGBA") for uri in uris]
        found.append([np.asarray(picture) for picture in pictures])
    return found


@pytest.mark.parametrize("method", ["tome", "topk"])
def test_the_last_map_is_what_the_artifact_says_of_its_tokens(
    method: str, glyphs_reports: Path
) -> None:
    page = (glyphs_reports / method / PAGE).read_text(encoding="utf-8")
    image = scenes_for(signature(glyphs_reports / "glyphs.onnx"), count=8, seed=0).arrays["image"]
    session = ort.InferenceSession(glyphs_reports / method / "model.onnx")
    names = [o.name for o in session.get_outputs()]
    told = dict(zip(names, session.run(None, {"image": image}), strict=True))
    titles = re.findall(r'<section class="image[^"]*" aria-label="[^"]+ (\d+)"', page)
    for title, steps in zip(titles, overlays(page), strict=True):
        row = int(title) - 1
        last = steps[-1]
        cell = last.shape[0] // 14
        # Above the middle of a patch: no number is there, and no outline.
        opacity = last[cell // 4 :: cell, cell // 2 :: cell, 3].ravel()
        if method == "topk":
            stays = np.isin(np.arange(196), told["token_index"][row])
            np.testing.assert_array_equal(opacity == 0, stays)
        else:
            owner = told["token_owner"][row]
            alone = np.bincount(owner, minlength=196)[owner] == 1
            np.testing.assert_array_equal(opacity == 0, alone)
            assert set(opacity) <= {0, 150, 255}


def test_the_page_is_small_and_asks_for_nothing(page: str) -> None:
    assert len(page) < 1_000_000
    assert not re.search(r"""(src|href)=["']?(?!data:|#)[^"'#\s>]""", page)
    assert "url(" not in re.sub(r'url\("data:[^"]+"\)', "", page)


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browsers.chromium() as found:
        yield found


@pytest.fixture
def opened(chromium: Any, glyphs_reports: Path) -> Any:
    browsers.size(chromium, 1280, 800)
    browsers.dark(chromium, False)
    chromium.get(browsers.address(glyphs_reports / "tome" / PAGE))
    return chromium


def shown_step(browser: Any) -> tuple[int, str, str]:
    """The number of the step that is shown, what is read out of it, and what is written."""
    steps = browser.find_elements("css selector", ".image:not([hidden]) .step")
    on = [i for i, step in enumerate(steps) if "on" in step.get_attribute("class").split()]
    assert len(on) == 1
    assert steps[on[0]].is_displayed()
    assert sum(step.is_displayed() for step in steps) == (1 if on[0] == 0 else 2)
    depth = browser.find_element("id", "depth")
    told = browser.find_element("id", "told").text
    return on[0], depth.get_attribute("aria-valuetext"), told


def test_it_asks_for_nothing_and_says_no_error(opened: Any) -> None:
    assert [e for e in opened.get_log("browser") if e["level"] != "INFO"] == []
    asked = browsers.asked_for(opened)
    assert asked
    assert all(url.startswith(("file:", "data:")) for url in asked), asked


def test_a_page_without_images_says_no_error(chromium: Any, tmp_path: Path) -> None:
    source = save_tiny_vit(tmp_path / "vit.onnx")
    file = tmp_path / "report.html"
    page = render_page(manifest_for(source, source), Shown(why="it takes no images"))
    file.write_text(page, encoding="utf-8")
    chromium.get_log("browser")
    chromium.get(browsers.address(file))
    assert "it takes no images" in chromium.find_element("id", "viewer").text
    assert [e for e in chromium.get_log("browser") if e["level"] != "INFO"] == []


def test_the_first_screen_holds_what_a_person_wants_to_know(opened: Any) -> None:
    wanted = [
        *opened.find_elements("css selector", ".card"),
        *opened.find_elements("css selector", ".top .pic"),
    ]
    assert len(wanted) == 5
    for element in wanted:
        box = element.rect
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800
        assert box["x"] + box["width"] <= 1280
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 1280


def test_the_slider_works_by_keys_and_by_mouse(opened: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    depth = opened.find_element("id", "depth")
    last = int(depth.get_attribute("max"))
    assert last == 6
    assert shown_step(opened)[0] == last
    depth.send_keys(Keys.ARROW_LEFT)
    step, said, told = shown_step(opened)
    assert step == last - 1
    assert said == told
    assert said.startswith("merge at attn:4: 131 of 196 patch tokens are left; ")
    depth.send_keys(Keys.HOME)
    assert shown_step(opened)[0] == 0
    middle = depth.rect["width"] / 2
    ActionChains(opened).move_to_element(depth).click_and_hold().move_by_offset(
        int(middle * 2 / 3), 0
    ).release().perform()
    assert shown_step(opened)[0] == 5


def test_images_are_chosen_by_keys(opened: Any) -> None:
    from selenium.webdriver import Keys

    first, *_ = opened.find_elements("css selector", "input[name=image]")
    first.send_keys(Keys.ARROW_RIGHT)
    images = opened.find_elements("css selector", ".image")
    assert [image.is_displayed() for image in images] == [False, True, False, False]
    opened.find_element("id", "every").click()
    steps = opened.find_elements("css selector", ".image:not([hidden]) .step")
    assert all(step.is_displayed() for step in steps)
    assert len(steps) == 7


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(dark: bool, opened: Any) -> None:
    browsers.dark(opened, dark)
    assert browsers.axe(opened) == []
    size = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (size == "rgb(255, 255, 255)") is not dark


def test_it_fits_a_phone_and_two_sheets_of_paper(opened: Any) -> None:
    assert browsers.pages_in_print(opened) == 2
    browsers.size(opened, 360, 740)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 360


def test_without_scripts_every_map_is_there(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.refresh()
        steps = opened.find_elements("css selector", ".step")
        assert len(steps) == 4 * 7
        assert all(step.is_displayed() for step in steps)
        assert not opened.find_element("css selector", ".controls").is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_comparison_in_a_browser(chromium: Any, glyphs_reports: Path, tmp_path: Path) -> None:
    file = tmp_path / "compare.html"
    file.write_text(
        page_of(compare([glyphs_reports / "tome", glyphs_reports / "topk"])), encoding="utf-8"
    )
    browsers.size(chromium, 1280, 800)
    for dark in (False, True):
        browsers.dark(chromium, dark)
        chromium.get(browsers.address(file))
        assert browsers.axe(chromium) == []
    assert [e for e in chromium.get_log("browser") if e["level"] != "INFO"] == []
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 1280


def test_it_is_served_on_loopback_alone(chromium: Any, glyphs_reports: Path) -> None:
    import threading

    with server_of(glyphs_reports / "tome" / PAGE, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            chromium.get(address_of(server))
            assert chromium.title.endswith("glyphs.onnx for cpu: tcompile")
            assert shown_step(chromium)[0] == 6
            assert [e for e in chromium.get_log("browser") if e["level"] != "INFO"] == []
            other = address_of(server).replace("127.0.0.1", "[::ffff:127.0.0.1]")
            assert other != address_of(server)
        finally:
            server.shutdown()
            thread.join()
