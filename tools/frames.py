"""The still pictures at the top of the tutorials, made by the kit itself and kept as attachments of the notebooks.

    python tools/frames.py

A tutorial shows its outcome before anything has run, on pages without a kernel too; run this again when the weights change.
"""
from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch

import maskedlab as ml
from maskedlab.course.pictures import Strip, strip
from maskedlab.instruments.baselines import hidden_pixels

ROOT = Path(__file__).resolve().parent.parent


def _views(masks: Callable[[torch.Tensor], list[torch.Tensor]], seed: int) -> Strip:
    """The originals, and for each mask what was seen and what was returned."""
    b = {k: v[:3] for k, v in ml.sample('image', n=4, split='test').items()}      # the fourth is gravel
    r = ml.create_recipe('mae', pretrained=True).eval()
    u = r.units(b)
    rows = {'original': b['image']}
    for i, mask in enumerate(masks(ml.masks.Random(.75)(u, generator=torch.Generator().manual_seed(seed)))):
        with torch.no_grad(): out = r(b, mask=mask)
        rows[f'seen {i}'] = torch.where(hidden_pixels(u, mask)[:, None], .5, b['image'])
        rows[f'returned {i}'] = r.fill(b, out)['image']
    return strip(rows, side=160)


def see_it() -> Strip: return _views(lambda mask: [mask], 3)


def true() -> Strip:
    whole = _views(lambda mask: [mask, ~mask], 3)
    whole.rows = {k: v for k, v in whole.rows.items() if k.startswith('seen')}
    return whole


FRAMES = {'01_see_it': ('see_it.jpg', see_it), '02_what_does_true_mean': ('true.jpg', true)}


def attach(tutorial: str, name: str, data: bytes) -> None:
    """Put a picture into the cell that shows it."""
    path = ROOT / 'tutorials' / f'{tutorial}.ipynb'
    nb = json.loads(path.read_text(encoding='utf-8'))
    cell = next(c for c in nb['cells'] if f'(attachment:{name})' in ''.join(c['source']))
    cell['attachments'] = {name: {'image/jpeg': base64.b64encode(data).decode()}}
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8', newline='\n')


def main() -> None:
    for tutorial, (name, make) in FRAMES.items():
        file = BytesIO()
        make().sheet().save(file, 'JPEG', quality=85, optimize=True)
        attach(tutorial, name, file.getvalue())
        print(f'{tutorial}: {name}, {len(file.getvalue()) / 1000:.0f} kB')


if __name__ == '__main__': main()
