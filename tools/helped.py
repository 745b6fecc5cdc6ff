#!/usr/bin/env python3
"""What helps a small masked autoencoder on few photographs: one thing changed at a time.

    tools/helped.py [--steps 600] [--seeds 3] [--out maskedlab/data/files/helped.json]

Each row is trained with the same seeds, scored in decibels on the hidden pixels of 128 held-out crops, and
compared with the row that changes nothing, seed by seed. What is there is kept: an interrupted call goes on.
"""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import maskedlab as ml
from maskedlab.contract.saved import write_files
from maskedlab.instruments.baselines import beside_baselines
from maskedlab.instruments.measure import machine

FILE = Path(ml.__file__).parent / 'data' / 'files' / 'helped.json'
BASE = dict(batch=32, lr=2e-3)
CHANGES = {                     # words of the recipe, words of the trainer, times the steps
    'nothing': ({}, {}, 1),
    'twice the steps': ({}, {}, 2),
    'twice the width': (dict(dim=256), {}, 1),
    'half the rate': ({}, dict(lr=1e-3), 1),
    'an average of the weights': ({}, dict(ema=.999), 1),
    'turned and recoloured crops': ({}, dict(vary=True), 1),
    'no random crops': ({}, dict(augment=False), 1),
    'masks of one block': ({}, dict(mask='Block(.75)'), 1),
}


def scores(recipe: ml.Recipe, n: int = 128) -> dict[str, float]:
    """Mean PSNR of the network and of its baselines, on crops and masks that are the same for all."""
    b = ml.sample('image', n, torch.Generator().manual_seed(0), 'test', size=64)
    mask = ml.masks.Random(.75)(recipe.units(b), generator=torch.Generator().manual_seed(1))
    return beside_baselines(recipe, b, mask)


def one(change: str, seed: int, steps: int) -> dict[str, float]:
    """Train and score."""
    config, words, times = CHANGES[change]
    torch.manual_seed(seed)
    recipe, began = ml.create_recipe('mae', size='micro', **config), time.process_time()
    run = ml.Trainer(recipe, data='image', steps=steps * times, seed=seed, show=False, **BASE | words)
    run.fit(False)
    found = scores(run.averaged() if 'ema' in words else recipe)
    return found | dict(seconds=round(time.process_time() - began, 1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('--steps', type=int, default=600)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--out', type=Path, default=FILE)
    a = p.parse_args()
    torch.set_num_threads(1)
    plan = dict(recipe='mae', size='micro', data='image', steps=a.steps, seeds=a.seeds, **BASE)
    state = json.loads(a.out.read_text('utf-8')) if a.out.exists() else dict(plan, rows={})
    if any(state[k] != v for k, v in plan.items()):
        raise SystemExit(f"{a.out} was made with another plan; move it away")
    for seed in range(a.seeds):
        for change in CHANGES:
            runs = state['rows'].setdefault(change, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = one(change, seed, a.steps)
            state |= dict(command=f"tools/helped.py --steps {a.steps} --seeds {a.seeds}", machine=machine(),
                          date=time.strftime('%Y-%m-%d'))
            write_files(a.out.parent, {a.out.name: state})
            print(change, seed, runs[str(seed)], flush=True)


if __name__ == '__main__':
    main()
