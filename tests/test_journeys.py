"""What the README promises to somebody with own data, line by line as it stands there, with fewer steps."""
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.cli import main, parser

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    "A folder of two classes in the working folder, and one picture beside it."
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    for name, at in (('rose', .2), ('tulip', .8)):
        Path('flowers', name).mkdir(parents=True)
        for i in range(10):
            x = (at + .1 * torch.randn(70, 80, 3, generator=g)).clamp(0, 1) * 255
            Image.fromarray(x.byte().numpy()).save(Path('flowers', name, f'{i}.jpg'))
    shutil.copy('flowers/rose/0.jpg', 'rose.jpg')
    return Path('flowers')


def lines():
    page = (ROOT / 'README.md').read_text('utf-8').partition('## Your own pictures')[2]
    return re.search(r'```sh\n(.*?)```', page, re.S)[1].splitlines()


def test_own_pictures_as_the_readme_says(flowers, capsys):
    said = []
    for line in lines():
        words = shlex.split(line, comments=True)
        parser().parse_args(words[1:])                  # as it stands
        assert words[0] == 'maskedlab'
        if words[1] == 'explore': continue              # opens a server; its tests are those of the browser
        short = re.sub(r'--steps \d+', '--steps 2', shlex.join(words[1:]))
        short = short.replace('--size small', '--size micro')
        short += ' --steps 20 --lr 5e-3' if words[1] == 'finetune' else ''
        assert main(shlex.split(short)) == 0, (short, capsys.readouterr())
        said.append(capsys.readouterr().out)
    assert 'this network' in said[2] and 'raw input' in said[2] and '2 classes' in said[2]
    assert said[4].split('\t')[1].startswith('rose')
    from transformers import ViTMAEForPreTraining
    theirs, told = ViTMAEForPreTraining.from_pretrained('mine-hf', output_loading_info=True)
    assert not told['missing_keys'] and not told['unexpected_keys']
    ours = ml.create_recipe('runs/mine')
    assert theirs.decoder.decoder_pred.weight.shape == ours.head.weight.shape


def test_the_part_to_test_on_is_never_trained_on(flowers):
    for part in ('train', 'val'):
        shutil.copytree('flowers', Path('split', part))
    with pytest.warns(UserWarning, match='the part train is trained on, and val kept'):
        t = ml.Trainer('mae', 'split', steps=1, batch=4, show=False)
    assert len(t.source) == 20


def test_a_probe_for_a_script(flowers, capsys):
    assert main(['probe', 'mae', '--data', 'flowers', '--labels', '8', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found['classes'], found['learned_from'], found['tested_on']) == (2, 8, 4)
    assert found['raw input']['linear'] == 1.


@pytest.mark.parametrize('words, said', [
    (['probe', 'mae', '--data', 'nowhere'], 'nowhere'),
    (['probe', 'mae', '--data', 'flowers/rose'], 'without a class'),
    (['probe', 'mae', '--data', 'digits', '--test', 'flowers'], 'a test part of its own'),
    (['finetune', 'mae', '--data', 'flowers', '--out', 'flowers'], 'is not empty'),
    (['ask', 'flowers', 'rose.jpg'], 'holds no classifier'),
    (['export', 'mae', '--to', 'tensorflow', '--out', 'x'], 'has no layout')])
def test_what_cannot_be_done_is_said_in_one_line(flowers, capsys, words, said):
    assert main(words) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and len(err.splitlines()) == 1
