"""Files of the package that a script makes: written, or only compared with those that are there."""
from __future__ import annotations

from pathlib import Path

FILES = Path(__file__).resolve().parents[1] / 'maskedlab' / 'data' / 'files'


def write(files: dict[str, bytes], check: bool) -> int:
    """The script's exit status: 1 where `check` finds a file that is not as it would be written."""
    different = [n for n, b in files.items() if not (FILES / n).is_file() or (FILES / n).read_bytes() != b]
    if check:
        print(f"{len(files) - len(different)} of {len(files)} files are as this script writes them",
              *different, sep='\n  different: ')
        return 1 if different else 0
    FILES.mkdir(parents=True, exist_ok=True)
    for n, b in files.items():
        (FILES / n).write_bytes(b)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.2f} MB, {len(different)} changed")
    return 0
