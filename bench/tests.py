"""What the tests cost: each file against its budget with the load beside it, and each method's own share."""
from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lab
from bench.tables import HERE, Table

SHOWN = 30              # of the files, the dearest; those over their budget always
PER_RECIPE, PER_TUTORIAL, WHOLE = 10, 25, 12 * 60


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('methods', nargs='*', metavar='METHOD',
                   help='only what concerns these; default: every check')
    p.add_argument('--only', nargs='+', choices=lab.STAGES, metavar='STAGE', help='of lab.py test')
    p.add_argument('--match', default='', help='of lab.py test')
    p.add_argument('--times', type=Path, metavar='FILE',
                   help='what `lab.py test --times FILE` wrote; nothing is run')


def measured(a: argparse.Namespace) -> dict[str, Any]:
    "Run the tests here and now, and read their times."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'times.json'
        more = [*(['--only', *a.only] if a.only else []), *(['--match', a.match] if a.match else [])]
        command = [sys.executable, 'lab.py', 'test', *a.methods, '--no-install', '--times', str(file), *more]
        subprocess.run(command, cwd=HERE.parent)
        return read(file)


def read(file: Path) -> dict[str, Any]:
    "Times as `lab.py` writes them."
    try:
        times = json.loads(file.read_text('utf-8'))
        return {'seconds': times['seconds'], 'cores': times['cores'], 'files': times['files']}
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{file} holds no times; `python lab.py test --times FILE` writes them") from None


def room(name: str) -> str:
    "Where a file belongs: nbs/recipes, tests, tutorials, ..."
    parts = name.split('/')
    return '/'.join(parts[:2] if parts[0] == 'nbs' or parts[:2] == ['tests', 'browser'] else parts[:1])


def files(times: dict[str, Any]) -> Table:
    "Each file against its budget."
    found = times['files']
    over = [n for n, f in found.items() if f['seconds'] > f['budget']]
    late = [n for n in over if n.startswith('tutorials/')]
    t = Table('tests', 'What the tests cost',
              f"{len(found)} files in {times['seconds'] / 60:.1f} minutes (budget {WHOLE // 60}) on "
              f"{times['cores']} cores; "
              f"{len(over)} over their own budget, {len(late)} of them tutorials. *Processor*: seconds of "
              "processor time, which a "
              "busy machine disturbs less; *load*: processes that wanted to run, for each core.",
              ['', 'seconds', 'processor', 'budget', 'load'])
    whole = lambda kind: sum(f[kind] or 0 for f in found.values())
    t.add('all, one after the other', f"{whole('seconds'):.0f}", f"{whole('processor'):.0f}", '', '')
    for name in sorted({room(n) for n in found}):
        here = [f for n, f in found.items() if room(n) == name]
        cells = [f"{sum(f[kind] or 0 for f in here):.0f}" for kind in ('seconds', 'processor', 'budget')]
        t.add(f'{name} ({len(here)})' if len(here) > 1 else name, *cells, '')
    dearest = sorted(found, key=lambda n: -found[n]['seconds'])[:SHOWN]
    for name in [*dearest, *(n for n in over if n not in dearest)]:
        f = found[name]
        used = '' if f['processor'] is None else f"{f['processor']:.1f}"
        t.add(f'`{name}`', f"{f['seconds']:.1f}", used, f"{f['budget']:.0f}", f"{f['load']:.1f}")
    t.numbers = {'total': times['seconds'], 'cores': times['cores'], 'over': over,
                 'seconds': {n: f['seconds'] for n, f in found.items()}}
    return t


def own(times: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of each method that was run: its notebooks, its test file, its cases in tests that hold for
    all; of whole files the processor's time, where it is known."""
    found, rows = times['files'], {}
    used = lambda p: found[p]['processor'] or found[p]['seconds']
    for name in lab.catalogue()['RECIPES']:
        mine = [p for p in lab.concerns([name])[0] if p in found]
        case = re.compile(rf'\[(.*-)?{name}(-.*)?\]$')
        others = [f['cases'] for p, f in found.items() if p not in mine]
        row = {'notebooks': sum(used(p) for p in mine if p.startswith('nbs/')),
               'tests': sum(used(p) for p in mine if p == f'tests/test_{name}.py'),
               'cases': sum(s for cases in others for c, s in cases.items() if case.search(c))}
        if any(row.values()):
            rows[name] = row
    return rows


def methods(times: dict[str, Any]) -> Table:
    "Each method's share."
    rows = own(times)
    total = {name: sum(row.values()) for name, row in rows.items()}
    t = Table('tests-methods', 'What a method costs under test',
              f"Seconds, budget {PER_RECIPE}: its notebooks (recipe, formats, claim), its own test file, and "
              "its cases in "
              f"tests that hold for all. {sum(v > PER_RECIPE for v in total.values())} of {len(total)} are "
              "over it.",
              ['', 'notebooks', 'own tests', 'cases', 'together'])
    for name in sorted(total, key=lambda n: -total[n]):
        t.add(name, *(f'{v:.1f}' for v in rows[name].values()), f'{total[name]:.1f}')
    t.numbers = rows
    return t


def tables(a: argparse.Namespace) -> list[Table]:
    times = read(a.times) if a.times else measured(a)
    if a.save and (a.methods or a.only or a.match):
        raise ValueError("a part of the tests is not saved; leave METHOD, --only and --match out, or --save")
    for t in (made := [files(times), methods(times)]):
        t.clock = 'wall time'
        if a.times:         # a file of this machine's: who repeats it runs the tests
            t.command = 'maskedlab bench tests'
    return made
