#!/usr/bin/env python3
"""README.md from nbs/index.ipynb: nbdev's filters, nbconvert's Markdown, and tables that are computed.

python tools/readme.py                     write README.md
python tools/readme.py --check             exit 1 where README.md is not what would be written
python tools/readme.py --repository URL    move the project: pyproject.toml, citation, README and tutorials
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)  # nbdev finds its configuration from the working folder


def methods() -> str:
    """The table of methods, from the cards."""
    from maskedlab.contract.create import card
    from maskedlab.contract.catalogue import RECIPES

    rows = ['| recipe | paper | on | where | how | what | then what |', '|---|---|---|---|---|---|---|']
    for name in RECIPES:        # those of other packages have a README of their own
        c = card(name)
        rows.append(
            '| '
            + ' | '.join(
                str(cell).replace('|', r'\|')
                for cell in (f'`{name}`', f'[{c.title}]({c.link}) ({c.year})', c.modality, c.where, c.how,
                             c.what, c.use)
            )
            + ' |'
        )
    readings = [f'- `{name}`: {card(name).reading}.' for name in RECIPES if card(name).reading]
    words = (
        "Where no source settles a detail, a recipe is the kit's own reading; "
        'its notebook says so at that place:'
    )
    return '\n'.join([*rows, '', words, '', *readings])


def sizes() -> str:
    """What an installation takes, from lab.py, which announces the same."""
    import lab

    names = {'linux': 'Linux', 'linux cpu': 'Linux, CPU build', 'darwin': 'macOS', 'win32': 'Windows'}
    rows = ['| system | download | on disk | time at 50 Mbit/s |', '|---|---|---|---|']
    rows += [f'| {names[k]} | {down:.1f} GB | {disk:.1f} GB | {lab.minutes(down):.0f} min |' for k,
             (down, disk) in lab.SIZES.items()]
    down, disk = lab.SIZE_OF_TESTS
    return '\n'.join([*rows, f'| more for `make test` | {down:.1f} GB | {disk:.1f} GB | '
                             f'{lab.minutes(down) - lab.minutes(0):.0f} min |'])


def picture() -> str:
    """The explorer, once its picture is there."""
    return (
        '![The explorer: original, seen, returned and error side by side](docs/explorer.png)'
        if (ROOT / 'docs/explorer.png').exists()
        else ''
    )


def course() -> str:
    """The tutorials: title, what one does in them and how long they run, as their first cells say."""
    import json

    rows = []
    for path in sorted((ROOT / 'tutorials').glob('*.ipynb')):
        first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
        title = re.search(r'^# (.+)$', first, re.M)
        time = re.search(r'^\*It runs in (about .+?) on two CPU cores', first, re.M)
        if not title or not time:
            raise ValueError(f"{path.name} does not open with '# Title' and '*It runs in about ... on two "
                             "CPU cores'")
        rows.append(f'{len(rows) + 1}. [{title[1]}](tutorials/{path.name}), {time[1]}')
    return '\n'.join(rows)


def claims() -> str:
    """Results of `maskedlab claim`, whichever way they fell."""
    from maskedlab.instruments.claim import claims_table

    return claims_table(ROOT / 'claims')


def comparison() -> str:
    """Result of `maskedlab compare`, as it ships with the package."""
    import json

    from maskedlab.instruments.compare import compare_table

    return compare_table(json.loads(
        (ROOT / 'maskedlab/data/files/comparison.json').read_text(encoding='utf-8')))


def budgets() -> str:
    """From how many steps on a method is worth its training: the comparisons at several budgets that ship."""
    from maskedlab.instruments.compare import budgets_table
    from maskedlab.show.results import committed_budgets

    return '\n\n'.join(f'On {data}, {_seeds(states)}:\n\n{budgets_table(states)}'
                       for data, states in committed_budgets().items())


def _seeds(states: list[dict]) -> str:
    found = sorted({state['seeds'] for state in states})
    return f"{' to '.join(map(str, found))} seeds, a linear probe with {states[0]['budget']['few']} labels"


def weights() -> str:
    """Where the weights that ship stand, from the files beside them."""
    from maskedlab.show.standing import weights_table

    return weights_table()


TABLES = {'methods': methods, 'sizes': sizes, 'picture': picture, 'course': course, 'claims': claims,
          'comparison': comparison, 'budgets': budgets, 'weights': weights}


def readme() -> str:
    """The text of README.md."""
    from fastcore.nbio import read_nb
    from nbconvert import MarkdownExporter
    from nbdev.processors import FilterDefaults, FrontmatterProc, add_links, insert_warning

    class Filters(FilterDefaults):
        # front matter and its warning are for a web site, and there is no page to link a symbol to
        def base_procs(self):
            return [p for p in super().base_procs() if p not in (FrontmatterProc, insert_warning, add_links)]

    nb = read_nb(ROOT / 'nbs' / 'index.ipynb')
    Filters()(nb)
    text, resources = MarkdownExporter().from_notebook_node(_as_nbformat(nb))
    if resources.get('outputs'):
        raise ValueError('index.ipynb has pictures among its outputs; link a file under docs/ instead')
    text = re.sub(r'<!-- (\w+) -->', lambda m: TABLES[m[1]](), text)
    text = text.replace('../', '')  # links of the notebook in nbs/, seen from the root
    return '<!-- Made from nbs/index.ipynb by tools/readme.py: edit that notebook. -->\n\n' + re.sub(
        r'\n{3,}', '\n\n', text).strip() + '\n'


def _as_nbformat(nb):
    """The notebook as nbconvert wants it, without the directives that nbdev leaves in."""
    import json

    import nbformat
    from fastcore.nbio import nb2str

    out = nbformat.reads(json.dumps(json.loads(nb2str(nb))), as_version=4)
    for cell in out.cells:
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
    out.metadata.language_info = {'name': 'python'}
    return out


def repository() -> str:
    """The one address of the project, from pyproject.toml."""
    return tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['urls'][
        'Repository']


def carriers() -> list[Path]:
    """The files in which the address stands."""
    names = [ROOT / n for n in ('pyproject.toml', 'CITATION.cff', 'CONTRIBUTING.md', 'CHANGELOG.md')]
    return [p for p in [*names, *(ROOT / 'nbs').rglob('*.ipynb'), *(ROOT / 'tutorials').rglob('*.ipynb')]
            if p.exists()]


def move(url: str) -> None:
    """Give the project another address, in badges and citation too."""
    old, new = (u.rstrip('/').removeprefix('https://github.com/') for u in (repository(), url))
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', new):
        raise SystemExit(f'{url} is no address of the form https://github.com/OWNER/NAME')
    for path in carriers():
        text = path.read_text(encoding='utf-8')
        moved = re.sub(rf'(github(?:\.com)?/){re.escape(old)}\b', lambda m: m[1] + new, text)
        if moved != text:
            path.write_text(moved, encoding='utf-8', newline='\n')


def main() -> int:
    p = argparse.ArgumentParser(description='README.md from nbs/index.ipynb')
    p.add_argument('--check', action='store_true')
    p.add_argument('--repository', metavar='URL')
    options = p.parse_args()
    if options.repository:
        move(options.repository)
    file, text = ROOT / 'README.md', readme()
    if options.check:
        same = file.exists() and file.read_text(encoding='utf-8') == text
        print('README.md agrees with nbs/index.ipynb' if same
              else 'README.md differs from nbs/index.ipynb: run python tools/readme.py')
        return int(not same)
    file.write_text(text, encoding='utf-8', newline='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
