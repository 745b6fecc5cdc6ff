"""Mask samplers beside the public ways of drawing the same masks.

The counterparts are the double argsort of MAE's code; a Python loop per image over block attempts (BEiT's and
CAE's rules, painted cell by cell as released, and by numpy slices, which the released code does not do); and
transformers' `_compute_mask_indices`. Where samples have padding, the double argsort puts it last and each
sample asks for its own count, and the loop looks at the rows that a sample has.
"""
from __future__ import annotations

import argparse
import math
import random

import numpy as np
import torch

from bench.tables import Table, timed
from maskedlab.instruments.measure import middle, ratio
from maskedlab.masks.block import Block
from maskedlab.masks.patterns import Tube
from maskedlab.masks.span import Span
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import layout


def double_argsort(batch, units, ratio=.75):
    rank = torch.rand(batch, units).argsort(1).argsort(1)
    return rank >= int(units * (1 - ratio))


def ragged_double_argsort(valid, ratio=.75):
    n = valid.sum(1)
    rank = torch.rand(valid.shape).masked_fill(~valid, 2.).argsort(1).argsort(1)
    return (rank >= (n * (1 - ratio)).long()[:, None]) & valid


def ragged_block_loop(heights, H, W, paint):
    out = torch.zeros(len(heights), H, W, dtype=torch.bool)
    for mask, h in zip(out, heights):
        mask[:h] = block_loop(1, h, W, h * W // 2, True, paint)[0]
    return out


def block_loop(batch, H, W, n, exact, paint, area=16, aspect=.3, attempts=10):
    "One image after another, one attempt after another."
    out = np.zeros((batch, H, W), dtype=int)
    for mask in out:
        count = 0
        while count < n:
            room, added = n - count, 0
            for _ in range(attempts):
                size = random.uniform(area, room)
                shape = math.exp(random.uniform(math.log(aspect), -math.log(aspect)))
                h, w = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
                if h >= H or w >= W: continue
                top, left = random.randint(0, H - h), random.randint(0, W - w)
                block = mask[top:top + h, left:left + w]
                if 0 < h * w - block.sum() <= room:
                    added = paint(block)
                    break
            count += added
            if not added and not exact: break
    return torch.from_numpy(out).bool()


def by_cells(block):
    "Cell by cell, as the released generators do."
    added = 0
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            if block[i, j] == 0:
                block[i, j] = 1
                added += 1
    return added


def by_slice(block):
    added = block.size - int(block.sum())
    block[:] = 1
    return added


def equal_spans(draw):
    "The public masks, and as many uncovered in each row as its longest has more than the shortest (fairseq)."
    mask = draw()
    hidden = [row.nonzero()[0] for row in mask]
    least = min(map(len, hidden))
    for row, places in zip(mask, hidden):
        row[np.random.choice(places, len(places) - least, replace=False)] = False
    return mask


def cases():
    "Name, the kit's sampler, its counterpart and the factor asked for (None: no counterpart)."
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices
    g = torch.Generator().manual_seed(0)
    patches, frames, flat = layout((14, 14), batch=256), layout((1500,), batch=32), layout((196,), batch=256)
    lengths = torch.randint(98, 197, (256, 1), generator=g)
    ragged = layout((196,), valid=torch.arange(196) < lengths)
    heights = lengths[:, 0] // 14
    rows = torch.arange(14)[:, None].expand(14, 14)
    ragged_grid = layout((14, 14), valid=rows < heights[:, None, None])
    ends = torch.randint(750, 1501, (32, 1), generator=g)
    speech = layout((1500,), valid=torch.arange(1500) < ends)
    attend, heights = speech.valid.long(), heights.tolist()
    spans = lambda *attend: lambda: _compute_mask_indices((32, 1500), .65, 10, *attend, min_masks=2)
    draw = lambda s, u: lambda: s(u, generator=g)
    return [
        ('Random, 256 x 196', draw(Random(), flat), lambda: double_argsort(256, 196), 2.5),
        ('Random, 256 x 196, ragged', draw(Random(), ragged),
         lambda: ragged_double_argsort(ragged.valid), 2.5),
        ('Block, 256 x 14 x 14, at most 75', draw(Block(n=75, law='at most'), patches),
         lambda: block_loop(256, 14, 14, 75, False, by_cells), 12),
        ('  beside a loop that paints by slices', draw(Block(n=75, law='at most'), patches),
         lambda: block_loop(256, 14, 14, 75, False, by_slice), None),
        ('Block, 256 x 14 x 14, exactly 98', draw(Block(n=98), patches),
         lambda: block_loop(256, 14, 14, 98, True, by_cells), 12),
        ('  beside a loop that paints by slices', draw(Block(n=98), patches),
         lambda: block_loop(256, 14, 14, 98, True, by_slice), None),
        ('Block, 256 x 14 x 14, ragged, exactly half', draw(Block(.5), ragged_grid),
         lambda: ragged_block_loop(heights, 14, 14, by_cells), 12),
        ('Span, 32 x 1500', draw(Span(), frames), spans(), 2.5),
        ('Span, 32 x 1500, ragged', draw(Span(), speech), spans(attend), 2.5),
        ('Span, 32 x 1500, equal counts', draw(Span(equal=True), frames), lambda: equal_spans(spans()), 2),
        ('Span, 32 x 1500, ragged, equal counts', draw(Span(equal=True), speech),
         lambda: equal_spans(spans(attend)), None),
        ('Tube, 32 x 8 x 14 x 14', draw(Tube(), layout((8, 14, 14), batch=32)), None, None),
    ]


def arguments(p: argparse.ArgumentParser) -> None:
    pass


def tables(a: argparse.Namespace) -> list[Table]:
    "One table for each number of threads; one and two, where none is asked for."
    before, out = torch.get_num_threads(), []
    for threads in [a.threads] if a.threads else [1, 2]:
        torch.set_num_threads(threads)
        out.append(table(a.rounds, threads))
    torch.set_num_threads(before)
    return out


def table(rounds: int, threads: int) -> Table:
    out = Table(
        f'samplers-{threads}', f"Drawing masks, {threads} thread{'s' * (threads > 1)}",
        "Milliseconds a batch. The public ways: MAE's double argsort; a Python loop per image by BEiT's and "
        "CAE's rules, painted cell by cell as released, and by slices of numpy; transformers' span masks. In "
        'rows marked ragged every sample has padding; there the double argsort puts it last, and the loop '
        'looks at the rows that a sample has.',
        ['sampler', 'kit (ms)', 'public (ms)', 'times faster', 'aim'], rounds=rounds)
    for name, ours, theirs, aim in cases():
        t = timed({'kit': ours, **({'public': theirs} if theirs else {})}, rounds, warm=2)
        beside = (middle(t['public']).show(2, 1e3),
                  ratio(t['kit'], t['public']).show(1)) if theirs else (None, None)
        out.add(name, middle(t['kit']).show(2, 1e3), *beside, aim)
        out.numbers[name] = t
    return out
