"""Takes the pictures of a report that the README shows, in light and dark: `make picture`.

Needs the extra `browser` and a Chromium on the path.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1160, 2100  # pixels
POINTED_AT = 40  # the dot of the map whose image is shown


def main(report: Path) -> None:
    """Open the report and write `report-light.webp` and `report-dark.webp`."""
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(report.resolve().as_uri())
            page.locator(".point").nth(POINTED_AT).focus()
            page.evaluate("scrollTo(0, 0)")
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.save(PICTURES / f"report-{scheme}.webp", quality=80, method=6)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
