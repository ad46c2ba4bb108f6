"""Makes hub_cards/space/screenshot.png: `python tests/space/screenshot.py`, with gradio, playwright and a Chromium.

Runs app.py as a person would, on argus-nano's hub folder, and lets it box everything in an example.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from browsing import EXAMPLES, SPACE, browser, click, find_browser, open_page, upload, wait_for_total
from PIL import Image

ROOT = SPACE.parents[1]
OUT, EXAMPLE, PORT = SPACE / "screenshot.png", EXAMPLES / "scene.png", "7869"
MOST_BYTES = 300_000


def main() -> None:
    if find_browser() is None:
        raise SystemExit("no Chromium here: install the package chromium or chromium-headless-shell")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "argus-nano"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ARGUS_MODEL": str(folder), "GRADIO_SERVER_PORT": PORT}
        subprocess.run(
            [sys.executable, "-m", "argus_tools.cli", "export", "--out", str(folder)], check=True, env=environment
        )
        server = subprocess.Popen(
            [sys.executable, "-u", str(SPACE / "app.py")], env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            address = next((line.split()[-1] for line in server.stdout if "Running on local URL" in line), None)
            if address is None:
                raise SystemExit(f"app.py ended with status {server.wait()}: see above")
            with browser() as opened:
                take(opened, address, Path(scratch) / "page.png")
        finally:
            server.terminate()
            server.wait()


def take(opened, address: str, page_file: Path) -> None:
    page = open_page(opened, address, viewport={"width": 1280, "height": 800})
    upload(page, EXAMPLE)
    page.wait_for_selector("#image img")
    click(page, "Everything", "Box and caption everything")
    page.wait_for_selector("#located img")
    wait_for_total(page)
    page.mouse.move(640, 790)  # away from what it would highlight
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.screenshot(path=page_file, animations="disabled")
    with Image.open(page_file) as image:
        image.convert("RGB").save(OUT, optimize=True)
    if OUT.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{OUT} has {OUT.stat().st_size} bytes, more than {MOST_BYTES}: take a simpler example")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
