#!/usr/bin/env python3
"""The weights that ship, trained anew by the commands that stand beside them.

python tools/make_weights.py                       all of them, those first that others stand on (many hours)
python tools/make_weights.py mae-micro beit-micro  these, and nothing that they stand on
python tools/make_weights.py --dry-run             only the commands, in their order

A run that was interrupted goes on where it stopped; two run at once, each with one thread. The data have to
be those of today: after a change of the embedded files all stages are due.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / 'maskedlab' / 'weights'
PASSING = ('checkpoints', 'average', 'metrics.jsonl', 'run.json')     # of a run, beside its weights
STAGE = re.compile(r'(\w+)/(\w+)/\w+/\d+')


def record(name: str) -> Path:
    """The file beside some weights that says how they came about."""
    return next(f for f in (WEIGHTS / name / 'stage.json', WEIGHTS / name / 'provenance.json') if f.exists())


def command(name: str) -> list[str]:
    """The recorded command, without what only an interrupted run needs."""
    words = shlex.split(json.loads(record(name).read_text(encoding='utf-8'))['command'])
    return [w for w in words if w not in ('--resume', '--overwrite')]


def stands_on(name: str) -> set[str]:
    """The weights whose outputs these were trained with."""
    config = json.loads((WEIGHTS / name / 'config.json').read_text(encoding='utf-8'))
    found = {f'{m[1]}-{m[2]}' for m in STAGE.finditer(json.dumps(config))}
    return {n for n in found if (WEIGHTS / n).is_dir()} - {name}


def in_order(names: list[str]) -> list[str]:
    """Each behind all that it stands on."""
    todo, done = sorted(names), []
    while todo:
        free = [n for n in todo if not stands_on(n) & set(todo)]
        if not free:
            raise SystemExit(f"these stand on each other: {', '.join(todo)}")
        done += free
        todo = [n for n in todo if n not in free]
    return done


def run(name: str) -> None:
    """Train into the folder of a run, then put the weights in their place."""
    words, staged = command(name), record(name).name == 'stage.json'
    if staged:
        subprocess.run([sys.executable, *words[1:]], check=True, cwd=ROOT, env=_alone())
        return
    out = words[words.index('--out') + 1]
    folder = ROOT / 'runs' / 'weights' / name
    words[words.index('--out') + 1] = str(folder)
    subprocess.run([sys.executable, '-m', 'maskedlab.cli', *words[1:], '--resume'], check=True, cwd=ROOT,
                   env=_alone())
    told = json.loads((folder / 'provenance.json').read_text(encoding='utf-8'))
    told['command'] = shlex.join([*words[:words.index('--out') + 1], out, *words[words.index('--out') + 2:]])
    stage = {k: v for k, v in json.loads(record(name).read_text(encoding='utf-8')).items() if k == 'key'}
    # others find weights that serve as a stage by its key
    told = {**stage, **told, 'standing': stand(folder)}
    (folder / 'provenance.json').write_text(json.dumps(told, indent=1), encoding='utf-8')
    shutil.copytree(folder, WEIGHTS / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*PASSING))


def stand(folder: Path) -> dict[str, Any]:
    """Beside the baselines of their page, on held-out samples."""
    from maskedlab.formats.pretrained import load_pretrained
    from maskedlab.show.standing import standing
    return standing(load_pretrained(folder))


def _alone() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def run_all(names: list[str], jobs: int) -> None:
    """All, each as soon as what it stands on is there."""
    waiting, going = in_order(names), dict[Future[None], str]()
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or going:
            open_ = {*waiting, *going.values()}
            for name in [n for n in waiting if not stands_on(n) & open_][:jobs - len(going)]:
                print(f'{name}: {shlex.join(command(name))}', flush=True)
                waiting.remove(name)
                going[pool.submit(run, name)] = name
            for done in wait(going, return_when=FIRST_COMPLETED).done:
                print(f'{going.pop(done)} is there', flush=True)
                done.result()


def main(words: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME', help='of a folder of maskedlab/weights')
    p.add_argument('--jobs', type=int, default=2, help='at once')
    p.add_argument('--dry-run', action='store_true')
    a = p.parse_args(words)
    have = sorted(f.name for f in WEIGHTS.iterdir() if f.is_dir())
    if unknown := [n for n in a.names if n not in have]:
        p.error(f"there are no weights {', '.join(unknown)}; choose of {', '.join(have)}")
    names = a.names or have
    if a.dry_run:
        for name in in_order(names):
            print(shlex.join(command(name)))
    else:
        run_all(names, a.jobs)
    return 0


if __name__ == '__main__':
    sys.exit(main())
