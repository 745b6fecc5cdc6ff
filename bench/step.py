"""A training step of MAE beside the same network from other hands."""
from __future__ import annotations

import argparse
import statistics

import torch

from bench.peers import OURS, PEERS, SHAPES, Shape, counted, smaller, training_step
from bench.tables import HERE, Table, timed
from maskedlab.instruments.measure import middle, peak_memory, product, ratio, share_of_limit

WORK = {'adamw': 'forward, backward and AdamW', 'none': 'forward and backward'}


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--size', choices=list(SHAPES), help='default: all three')
    p.add_argument('--batch', type=int, help='pictures a step; default: that of the size')
    p.add_argument('--optimiser', choices=list(WORK), default='adamw')
    p.add_argument('--memory', type=int, default=3, metavar='RUNS',
                   help='processes in which memory is measured; 0: none')


def memory(name: str, shape: Shape, optimiser: str, runs: int) -> float:
    "Median peak of fresh processes in bytes, less that of their imports."
    imports = f'import torch; torch.set_num_threads({torch.get_num_threads()})\n'
    imports += f'from bench.peers import ready; ready(); {PEERS[name].imports}'
    work = (f'from bench.peers import Shape, training_step\nstep = training_step({name!r}, {shape!r}, '
            f'{optimiser!r})\n'
            'for _ in range(3): step()')
    return statistics.median(peak_memory(imports, work, HERE.parent) for _ in range(runs))


def table(shape: Shape, n: int, optimiser: str = 'adamw', runs: int = 3) -> Table:
    "One size."
    names = [k for k, p in PEERS.items() if not p.missing]
    steps = {k: training_step(k, shape, optimiser) for k in names}
    best, work = product()
    t = timed({**steps, 'product': best}, n)
    del steps
    operations = {k: counted(k, shape) for k in names}
    peak = {k: memory(k, shape, optimiser, runs) for k in names} if runs else {}
    fastest = min((k for k in names if k != OURS), key=lambda k: ratio(t[OURS], t[k]).value, default=OURS)
    beside = ratio(t[OURS], t[fastest])
    out = Table(
        f'step-{shape.name}', f'A training step, {shape.name}: {shape.label}',
        f'MAE at 224/16, encoder {shape.dim} x {shape.depth} ({shape.heads} heads), decoder '
        f'{shape.decoder_dim} x {shape.decoder_depth} '
        f'({shape.decoder_heads} heads), {shape.ratio:.0%} hidden, normalised patches, float32, '
        f'{shape.batch} pictures a step; '
        f'{WORK[optimiser]}{" (one fused call for all)" if optimiser == "adamw" else ""}. '
        'The kit also checks its input and normalises colours within the step; the others get normalised '
        'pictures. '
        f'Speed: above 1, the kit is faster than that row. The fastest other one is {fastest}; '
        f'the kit is {beside.show(3)} times as fast.',
        ['implementation', 'ms a step', 'pictures a second', 'speed of the kit', 'GFLOP a picture',
         'share of the limit',
         'peak memory (MB)'], rounds=n)
    for k, peer in PEERS.items():
        if peer.missing:
            out.add(k, f"not installed ({', '.join(peer.missing)})", *[None] * 5)
            continue
        m = middle(t[k])
        out.add(k, m.show(0, 1e3), f'{shape.batch / m.value:.1f}', '' if k == OURS
                else ratio(t[OURS], t[k]).show(3),
                f'{operations[k] / shape.batch / 1e9:.2f}',
                share_of_limit(operations[k], t[k], work, t['product']).show(2),
                f'{peak[k] / 2**20:,.0f}' if peak else '')
    out.numbers = dict(seconds=t, operations=operations, peak=peak, product_operations=work,
                       shape=shape.__dict__, optimiser=optimiser)
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    sizes = [SHAPES[a.size]] if a.size else list(SHAPES.values())
    out = []
    for s in sizes:
        if a.batch:
            s = smaller(s, batch=a.batch)
        out.append(table(s, a.rounds, a.optimiser, a.memory))
    return out
