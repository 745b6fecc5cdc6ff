"""The names that are loaded when they are first used, as imports: maskedlab/__init__.pyi and that of `show`,
which type checkers and editors read in place of the tables in __init__.py."""

import argparse
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('maskedlab', 'maskedlab.show')


def file_of(package: str) -> Path:
    """Where the stub of a package lies."""
    return ROOT.joinpath(*package.split('.'), '__init__.pyi')


def stub(package: str) -> str:
    """What its table says."""
    module = import_module(package)
    named, rooms = sorted((m, name) for name, m in module._NAMES.items()), getattr(module, '_ROOMS', ())
    lines = ['# made by tools/stub.py from the table in __init__.py']
    lines += ['from collections.abc import Callable', 'from typing import Any', ''] if rooms else []
    for where, rows in groupby(named, key=lambda row: row[0]):
        lines += [f'from .{where} import {name} as {name}' for _, name in rows]
    lines += [f'from . import {room} as {room}' for room in rooms]
    if rooms:
        lines += ['', '__version__: str', '_NAMES: dict[str, str]', '_ROOMS: tuple[str, ...]',
                  'def _modules_of(room: str) -> Callable[[str], Any]: ...']
    return '\n'.join([*lines, '__all__: list[str]']) + '\n'


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--check', action='store_true', help='write nothing; 1 where a file differs')
    check = p.parse_args().check
    sys.path.insert(0, str(ROOT))
    for package in PACKAGES:
        file, text = file_of(package), stub(package)
        if check and (not file.is_file() or file.read_text('utf-8') != text):
            return 1
        if not check:
            file.write_text(text, encoding='utf-8', newline='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
