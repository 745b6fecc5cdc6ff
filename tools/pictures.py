#!/usr/bin/env python3
"""Draw the still picture of each recipe's notebook and the rooms again: tools/pictures.py [NAME ... | house]

Held-out samples, the small weights that ship, seed 0. A notebook links the file by a relative address, so
that it says something on a code host, where nothing is run."""
import json
import sys
from functools import partial
from pathlib import Path

import torch

import maskedlab as ml
from maskedlab.contract.units import repeat_to
from maskedlab.instruments.held_out import own_sample
from maskedlab.show.views.table import VIEWS

NBS = Path(__file__).resolve().parents[1] / 'nbs'
FOLDER = NBS / 'recipes' / 'pictures'


def draw(name: str) -> Path:
    """One sample as the explorer shows it."""
    recipe = ml.create_recipe(name, pretrained=True)
    batch = own_sample(recipe, 4)
    picture = ml.show.strip(recipe, {k: v[1:2] for k, v in batch.items()}, n=1)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f'{name}.png'
    picture.image().convert('P', palette=1, colors=64).save(path, optimize=True)
    return path


def made() -> Path:
    """Digits of nothing, as they stand after some rounds."""
    recipe = ml.create_recipe('maskgit', size='digits', pretrained=True)
    empty = dict(ids=torch.zeros(3, 7, 7).long(), label=torch.tensor([2, 4, 8]))
    d = ml.uses.decode.decode(recipe, empty, guidance=2., generator=torch.Generator().manual_seed(0))
    hidden, panels = ~d.revealed.cumsum(0).bool(), []
    for i in range(3):
        for t in (0, 3, 6, 8, 10, 11):
            hole = repeat_to(hidden[t, i:i + 1], (28, 28))[:, None]
            paint = VIEWS['image'].paint({'image': d.at(t)['image'][i:i + 1].masked_fill(hole, .5)})
            panels.append((f'round {t + 1}' if not i else '', paint, ''))
    path = FOLDER / 'maskgit.png'
    picture = ml.show.sheet(panels, columns=6, side=96).image()
    picture.convert('P', palette=1, colors=64).save(path, optimize=True)
    return path


def house() -> Path:
    """The rooms, by the code of the design notebook."""
    cells = [''.join(c['source']) for c in json.loads((NBS / 'design.ipynb').read_text())['cells']]
    known = {'Path': Path}
    for cell in cells:
        if cell.startswith(('ROOMS = [', 'import ast, html', 'import ast\nimport html', 'def house(')):
            exec(cell, known)
    (NBS / 'pictures').mkdir(exist_ok=True)
    path = NBS / 'pictures' / 'house.svg'
    path.write_text(known['house'](Path(ml.__file__).parent) + '\n')
    return path


if __name__ == '__main__':
    for name in sys.argv[1:] or [*ml.list_recipes(), 'house']:
        path = {'house': house, 'maskgit': made}.get(name, partial(draw, name))()
        print(f'{path.name}: {path.stat().st_size // 1000} kB')
