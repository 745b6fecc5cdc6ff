"""Claims: nothing is opened where one is only imported, and every arm says what it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maskedlab
from maskedlab.contract.catalogue import RECIPES
from maskedlab.data.samples import list_samples
from maskedlab.instruments.claim import OF_DIGITS, Arms, feed, find_claim, ready
from maskedlab.train.feed import Source

PACKAGE = Path(maskedlab.__file__).parent
NAMES = sorted(p.stem for p in (PACKAGE / 'claims').glob('*/*.py') if p.stem != '__init__')
MODULES = sorted('.'.join(p.relative_to(PACKAGE.parent).with_suffix('').parts)
                 for p in (PACKAGE / 'claims').glob('*/*.py') if p.stem != '__init__')

# prints which data and weights were opened: by the imports, and then by hand (else the watch sees nothing)
WATCHED = '''
import importlib, json, sys
opened = []
KINDS = ('.npz', '.png', '.xz', '.safetensors', '.bin', '.pt', '.pth')
def hook(event, given):
    if event == 'open' and str(given[0]).endswith(KINDS):
        opened.append(str(given[0]))
sys.addaudithook(hook)
import safetensors, safetensors.torch, torch
def watch(module, name):
    real = getattr(module, name)
    setattr(module, name, lambda *a, **k: (opened.append(name), real(*a, **k))[1])
for module, name in ((safetensors, 'safe_open'), (safetensors.torch, 'load_file'), (torch, 'load')):
    watch(module, name)
import maskedlab.data.samples as samples
for name in ('sample', 'photographs'):
    watch(samples, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
imports = list(opened)
samples.sample('digits', n=1)
samples.photographs()
from maskedlab.contract.create import create_recipe
create_recipe('mae', size='micro', pretrained=True)
print(json.dumps([imports, sorted({o.rpartition('/')[2] for o in opened})]))
'''


def test_importing_a_claim_opens_no_data_and_no_weights():
    done = subprocess.run([sys.executable, '-c', WATCHED, *MODULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imports, later = json.loads(done.stdout)
    assert imports == []
    assert {'sample', 'photographs', 'digits.npz'} <= set(later)
    assert any(o.startswith('photo_') for o in later) and {'safe_open', 'load_file', 'load'} & set(later)


def test_no_claim_imports_another():
    for p in (PACKAGE / 'claims').glob('*/*.py'):
        assert 'claims' not in ''.join(x for x in p.read_text().splitlines() if 'import' in x), p.name


@pytest.mark.parametrize('name', NAMES)
def test_the_claim_of_a_recipe_is_found_and_whole(name):
    claim = find_claim(name)
    assert name in RECIPES and len(claim.arms) >= 2 and claim.effect > 0
    assert claim.pace.keys() <= claim.arms.keys() and claim.pace.get(next(iter(claim.arms)), 1) == 1
    assert claim.data in list_samples() or callable(claim.data)


@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name', NAMES)
def test_all_arms_of_a_claim_see_what_the_trainer_feeds(name):
    claim = find_claim(name)
    source = feed(claim.data, 3, **claim.options)
    assert isinstance(source, Source)
    same = feed(claim.data, 3, **claim.options)
    a, b = source.batch(range(5, 9)), same.batch(range(0, 9))
    for k, v in a.items():
        assert torch.equal(v, b[k][5:]), k                  # a position has one sample, whoever asks


@pytest.mark.parametrize('name', NAMES)
def test_the_two_arms_start_from_one_seed_and_give_a_loss(name):
    claim = find_claim(name)
    batch = feed(claim.data, 0, **claim.options).batch(range(4))
    for make in list(claim.arms.values())[:2]:
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            recipe = make().train()
            with torch.no_grad():
                found.append(float(recipe(batch, generator=torch.Generator().manual_seed(0)).loss))
        assert found[0] == found[1] and found[0] > 0


@pytest.mark.parametrize('name', NAMES)
def test_features_take_no_chance(name):
    claim = find_claim(name)
    recipe = next(iter(claim.arms.values()))().eval()
    batch = feed(claim.data, 0, **claim.options).batch(range(2))
    before = torch.get_rng_state()
    with torch.no_grad():
        recipe.features(batch)
    assert torch.equal(torch.get_rng_state(), before)      # else a fine-tuned head starts elsewhere


def test_arms_share_what_they_do_not_change_and_ask_for_their_stages(monkeypatch):
    asked = []
    monkeypatch.setattr('maskedlab.instruments.claim.ready', lambda key, steps: asked.append((key, steps)))
    arm = Arms(dict(width=3, tokenizer='image_dvae/digits/digits/0'), {'mae/digits/digits/0': 7})
    made = arm(dict, width=4, teacher='mae/digits/digits/0', path='a/b/c/d')
    assert asked == []                                      # an arm costs nothing until it is made
    assert made() == dict(width=4, tokenizer='image_dvae/digits/digits/0', teacher='mae/digits/digits/0',
                          path='a/b/c/d')
    assert asked == [('image_dvae/digits/digits/0', 600), ('mae/digits/digits/0', 7)]
    assert arm(dict)()['width'] == 3 and OF_DIGITS['image'] == 28


def test_a_stage_that_is_there_takes_no_chance_from_the_arm():
    before = torch.get_rng_state()
    assert ready('image_dvae/digits/digits/0') == 'image_dvae/digits/digits/0'
    assert torch.equal(torch.get_rng_state(), before)
