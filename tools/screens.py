"""Screenshots of the explorer for every method, at three widths, light and dark, and what is amiss in them.

    python tools/screens.py                       all of them into runs/screens/
    python tools/screens.py mae mfm --widths 900 --themes dark

Each page is measured as well: nothing is cut, tops of neighbours are level, and the slider and a result lie
in the first screen, also at a zoom of 150 and 200 %. What is amiss is printed, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'browser')]

from conftest import chromium, open_page  # noqa: E402

import maskedlab as ml  # noqa: E402
from maskedlab.show.explorer.page import Page  # noqa: E402

WIDTHS, THEMES, ZOOMS = (900, 1280, 1900), ('light', 'dark'), (1.0, 1.5, 2.0)

AMISS = (ROOT / 'tools' / 'screens.js').read_text(encoding='utf-8')      # what is amiss in a page


def hidden_unit(core: Any) -> int | None:
    """A unit whose attention is worth a look: the first hidden one."""
    if core.recipe.attention is None or 'attention' not in core.menus.view().titles:
        return None
    hidden = core.show(core.state).mask.flatten().nonzero()
    return int(hidden[0]) if len(hidden) else None


def look(browser: Any, name: str, folder: Path, width: int, height: int, dark: bool, picture: Path | None,
         zoom: float = 1.0) -> list[str]:
    """Open a page, picture it, and say what is amiss. A zoom makes the window smaller, as a browser does."""
    core = Page(name)
    core.state = replace(core.state, look=hidden_unit(core))
    page = open_page(browser, core, folder / 'page.html', width=round(width / zoom),
                     height=round(height / zoom), dark=dark)
    try:
        found = page.evaluate(AMISS, True) + page.errors
        if picture is not None:
            page.screenshot(path=str(picture), full_page=True)
        return found
    finally:
        page.context.close()


def main(words: list[str] | None = None) -> int:
    """All screenshots; 1 where something is amiss."""
    p = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    p.add_argument('names', nargs='*', help='methods; default: all')
    p.add_argument('--widths', nargs='+', type=int, default=WIDTHS)
    p.add_argument('--themes', nargs='+', choices=THEMES, default=THEMES)
    p.add_argument('--out', type=Path, default=ROOT / 'runs' / 'screens')
    a = p.parse_args(words)
    a.out.mkdir(parents=True, exist_ok=True)
    amiss = 0
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for name in a.names or ml.list_recipes():
            for width in a.widths:
                for theme in a.themes:
                    for zoom in ZOOMS if theme == a.themes[0] else ZOOMS[:1]:
                        file = a.out / f"{name}_{width}_{theme}{'' if zoom == 1 else f'_{zoom:g}x'}.png"
                        found = look(browser, name, Path(folder), width, 900, theme == 'dark', file, zoom)
                        amiss += len(found)
                        for each in found:
                            print(f'{file.name}: {each}', flush=True)
    print(f'{a.out}: {len(list(a.out.glob("*.png")))} pictures, {amiss} things amiss')
    return int(bool(amiss))


if __name__ == '__main__':
    sys.exit(main())
