"""How the cost of a training step falls as more is hidden."""
from __future__ import annotations

import argparse

from bench.peers import OURS, SHAPES, Shape, counted, smaller, training_step
from bench.tables import Table, timed
from maskedlab.instruments.measure import middle, product, ratio, share_of_limit

RATIOS = (0., .25, .5, .75, .9)


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--size', choices=list(SHAPES), default='small')
    p.add_argument('--batch', type=int, help='pictures a step; default: that of the size')


def table(shape: Shape, n: int) -> Table:
    "All ratios in the same rounds."
    cases = {r: smaller(shape, ratio=r) for r in RATIOS}
    operations = {r: counted(OURS, s) for r, s in cases.items()}
    best, work = product()
    t = timed({**{str(r): training_step(OURS, s, optimiser='none') for r, s in cases.items()},
               'product': best}, n)
    rate = middle([work / s / 1e9 for s in t['product']])
    out = Table(
        'sweep', f'Hiding more costs less, {shape.name}: {shape.label}',
        "The kit's MAE at 224/16, float32, forward and backward. If operations were all, each row would "
        "take the predicted share of the "
        f'time at ratio 0. The machine multiplies large matrices at {rate.show(0)} GFLOP a second. At ratio '
        '0 nothing is predicted, so the '
        'head has nothing to do.',
        ['ratio', 'ms a step', 'GFLOP a picture', 'time, ratio 0 = 1', 'predicted', 'share of the limit'],
        rounds=n)
    for r in RATIOS:
        out.add(f'{r:g}', middle(t[str(r)]).show(0, 1e3), f'{operations[r] / shape.batch / 1e9:.2f}',
                ratio(t['0.0'], t[str(r)]).show(3),
                f'{operations[r] / operations[0.]:.3f}',
                share_of_limit(operations[r], t[str(r)], work, t['product']).show(2))
    out.numbers = dict(seconds=t, operations={str(r): v for r, v in operations.items()},
                       product_operations=work, shape=shape.__dict__)
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    s = SHAPES[a.size]
    return [table(smaller(s, batch=a.batch) if a.batch else s, a.rounds)]
