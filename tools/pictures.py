#!/usr/bin/env python3
"""Draw the still picture of each recipe's notebook again: tools/pictures.py [NAME ...]

Held-out samples, the small weights that ship, seed 0. A notebook links the file by a relative address, so
that it says something on a code host, where nothing is run."""
import sys
from pathlib import Path

import maskedlab as ml

FOLDER = Path(__file__).resolve().parents[1] / 'nbs' / 'recipes' / 'pictures'


def draw(name: str) -> Path:
    """One sample as the explorer shows it."""
    recipe = ml.create_recipe(name, pretrained=True)
    batch = ml.sample(recipe.card.modality.split()[0], n=4, split='test')
    picture = ml.show.strip(recipe, {k: v[1:2] for k, v in batch.items()}, n=1)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f'{name}.png'
    picture.convert('P', palette=1, colors=64).save(path, optimize=True)
    return path


if __name__ == '__main__':
    for name in sys.argv[1:] or ml.list_recipes():
        path = draw(name)
        print(f'{path.name}: {path.stat().st_size // 1000} kB')
