"""The way of a slider's key through the explorer, stage by stage. The browser's part is measured by tests/browser."""
from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from bench.tables import Table, timed
from maskedlab.instruments.measure import middle
from maskedlab.masks.strategies import hide
from maskedlab.show.explore import Explore, watching


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--recipe', action='append', help='may be given more than once; default: mae and simmim')


def stages(name: str, n: int) -> dict[str, list[float]]:
    "Seconds of each stage, and of the whole answer."
    e = Explore(name)
    s, g = e.state, lambda: torch.Generator().manual_seed(0)
    r, b, u, strategy = e.recipe(s.recipe), e.batch(s), e.units(s), e.strategy(s)
    with watching(r):
        out = r(b, mask=strategy, generator=g())
        filled = r.fill(b, out) if r.fill else b
        parts = {'mask': lambda: hide(strategy, u, g()), 'forward': lambda: r(b, mask=strategy, generator=g()),
                 **({'fill': lambda: r.fill(b, out)} if r.fill else {}),
                 'paint to bytes': lambda: [e.view.paint(v).numpy().tobytes() for v in (b, filled, filled, b)]}
        t = timed(parts, n, warm=3)
    message = dict(kind='draw', state=asdict(s), view=0, seq=0)
    reply = e.answer(message)[0]
    if reply['kind'] != 'drawn': raise ValueError(f"the explorer could not draw {name}: {str(reply.get('words'))[:120]}")
    return t | timed({'whole answer': lambda: e.answer(message)}, n, warm=3)


def table(n: int, recipes: list[str]) -> Table:
    out = Table(
        'explorer', "The explorer's answer to a key",
        'Milliseconds from the message of the page to the bytes that go back, small networks, one picture, one thread as in use. '
        'The forward draws its mask too. The stages are timed apart; the whole answer holds further work (the mean of the visible, scores, '
        'the error map). What the browser adds is measured by tests/browser.',
        ['recipe', 'mask', 'forward', 'fill', 'paint to bytes', 'whole answer'], rounds=n)
    for name in recipes:
        t = stages(name, n)
        out.add(name, *(middle(t[k]).show(1, 1e3) if k in t else None for k in out.columns[1:]))
        out.numbers[name] = t
    return out


def tables(a: argparse.Namespace) -> list[Table]: return [table(max(a.rounds, 25), a.recipe or ['mae', 'simmim'])]
