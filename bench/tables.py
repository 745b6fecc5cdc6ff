"""A table of results: printed, written as JSON and Markdown, and collected into `bench/README.md`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from maskedlab.instruments.measure import machine, timed_rounds

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results'


def alone() -> bool:
    """One thread on the CPU: the processor's time alone is counted, which other programs on the machine
    disturb less than the clock's."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def timed(functions: dict[str, Callable[[], Any]], n: int, warm: int = 1) -> dict[str, list[float]]:
    "`timed_rounds` by the clock that suits."
    return timed_rounds(functions, n, warm, time.process_time if alone() else time.perf_counter)


@dataclass
class Table:
    "What a bench returns. Cells are text for the reader; `numbers` holds what they were made from."

    name: str  # of its files in bench/results
    title: str
    about: str  # what was measured, in a few sentences
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    command: str = ''
    clock: str = field(default_factory=lambda: 'processor time' if alone() else 'wall time')
    date: str = field(default_factory=lambda: time.strftime('%Y-%m-%d'))
    machine: dict[str, Any] = field(default_factory=machine)

    def add(self, *cells: Any) -> None:
        "One more row; None is an empty cell."
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells do not fit {len(self.columns)} columns")
        self.rows.append(['' if c is None else str(c) for c in cells])

    def lines(self) -> list[str]:
        "The table as Markdown, its columns aligned."
        width = [max(len(r[i]) for r in [self.columns, *self.rows]) for i in range(len(self.columns))]
        line = lambda cells: (
            '| '
            + ' | '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, width)))
            + ' |'
        )
        rule = (
            '|'
            + '|'.join('-' * (w + 2) if i == 0 else '-' * (w + 1) + ':' for i, w in enumerate(width))
            + '|'
        )
        return [line(self.columns), rule, *map(line, self.rows)]

    def markdown(self, level: int = 1) -> str:
        "Title, what was measured, the table, and where it comes from."
        m = self.machine
        threads = 'one thread' if m['threads'] == 1 else f"{m['threads']} threads"
        where = ', '.join(
            [
                f"{m['processor']}, {m['cores']} cores, {threads}",
                *([m['gpu']] if 'gpu' in m else []),
                m['system'],
                f"torch {m['torch']}",
                *([f'{self.rounds} interleaved rounds'] if self.rounds else []),
                self.clock,
                self.date,
            ]
        )
        return '\n'.join(
            [
                f"{'#' * level} {self.title}",
                '',
                self.about,
                '',
                *self.lines(),
                '',
                f'{where}. `{self.command}`',
                '',
            ]
        )

    def save(self, folder: Path = RESULTS) -> Path:
        "NAME.json and NAME.md in the folder."
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (
            ('.json', json.dumps(asdict(self), indent=1, ensure_ascii=False) + '\n'),
            ('.md', self.markdown()),
        ):
            aside = folder / f'.{self.name}{suffix}.part'
            aside.write_text(text, 'utf-8')
            aside.replace(folder / f'{self.name}{suffix}')
        return folder / f'{self.name}.json'


def load(path: Path) -> Table:
    "A table as it was saved."
    try:
        return Table(**json.loads(path.read_text('utf-8')))
    except (ValueError, TypeError):
        raise ValueError(f"{path.name} is no table of results; run its bench again with --save") from None


OPENING = """# Benches

Measurements beside other public implementations. Each table is one command, `maskedlab bench NAME` (or
`python -m bench NAME`), run from a checkout; `--save` writes it to `results/` and makes this page anew. They
need `pip install 'maskedlab[bench]'`; a library that is missing leaves a row that says so.

Functions take turns, round by round, each round starting with another one. Times are medians over the
rounds, with their 95 % interval in brackets; ratios are taken within each round, so that a machine that
slows down for a while does not decide them. Memory is the peak of a fresh process less that of its imports.
The share of the limit is the counted operations over the time, beside the rate of a large matrix product
that takes part in the same rounds. With `--threads 1` the processor's time is counted, which other programs
disturb less than the clock's. The farthest points of point clouds have a bench of their own,
`python -m bench.points`, with `results/points.json`.
"""
ORDER = [
    'step', 'sweep', 'samplers', 'text', 'time', 'drop', 'explorer', 'gpu', 'targets', 'tests', 'price',
    'instruments', 'kills',
]


def overview(folder: Path = RESULTS) -> str:
    "`README.md`: every saved table."
    tables = [load(p) for name in ORDER for p in sorted(folder.glob(f'{name}*.json'))]
    return '\n'.join([OPENING, *(t.markdown(2) for t in tables)])
