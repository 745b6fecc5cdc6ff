"""The still pictures at the top of the tutorials, made by the kit and kept as attachments of the notebooks.

    python tools/frames.py              (the third trains for a minute)
    python tools/frames.py 01_see_it    one of them

A tutorial shows its outcome before anything has run, on pages without a kernel too; run this again when the
weights change.
"""
from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch

import maskedlab as ml
from maskedlab.course.five_reasons import PATIENTS, patients
from maskedlab.course.pictures import Strip, side_by_side
from maskedlab.data.vary import vary
from maskedlab.instruments.baselines import hidden_pixels
from maskedlab.parts.patches import unpatchify

ROOT = Path(__file__).resolve().parent.parent


def _views(masks: Callable[[torch.Tensor], list[torch.Tensor]], seed: int) -> Strip:
    """The originals, and for each mask what was seen and what was returned."""
    b = {k: v[:3] for k, v in ml.sample('image', n=4, split='test').items()}      # the fourth is gravel
    r = ml.create_recipe('mae', pretrained=True).eval()
    u = r.units(b)
    rows = {'original': b['image']}
    for i, mask in enumerate(masks(ml.masks.Random(.75)(u, generator=torch.Generator().manual_seed(seed)))):
        with torch.no_grad():
            out = r(b, mask=mask)
        rows[f'seen {i}'] = torch.where(hidden_pixels(u, mask)[:, None], .5, b['image'])
        rows[f'returned {i}'] = r.fill(b, out)['image']
    return side_by_side(rows, side=160)


def see_it() -> Strip:
    return _views(lambda mask: [mask], 3)


def true() -> Strip:
    whole = _views(lambda mask: [mask, ~mask], 3)
    whole.rows = {k: v for k, v in whole.rows.items() if k.startswith('seen')}
    return whole


def build_it() -> Strip:
    """What the sixty lines of the notebook itself return, before and after its training."""
    cells = json.loads((ROOT / 'tutorials' / '03_build_it.ipynb').read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    space: dict = {}
    for source in sources:
        if source.startswith('# 60 lines'):
            exec(source, space)
    steps = int(re.search(r'steps = budget\((\d+)', '\n'.join(sources))[1])
    image = ml.sample('image', n=48, split='test')['image'][[0, 1, 2, 5]]
    hidden = torch.rand(48, 64, generator=torch.Generator().manual_seed(1)).argsort(1)[[0, 1, 2, 5]] < 48
    x = space['patches_of'](image)
    torch.manual_seed(0)
    model, g = space['MaskedAutoencoder'](), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def paint() -> torch.Tensor:
        y = torch.where(hidden[..., None], model(x, hidden), x) * space['STD'] + space['MEAN']
        return unpatchify(y.unflatten(1, (8, 8)), 8, 'row column colour').clamp(0, 1)
    before = paint()
    for _ in space['train'](model, vary(ml.batches('image', 16, steps, generator=g), g), steps):
        pass
    pixels = hidden.view(-1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return side_by_side({'original': image, 'seen': torch.where(pixels, .5, image), 'before': before,
                         'after': paint()}, side=110)


def five() -> Strip:
    """One photograph, and the five faults."""
    b = ml.sample('image', n=4, split='test')
    r = ml.create_recipe('mae', pretrained=True).eval()
    mask = ml.masks.Random(.75)(r.units(b), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    ill = patients(r, ml.create_recipe('mae').eval(), b, mask)
    ordered = [ill[letter] for letter in sorted(ill, key=lambda k: PATIENTS.run(PATIENTS.solution)[k])]
    rows = {f'photograph {i}': [b['image'][i], *(x[i] for x in ordered)] for i in (0, 2)}
    return side_by_side(rows, side=120)


FRAMES = {
    '01_see_it': ('see_it.jpg', see_it), '02_what_does_true_mean': ('true.jpg', true),
    '03_build_it': ('build_it.jpg', build_it), '04_five_reasons': ('five.jpg', five),
}


def attach(tutorial: str, name: str, data: bytes) -> None:
    """Put a picture into the cell that shows it."""
    path = ROOT / 'tutorials' / f'{tutorial}.ipynb'
    nb = json.loads(path.read_text(encoding='utf-8'))
    cell = next(c for c in nb['cells'] if f'(attachment:{name})' in ''.join(c['source']))
    cell['attachments'] = {name: {'image/jpeg': base64.b64encode(data).decode()}}
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8',
                    newline='\n')


def main() -> None:
    for tutorial in sys.argv[1:] or FRAMES:
        name, make = FRAMES[tutorial]
        file = BytesIO()
        make().sheet().save(file, 'JPEG', quality=85, optimize=True)
        attach(tutorial, name, file.getvalue())
        print(f'{tutorial}: {name}, {len(file.getvalue()) / 1000:.0f} kB')


if __name__ == '__main__':
    main()
