"""Several methods with one encoder, the same digits, steps and seeds: worth of features, cost of a step."""

from __future__ import annotations

import argparse
from typing import Any

from bench.tables import RESULTS, Table
from maskedlab.instruments.compare import Budget, compare, compare_rows

BUDGET = Budget()
WHY = {
    'selfie': "its convnet has 6 to 96 channels, and there a core reaches less than a third of the rate of a "
    "transformer's products"
}


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        'names', nargs='*', metavar='RECIPE', help='default: every picture recipe that has a claim'
    )
    p.add_argument('--jobs', type=int, default=1, help='processes at once')
    p.add_argument('--seeds', type=int, default=3)


def entrants() -> list[str]:
    "`mae`, whose step is the measure, and all other picture recipes with a claim on digits."
    from maskedlab.instruments.claim import find_claim
    from maskedlab.contract.create import card
    from maskedlab.contract.catalogue import list_recipes

    def joins(name: str) -> bool:
        try:
            claim = find_claim(name)
        except ValueError:
            return False
        return card(name).modality == 'image' and (claim.data == 'digits' or claim.compared is not None)

    return ['mae', *(n for n in list_recipes() if n != 'mae' and joins(n))]


def dear(state: dict[str, Any], limit: float = 1.3) -> str:
    "A sentence for each method whose step takes that many times what its operations predict."
    over = {name: c['over'][0] for name, c in state.get('costs', {}).items() if c['over'][0] > limit}
    return ''.join(f" {name} is over {limit}: {WHY.get(name, 'nobody has found out why')}." for name in over)


def tables(a: argparse.Namespace) -> list[Table]:
    unfinished = RESULTS / 'runs' / 'targets.json' if a.save else None
    state = compare(a.names or entrants(), a.seeds, BUDGET, unfinished, a.jobs, rounds=a.rounds)
    b = state['budget']
    head, *rows = compare_rows(state)
    out = Table(
        'targets',
        'What to predict: methods side by side',
        f"One encoder (96 wide, 4 blocks, patches of 4 pixels; a convnet where a method is one), "
        f"{b['steps']} steps of {b['batch']} digits, {a.seeds} seeds; accuracies in per cent, mean and half "
        "of the 95 % interval. *By operations*: the cost of a step as its floating-point operations predict "
        "it from mae's; *over*: measured over predicted; *MB*: memory of training, without imports."
        + dear(state),
        head,
        rows,
        rounds=a.rounds,
    )
    out.numbers = state
    return [out]
