"""Makes `sound.xz`, `sound.json` and `CREDITS-sound.md` from the recordings of the Free Spoken Digit Dataset.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python tools/make_sound.py free-spoken-digit-dataset/recordings [--check]

Of each of the six speakers and ten digits ten recordings: numbers 0 and 1 are of the set's official test
part, 5 to 12 of its training part. Each is brought to a peak of 1 and stored in 8 bits by mu-law."""
import argparse
import hashlib
import json
import lzma
import sys
import wave
from pathlib import Path

import numpy as np
from committed import write

SPEAKERS = {'george': 'Greek', 'jackson': 'US, neutral', 'lucas': 'German',
            'nicolas': 'Belgian, French', 'theo': 'US, neutral', 'yweweler': 'German'}
NUMBERS = {'train': range(5, 13), 'test': range(2)}
COMMIT = '26eb9aaf76e8'        # of the repository
# of all samples that were taken, one after another
SHA256 = '40b190c279d1b205040dbe23e131ae948eb4c9944af0f82fb4b74454e62798a7'


def recording(folder: Path, digit: int, speaker: str, number: int) -> np.ndarray:
    "Samples of one recording, int16."
    with wave.open(str(folder / f'{digit}_{speaker}_{number}.wav')) as f:
        if (f.getframerate(), f.getnchannels(), f.getsampwidth()) != (8000, 1, 2):
            raise ValueError(f"{digit}_{speaker}_{number}.wav is not of 8 kHz, one channel and 16 bits")
        return np.frombuffer(f.readframes(f.getnframes()), '<i2')


def packed(samples: np.ndarray) -> np.ndarray:
    "Mu-law, int8: fine steps where it is quiet."
    x = samples / max(int(np.abs(samples.astype(np.int64)).max()), 1)
    return np.round(np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256) * 127).astype(np.int8)


def credits(rows: int) -> str:
    return '\n'.join([
        '# Credits of the embedded speech (`sound.xz`)', '',
        f'Made by `tools/make_sound.py`: {rows} of the 3,000 recordings of the Free Spoken Digit Dataset by',
        'Zohar Jackson and its contributors (https://github.com/Jakobovski/free-spoken-digit-dataset, DOI',
        '10.5281/zenodo.1342401), under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). '
        'Changed: a part was',
        'taken, each recording brought to a peak of 1 and to 8 bits by mu-law. This derived file is under '
        'CC BY-SA 4.0 too.', '',
        '| speaker | accent |', '|---|---|', *(f'| {name} | {a} |' for name, a in SPEAKERS.items()), ''])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('folder', type=Path, help='with the 3,000 wav files')
    ap.add_argument('--check', action='store_true',
                    help='write nothing; say whether the files on disk hold the same data')
    args = ap.parse_args()

    rows, held, seen = [], [], hashlib.sha256()
    for split, numbers in NUMBERS.items():
        for number in numbers:              # digits and speakers take turns, so that any part is balanced
            for k, speaker in enumerate(SPEAKERS):
                for digit in range(10):
                    x = recording(args.folder, digit, speaker, number)
                    seen.update(x.tobytes())
                    held.append(packed(x))
                    rows.append([split, digit, k, number, len(x)])
    if seen.hexdigest() != SHA256:
        print(f"these are other recordings than those that were taken: {seen.hexdigest()}")
        return 1
    about = dict(rate=8000, speakers=list(SPEAKERS), recordings=rows)
    files = {'sound.xz': lzma.compress(np.concatenate(held).tobytes(), preset=9 | lzma.PRESET_EXTREME),
             'sound.json': (json.dumps(about, separators=(',', ':')) + '\n').encode(),
             'CREDITS-sound.md': credits(len(rows)).encode()}
    return write(files, args.check)


if __name__ == '__main__':
    sys.exit(main())
