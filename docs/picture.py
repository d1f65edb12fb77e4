"""Takes the pictures of a report that the documentation shows, in light and dark: `make picture`.

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
WIDTH, HEIGHT = 1160, 1340  # pixels: verdict, scores and the first curves
POINTED_AT = 40  # the dot of the map whose image is shown


def main(report: Path) -> None:
    """Open the report; write its beginning and its map of features: `report-light.webp`, `map-dark.webp` ..."""
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(report.resolve().as_uri())
            _save(page.screenshot(), f"report-{scheme}")
            page.locator(".point").nth(POINTED_AT).focus()  # the pointer would meet dots that lie above it
            _save(page.locator("#map-of-features").screenshot(), f"map-{scheme}")
        browser.close()


def _save(png: bytes, name: str) -> None:
    Image.open(io.BytesIO(png)).save(PICTURES / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
