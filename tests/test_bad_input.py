"""Bad input: one sentence of at most 200 characters that names the value and the remedy, by every door, and
before anything is computed.
"""
import math

import pytest
import torch

import maskedlab as ml
from maskedlab.cli import main
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
