"""What every recipe keeps to, whatever its field: tests over `list_recipes()`, and recipes from outside."""
import pytest
import torch
from given import g, plain, stir

import maskedlab as ml
from maskedlab.contract.plan import Plan
from maskedlab.contract.recipe import Card, Out, Recipe, draw
from maskedlab.contract.units import Units, mean, place, rows, spread
from maskedlab.contract.wrapped import Wrapped
from maskedlab.instruments import keeps
from maskedlab.masks.strategies import Random
from maskedlab.train.trainer import fit

NAMES = ml.list_recipes()
pytestmark = pytest.mark.usefixtures('samples')


@pytest.fixture(scope='module')          # of each recipe, or of those that `--recipe` names: see conftest.py
def case(request):
    torch.manual_seed(0)
    r = stir(ml.create_recipe(request.param))
    return r, plain(r)


QUICK = keeps.signature, keeps.card_of, keeps.in_rows, keeps.tight
EACH = [pytest.param(f, id=f.__name__, marks=[pytest.mark.quick] * (f in QUICK)) for f in keeps.CHECKS]


@pytest.mark.parametrize('check', EACH)
def test_keeps(case, check):
    check(*case)


@pytest.mark.quick
def test_a_recipe_of_the_kit_has_sizes_a_plan_and_no_parent(case):
    r, _ = case
    if not type(r).__module__.startswith('maskedlab.'): return
    assert {'micro', 'tiny', 'small', 'base'} <= set(r.sizes) and isinstance(r.plan, Plan)
    assert type(r).__mro__[1] in (Recipe, Wrapped), 'recipes inherit from no recipe'


def test_base_is_the_papers_size_and_runs_on_the_plain_sample(case, quick_start):
    r, b = case
    if 'base' not in r.sizes: return
    big = ml.create_recipe(type(r), size='base').eval()
    with torch.no_grad():
        out = big(plain(big, n=1), generator=g())
    assert out.loss.isfinite() and sum(p.numel() for p in big.parameters()) > 20e6


def test_names():
    assert ml.list_recipes('*mim*') == ['simmim'] and ml.list_recipes(modality='nothing') == []
    assert type(ml.create_recipe('mae')) is type(ml.create_recipe(ml.create_recipe('mae')))
    assert ml.card('mae').modality == 'image'
    assert set(ml.list_recipes(modality='image')) >= {'mae', 'simmim'}


# ------------------------------------ from outside the package, in a modality that it has never heard of
class Scent(Recipe):
    "Predict hidden molecules of a smell by the mean of the visible ones, times a learned number."
    card = Card('Scent', 2026, 'scent', 'random', 'NaN', 'concentration', 'none', 'none',
                'https://example.org')
    strategy = Random(.5)

    def __init__(self, start: float = .5):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(start))

    def units(self, batch):
        return Units('set', batch['scent'].shape[1:], x=batch['scent'], put=lambda b, x: {**b, 'scent': x})

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator, progress=progress)
        y = u.x.masked_fill(mask, torch.nan).nanmean(1, keepdim=True).nan_to_num().expand_as(u.x) * self.scale
        pred, target = rows(y, mask), rows(u.x, mask)
        e = (pred - target).pow(2)
        return Out({'square': mean(e)}, mask, pred, target, spread(e, mask), u)

    def fill(self, batch, out):
        return out.units.put(batch, place(out.units.x, out.mask, out.pred.detach()))


def smell(n=8, generator=None, split='train'):
    return dict(scent=torch.rand(n, 12, generator=generator))


def test_a_made_up_modality_needs_no_edit(monkeypatch):
    from maskedlab.data import samples
    monkeypatch.setitem(samples.SAMPLES, 'scent', smell)
    b = ml.sample('scent', n=4)
    assert ml.leak_check(Scent, b).ok
    r = Scent()
    batches = (ml.sample('scent', n=16, generator=g(i)) for i in range(60))
    history = fit(r, batches, 60, lr=.05, weight_decay=0.)
    assert history[-1]['loss'] < history[0]['loss'] and abs(float(r.scale.detach()) - 1) < .2


def test_a_recipe_from_a_file(tmp_path):
    code = 'from maskedlab.recipes.image.mae import MAE\n'
    code += 'class Mine(MAE): sizes = {"micro": dict(MAE.sizes["micro"], depth=1)}\n'
    (tmp_path / 'json.py').write_text(code)
    r = ml.create_recipe(f'{tmp_path}/json.py:Mine')
    assert len(r.encoder.blocks) == 1
    import json
    assert hasattr(json, 'loads')
    with pytest.raises(FileNotFoundError, match='my_file.py:Mine'):
        ml.create_recipe(f'{tmp_path}/nothing.py:Mine')
    with pytest.raises(ValueError, match="no class 'Other'; it holds Mine"):
        ml.create_recipe(f'{tmp_path}/json.py:Other')
    with pytest.raises(ValueError, match='name the class in it too'):
        ml.create_recipe(f'{tmp_path}/json.py')


@pytest.mark.parametrize('terms', [torch.tensor(1.), None])
def test_terms_are_a_dict(terms):
    with pytest.raises(TypeError, match="a dict, such as {'pixels': loss}"):
        Out(terms)


def test_without_terms_there_is_no_loss():
    with pytest.raises(ValueError, match='no terms, no loss'):
        print(Out({}).loss)


def test_an_attention_without_units_is_told():
    from maskedlab.show.scenes import attention_of

    class Bare(type(ml.create_recipe('mae'))):
        def attention(self, batch, mask=None):
            return torch.zeros(1)
    with pytest.raises(TypeError, match='Bare.attention returns Tensor; make it weights'):
        attention_of(Bare(**Bare.sizes['micro']), ml.sample('image', n=1), None)


class Said:
    """Outcomes of tests, by name."""

    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.when == 'call':
            self.outcomes[report.nodeid.split('::', 1)[1]] = report.outcome


@pytest.mark.parametrize('named', ['simmim', '{here}/mine.py:Mine'])
def test_one_recipe_alone_is_held_to_the_contract(named, tmp_path, capsys):
    code = 'from maskedlab.recipes.image.mae import MAE\n\n\nclass Mine(MAE): pass\n'      # it has a parent
    (tmp_path / 'mine.py').write_text(code)
    named, said = named.format(here=tmp_path), Said()
    pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:cov', __file__, '--recipe', named,
                 '-k', 'in_rows or sizes or signature or watched or saved'], plugins=[said])
    assert said.outcomes and all(named in name for name in said.outcomes)
    told = {name.replace(f'{named}-', '').replace(f'[{named}]', ''): x for name, x in said.outcomes.items()}
    assert told == {'test_keeps[signature]': 'passed', 'test_keeps[in_rows]': 'passed',
                    'test_keeps[watched_units]': 'passed', 'test_keeps[saved_alike]': 'passed',
                    'test_a_recipe_of_the_kit_has_sizes_a_plan_and_no_parent': 'passed'}


def test_a_made_up_modality_is_checked_on_a_batch_of_its_own():
    kept = ml.check_recipe(Scent, smell(4, g()))
    assert kept.ok, kept


def spoilt(change):
    """MAE whose `Out` has something else."""
    mae = type(ml.create_recipe('mae'))

    class Spoilt(mae):
        def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
            out = super().forward(batch, mask, units=units, generator=generator, progress=progress)
            parts = dict(terms=out.terms, mask=out.mask, pred=out.pred, target=out.target, error=out.error)
            return Out(**{**parts, **change(out)}, units=out.units)
    return Spoilt(**mae.sizes['micro'])


@pytest.mark.parametrize('change, said', [
    (lambda out: dict(pred=out.pred[:-1]), 'pred, [95, 192], has 95 rows, and the loss looks at 96 units'),
    (lambda out: dict(pred=out.pred.view(2, 48, -1)), 'pred, [2, 48, 192], has 2 rows'),
    (lambda out: dict(target=out.target[None]), 'target, [1, 96, 192], has 1 rows'),
    (lambda out: dict(error=spread(out.pred - out.target, out.mask)), 'spread takes one number for each')])
def test_a_wrong_shape_is_said_where_it_arises(change, said):
    with pytest.raises(ValueError) as told:
        spoilt(change)(ml.sample('image', n=2), generator=g())
    assert said in str(told.value) and len(str(told.value)) <= 200
