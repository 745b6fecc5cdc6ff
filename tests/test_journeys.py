"""What the README promises to somebody with own data, line by line as it stands there, with fewer steps."""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.cli import main, parser
from maskedlab.instruments import keeps

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


def lines(title='Your own pictures', kind='sh'):
    page = (ROOT / 'README.md').read_text('utf-8').partition(f'## {title}\n')[2].partition('\n## ')[0]
    return re.search(rf'```{kind}\n(.*?)```', page, re.S)[1].splitlines()


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
    import timm
    net = timm.create_model('local-dir:mine-timm', pretrained=True).eval()
    b = ml.load_image('rose.jpg', 64)
    with torch.no_grad():
        assert_close(net(ours.cut.colours(b['image'])), ours.features(b), atol=1e-4, rtol=1e-4)
    import onnxruntime
    run = onnxruntime.InferenceSession('flowers-onnx/model.onnx')
    logits, = run.run(None, {'image': b['image'].numpy()})
    asked, = ml.Classifier.load('runs/flowers').ask(b)
    assert json.loads(Path('flowers-onnx/model.json').read_text())['classes'][logits.argmax()] == [*asked][0]
    assert theirs.decoder.decoder_pred.weight.shape == ours.head.weight.shape


def test_own_mask_as_the_readme_says(flowers, capsys, monkeypatch):
    Path('ring.py').write_text('\n'.join(lines('Your own mask', 'python')))
    asked, said = [], []
    monkeypatch.setattr('maskedlab.show.explorer.widget.serve', lambda *a, **k: asked.append((a, k)))
    for line in lines('Your own mask'):
        short = shlex.join(shlex.split(line, comments=True)[1:])
        short += dict(train=' --steps 2 --batch 8', compare=' --steps 2 --seeds 2 --tune 1 --no-cost').get(
            shlex.split(short)[0], '')
        code = main(shlex.split(short))
        said.append(capsys.readouterr())
        assert code == 0, (short, said[-1])
    told = said[-1].out
    assert told.count('Unequal shares are hidden') == 1
    assert 'linear: Random(.75) minus ring.py:Ring(.5)' in told and '95 % interval' in told
    assert asked == [(('runs/ring',), dict(port=8866, strategy=None, trust=True, own=None))]


def test_the_instruments_look_at_an_own_mask(flowers, capsys):
    Path('ring.py').write_text('\n'.join(lines('Your own mask', 'python')))
    ring = ml.masks.parse('ring.py:Ring(.5)', trust=True)
    assert main(['masks', 'ring.py:Ring(.5)']) == 0 and 'Ring(width=0.5)' in capsys.readouterr().out
    u = ml.layout((8, 8), batch=8)
    assert ml.count_law(ring, u, n=200).ok and ml.coverage_map(ring, u, n=200).ok
    assert main(['leak', 'mae', '--mask', 'ring.py:Ring(.5)']) == 0 and 'ok' in capsys.readouterr().out


def test_a_run_with_an_own_mask_is_opened_again_where_it_is_trusted(flowers):
    Path('ring.py').write_text('\n'.join(lines('Your own mask', 'python')))
    words = ['--mask', 'ring.py:Ring(.3)', '--batch', '4', '--steps', '1', '--out', 'run']
    assert main(['train', 'mae', '--data', 'flowers', *words]) == 0
    assert main(['train', 'run', '--resume', '--steps', '2']) == 2              # its own word is not enough
    assert main(['train', 'run', '--resume', '--steps', '2', '--trust']) == 0
    with pytest.raises(ValueError, match='--trust'):
        ml.create_recipe('run')
    assert ml.create_recipe('run', trust=True).strategy.width == .3
    around = {}
    page = ml.show.explorer.page.Page('run', trust=True)
    exec(page.code(page.state).replace('; ml.Explorer', '; shown = ml.Explorer'), around)
    again = around['shown'].page
    mask = lambda p: p.show(p.state).pictures['seen']
    assert torch.equal(mask(again), mask(page)) and 'ring.py:Ring' in page.code(page.state)
    assert [c['name'] for c in page.menus.panels('run')['own']] == ['width']


def test_unequal_shares_are_pointed_out(flowers, capsys):
    masks = ['--mask', 'Random(.75)', '--mask', 'Block(.4)']
    words = ['compare', 'mae', *masks, '--data', 'flowers', '--seeds', '2', '--steps', '1', '--no-tuning']
    assert main([*words, '--no-cost', '--out', 'found.json', '--picture', 'found.png']) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if 'Unequal shares' in line]
    assert len(said) == 1 and 'Random(.75) 75%' in said[0]
    found = json.loads(Path('found.json').read_text())
    assert found['unequal'] == said[0] and found['budget']['few'] == 16         # four are held back
    assert shlex.split(found['command'])[1:9] == [*words[:2], '--data', 'flowers', *masks]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Where a stranger's package is installed, built from the README; it tells when it is imported."
    source, target = tmp_path_factory.mktemp('theirs'), tmp_path_factory.mktemp('site')
    code = '\n'.join(['print("imported")', *lines('Your own method', 'python')])
    (source / 'mine.py').write_text(code)
    about = ['[build-system]', 'requires = ["setuptools"]', 'build-backend = "setuptools.build_meta"',
             '[project]', 'name = "theirs"', 'version = "0.3"', '[tool.setuptools]', 'py-modules = ["mine"]']
    (source / 'pyproject.toml').write_text('\n'.join([*about, *lines('Your own method', 'toml')]))
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--no-build-isolation']
    subprocess.run([*pip, '--target', str(target), str(source)], check=True)
    return target


def beside(site, code, folder):
    "What a Python prints that has this package, and what it warns of."
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_own_method_as_the_readme_says(flowers, capsys):
    Path('mine.py').write_text('\n'.join(lines('Your own method', 'python')))
    check, train, install, listed = (shlex.split(line, comments=True) for line in lines('Your own method'))
    began = time.perf_counter()
    assert main(check[1:]) == 0 and f'all {len(keeps.CHECKS)} kept' in capsys.readouterr().out
    assert time.perf_counter() - began < 20
    assert main([*train[1:6], '1', *train[7:], '--batch', '4']) == 0
    assert len(ml.create_recipe('runs/own', trust=True).encoder.blocks) == 6
    assert (install, listed) == (['pip', 'install', '.'], ['maskedlab', 'list'])        # below


def test_an_installed_package_is_in_every_list_and_not_imported(site, tmp_path):
    out, err = beside(site, """if True:
        import sys
        import maskedlab as ml
        from maskedlab.cli import main
        from maskedlab.show.explorer.page import Page
        main(['list', 'm*'])
        assert 'mine' in ml.list_recipes('*n*', modality='image')
        assert 'mine' not in ml.list_recipes(modality='text')
        page = Page('mae')
        assert 'mine' in page.menus.kinds() and 'mine' not in sys.modules
        r = ml.create_recipe('mine')
        assert len(page.menus.recipe('mine').encoder.blocks) == len(r.encoder.blocks) == 6
        own = Page('mine')
        assert own.code(own.state).startswith("import maskedlab as ml; ml.Explorer('mine'")
        r.save_pretrained('kept')
        for trust in (False, True):
            try:
                print(trust, type(ml.create_recipe('kept', trust=trust)).__name__)
            except ValueError as error:
                print(trust, error)
        """, tmp_path)
    assert not err, err
    first, *rest = out.partition('imported')[0].splitlines()
    assert first.startswith('mae ')
    assert ' '.join(rest[-1].split()) == 'mine image of the installed package theirs 0.3'
    assert 'False kept names code that is not of the kit, mine:Mine' in out and 'True Mine' in out


def test_a_broken_package_is_told_in_a_sentence_and_the_others_stay(site, tmp_path):
    for name, text in dict(odd='mae = mine:Mine [image]\nmine = mine:Mine [image]\nbare = mine:Mine\n',
                           ill='ill = ill:Ill [image]\nno_recipe = mine:MAE.nothing [image]').items():
        (tmp_path / f'{name}-1.dist-info').mkdir()
        (tmp_path / f'{name}-1.dist-info' / 'METADATA').write_text(f'Name: {name}\nVersion: 1\n')
        (tmp_path / f'{name}-1.dist-info' / 'entry_points.txt').write_text(f'[maskedlab.recipes]\n{text}\n')
    (tmp_path / 'ill.py').write_text('1 / 0')
    out, err = beside(site, """if True:
        import maskedlab as ml
        print(len(ml.list_recipes()), ml.list_recipes('mine'), ml.card('mae').year)
        try:
            ml.create_recipe('ill')
        except ValueError as error:
            print(error)
        try:
            ml.register_recipe('ill', 'mine:Mine')
        except ValueError as error:
            print(error)
        """, tmp_path)
    told = [line for line in err.splitlines() if 'UserWarning' in line]
    said = '\n'.join(told)
    assert len(told) == 4
    assert all(f"the recipe '{n}' of the installed" in said for n in ('mae', 'mine', 'bare', 'no_recipe'))
    assert 'the kit has that name' in said
    assert f'{len(ml.list_recipes()) + 2} [\'mine\'] 2022' in out
    assert 'ill of the installed package ill 1 cannot be used (ZeroDivisionError' in out
    assert "a recipe cannot be called 'ill': ill 1 has that name" in out


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
