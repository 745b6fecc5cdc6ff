"""Power and false alarms of the leak check, the coverage map and the count law.

Faults planted on purpose, and right samplers and recipes, each with many seeds: other content, other weights,
other draws. A fault should be found each time; what is right should never raise an alarm.
"""
from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from bench.planted import BIASED, KIT, LEAKS, RIGHT, SOUND, alarmed, kit, leaky
from bench.tables import Table

GROUPS = {'fault in a recipe': LEAKS, 'fault in a sampler': BIASED, 'right recipe': SOUND,
          'right sampler': RIGHT, 'recipe of the kit': KIT}
DEAR = {'recipe of the kit': 20}        # of this many times fewer seeds


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--seeds', type=int, default=200,
                   help='of each case; a recipe of the kit takes a twentieth')
    p.add_argument('--jobs', type=int, default=1, help='processes')


def once(group: str, name: str, seed: int) -> dict[str, bool]:
    "Which instruments raise an alarm?"
    torch.set_num_threads(1)
    if GROUPS[group] in (BIASED, RIGHT):
        return dict(zip(('coverage map', 'count law'), alarmed(GROUPS[group][name], seed)))
    case = kit(name, **KIT[name]) if GROUPS[group] is KIT else GROUPS[group][name]
    return {'leak check': leaky(case, seed)}


def many(work: tuple[str, str], seeds: int) -> list[dict[str, bool]]:
    "One case, with all its seeds."
    return [once(*work, seed) for seed in range(max(1, seeds // DEAR.get(work[0], 1)))]


def measured(seeds: int, jobs: int = 1, only: tuple[str, ...] = tuple(GROUPS),
             ) -> dict[str, dict[str, list[dict[str, bool]]]]:
    "For each group and case, the alarms of each seed."
    work = [(group, name) for group in only for name in GROUPS[group]]
    one = partial(many, seeds=seeds)
    if jobs > 1:
        with ProcessPoolExecutor(jobs, get_context('spawn')) as pool:
            found = list(pool.map(one, work))
    else:
        found = [one(w) for w in work]
    out: dict[str, dict[str, list[dict[str, bool]]]] = {group: {} for group in only}
    for (group, name), result in zip(work, found):
        out[group][name] = result
    return out


def table(found: dict[str, dict[str, list[dict[str, bool]]]]) -> Table:
    "A row for each case; above, the sums."
    of = lambda kind: [any(r.values()) for g, cases in found.items() if kind in g
                       for rs in cases.values() for r in rs]
    faults, right = of('fault'), of('right') + of('kit')
    power = [sum(any(r.values()) for r in rs) / len(rs) for g, cases in found.items() if 'fault' in g
             for rs in cases.values()]
    cases = sum(len(c) for c in found.values())
    out = Table(
        'instruments', 'Instruments: power and false alarms',
        f"{len(power)} faults planted on purpose were found in {sum(faults):,} of {len(faults):,} runs (the "
        f"one that is found least, in {min(power, default=0):.1%}); {cases - len(power)} right samplers and "
        f"recipes raised {sum(right)} alarms in {len(right):,} runs. Samplers are drawn 2,000 times a run, "
        "each run with a seed of its own; recipes get other weights and other content. What is asked of an "
        "instrument is a false alarm in at most one run of ten thousand.",
        ['case', 'kind', 'found by', 'runs with an alarm'], clock='counted')
    for group, results in found.items():
        for name, runs in results.items():
            by = [k for k in runs[0] if any(r[k] for r in runs)]
            hits = sum(any(r.values()) for r in runs)
            out.add(name, group, ', '.join(by), f"{hits} of {len(runs)}")
            out.numbers[f'{group}: {name}'] = {k: sum(r[k] for r in runs) for k in runs[0]}
            out.numbers[f'{group}: {name}']['runs'] = len(runs)
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    return [table(measured(a.seeds, a.jobs))]
