"""`keep` and `restore` beside gathers whose index is repeated over the width, as in the original code."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from bench.tables import Table, timed
from maskedlab.corruptions.drop import keep, restore
from maskedlab.instruments.measure import middle, ratio
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import layout


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--batch', type=int, default=64)


def keep_by_gather(x: Tensor, shuffle: Tensor, n: int) -> Tensor:
    return x.gather(1, shuffle[:, :n].unsqueeze(-1).repeat(1, 1, x.shape[2]))


def restore_by_gather(tokens: Tensor, shuffle: Tensor, filler: Tensor) -> Tensor:
    B, n, D = tokens.shape
    back = shuffle.argsort(1)
    full = torch.cat([tokens, filler.repeat(B, shuffle.shape[1] - n, 1)], 1)
    return full.gather(1, back.unsqueeze(-1).repeat(1, 1, D))


def table(n: int, batch: int = 64, units: int = 196, dim: int = 768) -> Table:
    g = torch.Generator().manual_seed(0)
    mask = Random(0.75)(layout((units,), batch=batch), generator=g)
    shuffle = mask.long().argsort(dim=1, stable=True)  # visible first, in their order: the same task for both
    kept = int((~mask[0]).sum())
    x = torch.randn(batch, units, dim, generator=g)
    filler = torch.randn(1, 1, dim, generator=g)
    lean, wide = x.clone().requires_grad_(), x.clone().requires_grad_()
    small = keep(x, ~mask)[0]
    few, many, f1, f2 = (v.clone().requires_grad_() for v in (small, small, filler, filler))

    def back(f: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
        def run() -> None:
            f().sum().backward()
            for v in leaves:
                v.grad = None

        return run

    cases: dict[str, tuple[Callable, Callable]] = {
        'keep, forward': (lambda: keep(x, ~mask)[0], lambda: keep_by_gather(x, shuffle, kept)),
        'keep, forward and backward': (
            back(lambda: keep(lean, ~mask)[0], lean),
            back(lambda: keep_by_gather(wide, shuffle, kept), wide),
        ),
        'restore, forward': (
            lambda: restore(small, ~mask, filler),
            lambda: restore_by_gather(small, shuffle, filler),
        ),
        'restore, forward and backward': (
            back(lambda: restore(few, ~mask, f1), few, f1),
            back(lambda: restore_by_gather(many, shuffle, f2), many, f2),
        ),
    }
    for name in ('keep, forward', 'restore, forward'):
        ours, theirs = (f() for f in cases[name])
        if not torch.equal(ours, theirs):
            raise RuntimeError(f"{name}: the two ways differ, so their times cannot be compared")
    out = Table(
        'drop',
        'Taking tokens out and putting them back',
        f'{batch} x {units} tokens of width {dim}, 75 % hidden, float32. The other way gathers with an int64 '
        'index that is repeated over the width (twice the bytes of the tokens themselves); sorting the order '
        'back is part of its restore. Same results, checked.',
        ['what', 'kit (ms)', 'repeated index (ms)', 'times faster'],
        rounds=n,
    )
    for name, (ours, theirs) in cases.items():
        t = timed({'kit': ours, 'other': theirs}, n, warm=2)
        out.add(
            name,
            middle(t['kit']).show(2, 1e3),
            middle(t['other']).show(2, 1e3),
            ratio(t['kit'], t['other']).show(2),
        )
        out.numbers[name] = t
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    return [table(max(a.rounds, 25), a.batch)]
