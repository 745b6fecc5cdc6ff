#!/usr/bin/env python3
"""Draw the still picture of each recipe's notebook and the rooms again: tools/pictures.py [NAME ... | house]

Held-out samples, the small weights that ship, seed 0. A notebook links the file by a relative address, so
that it says something on a code host, where nothing is run."""
import json
import sys
from pathlib import Path

import maskedlab as ml
from maskedlab.instruments.held_out import own_sample

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
        path = house() if name == 'house' else draw(name)
        print(f'{path.name}: {path.stat().st_size // 1000} kB')
