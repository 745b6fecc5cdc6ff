"""`python -m bench NAME`, which is what `maskedlab bench NAME` runs."""
from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

import torch

from bench.tables import HERE, ORDER, overview


def parser() -> argparse.ArgumentParser:
    "One sub-command a table."
    p = argparse.ArgumentParser('maskedlab bench', description='Measurements beside other implementations; '
                                                               'one table a command.')
    commands = p.add_subparsers(title='tables', required=True, metavar='TABLE')
    for name in ORDER:
        m = importlib.import_module(f'bench.{name}')
        text = (m.__doc__ or '').splitlines()[0]
        c = commands.add_parser(name, help=text, description=text)
        c.add_argument('--rounds', type=int, default=11,
                       help='interleaved rounds; 9 and more give an interval of 95 %%')
        c.add_argument('--threads', type=int, help="default: torch's")
        c.add_argument('--save', action='store_true', help='write bench/results/ and bench/README.md')
        m.arguments(c)
        c.set_defaults(tables=m.tables)
    return p


def main(words: Sequence[str] | None = None) -> int:
    "Measure, print, save."
    words = list(sys.argv[1:] if words is None else words)
    a = parser().parse_args(words)
    if a.save and a.rounds < 9:
        raise ValueError(f"--rounds {a.rounds}: a result is saved with 9 or more; leave --save out to "
                         "rehearse")
    if a.threads:
        torch.set_num_threads(a.threads)
    for t in a.tables(a):
        t.command = t.command or shlex.join(['maskedlab', 'bench', *words])
        print(f'\n{t.markdown()}', flush=True)
        if a.save:
            print(f'saved as {t.save().relative_to(HERE.parent)}')
    if a.save:
        (HERE / 'README.md').write_text(overview(), 'utf-8')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f'bench: {error}', file=sys.stderr)
        sys.exit(2)
