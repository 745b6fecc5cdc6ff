"""The weights that ship: small enough, and as good on held-out data as the file beside them says."""

import json
import shutil
from pathlib import Path

import pytest

import maskedlab as ml
from maskedlab.instruments.held_out import held_out
from maskedlab.contract.create import SHIPPED, recipe_class
from maskedlab.show.standing import not_beaten, standing

ROOT = Path(__file__).resolve().parents[1]

STAGES = sorted(p.parent for p in SHIPPED.glob('*/stage.json'))      # networks that a recipe was trained with
FOLDERS = sorted(p for p in SHIPPED.iterdir() if p.is_dir() and p not in STAGES)


def provenance(folder):
    return json.loads((folder / 'provenance.json').read_text())


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_held_out_scores_are_the_ones_written_down(folder, monkeypatch):
    name, _, size = folder.name.rpartition('-')
    if name != 'simmim':        # inpainting by scikit-image takes most of the time, and knows no network
        monkeypatch.setattr('maskedlab.instruments.baselines.find_spec', lambda name: None)
    told = provenance(folder)['held_out']
    found = held_out(ml.create_recipe(name, size=size, pretrained=True))
    assert found.keys() == told.keys()
    for kind, scores in told.items():
        near = {k: pytest.approx(v, rel=2e-3, abs=.02) for k, v in scores.items()}
        assert {k: found[kind][k] for k in near
                if k in found[kind]} == {k: near[k] for k in near if k in found[kind]}
        assert {'network'} <= found[kind].keys()
    assert name != 'simmim' or 'inpainting (biharmonic)' in found['psnr']
    assert found['loss']['network'] < found['loss']['untrained']


# guesses that a small network need not beat; it says so on its page, in `maskedlab weights` and in the README
STRONG = {'inpainting', 'counting neighbours', 'the nearest visible group'}


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_nothing_ships_that_loses_to_the_mean_to_chance_or_to_the_commonest(folder):
    "By the interval over 64 held-out samples, which today are named as they are written down."
    told, (name, _, size) = provenance(folder)['standing'], folder.name.rpartition('-')
    assert told['samples'] >= 60 and told['beside'].keys() - STRONG
    assert not set(not_beaten(told)) - STRONG
    found = standing(ml.create_recipe(name, size=size, pretrained=True), slow=False)
    assert found['network'] == pytest.approx(told['network'], rel=.01, abs=.3)
    assert found['beside'].keys() <= told['beside'].keys()
    assert all(found['beside'][k]['score'] == pytest.approx(told['beside'][k]['score'], rel=.01, abs=.3)
               for k in found['beside'])


def test_masked_autoencoder_beats_the_mean_of_the_visible_by_two_decibels():
    psnr = provenance(SHIPPED / 'mae-micro')['held_out']['psnr']
    assert psnr['network'] >= psnr['visible mean'] + 2


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_provenance_names_the_command_and_its_versions(folder):
    told = provenance(folder)
    assert told['command'].startswith('maskedlab train ')
    assert {'version', 'torch', 'date', 'seconds', 'parameters'} <= told.keys()


@pytest.mark.parametrize('folder', STAGES, ids=lambda p: p.name)
def test_a_stage_names_its_command(folder):
    assert json.loads((folder / 'stage.json').read_text())['command'].startswith(
        'python -m maskedlab.train.make_stage ')


def test_weights_are_small():
    size = lambda names: sum(f.stat().st_size for n in names for f in Path(SHIPPED / n).rglob('*')
                             if f.is_file())
    assert size(['mae-micro', 'simmim-micro']) <= 4e6
    assert all(size([p.name]) <= (3.4e6 if p.name == 'cae-micro' else 2e6) for p in FOLDERS)
    assert size([p.name for p in [*FOLDERS, *STAGES]]) <= 60e6


def test_all_weights_are_trained_anew_by_one_command_those_first_that_others_stand_on(capsys):
    import runpy
    tool = runpy.run_path(str(ROOT / 'tools' / 'make_weights.py'))
    assert tool['main'](['--dry-run']) == 0
    lines = capsys.readouterr().out.splitlines()
    order = [line.split('--out maskedlab/weights/')[1] for line in lines]
    assert sorted(order) == sorted(p.name for p in [*FOLDERS, *STAGES])
    below = {name: tool['stands_on'](name) for name in order}
    assert below['beit-micro'] == {'image_dvae-micro'} and not below['mae-micro']
    assert all(order.index(b) < order.index(name) for name in order for b in below[name])
    with pytest.raises(SystemExit):
        tool['main'](['no-such', '--dry-run'])


def test_what_is_trained_anew_keeps_its_key_and_its_place_and_is_judged_anew(tmp_path, monkeypatch):
    import runpy
    tool = runpy.run_path(str(ROOT / 'tools' / 'make_weights.py'))
    run, shelf = tool['run'].__globals__, tmp_path / 'weights'
    shutil.copytree(SHIPPED / 'mae-micro', shelf / 'mae-micro')

    def train(words, **_):
        "In place of hours."
        folder, told = Path(words[words.index('--out') + 1]), provenance(SHIPPED / 'mae-micro')
        shutil.copytree(SHIPPED / 'mae-micro', folder)
        told = {k: v for k, v in told.items() if k not in ('key', 'standing')}
        told['command'] = 'maskedlab train'
        (folder / 'provenance.json').write_text(json.dumps(told))
        (folder / 'run.json').write_text('{}')
    monkeypatch.setitem(run, 'ROOT', tmp_path)
    monkeypatch.setitem(run, 'WEIGHTS', shelf)
    monkeypatch.setitem(run, 'stand', lambda folder: {'anew': folder.name})
    monkeypatch.setattr(run['subprocess'], 'run', train)
    tool['run']('mae-micro')
    told = provenance(shelf / 'mae-micro')
    assert told['key'] == 'mae/micro/image/0' and told['standing'] == {'anew': 'mae-micro'}
    assert '--out maskedlab/weights/mae-micro' in told['command'] and '--resume' not in told['command']
    assert not (shelf / 'mae-micro' / 'run.json').exists()


OF_DIGITS = [n for n in ml.list_recipes() if 'digits' in recipe_class(n).sizes]


@pytest.mark.parametrize('name', OF_DIGITS)
def test_what_a_training_reports_is_measured_on_data_that_fit(name):
    r = ml.create_recipe(name, size='digits')
    found = held_out(r, n=2)
    assert set(found['loss']) == {'network', 'untrained'}
    standing(r, n=3, slow=False)
