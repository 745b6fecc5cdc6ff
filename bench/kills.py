"""Kills: runs that are killed again and again end with the files of the unbroken run, to the last bit."""
from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.tables import HERE, Table

# what of a run's state is not in the weights alone -> the words of `maskedlab train`
CASES = {
    'average of the weights': 'mae --size micro --batch 4 --ema .9 --accumulate 2',
    'queue and second network': 'point_bert --size micro --batch 4',
    'generator that learns too': 'electra --size micro --batch 4',
}
CALLS = ('fsync', 'rename', 'replace', 'unlink', 'rmdir')     # by which bytes and names reach the disk


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--kills', type=int, default=20, help='of each recipe; default 20')
    p.add_argument('--steps', type=int, default=8, help='of each run; default 8')
    p.add_argument('--seed', type=int, help='of the moments; default: another one each time')


class Nursery:
    "A process that has imported everything; each of its children is a run, or a part of one."

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def run(self, words: list[str], log: Path,
            after: float | None = None,     # seconds after which it is killed
            call: int | None = None,        # how many calls that reach the disk it lives for
            ) -> tuple[int, float]:         # how it ended (-9: killed), and seconds
        asked = json.dumps(dict(words=words, log=str(log), after=after, call=call))
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(asked + '\n')
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))


@contextmanager
def nursery() -> Iterator[Nursery]:
    "Open one."
    one = {'OMP_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false', 'PYTHONPATH': str(HERE.parent)}
    words = [sys.executable, '-c', 'from bench.kills import rear; rear()']
    pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(words, env={**os.environ, **one}, **pipes) as process:
        yield Nursery(process)


def rear() -> None:
    "In the nursery's process: have a child for each line that comes."
    import torch

    from maskedlab import cli
    from maskedlab.contract.catalogue import RECIPES
    from maskedlab.contract.create import recipe_class

    torch.set_num_threads(1)
    for name in RECIPES:
        recipe_class(name)
    for line in sys.stdin:
        asked, began = json.loads(line), time.monotonic()
        pid = os.fork()
        if not pid:
            log = os.open(asked['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if asked['call'] is not None:
                _die_at_call(asked['call'])
            os._exit(cli.main(asked['words']))
        ended = 0
        while not ended:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if asked['after'] is not None and time.monotonic() - began > asked['after']:
                os.kill(pid, signal.SIGKILL)
                asked['after'] = None
            time.sleep(.002)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)


def _die_at_call(n: int) -> None:
    "Be killed at the n-th call by which anything reaches the disk."
    left = [n]

    def dying(real: Any) -> Any:
        def call(*a: Any, **k: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **k)

        return call

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def held(folder: Path) -> dict[str, Any]:
    "What the files of a run hold, but for the clock: name -> content."
    found: dict[str, Any] = {}
    for p in sorted(folder.rglob('*')):
        name = p.relative_to(folder).as_posix()
        if not p.is_file() or name == '.lock':
            continue
        if p.suffix == '.json':
            about = json.loads(p.read_text('utf-8'))
            # a child's `random` starts anew; a run draws from its own seed at each step
            clock = ('seconds', 'date', 'sum', 'metrics_bytes', 'command', 'generators')
            found[name] = {k: v for k, v in about.items() if k not in clock}
        elif p.suffix == '.jsonl':
            rows = map(json.loads, p.read_text('utf-8').splitlines())
            speed = ('samples_per_second', 'waiting')
            found[name] = [{k: v for k, v in row.items() if k not in speed} for row in rows]
        else:
            found[name] = p.read_bytes()
    return found


def trial(at: Nursery, words: list[str], kills: int, seed: int, folder: Path) -> dict[str, Any]:
    "Kill a run this often; wherever it comes to its end, hold its files against the unbroken one's."
    r, log = random.Random(seed), folder / 'log'
    command = lambda out: ['train', *words, '--out', str(folder / out), '--resume']
    code, seconds = at.run(command('unbroken'), log)
    if code:
        raise ValueError(f"maskedlab train {' '.join(words)} ended with {code}: {log.read_text()[-120:]}")
    expected = held(folder / 'unbroken')
    found: dict[str, Any] = dict(kills=0, writes=0, ends=0, different=[])
    while found['kills'] < kills or code:
        out = f"broken-{found['ends']}"
        how: dict[str, Any] = {}
        if found['kills'] < kills:
            how = r.choice([dict(after=r.uniform(.05, 1) * seconds), dict(call=r.randrange(60))])
        code, _ = at.run(command(out), log, **how)
        if code == -signal.SIGKILL:
            found['kills'] += 1
            found['writes'] += 'call' in how
        elif code:
            raise ValueError(f"after {found['kills']} kills (seed {seed}) it ended with {code}: "
                             f"{log.read_text()[-120:]}")
        else:
            found['ends'] += 1
            got = held(folder / out)
            names = expected.keys() | got.keys()
            found['different'] += [f'{out}/{n}' for n in sorted(names) if expected.get(n) != got.get(n)]
    return found


def tables(a: argparse.Namespace) -> list[Table]:
    "A row for each recipe."
    seed = random.SystemRandom().randrange(10 ** 6) if a.seed is None else a.seed
    t = Table('kills', 'Runs that are killed',
              f"`maskedlab train` of {a.steps} steps with a checkpoint at every second one, killed "
              "(SIGKILL) at drawn moments, half of them within the calls by which files reach the disk, "
              "and resumed with the same words. At each end all files are held against those of the "
              "unbroken run: final weights, average, configuration, provenance, checkpoints with "
              f"moments, queues and generators, log; nothing else may lie there. Seed {seed}.",
              ['state beside the weights', 'command', 'kills', 'in a write', 'ends', 'files that differ'],
              clock='counted')
    with nursery() as at, tempfile.TemporaryDirectory() as folder:
        for state, words in CASES.items():
            more = f'{words} --steps {a.steps} --save-every 2 --keep 2'
            place = Path(folder) / words.split()[0]
            place.mkdir()
            found = trial(at, more.split(), a.kills, seed, place)
            t.add(state, f'`{more}`', found['kills'], found['writes'], found['ends'],
                  ', '.join(found['different'][:5]) or 'none')
            t.numbers[state] = found
            print(t.lines()[-1], flush=True)
    return [t]
