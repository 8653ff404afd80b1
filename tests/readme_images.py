"""Screenshots of the page for the README, from the committed records: `python tests/readme_images.py results`.

Writes `report-page.png` (the table and the charts), `report-wall.png` (the image wall) and
`report-phone.png` (on a phone, dark scheme) into the folder of records.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from browsers import chromium
from PIL import Image

from sdbench import api

# Name -> width, height, colour scheme, and the part of the first section at the top of the image.
SHOTS = {
    "page": (1440, 1300, "light", None),
    "wall": (1440, 900, "light", "images"),
    "phone": (390, 1560, "dark", None),
}


def main(results: Path) -> None:
    """Write the page into a temporary folder, and take the screenshots."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page_file, *_ = api.report(places=results, out=Path(folder) / "report.html")
        for name, shot in SHOTS.items():
            _take(browser, page_file, results / f"report-{name}.png", *shot)


def _take(browser: Any, page_file: Path, out: Path, width: int, height: int, scheme: str, part: str | None) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(page_file.as_uri())
    if part:
        page.locator("details:has(> .wall) > summary").first.click()
        page.locator(f"#s1-{part}").evaluate("head => head.scrollIntoView()")
        page.wait_for_timeout(500)  # images load as they come into view
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(out, optimize=True)
    print(f"written: {out}, {out.stat().st_size / 1000:.0f} kB")  # noqa: T201
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
