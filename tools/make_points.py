"""Makes `points.npz`, `points.json` and `CREDITS-points.md` from the furniture models of Sweet Home 3D.

    python tools/make_points.py FOLDER [--check]

FOLDER holds the five `.sh3f` catalogues of the Debian package sweethome3d-furniture 1.8
(usr/share/sweethome3d/furniture; unpack the package with `dpkg-deb -x`, nothing has to be installed). The
package never needs this script nor the catalogues: it is the record of where the clouds come from. The
SHA-256 of each catalogue is compared with the one below, and the result is the same on every run.

From each model 1,024 points are drawn uniformly over its surface, the models are given their real width,
depth and height, turned so that z is up, moved to their mean, divided by the largest distance from it, and
stored in steps of 1/2,000.
"""
from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
from committed import write

POINTS, STEP = 1024, 1 / 2000

CATALOGUES = {      # file: SHA-256, licence
    'BlendSwap-CC-0.sh3f': ('7ef093fe70cedbb160bdb532d86a84580459635e34130c16777f549eba1993dc', 'CC0 1.0'),
    'BlendSwap-CC-BY.sh3f': ('29ae78937b4d5dbe93db74067817a984fa411f017b007fd666bc40368bdb0c83', 'CC BY 3.0'),
    'KatorLegaz.sh3f': ('f512443b5d3a6903497573095f971f44334b3165ab32182133051fa9487764a6', 'CC BY 3.0 US'),
    'Reallusion.sh3f': ('dd553207876ccec6372dde7aaea6b2dcf2d631997fcdb8a9856a639e0db9aa9b', 'CC BY 3.0 US'),
    'Scopia.sh3f': ('b4505451b1e8ab339c101c0afddfef4e1a07b95aa8c821c61ec41487afd43850', 'CC BY 3.0'),
}

CLASSES = {         # by the model's name, the first that matches; all else is 'other'
    'lamp': r'\blamp\b|\blight\b|flashlight|spotlight|chandelier|lamppost',
    'chair': r'chair|stool|\bseat\b', 'sofa': r'sofa|couch|futon', 'bed': r'\bbed\b|\bcrib\b',
    'table': r'table\b(?! (fan|tennis bat))|\bdesk\b|workbench',
    'cabinet': r'cabinet|wardrobe|cupboard|shel[fv]|bookcase|dresser|drawer|closet|tv stand|locker',
    'door or window': r'\bdoor\b|\bwindow\b',
    'plant': r'plant\b|\btree\b|flowers|\bbush\b|cactus|bamboo|lily|ficus|acacia|pine\b|cypress'
             r'|maple|poplar|beech|yucca|tulips|orchids|spathi|blossom',
    'person': r'\bmale\b|female|\bboy\b|\bgirl\b|\bman\b|mannequin',
    'vehicle': r'\bcar\b|truck|\bbus\b|bike\b|bicycle|motor|sedan|focus|beetle|peugeot|renault'
               r'|\bsuv\b|chevrolet|scooter|fork lift|tricycle|^van$',
    'bath': r'washbasin|\bsink\b|toilets unit|bidet|bathtub|^bath$|island bath|urinal|vanity|lavatory'
            r'|jacuzzi',
    'appliance': r'fridge|refrigerator|oven\b|washing|microwave|stove|dryer machine|boiler|heater|radiator',
    'wall switch': r'\bplug\b|\bswitch\b|\bsocket\b',
}


def catalogue(path: Path, sha: str) -> list[dict]:
    "The models of a catalogue with what it says about each."
    data = path.read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != sha: raise SystemExit(f"{path} has SHA-256 {got}, expected {sha}: another release?")
    held = zipfile.ZipFile(io.BytesIO(data))
    found: dict[int, dict] = {}
    for line in held.read('PluginFurnitureCatalog.properties').decode('latin1').splitlines():
        m = re.match(r'(\w+)#(\d+)=(.*)', line)
        if m:
            found.setdefault(int(m[2]), {})[m[1]] = m[3].strip()
    return [{**found[i], 'zip': held, 'catalogue': path.name} for i in sorted(found)]


def mesh(text: str) -> tuple[np.ndarray, np.ndarray]:
    "Corners `[V, 3]` and triangles `[T, 3]` of an OBJ file."
    corners, faces = [], []
    for line in text.splitlines():
        p = line.split()
        if not p: continue
        if p[0] == 'v':
            corners.append([float(x) for x in p[1:4]])
        elif p[0] == 'f':
            i = [int(x.split('/')[0]) for x in p[1:]]
            i = [x - 1 if x > 0 else len(corners) + x for x in i]
            faces += [(i[0], i[k], i[k + 1]) for k in range(1, len(i) - 1)]
    return np.array(corners), np.array(faces)


def cloud(model: dict, rng: np.random.Generator) -> np.ndarray:
    "Uniform points on the surface, `[POINTS, 3]`, z up, mean 0, largest norm 1."
    V, T = mesh(model['zip'].read(model['model'].lstrip('/')).decode('latin1'))
    # [T, 3, 3], corners in use
    V = V[np.unique(T, return_inverse=True)[0]][np.unique(T, return_inverse=True)[1].reshape(T.shape)]
    if 'modelRotation' in model:
        V = V @ np.array(model['modelRotation'].split(), float).reshape(3, 3).T
    low, high = V.min((0, 1)), V.max((0, 1))
    size = np.array([float(model[k]) for k in ('width', 'height', 'depth')])
    V = (V - low) / np.maximum(high - low, 1e-9) * size
    a, b, c = V[:, 0], V[:, 1], V[:, 2]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    i = rng.choice(len(V), POINTS, p=area / area.sum())
    u, s = rng.random((POINTS, 1)), np.sqrt(rng.random((POINTS, 1)))
    P = a[i] * (1 - s) + b[i] * s * (1 - u) + c[i] * s * u
    P = P[:, [0, 2, 1]] * [1, -1, 1]
    P = P - P.mean(0)
    return P / np.linalg.norm(P, axis=1).max()


def label(name: str) -> str:
    return next((c for c, words in CLASSES.items() if re.search(words, name.lower())), 'other')


def stem(name: str) -> str:
    return re.sub(r'[\W\d_]+', ' ', name.lower()).strip()


def splits(models: list[dict]) -> list[str]:
    "Models of one name stay on one side; in each class about one in five is for testing."
    names = collections.defaultdict(collections.Counter)
    for m in models:
        names[m['class']][stem(m['name'])] += 1
    test: set[tuple[str, str]] = set()
    for c, n in names.items():
        want, have = round(sum(n.values()) / 5), 0
        for s in sorted(n, key=lambda s: hashlib.sha256(s.encode()).hexdigest()):
            if have + n[s] <= want:
                test.add((c, s))
                have += n[s]
    return ['test' if (m['class'], stem(m['name'])) in test else 'train' for m in models]


def packed(clouds: np.ndarray) -> np.ndarray:
    """Whole steps as uint16 `[n, 3, POINTS]`, points in the order of a curve through space and stored as
    differences: they compress well."""
    q = np.round(clouds / STEP).astype(np.int64) + 2048
    code = sum(((q[..., k] >> b) & 1) << (3 * b + k) for b in range(12) for k in range(3))
    q = np.take_along_axis(q, code.argsort(1)[..., None], 1)
    d = np.diff(q, axis=1, prepend=0)
    return (d % 65536).astype(np.uint16).transpose(2, 0, 1).copy()


def credits(models: list[dict]) -> str:
    lines = [f"| {m['name']} | {m['creator']} | {CATALOGUES[m['catalogue']][1]} | {m['catalogue']} |"
             for m in models]
    return '\n'.join([
        '# Credits of the point clouds (`points.npz`)', '',
        f'{POINTS:,} points on the surface of each of {len(models)} models of furniture and other things, '
        'drawn by `tools/make_points.py`;',
        'the models came with Sweet Home 3D (www.sweethome3d.com), whose catalogues name the authors and the '
        'licences below. The',
        'clouds are derived works: sampled, scaled and turned. Licence texts: CC0 1.0 '
        'https://creativecommons.org/publicdomain/zero/1.0/ ,',
        'CC BY 3.0 https://creativecommons.org/licenses/by/3.0/ , CC BY 3.0 US '
        'https://creativecommons.org/licenses/by/3.0/us/', '',
        '| model | author | licence | catalogue |', '|---|---|---|---|', *lines, ''])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path, help='with the five .sh3f files')
    ap.add_argument('--check', action='store_true', help='write nothing; say whether the files on disk hold '
                                                         'the same data')
    args = ap.parse_args()

    models, clouds = [], []
    for name, (sha, _) in CATALOGUES.items():
        for m in catalogue(args.folder / name, sha):
            m['class'] = label(m['name'])
            seed = int(hashlib.sha256(m['id'].encode()).hexdigest()[:8], 16)
            models.append(m)
            clouds.append(cloud(m, np.random.default_rng(seed)))
    names = [*CLASSES, 'other']
    rows = [dict(name=m['name'], split=s, label=names.index(m['class']), creator=m['creator'],
                 catalogue=m['catalogue'])
            for m, s in zip(models, splits(models))]
    held = io.BytesIO()
    np.savez_compressed(held, points=packed(np.stack(clouds)))
    about = dict(classes=names, step=STEP, models=rows)
    files = {'points.npz': held.getvalue(),
             'points.json': (json.dumps(about, ensure_ascii=False) + '\n').encode(),
             'CREDITS-points.md': credits(models).encode()}
    print(collections.Counter((names[r['label']], r['split']) for r in rows))
    return write(files, args.check)


if __name__ == '__main__':
    sys.exit(main())
