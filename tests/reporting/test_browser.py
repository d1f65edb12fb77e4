"""The report in a real browser: nothing is complained of, dots show their images, and it fits a phone."""

from __future__ import annotations

import io
import shutil

import pytest
import torch
from PIL import Image, ImageChops
from synthetic_run import EVIL, pictures, write_run

from akssl_core.reporting import render

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: make browser")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path: apt-get install chromium")
DOTS, GREEN = 40, (10, 200, 30)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything, whose mapped images are all green but the last one."""
    images = torch.tensor(GREEN, dtype=torch.uint8).view(1, 3, 1, 1).repeat(DOTS, 1, 8, 8)
    images[-1] = 0
    tensors = {
        **pictures(),
        "attention": torch.full((2, 4, 3, 8, 8), 90, dtype=torch.uint8),
        "map": torch.stack([torch.linspace(0, 1, DOTS), torch.linspace(0, 1, DOTS)], 1),
        "map_images": images,
        "map_labels": torch.arange(DOTS) % 3,
        "map_share": torch.tensor(0.5),
        "map_total": torch.tensor(DOTS),
        "spectrum": 0.5 ** torch.arange(1.0, 20.0),
    }
    names = {"classes": 3, "class_names": [EVIL, "<b>bold</b>", "owl"]}
    folder = write_run(tmp_path_factory.mktemp("runs") / "a", tensors=tensors, data=names, notes=[EVIL])
    file = folder / "report.html"
    file.write_text(render(folder))
    return file


def opened(browser, report, **how):
    """The page, and what the browser has to say of it."""
    page, said = browser.new_page(**how), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: said.append(request.url))
    page.goto(report.as_uri())
    return page, [text for text in said if not text.startswith(("file:", "data:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_no_complaint_no_request_and_no_sideways_scrolling(browser, report, scheme, width):
    page, said = opened(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("act", ["hover", "focus"])
def test_a_dot_shows_its_own_image(browser, report, act):
    page, _ = opened(browser, report, viewport={"width": 1200, "height": 900})
    area = page.locator(".map")
    area.scroll_into_view_if_needed()
    before = Image.open(io.BytesIO(area.screenshot())).convert("RGB")
    getattr(page.locator(".point").nth(DOTS // 2), act)()
    after = Image.open(io.BytesIO(area.screenshot())).convert("RGB")
    shown = dict((colour, count) for count, colour in after.getcolors(2**24))
    assert ImageChops.difference(before, after).getbbox()
    assert shown.get(GREEN, 0) > 60 * 60, "72 x 72 px less a border"


def test_names_are_text(browser, report):
    page, said = opened(browser, report)
    assert said == []
    assert page.locator("b").count() == 0
    assert EVIL in page.inner_text("body")
