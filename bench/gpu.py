"""A training step on a GPU with its data there: number format, compilation and optimiser."""
from __future__ import annotations

import argparse

import torch

from bench.peers import OURS, PEERS, SHAPES, Shape, counted, smaller, training_step
from bench.tables import Table, timed
from maskedlab.instruments.measure import middle, product, share_of_limit

VARIANTS: dict[str, tuple[str, dict]] = {
    'maskedlab, float32': (OURS, dict(fused=False)),
    'maskedlab, bf16': (OURS, dict(bf16=True, fused=False)),
    'maskedlab, bf16, fused AdamW': (OURS, dict(bf16=True)),
    'maskedlab, bf16, fused AdamW, compiled': (OURS, dict(bf16=True, compiled=True)),
    'transformers sdpa, bf16, fused AdamW': ('transformers, sdpa', dict(bf16=True)),
    'transformers sdpa, bf16, fused AdamW, compiled': ('transformers, sdpa', dict(bf16=True, compiled=True)),
    'lightly, bf16, fused AdamW': ('lightly', dict(bf16=True)),
}


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--size', choices=list(SHAPES), default='base')
    p.add_argument('--batch', type=int, default=256)


def table(shape: Shape, n: int, device: str = 'cuda', side: int = 8192,
          variants: dict[str, tuple[str, dict]] = VARIANTS) -> Table:
    "All variants in the same rounds."
    torch.set_float32_matmul_precision('high')
    able = {k: v for k, v in variants.items() if not PEERS[v[0]].missing}
    operations = {name: counted(name, smaller(shape, batch=1)) * shape.batch
                  for name in {v[0] for v in able.values()}}
    best, work = product(side, torch.bfloat16, device)
    t = timed({**{k: training_step(name, shape, device=device, **how) for k, (name, how) in able.items()},
               'product': best}, n, warm=5)
    rate = middle([work / s / 1e12 for s in t['product']])
    out = Table(
        'gpu', f'On a GPU, {shape.name}: {shape.label}',
        'MAE at 224/16, forward, backward and AdamW, pictures on the device, float32 products in TF32. Its '
        'best matrix product in bf16 '
        f'({side} x {side}) runs at {rate.show(0)} TFLOP a second; the share of the limit is told beside it.',
        ['what', 'ms a step', 'pictures a second', 'share of the limit'], rounds=n)
    for k, (name, _) in variants.items():
        if k not in able:
            out.add(k, f"not installed ({', '.join(PEERS[name].missing)})", None, None)
            continue
        m = middle(t[k])
        out.add(k, m.show(1, 1e3), f'{shape.batch / m.value:,.0f}',
                share_of_limit(operations[name], t[k], work, t['product']).show(3))
    out.numbers = dict(seconds=t, operations=operations, product_operations=work, shape=shape.__dict__)
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    if not torch.cuda.is_available():
        raise ValueError("torch finds no GPU here, so there is nothing to measure; run this on a machine "
                         "with one")
    return [table(smaller(SHAPES[a.size], batch=a.batch), a.rounds)]
