"""The picture of the explorer in the README, taken in a real browser.

    python tools/explorer_picture.py

It opens the page that `maskedlab explore` serves, chooses what is shown, and saves docs/explorer.png.
Run it again when weights or the page change.
"""
from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
READY = """() => { const r = document.querySelector('.mlx');
    return r && r.dataset.rested && r.dataset.rested === r.dataset.painted; }"""


def main(out: Path = ROOT / 'docs' / 'explorer.png') -> None:
    """Take the picture."""
    code = "from maskedlab.show.explorer.widget import serve; serve('mae', port=0, open_browser=False)"
    server = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith('http'))
        with sync_playwright() as p:
            chromium = next(filter(None, map(shutil.which,
                                             ('chromium', 'chromium-browser', 'google-chrome'))), None)
            browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
            page = browser.new_page(viewport=dict(width=1240, height=1000))
            for _ in range(60):
                try:
                    page.goto(address, timeout=60_000)
                    break
                except Exception:
                    page.wait_for_timeout(500)
            page.wait_for_function(READY, timeout=120_000)
            box = page.locator('.mlx-look .mlx-stage').bounding_box()
            assert box is not None
            # an eye of the cat
            page.locator('.mlx-look .mlx-stage').click(
                position=dict(x=box['width'] * .3, y=box['height'] * .44))
            page.wait_for_timeout(500)
            page.wait_for_function(READY, timeout=60_000)
            page.evaluate("document.activeElement.blur()")
            data = page.locator('.mlx').screenshot()
    finally:
        server.terminate()
        server.wait()
    out.parent.mkdir(exist_ok=True)
    with Image.open(io.BytesIO(data)) as im:
        im.convert('RGB').save(out, optimize=True)      # a palette would bend the scale of colours
    print(f'{out.relative_to(ROOT)}: {out.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
