"""The public names, as an editor, a type checker and `help()` see them."""
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import maskedlab as ml

ROOT = Path(__file__).resolve().parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stub_is_what_the_table_says():
    stub = tool('stub')
    for package in stub.PACKAGES:
        assert stub.file_of(package).read_text('utf-8') == stub.stub(package), 'run python tools/stub.py'
    assert all(f'import {name} as {name}\n' in stub.stub('maskedlab') for name in (*ml._NAMES, *ml._ROOMS))


WRITTEN = """
import maskedlab as ml
r = ml.create_recipe('mae')
reveal_type(r)
reveal_type(ml.Trainer(r, 'image', steps=2))
reveal_type(ml.masks.Random(.5))
reveal_type(ml.sample('image'))
reveal_type(ml.layout((2, 2)))
ml.create_recipe('mae', size=3)
ml.creat_recipe('mae')
ml.Trainr
reveal_type(ml.show.strip)
ml.show.stripe
"""


def test_a_type_checker_sees_types_and_misspelt_names(tmp_path):
    pytest.importorskip('mypy')
    (tmp_path / 'mine.py').write_text(WRITTEN)
    words = ['-m', 'mypy', '--no-color-output', '--config-file', 'pyproject.toml', str(tmp_path / 'mine.py')]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    said = dict(line.partition('mine.py:')[2].split(':', 1) for line in done.stdout.splitlines()
                if 'mine.py:' in line and not line.endswith('?'))
    assert 'contract.recipe.Recipe"' in said['4'], done.stdout
    assert 'train.trainer.Trainer"' in said['5'] and 'masks.strategies.Random"' in said['6']
    assert 'dict[' in said['7'] and 'contract.units.Units"' in said['8']
    assert 'error' in said['9'] and 'size' in said['9']
    assert 'def (' in said['12'] and 'has no attribute "stripe"' in said['13']
    assert 'has no attribute "creat_recipe"' in said['10'] and 'has no attribute "Trainr"' in said['11']


@pytest.mark.parametrize('room', ml._ROOMS)
def test_a_room_lists_all_that_is_in_it(room):
    code = f'import maskedlab as ml; print(*dir(ml.{room}))'        # at once: nothing has been imported yet
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    module = getattr(ml, room)
    modules = {m.name for m in pkgutil.iter_modules(module.__path__)}
    named = set(getattr(module, '__all__', ()))
    assert modules and modules | named <= set(done.stdout.split())
    assert not [name for name in done.stdout.split() if name.startswith('_')]


def test_the_package_lists_all_that_is_in_it():
    assert set(dir(ml)) == {*ml.__all__} and {'create_recipe', 'Trainer', 'masks', 'data'} <= set(dir(ml))
