"""Bad input: one sentence of at most 200 characters that names the value and the remedy, by every door, and
before anything is computed.
"""
import ast
import errno
import math
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch

import maskedlab as ml
from maskedlab.checks import on_disk
from maskedlab.cli import main
from maskedlab.contract.create import SHIPPED, recipe_class
from maskedlab.contract.parse import parse
from maskedlab.masks import Block, Random
from maskedlab.parts.transformer import Transformer
from maskedlab.targets.pixels import un_norm

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CLOSED = torch.ones(2, 8, 8).bool()
CLOSED[:, 0] = False


def batch(image=IMAGE):
    return dict(image=image)


def mae(*args, **kwargs):
    return ml.create_recipe('mae')(*args, **kwargs)


def closed_units():
    r = ml.create_recipe('mae')
    return r, r.units(batch()).but(free=CLOSED)


def run_closed():
    r, u = closed_units()
    r(batch(), mask=torch.ones(2, 8, 8).bool(), units=u)


CASES = {
    'ratio 1.2':          (lambda: Random(1.2), ValueError, ['1.2', '0', '1']),
    'ratio -0.1':         (lambda: Random(-.1), ValueError, ['-0.1']),
    'ratio NaN':          (lambda: Random(math.nan), ValueError, ['nan']),
    'ratio as text':      (lambda: Block(ratio='half'), TypeError, ['half']),
    'unknown strategy':   (lambda: parse('Blok(ratio=.4)'), ValueError, ['Blok', 'Block']),
    'strategy field':     (lambda: parse('Block(rate=.4)'), (TypeError, ValueError), ['rate', 'ratio']),
    'strategy code':      (lambda: parse("Block(ratio=__import__('os').getpid())"), ValueError, ['Block(']),
    'mask shape':         (lambda: mae(batch(), mask=torch.ones(2, 7, 8).bool()), ValueError,
                           ['[2, 7, 8]', '[2, 8, 8]']),
    'mask batch':         (lambda: ml.create_recipe('mae')(batch(), mask=torch.ones(1, 8, 8).bool()),
                           ValueError, ['[1, 8, 8]']),
    'mask dtype':         (lambda: ml.create_recipe('mae')(batch(), mask=torch.ones(2, 8, 8)), TypeError,
                           ['float32', 'bool']),
    'mask as list':       (lambda: ml.create_recipe('mae')(batch(), mask=[1, 2]), TypeError,
                           ['list', 'bool']),
    'mask of views':      (lambda: ml.create_recipe('mae')(batch(), mask=torch.ones(2, 3, 8, 8).bool()),
                           ValueError, ['[2, 3, 8, 8]']),
    'mask not free':      (run_closed, ValueError, ['[0, 0]', 'free']),
    'size 60':            (lambda: ml.create_recipe('mae')(batch(IMAGE[..., :60])), ValueError,
                           ['64 x 60', '8', '64 x 56']),
    'simmim size':        (lambda: ml.create_recipe('simmim')(batch(IMAGE[..., :56])), ValueError,
                           ['56', 'cell']),
    'too small':          (lambda: ml.create_recipe('mae')(batch(IMAGE[..., :4, :4])), ValueError,
                           ['4 x 4', '8']),
    '5 channels':         (lambda: ml.create_recipe('mae')(batch(torch.rand(2, 5, 64, 64))), ValueError,
                           ['5', 'channels=5']),
    'no batch axis':      (lambda: ml.create_recipe('mae')(batch(IMAGE[0])), ValueError,
                           ['[3, 64, 64]', 'image[None]']),
    'bytes':              (lambda: ml.create_recipe('mae')(batch((IMAGE * 255).byte())), TypeError,
                           ['uint8', '255']),
    'floats to 255':      (lambda: ml.create_recipe('mae')(batch(IMAGE * 255)), ValueError, ['255', '0..1']),
    'normalised':         (lambda: ml.create_recipe('simmim')(batch(IMAGE * 4 - 2)), ValueError,
                           ['-2', '0..1']),
    'NaN pixel':          (lambda: mae(batch(IMAGE.clone().index_fill_(3, torch.tensor([7]), math.nan))),
                           ValueError, ['NaN']),
    'empty batch':        (lambda: ml.create_recipe('mae')(batch(IMAGE[:0])), ValueError, ['empty']),
    'no image':           (lambda: ml.create_recipe('mae')(dict(picture=IMAGE)), ValueError,
                           ['picture', 'image']),
    'a tensor':           (lambda: ml.create_recipe('mae')(IMAGE), ValueError, ['Tensor', 'image']),
    'unknown recipe':     (lambda: ml.create_recipe('simmmim'), ValueError, ['simmmim', 'simmim']),
    'recipe 7':           (lambda: ml.create_recipe(7), TypeError, ['int']),
    'unknown size':       (lambda: ml.create_recipe('mae', size='huge'), ValueError, ['huge', 'micro']),
    'unknown argument':   (lambda: ml.create_recipe('mae', width=3), TypeError, ['width']),
    'heads':              (lambda: ml.create_recipe('mae', heads=3), ValueError, ['128', '3']),
    'patch':              (lambda: ml.create_recipe('mae', patch=7), ValueError, ['64 x 64', '7']),
    'cells':              (lambda: ml.create_recipe('simmim', cell=4), ValueError, ['4', '8']),
    'positions':          (lambda: ml.create_recipe('mae', dim=126, heads=2), ValueError, ['126', '4']),
    'no weights':         (lambda: ml.create_recipe('mae', size='base', pretrained=True), ValueError,
                           ['base', 'micro']),
    'unknown modality':   (lambda: ml.sample('imgae'), ValueError, ['imgae', 'image']),
    'split':              (lambda: ml.sample('image', split='val'), ValueError, ['val', 'test']),
    'n = 0':              (lambda: ml.sample('image', n=0), ValueError, ['0']),
    'layout':             (lambda: ml.layout((0, 4)), ValueError, ['(0, 4)']),
    'statistics':         (lambda: un_norm(None, None, None, 'mine'), ValueError, ['mine', 'visible']),
    'part':               (lambda: ml.create_recipe('mae').attention(batch(), part='head'), ValueError,
                           ['head', 'decoder']),
    'larger than bias':   (lambda: ml.create_recipe('simmim')(batch(torch.rand(1, 3, 128, 64))), ValueError,
                           ['16 x 8', '8 x 8', 'image=']),
    'missing path':       (lambda: ml.load_pretrained('no/such/folder'), FileNotFoundError,
                           ['no/such/folder']),
}


@pytest.fixture
def no_compute(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('the network ran before the input was checked')
    monkeypatch.setattr(Transformer, 'forward', refuse)


@pytest.mark.parametrize('name', CASES)
def test_one_sentence(name, no_compute):
    call, kind, words = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    said = str(caught.value)
    assert len(said) <= 200 and '\n' not in said, (len(said), said)
    assert all(w in said for w in words), said


@pytest.mark.parametrize('words, has', [
    (['card', 'simmmim'], 'simmim'),
    (['leak', 'mae', '--size', 'huge'], 'huge'),
    (['leak', 'mae', '--mask', 'Block(ratio=1.2)'], '1.2'),
    (['leak', 'mae', '--mask', 'Blok()'], 'Block'),
    (['leak', 'nowhere.py:Mine'], 'nowhere.py'),
    (['leak', 'mae', '-n', '1'], 'at least 2'),
    (['masks', 'Random(ratio=nan)'], 'Random'),
    (['masks', 'Random(.75)', '--shape', '14xx'], '14xx'),
    (['train', 'mae', '--steps', '0', '--out', '{tmp}/out'], '0'),
    (['train', 'mae', '--data', '{tmp}/none', '--out', '{tmp}/out'], 'none'),
    (['train', 'mae', '--out', '{tmp}'], 'not empty'),
    (['explore', 'mea'], 'mae'),
])
def test_command_line(words, has, tmp_path, capsys):
    (tmp_path / 'something').write_text('here')
    code = main([w.format(tmp=tmp_path) for w in words])
    said = capsys.readouterr().err.strip()
    assert code == 2 and has in said and len(said.splitlines()) == 1 and 'Traceback' not in said, said


def test_command_line_of_argparse(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['no-such-command'])
    assert caught.value.code == 2


@pytest.mark.parametrize('word', ['--steps', '--seeds'])
def test_a_claim_of_no_steps_or_seeds_is_refused_and_writes_nothing(word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['claim', 'mae', word, '0']) == 2
    assert word.strip('-') in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [getattr(errno, name) for name in (
    'EROFS ENOSPC EACCES ENOTDIR ENAMETOOLONG EISDIR ELOOP EDQUOT'.split())])
def test_words_of_the_system(number):
    """What was being done and what helps, and the class of the error stays."""
    error = OSError(number, os.strerror(number), 'a/b')
    with pytest.raises(type(error)) as caught, on_disk('write the weights into a/b'):
        raise error
    said = str(caught.value)
    assert said.startswith('cannot write the weights into a/b: ') and '; ' in said and 'Errno' not in said
    assert caught.value.errno == number


def test_an_error_of_the_code_is_one_line_too(tmp_path, capsys):
    """And `--traceback` lets it through."""
    file = tmp_path / 'broken.py'
    file.write_text('from maskedlab.contract.recipe import Recipe\n\n\nclass Broken(Recipe):\n'
                    '    def __init__(self):\n        super().__init__()\n        {}[3]\n')
    assert main(['leak', f'{file}:Broken']) == 3
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and 'KeyError' in said and '--traceback' in said
    with pytest.raises(KeyError):
        main(['--traceback', 'leak', f'{file}:Broken'])


def test_public_names_stay_what_they_are_whoever_was_imported():
    """A module that has the name of what it holds takes its place in the package: it can be called."""
    import_module('maskedlab.settings')
    for _ in range(2):
        assert ml.settings()['seed'].value == ml.setting('seed')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for path in sorted(Path(ml.__file__).parent.rglob('*.py')):
            names = path.relative_to(Path(ml.__file__).parent).with_suffix('').parts
            if any(n.startswith('_') for n in names) or names[0] == 'claims':
                continue
            found = ml
            for name in names:
                found = getattr(found, name)
            assert found.__name__ == '.'.join(['maskedlab', *names])
        assert ml.uses.probes.linear_probe
    with pytest.raises(AttributeError, match='nothing'):
        _ = ml.uses.nothing


def test_a_type_checker_is_told_every_name():
    lines = [n for n in ast.parse(Path(ml.__file__).with_suffix('.pyi').read_text()).body
             if isinstance(n, ast.ImportFrom) and n.level]  # fmt: skip
    told = {a.asname: n.module for n in lines for a in n.names}
    assert told == {**ml._NAMES, **dict.fromkeys(ml._ROOMS)}


@pytest.mark.parametrize('name', ['mae', 'simmim'])
def test_features_are_exported(name):
    """The look at the values, which a program that is written down cannot take, is left out of it."""
    r, image = ml.create_recipe(name).eval(), IMAGE

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recipe = r

        def forward(self, image):
            return self.recipe.features({'image': image})

    program = torch.export.export(Features(), (image,))
    assert torch.allclose(program.module()(image), r.features(batch(image)), atol=1e-6)


@pytest.mark.parametrize('how', [lambda x: x.double(), lambda x: x.half(), lambda x: x.numpy(),
                                 lambda x: x.int(), lambda x: x.tolist()])
@pytest.mark.parametrize('name', ['mae', 'mfm', 'beit', 'point_mae', 'electra'])
def test_another_kind_of_numbers(name, how, no_compute):
    r = ml.create_recipe(name)
    b = ml.sample(r.card.modality.split()[0], n=2)
    key = next(iter(b))
    for door in (r, r.features, r.units):
        with pytest.raises((TypeError, ValueError), match=key):
            door({**b, key: how(b[key])})


@pytest.mark.parametrize('key', ['valid', 'word'])
def test_a_list_beside_the_ids_is_no_tensor(key, no_compute):
    b = ml.sample('text', n=2)
    with pytest.raises(TypeError, match=f'{key} is a list'):
        ml.create_recipe('bert_mlm')({**b, key: b[key].tolist()})
    assert ml.create_recipe('bert_mlm').units({**b, 'title': ['a', 'b']}).x is b['ids']


@pytest.mark.parametrize('source', [[None], [-1], ['a.txt', 3], [b'a'], (None,), [[]], {'a': 1}])
def test_what_is_no_file_among_texts(source):
    for door in (ml.load_text, lambda x: ml.Trainer('bert_mlm', x, steps=1, show=False)):
        if isinstance(source, dict) and door is not ml.load_text: continue
        with pytest.raises(TypeError, match='give (the )?paths') as e:
            door(source)
        assert len(str(e.value)) <= 200



@pytest.mark.parametrize('size', [16, 64])
def test_groups_of_another_size_than_the_tokenizer_knows(size):
    cls = recipe_class('point_bert')
    for make in (lambda: cls(**{**cls.sizes['micro'], 'size': size}),
                 lambda: ml.load_pretrained(SHIPPED / 'point_bert-micro', size=size)):
        with pytest.raises(ValueError, match=f'groups of {size} points, .* knows groups of 32'):
            make()


# what is accepted is read


@pytest.mark.parametrize('name, argument, takes', [
    ('bert_mlm', 'image', 'vocab'), ('electra', 'image', 'vocab'), ('point_mae', 'image', 'groups'),
    ('mae', 'tokenizer', 'patch'), ('mae', 'groups', 'patch')])
def test_an_argument_of_another_field_names_what_the_recipe_takes(name, argument, takes):
    for make in (lambda **k: ml.create_recipe(name, **k),
                 lambda **k: ml.create_recipe(name, pretrained=True, **k),
                 lambda **k: ml.load_pretrained(SHIPPED / f'{name}-micro', **k)):
        with pytest.raises((TypeError, ValueError), match=f"'{argument}'; it takes .*{takes}") as e:
            make(**{argument: 64})
        assert len(str(e.value)) <= 200


RUN = dict(steps=1, batch=2, show=False)
UNREAD = {
    'image of texts':      (lambda: ml.Trainer('bert_mlm', image=32, **RUN), 'image=32'),
    'image of clouds':     (lambda: ml.Trainer('point_mae', image=32, **RUN), 'image=32'),
    'image of tensors':    (lambda: ml.Trainer('mae', batch(), image=32, **RUN), '64 x 64'),
    'resume nowhere':      (lambda: ml.Trainer('mae', resume=True, **RUN), 'out='),
    'overwrite nothing':   (lambda: ml.Trainer('mae', overwrite=True, **RUN), 'out='),
    'tensorboard nowhere': (lambda: ml.Trainer('mae', tensorboard=True, **RUN), 'out='),
    'change at a start':   (lambda: ml.Trainer('mae', change=True, **RUN), 'resume='),
    'both':                (lambda: ml.Trainer(resume=True, overwrite=True, out='no', **RUN), 'one of'),
    'size of an instance': (lambda: ml.Trainer(ml.create_recipe('mae'), size='tiny', **RUN), 'size'),
    'a made one':          (lambda: ml.create_recipe(ml.create_recipe('mae'), dim=64), 'dim'),
    'a made one, weights': (lambda: ml.create_recipe(ml.create_recipe('mae'), pretrained=True), 'pretrained'),
    'width of another':    (lambda: ml.create_recipe('mae', encoder='vit_tiny_patch16_224', dim=64), 'dim'),
    'stride of a ViT':     (lambda: ml.create_recipe('mfm', stride=8), 'stride=8'),
    'no data':             (lambda: ml.Trainer('mae', '', **RUN), "data=''"),
    'no folder':           (lambda: ml.Trainer('mae', out='', **RUN), "out=''"),
}


@pytest.mark.parametrize('name', UNREAD)
def test_what_nothing_would_read_is_refused(name):
    call, words = UNREAD[name]
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and len(str(e.value)) <= 200


@pytest.mark.parametrize('words, has', [
    (['train', 'bert_mlm', '--image', '32', '--dry-run'], 'image=32'),
    (['train', 'mae', '--data', '', '--dry-run'], "data=''"),
    (['train', 'mae', '--size', '', '--dry-run'], "''"),
    (['train', 'mae', '--out', '', '--steps', '1'], '--out FOLDER'), (['leak', 'mae', '--mask', ''], "''"),
    (['claim', 'mae', '--full', '--arms', 'full', '--steps', '1'], 'one of them'),
    (['claims', 'no/where'], 'no/where')])
def test_options_that_nothing_would_read(words, has, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert has in said and len(said.splitlines()) == 1


def test_a_dry_run_writes_nothing_and_takes_the_options_of_the_run(capsys):
    assert main('train mae --size micro --dry-run --resume --save-every 5 --out no/where'.split()) == 0


# whose line a warning names


@pytest.mark.parametrize('code', [
    'import maskedlab.recipes.mae', 'from maskedlab.recipes import mae',
    'import maskedlab; maskedlab.recipes.mae',
    "from importlib import import_module as i; i('maskedlab.recipes.mae')",
    'import maskedlab\nclass Old(maskedlab.Recipe): defaults = {}'])
def test_a_warning_names_the_line_of_the_caller(code, monkeypatch):
    import_module('maskedlab.recipes')
    monkeypatch.delitem(sys.modules, 'maskedlab.recipes.mae', raising=False)
    vars(ml.recipes).pop('mae', None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        exec(compile('\n\n' + code, 'somebody.py', 'exec'), {'__name__': 'somebody'})
    said = [w for w in told if 'is now' in str(w.message) or 'defaults' in str(w.message)]
    assert [(w.filename, w.lineno) for w in said] == [('somebody.py', 3 + code.count('\n'))]
