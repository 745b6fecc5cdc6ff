"""The public names, as an editor, a type checker and `help()` see them."""
import doctest
import importlib.util
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.cli import parser
from maskedlab.contract.catalogue import NAMED
from maskedlab.told import EXAMPLES

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


# ----------------------------------------------------------------------------------------- what help() shows

CALLED = [name for name in ml._NAMES if name != 'settings']         # which is the answers themselves


@pytest.mark.parametrize('name', CALLED)
def test_help_shows_all_that_the_source_says(name):
    thing = getattr(ml, name)
    doc = pydoc.plain(pydoc.render_doc(thing))
    assert f'    {thing.__module__}, line ' in doc and '.ipynb' in doc
    source = inspect.getsource(inspect.unwrap(thing))
    if inspect.isfunction(thing):
        takes = inspect.signature(thing).parameters
        assert ('Args:\n' in doc) == bool(takes)
        assert all(re.search(rf'^ +\**{p}( \(|:|$)', doc, re.M) for p in takes), takes
        head = source.partition('\n    "')[0]
        for said in re.findall(r'#\s+(.*)', head.split('"""')[0]):      # each comment of the head, whole
            assert ' '.join(said.split()) in ' '.join(doc.split()), said
    assert '@door' not in source.partition('def ')[0] or 'Raises:\n' in doc


def test_one_name_has_it_all():
    doc = ml.create_recipe.__doc__
    for title in ('Args', 'Returns', 'Raises', 'Example', 'Source'):
        assert f'\n{title}:\n    ' in doc
    assert 'size (str | None, default None): one of its sizes' in doc
    assert "default 'mae'" in ml.Trainer.__doc__
    assert all(f'\n    {name} (' in ml.Trainer.__doc__ for name in inspect.signature(ml.Trainer).parameters)
    assert "optimiser steps" in ml.fit.__doc__ and 'of an earlier run' in ml.Trainer.resume.__doc__
    assert 'ValueError: ... has no size ...; choose one of ...' in doc
    assert ml.create_recipe.__doc__.count('Args:') == 1 and all(len(line) <= 110 for line in doc.split('\n'))


def test_help_costs_nothing_before_it_is_asked_for():
    code = 'import sys, maskedlab; print("maskedlab.told" in sys.modules, "tokenize" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == 'False'


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    folder = tmp_path_factory.mktemp('examples')
    for k, name in enumerate(('rose', 'tulip')):
        (folder / 'flowers' / name).mkdir(parents=True)
        for i in range(8):
            x = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(i)) * 100 + 100 * k
            Image.fromarray(x.byte().numpy()).save(folder / 'flowers' / name / f'{i}.png')
    (folder / 'notes.txt').write_text('One paragraph of a text.\n\nAnother one.\n')
    return folder


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_run_as_they_stand(name, flowers, monkeypatch):
    monkeypatch.chdir(flowers)
    shown = getattr(ml, name).__doc__.partition('\nExample:\n')[2].partition('\nSource:\n')[0]
    shown = textwrap.dedent(shown)
    assert shown.strip() == EXAMPLES[name]
    said = []
    test = doctest.DocTestParser().get_doctest(shown, {'ml': ml}, name, None, 0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    NAMED.pop('mine', None)
    assert not said, ''.join(said)


def test_each_name_has_an_example():
    lacking = {name for name in CALLED if name not in EXAMPLES}
    assert lacking <= {'batches', 'load_points', 'recordings', 'load_wave', 'videos', 'load_video',
                       'view_pairs', 'psnr'}, lacking


# ------------------------------------------------------------------------------ one word for one thing


def both(call, *words):
    with pytest.raises(TypeError) as error:
        call()
    assert all(w in str(error.value) for w in words) and '\n' not in str(error.value), error.value


def test_names_of_other_libraries_are_taken_and_both_at_once_are_not(flowers, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = dict(steps=1, show=False)
    r = ml.create_recipe('mae', in_chans=1)
    assert r.config['channels'] == 1
    r.save_pretrained('one')
    assert ml.load_pretrained('one', in_chans=1).config['channels'] == 1
    assert ml.Trainer('mae', 'image', batch_size=4, **quiet).batch == 4
    assert len(ml.fit('mae', 'image', 1, batch_size=4)) == 1
    train, test, classes = ml.labelled_images(flowers / 'flowers', size=64)
    ml.finetune(ml.create_recipe('mae'), train, test, steps=1, batch_size=4, classes=classes)
    assert ml.load_image(flowers / 'flowers' / 'rose' / '0.png', 32, in_chans=1)['image'].shape[1] == 1
    assert parser().parse_args(['train', 'mae', '--batch-size', '4']).batch == 4
    said = 'name the same thing; give one'
    both(lambda: ml.create_recipe('mae', in_chans=1, channels=1), 'channels= and in_chans=', said)
    both(lambda: ml.Trainer('mae', 'image', batch=4, batch_size=4, **quiet), 'batch= and batch_size=', said)
    both(lambda: ml.finetune(r, train, test, batch=4, batch_size=4), 'batch= and batch_size=', said)
    both(lambda: ml.Trainer('mae', 'image', batchsize=4, **quiet), "'batch' meant")
    both(lambda: ml.leak_check(r, ml.sample('image', 2), batch_size=4), 'batch_size', 'it takes')
    both(lambda: ml.create_recipe('mae', in_chan=1), 'in_chan', 'channels')


def test_a_class_that_says_in_chans_itself_is_asked_so(monkeypatch):
    class Theirs(type(ml.create_recipe('mae'))):
        def __init__(self, in_chans=3, **more):
            super().__init__(channels=in_chans, **more)

    monkeypatch.setattr(Theirs, 'sizes', {'micro': dict(image=16, patch=4, dim=16, depth=1, heads=2)})
    assert ml.create_recipe(Theirs, in_chans=1).config['in_chans'] == 1
