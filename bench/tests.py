"""What the tests cost: each file against its budget with the load beside it, and each method's own share."""
from __future__ import annotations

import argparse
import ast
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


def picked(path: str) -> set[str]:
    """The tests of a file whose values are written out by hand: examples, which no new method adds to."""
    tree = ast.parse((HERE.parent / path).read_text('utf-8'))
    lists = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign)
             for t in n.targets if isinstance(t, ast.Name)}
    found = set()
    for node in ast.walk(tree):
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
            values = call.args[1] if isinstance(call, ast.Call) and len(call.args) > 1 else None
            values = lists.get(values.id) if isinstance(values, ast.Name) else values
            if isinstance(values, ast.List | ast.Tuple) and names(values):
                found.add(node.name)
    return found


def names(written: ast.AST) -> set[str]:
    "The methods that stand in a list as words."
    words = {n.value for n in ast.walk(written) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return words & set(lab.catalogue()['RECIPES'])


def cases(path: str, file: dict[str, Any], clock: str) -> dict[str, float]:
    """Seconds of each method's cases in a file. A test that names some methods by hand, at most half of
    them, is about what it tests and not about them; all others grow with the catalogue."""
    recipes = lab.catalogue()['RECIPES']
    file_is_here = path.endswith('.py') and (HERE.parent / path).exists()
    examples = picked(path) if file_is_here else set()
    found: dict[str, dict[str, float]] = {}
    known = file.get('used', {}) if clock == 'processor' else {}
    for case, seconds in {**file['cases'], **known}.items():
        test, _, words = case.rpartition('::')[2].partition('[')
        for name in recipes:
            if re.search(rf'^(.*-)?{name}(-.*)?\]$', words):
                row = found.setdefault(test, {})
                row[name] = row.get(name, 0.) + seconds
    out = dict.fromkeys(recipes, 0.)
    for test, row in found.items():
        if test in examples and len(row) <= len(recipes) / 2: continue
        for name, seconds in row.items():
            out[name] += seconds
    return out


def own(times: dict[str, Any], clock: str = 'processor') -> dict[str, dict[str, float]]:
    """Seconds of each method that was run: its notebooks, its test file, its cases in tests that hold for
    all; of the 'processor', where they are known, or of the wall clock. A file of several methods counts for
    each in equal parts."""
    found, rows = times['files'], {}
    recipes = lab.catalogue()['RECIPES']
    mine = {name: [p for p in lab.concerns([name])[0] if p in found] for name in recipes}
    share = lambda p: (found[p].get(clock) or found[p]['seconds']) / sum(p in m for m in mine.values())
    of_all = [cases(p, f, clock) for p, f in found.items() if not any(p in m for m in mine.values())]
    for name in recipes:
        row = {'notebooks': sum(share(p) for p in mine[name] if p.startswith('nbs/')),
               'tests': sum(share(p) for p in mine[name] if p.startswith('tests/')),
               'cases': sum(c[name] for c in of_all)}
        if any(row.values()):
            rows[name] = row
    return rows


def methods(times: dict[str, Any]) -> Table:
    "Each method's share."
    rows, wall = own(times), own(times, 'seconds')
    total = {name: sum(row.values()) for name, row in rows.items()}
    t = Table('tests-methods', 'What a method costs under test',
              f"Seconds of processor time, budget {PER_RECIPE}: its notebooks (recipe, formats, claim), its "
              "own test file (one of several methods in equal parts), and its cases in tests that hold for "
              "all. Not counted are tests that take a few methods as examples, and what is made once for all "
              f"cases. {sum(v > PER_RECIPE for v in total.values())} of {len(total)} are over it. *Wall*: "
              "the same by the clock on the wall, which other work on the machine lengthens.",
              ['', 'notebooks', 'own tests', 'cases', 'together', 'wall'])
    for name in sorted(total, key=lambda n: -total[n]):
        t.add(name, *(f'{v:.1f}' for v in (*rows[name].values(), total[name], sum(wall[name].values()))))
    t.numbers = rows
    return t


def tables(a: argparse.Namespace) -> list[Table]:
    times = read(a.times) if a.times else measured(a)
    if a.save and (a.methods or a.only or a.match):
        raise ValueError("a part of the tests is not saved; leave METHOD, --only and --match out, or --save")
    made = [files(times), methods(times)]
    for t, clock in zip(made, ('wall time', 'processor time')):
        t.clock = clock
        if a.times:         # a file of this machine's: who repeats it runs the tests
            t.command = 'maskedlab bench tests'
    return made
