"""The way of a slider's key through the explorer, stage by stage, to the repainted page in a real browser."""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.tables import HERE, Table, timed
from maskedlab.instruments.measure import middle
from maskedlab.contract.strategy import hide
from maskedlab.show.explorer.doors import answer
from maskedlab.show.explorer.page import Page
from maskedlab.show.scenes import leaving_no_trace, scene_of

STAGES = ('mask', 'forward', 'fill', 'draw', 'bytes', 'guesses', 'whole answer')


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        '--recipe', action='append', help='may be given more than once; default: all that can be shown'
    )
    p.add_argument('--no-browser', action='store_true', help='leave out the repainting')


def stages(name: str, n: int) -> dict[str, list[float]]:
    "Seconds of each stage, and of the whole answer; stages that a recipe does not have are missing."
    e = Page(name)
    m, s, g = e.menus, e.state, lambda: torch.Generator().manual_seed(0)
    r, v, b, u, strategy = m.recipe(), m.view(), m.batch(s), m.units(s), m.strategy(s)
    with leaving_no_trace(r):
        out = r(b, mask=strategy, generator=g())
        scene = scene_of(r, b, out)
        drawn, guesses = v.drawings(scene), [k for k in v.baselines if v.guess(k, scene) is not None]
        parts: dict[str, Callable[[], Any]] = {
            'mask': lambda: hide(strategy, u, g()),
            'forward': lambda: r(b, mask=strategy, generator=g()),
            **({'fill': lambda: r.fill(b, out)} if r.fill else {}),
            'draw': lambda: v.drawings(scene),
            'bytes': lambda: [v.wire(d) for d in drawn.values()],
        }
        try:
            parts['mask']()
        except ValueError:
            del parts['mask']  # drawn by a score that only the network's forward has
        if guesses:
            parts['guesses'] = lambda: [
                (v.guessed(x := v.guess(k, scene), scene), v.close(x, scene)) for k in guesses
            ]
        t = timed(parts, n, warm=3)
    message = dict(kind='draw', state=asdict(s), view=0, seq=0)
    reply = answer(e, message)[0]
    if reply['kind'] != 'drawn':
        raise ValueError(f"the explorer could not draw {name}: {str(reply.get('words'))[:120]}")
    return t | timed({'whole answer': lambda: answer(e, message)}, n, warm=3)


def row(t: dict[str, list[float]]) -> list[str | None]:
    "Cells of one recipe: medians with their intervals, and what 95 of 100 repaints stay below."
    late = (
        f"{1e3 * sorted(t['repaint'])[math.ceil(0.95 * len(t['repaint'])) - 1]:.1f}"
        if 'repaint' in t
        else None
    )
    return [*(middle(t[k]).show(1, 1e3) if k in t else None for k in [*STAGES, 'repaint']), late]


def repainted(names: list[str]) -> dict[str, list[float]]:
    """Seconds from the slider to the repainted page, of 30 changes; {} where there is no browser. A recipe
    without such a slider is missing."""
    if importlib.util.find_spec('playwright') is None or importlib.util.find_spec('pytest') is None:
        return {}
    spec: Any = importlib.util.spec_from_file_location(
        'browser', HERE.parent / 'tests' / 'browser' / 'conftest.py'
    )
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)  # the page on which the browser tests look at it too
    if browser.CHROMIUM is None:
        return {}
    found = {}
    with browser.chromium() as b, tempfile.TemporaryDirectory() as folder:
        for name in names:
            page = browser.open_page(b, Page(name), Path(folder) / f'{name}.html')
            if page.query_selector('[data-field=ratio]'):
                found[name] = [x / 1e3 for x in browser.repaints(page, 0.2, 0.01)]
            page.context.close()
    return found


def table(n: int, recipes: list[str], browser: bool = True) -> Table:
    out = Table(
        'explorer',
        "The explorer's answer to a key",
        'Milliseconds from the message of the page to the bytes that go back, small networks, one sample, '
        'one thread as in use. The forward draws its mask too; guesses are the quick baselines, drawn and '
        'scored. The stages are timed apart; the whole answer holds further work (the score, sentences, the '
        "line of code). Repaint is the whole way in a browser by the clock, from the slider's key to the "
        'first frame with the new drawings, 30 changes; empty where there is no browser, or no slider called '
        'ratio.',
        ['recipe', *STAGES, 'repaint', '95th of it'],
        rounds=n,
    )
    repaint = repainted(recipes) if browser else {}
    for name in recipes:
        t = stages(name, n) | ({'repaint': repaint[name]} if name in repaint else {})
        out.add(name, *row(t))
        out.numbers[name] = t
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    return [table(max(a.rounds, 25), a.recipe or list(Page('mae').menus.kinds()), not a.no_browser)]
