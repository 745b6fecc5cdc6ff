#!/usr/bin/env python3
"""Choose what the pages of words and clouds show first, with the weights that ship: tools/first_examples.py

Among the embedded held-out samples and a few seeds, the one on which the network is furthest ahead of the
best answer without a network; run it again when weights change. Where it fails is shown later, and said."""
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

import maskedlab as ml
from maskedlab.show.explorer.page import Page, Shown

FILE = Path(ml.__file__).parent / 'data' / 'files' / 'first_examples.json'
KINDS = ('text', 'points')                                # a photograph needs no choice: each is a success


def lead(page: Page, d: Shown) -> float:
    """How far ahead the network is: of baselines, or, where there is none, of chance."""
    measure = page.menus.view(page.state.recipe).measure
    network, rest = d.scores['network'], [v for k, v in d.scores.items() if k != 'network' and v == v]
    if network != network: return -math.inf
    if not rest:                                        # a yes or no: the fakes among as many most suspicious
        fake, said = torch.as_tensor(d.out.target).flatten() > 0, torch.as_tensor(d.out.pred).flatten()
        return fake[said.topk(int(fake.sum())).indices].float().mean().item() + network / 100
    return min(rest) / network if measure.low else network - max(rest)


def first(name: str, seeds: int) -> dict:
    """The best start of a recipe's page."""
    page = Page(name, index=0, seed=0)
    state = page.state
    tried = [(lead(page, page.show(s)), -i, -k) for i in range(len(page.menus.samples(name, state.set)[1]))
             for k in range(seeds) for s in [replace(state, index=i, seed=k)]]
    _, i, k = max(tried)
    return dict(set=state.set, index=-i, seed=-k)


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or [n for kind in KINDS for n in ml.list_recipes(modality=kind)]
    known = json.loads(FILE.read_text(encoding='utf-8')) if FILE.exists() else {}
    for name in names:
        known[name] = first(name, 24)
        print(name, known[name], flush=True)
    FILE.write_text(json.dumps(known, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
