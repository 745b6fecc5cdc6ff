"""Farthest point sampling beside the plain loop, and what the centres alone give away.

    python -m bench.points [--centres]

The plain loop is the one that most point networks in PyTorch carry: it lowers distances through a boolean
index, on points stored one after another. `--centres` trains Point-MAE of the lab's size on three seeds, and
compares its Chamfer distance on test models with that of a predictor that sees centres only (the same
network, trained with everything hidden), the untrained network, and the best constant.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from maskedlab.data.samples import sample
from maskedlab.instruments.measure import machine, ratio, timed_rounds
from maskedlab.masks.strategies import Random
from maskedlab.contract.recipe import evaluating
from maskedlab.targets.sets import chamfer
from maskedlab.parts.groups import fps
from maskedlab.recipes.points.point_mae import PointMAE
from maskedlab.train.trainer import fit

RESULTS = Path(__file__).parent / 'results'


def plain(points: torch.Tensor, n: int) -> torch.Tensor:
    "The plain loop, from point 0."
    B, N, _ = points.shape
    chosen = torch.zeros(B, n, dtype=torch.long)
    distance = torch.full((B, N), 1e10)
    last = torch.zeros(B, dtype=torch.long)
    batch = torch.arange(B)
    for i in range(n):
        chosen[:, i] = last
        d = ((points - points[batch, last].view(B, 1, 3)) ** 2).sum(-1)
        closer = d < distance
        distance[closer] = d[closer]
        last = distance.max(-1)[1]
    return chosen


def speed() -> dict[str, Any]:
    points = torch.rand(32, 1024, 3, generator=torch.Generator().manual_seed(0))
    if not torch.equal(plain(points, 64), fps(points, 64)):
        raise SystemExit("the two do not choose the same points")
    taken = timed_rounds({'plain': lambda: plain(points, 64), 'fps': lambda: fps(points, 64)}, 21, warm=3)
    times = ratio(taken['fps'], taken['plain'])
    print(f"fps 32 x 1024 -> 64: {1e3 * sorted(taken['fps'])[10]:.1f} ms, plain loop "
          f"{1e3 * sorted(taken['plain'])[10]:.1f} ms: "
          f"{times.show(2)} times as fast")
    return dict(task='fps 32 x 1024 -> 64', ratio=list(times), bar=1.8, seconds=taken)


def centres(steps: int = 600, seeds: int = 3) -> dict[str, Any]:
    lab = dict(groups=32, size=16, dim=64, depth=3, heads=4, decoder_depth=2, decoder_heads=4,
               pointnet=(32, 64, 128), drop_path=0.)
    test = sample('points', n=None, split='test', points=512)
    mask = Random(.6, law='floor hidden')
    found: dict[str, list[float]] = {'full': [], 'centres only': [], 'untrained': []}
    for seed in range(seeds):
        for name, strategy in (('full', mask), ('centres only', lambda u: u.free.clone()),
                               ('untrained', mask)):
            torch.manual_seed(seed)
            r = PointMAE(**lab)
            if name != 'untrained':
                r.strategy = strategy
                fit(r, 'points', steps, batch=32, lr=2e-3, seed=seed)
            with evaluating(r), torch.no_grad():
                u = r.units(test)
                shown = mask(u, torch.Generator().manual_seed(0))       # the same groups are judged for all
                out = r(test, mask=u.all() if name == 'centres only' else shown)
                found[name].append(float(out.error[shown].mean()))
        print(f'seed {seed}:', {k: round(v[-1], 5) for k, v in found.items()}, flush=True)
    found['best constant'] = [constant(sample('points', n=None, points=512), test, mask, lab)] * seeds
    print('one group for all places:', round(found['best constant'][0], 5))
    return dict(task='Chamfer distance of hidden groups, test models', steps=steps, **found,
                reading=reading(found))


def reading(found: dict[str, list[float]]) -> str:
    """The learning gate first: a network that is not below the best constant has learned nothing that could
    be given away."""
    average = {k: sum(v) / len(v) for k, v in found.items()}
    floor, full, alone = (average[k] for k in ('best constant', 'full', 'centres only'))
    if max(found['full']) > .95 * floor:
        return 'the full network is not clearly below the best constant: trained too little to say'
    share = (floor - alone) / (floor - full)
    return f'of what the full network gains on the best constant, centres alone give {share:.0%}'


def constant(train: dict, test: dict, mask: Any, lab: dict, steps: int = 300) -> float:
    "One group for all places, fitted to the training models: the floor of a predictor that knows nothing."
    torch.manual_seed(0)
    r = PointMAE(**lab)
    g = torch.Generator().manual_seed(0)
    x = r.units(train).x.flatten(0, 1)
    group = (torch.randn(1, r.size, 3, generator=g) * .1).requires_grad_()
    optimiser = torch.optim.Adam([group], lr=.01)
    for _ in range(steps):
        optimiser.zero_grad()
        chamfer(group, x[torch.randint(len(x), (512,), generator=g)]).mean().backward()
        optimiser.step()
    u = r.units(test)
    return float(chamfer(group.detach(), u.x[mask(u, torch.Generator().manual_seed(0))]).mean())


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    p.add_argument('--centres', action='store_true',
                   help='train and compare what centres give away (minutes)')
    a = p.parse_args()
    result = {**(centres() if a.centres else speed()), 'machine': machine()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ('points_centres.json' if a.centres else 'points.json')
    path.write_text(json.dumps(result, indent=1) + '\n')
    return 0


if __name__ == '__main__': raise SystemExit(main())
