"""One recipe with several strategies: `compare` with masks, its command line, and the sheet."""
import json

import pytest
import torch
from PIL import Image

from maskedlab.cli import main
from maskedlab.instruments import compare as module
from maskedlab.instruments.claim import find_claim
from maskedlab.instruments.compare import Budget, compare, entrants
from maskedlab.masks.strategies import Random
from maskedlab.show.where import where_sheet

HARD = "Guided('loss', .75, draws='hidden', lottery=False, share=.5)"
MASKS = ['Random(.75)', HARD]
QUICK = dict(steps=2, batch=8, labels=(), few=40, query=2)


@pytest.fixture(scope='module')
def state():
    every = module.labelled
    few = lambda *a: (every(*a)[0], {k: v[::20] for k, v in every(*a)[1].items()})
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, 'labelled', few)
        return compare(['hard_patches_mining'], 2, Budget(**QUICK), show=False, cost=False, masks=MASKS)


def test_strategies_are_entrants_with_seeds_and_a_command(state):
    assert state['names'] == [f'hard_patches_mining where {mask}' for mask in MASKS]
    assert all(len(state['runs'][name]) == 2 for name in ['raw input', 'untrained', *state['names']])
    told = state['command']
    assert told.count('hard_patches_mining') == 1 and told.count('--mask') == 2
    assert json.loads(json.dumps(state)) == state


def test_it_is_written_where_each_of_them_hides(state):
    random, hard = (state['runs'][name]['0']['where'] for name in state['names'])
    for one in (random, hard):
        masks, often = torch.tensor(one['masks']), torch.tensor(one['often'])
        assert masks.shape == (3, 7, 7) and (masks.flatten(1).sum(1) == 37).all()
        assert often.mean() == pytest.approx(37 / 49, abs=1e-3)
    spread = [torch.tensor(x['often']).std() for x in (random, hard)]
    assert spread[1] > 2 * spread[0]                # who follows a score has favourites


def test_the_sheet_has_a_row_for_each(state):
    one = where_sheet({**state, 'names': state['names'][:1]})
    assert where_sheet(state).height > 1.5 * one.height
    with pytest.raises(ValueError, match='--mask'):
        where_sheet({**state, 'names': ['mae']})


@pytest.mark.parametrize('mask, words', [
    (HARD, 'only a network knows'), ('Rondam(.5)', 'Rondam'), ('Random(1.5)', '1.5')])
def test_a_strategy_that_does_not_suit_is_told_before_the_first_step(mask, words, monkeypatch):
    monkeypatch.setattr(module, 'one', lambda *a: pytest.fail('it began'))
    with pytest.raises(ValueError, match=words) as told:
        compare(['mae'], 2, Budget(**QUICK), show=False, cost=False, masks=['Random(.5)', mask])
    assert len(str(told.value)) <= 200


def test_every_recipe_has_every_strategy():
    assert find_claim('hpm') is find_claim('hard_patches_mining')
    found = entrants(['mae', 'simmim'], ['Random(.5)', 'Grid()'])
    assert found == [f'{r} where {m}' for r in ('mae', 'simmim') for m in ('Random(.5)', 'Grid()')]
    assert module.entrant('simmim where Random(.5)').strategy == Random(.5)
    assert entrants(['mae'], []) == ['mae']


def test_the_command_line(state, monkeypatch, tmp_path, capsys):
    asked = {}
    monkeypatch.setattr(module, 'compare', lambda names, *a, **k: (asked.update(k, names=names), state)[1])
    out = tmp_path / 'where.png'
    words = ['compare', 'hpm', '--mask', MASKS[0], '--mask', HARD, '--no-cost', '--picture', str(out)]
    assert main(words) == 0 and asked['masks'] == MASKS and asked['names'] == ['hpm']
    assert Image.open(out).width > 300 and 'where Random(.75)' in capsys.readouterr().out
    assert main(['compare', 'mae', '--picture', str(out)]) == 2
    assert '--mask' in capsys.readouterr().err
