"""Who may run what, on the side of training and checkpoints: files and folders choose no code, and what lies
in them ends in one sentence."""

import ast
import hashlib
import json
import struct
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import maskedlab as ml
from maskedlab import cli
from maskedlab.contract.saved import from_json, read_checkpoint, to_json
from maskedlab.recipes.image.mae import MAE
from maskedlab.train.checkpoint import checkpoints, load_checkpoint
from maskedlab.train.folder import read_run

ROOT = Path(__file__).parents[1]
TINY = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
DATA = dict(image=torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)))

MINE = '''
from pathlib import Path
from dataclasses import dataclass
Path(__file__).with_name('it_ran').touch()
from maskedlab.masks.strategies import Random, Strategy
from maskedlab.recipes.image.mae import MAE

class Mine(MAE):
    sizes = {'micro': TINY}

@dataclass(frozen=True)
class Ring(Random):
    ratio: float = .5

def half(u, generator=None, **signals):
    return Random(.5)(u, generator=generator)
'''.replace('TINY', repr(TINY))


def sentence(kind, function, *parts):
    """One sentence that names the value and the remedy."""
    with pytest.raises(kind) as e:
        function()
    text = str(e.value)
    assert len(text) <= 200 and '\n' not in text and all(p in text for p in parts), text


@pytest.fixture
def mine(tmp_path):
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code' / 'mine.py').write_text(MINE)
    return tmp_path / 'code' / 'mine.py'


def ran(file):
    """Whether the code ran since this was last asked."""
    mark = file.with_name('it_ran')
    there = mark.exists()
    mark.unlink(missing_ok=True)
    return there


def trained(out, recipe, **more):
    t = ml.Trainer(recipe, DATA, steps=2, batch=2, out=out, seed=0, show=False, precision='no', **more)
    t.fit(background=False)
    return t


# -------------------------------------------------------------------------------- a folder chooses no code


NAMES = '{file}:Mine', '{relative}:Mine', 'os:system', 'subprocess:Popen', '__main__:X', 'mine:Mine'


@pytest.mark.parametrize('name', NAMES)
def test_a_folder_that_names_code_does_not_run_it(name, tmp_path, mine, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(mine.parent)
    trained(tmp_path / 'run', MAE(**TINY))
    about = json.loads((tmp_path / 'run' / 'run.json').read_text())
    about['recipe'] = name.format(file=mine, relative='code/mine.py')
    (tmp_path / 'run' / 'run.json').write_text(json.dumps(about))
    resume = lambda **more: ml.Trainer.resume(tmp_path / 'run', data=DATA, show=False, **more)
    sentence(ValueError, resume, 'recipe=')
    # and not for who trusts it either, unless it is the source that the run was made with
    sentence((ValueError, OSError), lambda: resume(trust=True), 'recipe=')
    assert not ran(mine)


def test_weights_that_name_code_do_not_run_it(tmp_path, mine):
    trained(tmp_path / 'run', f'{mine}:Mine')
    ml.create_recipe(f'{mine}:Mine').save_pretrained(tmp_path / 'weights')
    last = checkpoints(tmp_path / 'run' / 'checkpoints')[-1]
    assert ran(mine)
    for path in (tmp_path / 'weights', tmp_path / 'weights' / 'model.safetensors', tmp_path / 'run', last):
        sentence(ValueError, lambda p=path: ml.load_pretrained(p), 'mine.py:Mine', 'trust=True (--trust)')
        assert not ran(mine)
        assert type(ml.load_pretrained(path, trust=True)).__name__ == 'Mine' and ran(mine)
        assert type(ml.load_pretrained(path, recipe=f'{mine}:Mine')).__name__ == 'Mine' and ran(mine)
    for open_it in (ml.create_recipe, ml.card):
        sentence(ValueError, lambda f=open_it: f(tmp_path / 'weights'), 'trust=True')
    sentence(ValueError, lambda: ml.Trainer.resume(tmp_path / 'run', data=DATA), 'mine.py:Mine', '--trust')
    assert not ran(mine)
    assert ml.Trainer.resume(tmp_path / 'run', data=DATA, trust=True).step == 2 and ran(mine)
    mine.write_text(MINE + '# changed since\n')
    sentence(ValueError, lambda: ml.load_pretrained(tmp_path / 'weights', trust=True), 'no longer what')
    assert not ran(mine)
    assert type(ml.load_pretrained(tmp_path / 'weights', recipe=f'{mine}:Mine')).__name__ == 'Mine'


def test_a_strategy_from_a_file_is_written_with_its_source_and_read_by_who_trusts_it(tmp_path, mine):
    from maskedlab.contract.code import code_at
    from maskedlab.masks.strategies import Random

    ring, half = code_at(f'{mine}:Ring'), code_at(f'{mine}:half')
    bare = lambda s: str(s).partition(' at 0x')[0]
    for strategy in (ring(0.25), ring(0.25) | ~Random(0.5), half):
        written = json.loads(json.dumps(to_json(strategy)))
        assert 'mine.py' in str(written) and hashlib.sha256(mine.read_bytes()).hexdigest() in str(written)
        ran(mine)
        sentence(ValueError, lambda w=written: from_json(w), 'trust=True')
        assert not ran(mine)
        assert bare(from_json(written, trust=True)) == bare(strategy)
    trained(tmp_path / 'run', MAE(**TINY), mask=ring(0.25))
    ran(mine)
    sentence(ValueError, lambda: ml.load_pretrained(tmp_path / 'run'), 'mine.py:Ring', 'trust=True')
    sentence(ValueError, lambda: ml.Trainer.resume(tmp_path / 'run', data=DATA), 'mine.py:Ring')
    plain = ml.load_pretrained(tmp_path / 'run', strategy=Random(0.5))
    assert plain.strategy == Random(0.5) and not ran(mine)
    assert ml.load_pretrained(tmp_path / 'run', trust=True).strategy.ratio == 0.25
    assert ml.Trainer.resume(tmp_path / 'run', data=DATA, trust=True, show=False).step == 2


def test_two_files_of_one_name_stay_two(tmp_path, mine):
    (tmp_path / 'other').mkdir()
    other = tmp_path / 'other' / 'mine.py'
    other.write_text(MINE.replace('.5', '.25'))
    one, two = ml.create_recipe(f'{mine}:Mine'), ml.create_recipe(f'{other}:Mine')
    from maskedlab.contract.saved import name_of

    assert name_of(type(one)) == f'{mine}:Mine' and name_of(type(two)) == f'{other}:Mine'


def test_what_cannot_be_saved_is_told_before_the_first_step(tmp_path, capsys, monkeypatch):
    recipe = MAE(**TINY, strategy=lambda u, generator=None, **k: u.none())
    with pytest.warns(UserWarning, match='strategy=.*cannot be written into a checkpoint'):
        t = ml.Trainer(recipe, DATA, steps=2, batch=2, out=tmp_path / 'run', show=False)
    assert t.step == 0
    odd = 'class Odd(MAE):\n    sizes = {"micro": dict(TINY, strategy=lambda u, generator=None: u.none())}\n'
    (tmp_path / 'odd.py').write_text(MINE + odd.replace('TINY', repr(TINY)))
    monkeypatch.setattr(ml.Trainer, 'fit', lambda *a, **k: pytest.fail('it began'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        words = ['train', f'{tmp_path}/odd.py:Odd', '--steps', '1', '--batch', '2']
        assert cli.main([*words, '--out', str(tmp_path / 'b')]) == 2
    assert 'cannot be written into a checkpoint' in capsys.readouterr().err and not (tmp_path / 'b').exists()


def test_the_command_line_goes_on_with_a_folder_and_trusts_where_told(tmp_path, mine, capsys, monkeypatch):
    monkeypatch.setattr('maskedlab.instruments.held_out.held_out', lambda *a, **k: {})
    run = tmp_path / 'run'
    first = ['train', f'{mine}:Mine', '--steps', '2', '--batch', '2', '--lr', '1e-3', '--out', str(run)]
    assert cli.main(first) == 0 and ran(mine)
    assert cli.main(['train', str(run), '--resume']) == 2 and '--trust' in capsys.readouterr().err
    assert not ran(mine)
    assert cli.main(['train', str(run), '--resume', '--trust']) == 0 and ran(mine)
    about = json.loads((run / 'config.json').read_text())
    assert about['sha256'] == hashlib.sha256(mine.read_bytes()).hexdigest()
    assert about['recipe'] == f'{mine}:Mine' and about['step'] == 2
    assert cli.main(['leak', str(run)]) == 2 and not ran(mine)


# -------------------------------------------------------------------------------- what lies in the files

LIES = {
    'no header': b'',
    'a length beyond the file': struct.pack('<Q', 10**12) + b'{}',
    'a length of nothing': struct.pack('<Q', 0),
    'no JSON': struct.pack('<Q', 4) + b'nope',
    'no text': struct.pack('<Q', 4) + b'\xff\xfe\xfd\xfc',
    'an unknown kind': None,
    'a shape that is too big': None,
    'places beyond the end': None,
    'places that overlap': None,
    'a negative shape': None,
    'brackets': struct.pack('<Q', 100_000) + b'[' * 100_000,
}


def lying(kind, file):
    """Write a safetensors file whose header lies."""
    if LIES[kind] is not None:
        file.write_bytes(LIES[kind])
        return
    w = dict(dtype='F32', shape=[2], data_offsets=[0, 8])
    header = dict({
        'an unknown kind': {'w': dict(w, dtype='F99')},
        'a shape that is too big': {'w': dict(w, shape=[2**62, 2**62])},
        'places beyond the end': {'w': dict(w, data_offsets=[0, 10**9])},
        'places that overlap': {'w': w, 'v': dict(w, data_offsets=[4, 12])},
        'a negative shape': {'w': dict(w, shape=[-2])},
    }[kind])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack('<Q', len(text)) + text + bytes(8))


@pytest.mark.parametrize('kind', LIES)
def test_a_header_that_lies_ends_in_one_sentence(kind, tmp_path):
    file = tmp_path / 'model.safetensors'
    lying(kind, file)
    (tmp_path / 'config.json').write_text('{"recipe": "mae", "config": {}}')
    for path in (file, tmp_path):
        sentence(ValueError, lambda p=path: ml.load_pretrained(p), 'no whole safetensors file')


@pytest.mark.parametrize('kind', LIES)
def test_a_checkpoint_whose_sum_fits_the_lie_is_skipped(kind, tmp_path):
    trained(tmp_path, MAE(**TINY), save_every=1)
    first, last = checkpoints(tmp_path / 'checkpoints')
    lying(kind, last / 'model.safetensors')
    state = json.loads((last / 'state.json').read_text())
    state.pop('sum')
    state['sha256']['model'] = hashlib.sha256((last / 'model.safetensors').read_bytes()).hexdigest()
    (last / 'state.json').write_text(json.dumps(state))
    with pytest.warns(UserWarning, match='an older one is taken'):
        assert load_checkpoint(tmp_path / 'checkpoints').step == 1
    sentence(ValueError, lambda: ml.load_pretrained(last), 'no whole safetensors file')


BAD_JSON = [
    b'', b'[]', b'null', b'nonsense', b'\xff\xfe\x00\x01', b'[' * 200_000, b'{"a":' * 100_000, b'7', b'"',
]  # fmt: skip


@pytest.mark.parametrize('held', BAD_JSON, ids=lambda b: repr(b[:9]))
def test_json_of_any_kind_ends_in_one_sentence(held, tmp_path):
    trained(tmp_path, MAE(**TINY), save_every=1)
    about = json.loads((tmp_path / 'run.json').read_text())
    (tmp_path / 'run.json').write_bytes(held)
    sentence(ValueError, lambda: ml.Trainer.resume(tmp_path), 'no JSON object')
    sentence(ValueError, lambda: read_run(tmp_path), 'no JSON object')
    (tmp_path / 'run.json').write_text(json.dumps(about))
    last = checkpoints(tmp_path / 'checkpoints')[-1]
    whole = (last / 'state.json').read_bytes()
    (last / 'state.json').write_bytes(held)
    with pytest.warns(UserWarning, match='an older one is taken'):
        assert load_checkpoint(tmp_path / 'checkpoints').step == 1
    sentence(ValueError, lambda: ml.load_pretrained(last), 'no JSON object')
    (last / 'state.json').write_bytes(whole)
    MAE(**TINY).save_pretrained(tmp_path / 'weights')
    (tmp_path / 'weights' / 'config.json').write_bytes(held)
    sentence(ValueError, lambda: ml.load_pretrained(tmp_path / 'weights'), 'no JSON object')
    save_file({'w': torch.ones(2)}, tmp_path / 'alone.safetensors', {'maskedlab': held.decode('latin1')})
    sentence(ValueError, lambda: read_checkpoint(tmp_path / 'alone.safetensors'), 'no JSON object')


@pytest.mark.parametrize('held', BAD_JSON, ids=lambda b: repr(b[:9]))
def test_results_of_any_kind_end_in_one_sentence(held, tmp_path, monkeypatch):
    "Of claims, of comparisons, of stages."
    from maskedlab.instruments.claim import claims_table, recorded
    from maskedlab.instruments.compare import compare
    from maskedlab.stages.shelf import cache_folder, find_stage

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MASKEDLAB_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'claims').mkdir()
    (tmp_path / 'claims' / 'mae.json').write_bytes(held)
    sentence(ValueError, lambda: claims_table(tmp_path / 'claims'), 'no JSON object')
    sentence(ValueError, lambda: recorded('mae'), 'no JSON object')
    again = lambda: compare(['mae', 'simmim'], 2, out='claims/mae.json')
    sentence(ValueError, again, 'mae.json is no result of a comparison')
    cache_folder('point_dvae/micro/points/7').mkdir(parents=True)
    (cache_folder('point_dvae/micro/points/7') / 'stage.json').write_bytes(held)
    sentence(ValueError, lambda: find_stage('point_dvae/micro/points/7'), 'no JSON object')


ODD = dict(
    recipe=[5, None, ['mae'], 'nothing_of_the_kit'],
    config=[[1], 'x', {'dim': 'wide'}, {'no_such': 1}, {'strategy': {'strategy': 'Random(', 'source': [1]}}],
    plan=[[1], {'lr': 'x'}, {'no_such': 1}, 'x'],
    data=[5, ['a']],
    steps=['x', None, -3],
    batch=['8', 0, None],
    seed=[-1, 'x'],
    precision=['half', 5],
    image=['x', [1]],
    ema=['x', 2],
)


@pytest.mark.parametrize('key', ODD)
def test_values_of_any_kind_in_run_json_end_in_one_sentence(key, tmp_path):
    trained(tmp_path, MAE(**TINY))
    about = json.loads((tmp_path / 'run.json').read_text())
    for value in ODD[key]:
        (tmp_path / 'run.json').write_text(json.dumps({**about, key: value}))
        sentence((ValueError, TypeError, OSError), lambda: ml.Trainer.resume(
            tmp_path, data=None if key == 'data' else DATA, show=False))


def test_a_folder_chooses_neither_where_to_write_nor_whom_to_call(tmp_path):
    trained(tmp_path, MAE(**TINY))
    about = json.loads((tmp_path / 'run.json').read_text())
    more = dict(
        out='/elsewhere', overwrite=True, resume=False, watch='os:system', show=True, change=True, trust=True
    )
    (tmp_path / 'run.json').write_text(json.dumps({**about, **more}))
    t = ml.Trainer.resume(tmp_path, data=DATA, show=False)
    assert t.out == tmp_path and t.resume is True and not t.overwrite and t.watch is None and not t.change


# ------------------------------------------------------------------------ nothing is unpickled but tensors

RUNS = {
    'exec', 'eval', 'compile', '__import__', 'exec_module', 'import_module', 'run_path', 'run_module',
    'system', 'popen',
}  # fmt: skip
PICKLES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve'}
# modules that run or import what they are told, and by whom they are told
TOLD = {
    '__init__': 'names of the package', '_moved': 'names of the package',
    'show/__init__': 'names of the package', 'contract/catalogue': 'its own table',
    'contract/parse': 'the masks room', 'masks/strategies': 'the masks room',
    'contract/code': 'the person at the keyboard', 'instruments/claim': 'the person at the keyboard',
    'cli': 'bench of the checkout', 'course/exercises': "the learner's own cell, solutions of the kit",
    'show/explorer/widget': 'google.colab',
}  # fmt: skip


def calls(path):
    """(name of the function, its keywords) of each call in a module; modules that it imports."""
    tree = ast.parse(path.read_text('utf-8'))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    name = lambda f: f.attr if isinstance(f, ast.Attribute) else getattr(f, 'id', '')
    whole = [n for n in ast.walk(tree) if isinstance(n, ast.Import)]
    parts = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
    imported = {a.name.split('.')[0] for n in whole for a in n.names}
    imported |= {n.module.split('.')[0] for n in parts}
    words = lambda n: {k.arg: ast.unparse(k.value) for k in n.keywords}
    return [(n.func, name(n.func), words(n)) for n in found], imported


def test_nothing_is_unpickled_but_tensors_and_no_module_runs_what_a_file_says():
    wrong = []
    for path in sorted((ROOT / 'maskedlab').rglob('*.py')):
        where = path.relative_to(ROOT / 'maskedlab').with_suffix('').as_posix()
        found, imported = calls(path)
        if imported & PICKLES:
            wrong.append(f'{where} imports {imported & PICKLES}')
        for function, name, words in found:
            owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ''
            if name == 'load' and owner == 'torch' and words.get('weights_only') != 'True':
                wrong.append(f'{where}: torch.load without weights_only=True')
            if 'allow_pickle' in words or 'trust_remote_code' in words or owner == 'torch.hub':
                wrong.append(f'{where}: {name} {words}')
            foreign = owner not in ('', 'os', 'runpy', 'importlib', 'builtins') and name != 'exec_module'
            if name in RUNS and where not in TOLD and not foreign:
                wrong.append(f'{where} calls {name}')
    assert not wrong, wrong


def test_an_object_array_in_a_pickle_runs_nothing(tmp_path):
    "numpy keeps objects in arrays as pickles of their own."
    import os
    import pickle

    import numpy as np

    class Payload:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/it_ran',)

    for held in (np.array([Payload()], dtype=object), np.array(Payload(), dtype=object)):
        torch.save({'model': {'w': torch.ones(1)}, 'best': held}, tmp_path / 'x.pth')
        sentence(ValueError, lambda: ml.load_pretrained(tmp_path / 'x.pth'), 'was not run')
    scalar = np.float64().__reduce__()[0]

    class Scalar:
        def __reduce__(self):
            return scalar, (np.dtype('O'), pickle.dumps(Payload()))

    torch.save({'model': {'w': torch.ones(1)}, 'best': Scalar()}, tmp_path / 'y.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sentence(ValueError, lambda: ml.load_pretrained(tmp_path / 'y.pth'))
    assert not (tmp_path / 'it_ran').exists()
