"""What every recipe keeps to, whatever its field: tests over `list_recipes()`, and recipes from outside."""
import inspect

import pytest
import torch
from given import all_of, g, plain, ragged, same, stir

import maskedlab as ml
from maskedlab.contract.plan import Plan
from maskedlab.contract.recipe import Card, Out, Recipe, draw
from maskedlab.contract.units import Units, free_for, mean, place, rows, spread
from maskedlab.contract.wrapped import Wrapped
from maskedlab.masks.strategies import Random
from maskedlab.train.trainer import fit

NAMES = ml.list_recipes()
pytestmark = pytest.mark.usefixtures('samples')


def back_again(u, a, b):
    "Equal, or to rounding where a Fourier transform lies between units and data."
    a, b = all_of(a), all_of(b)
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5) if u.kind == 'spectrum' else torch.equal(a, b)


def units_at(u, x, which):
    "The content of some units, of each stream by itself where there are several."
    return rows(x, which) if u.streams is None else {k: rows(x[k], m) for k, m in u.split(which).items()}


@pytest.fixture(scope='module')          # of each recipe, or of those that `--recipe` names: see conftest.py
def case(request):
    torch.manual_seed(0)
    r = stir(ml.create_recipe(request.param))
    return r, plain(r)


@pytest.mark.quick
def test_signature(case):
    r, _ = case
    doors = lambda c: [(p.name, p.kind, p.default) for p in inspect.signature(c.forward).parameters.values()]
    assert doors(type(r)) == doors(Recipe)
    assert isinstance(r, Recipe) and type(r).__mro__[1] in (Recipe, Wrapped), 'recipes inherit from no recipe'


@pytest.mark.quick
def test_card_and_sizes(case):
    r, _ = case
    assert all(str(v).strip() for k, v in vars(r.card).items() if k != 'reading')
    assert r.card.link.startswith('https://')
    if type(r).__module__.startswith('maskedlab.'):
        assert {'micro', 'tiny', 'small', 'base'} <= set(r.sizes) and isinstance(r.plan, Plan)


@pytest.mark.quick
def test_out_speaks_in_rows(case):
    r, b = case
    out = r(b, generator=g())
    u = out.units
    assert out.mask.dtype == torch.bool and out.mask.shape[-len(u.shape):] == u.shape
    assert not (out.mask & ~free_for(out.mask, u)).any()
    assert out.error.shape in (u.valid.shape, out.mask.shape) and not out.error.requires_grad
    count = lambda x: sum(map(len, x.values())) if isinstance(x, dict) else len(x)
    assert count(out.pred) == count(out.target) == int(out.scored.sum())
    assert torch.allclose(sum(out.terms.values()), out.loss)
    assert out.loss.isfinite() and out.loss.requires_grad


def test_forward_is_pure_and_repeats(case):
    r, b = case
    before = {k: v.clone() for k, v in r.state_dict().items()}
    copy = {k: v.clone() for k, v in b.items() if torch.is_tensor(v)}
    state = torch.get_rng_state()
    first, again = r(b, generator=g()), r(b, generator=g())
    # a coin may fall alike a few times
    other = any(not torch.equal(first.mask, r(b, generator=g(i)).mask) for i in range(1, 9))
    assert torch.equal(torch.get_rng_state(), state), 'the global generator was used'
    assert torch.equal(all_of(first.pred), all_of(again.pred)) and same(first.error, again.error)
    assert other or not first.secret.any(), 'only the choice of what was seen may be the same each time'
    assert all(torch.equal(v, before[k]) for k, v in r.state_dict().items())
    assert all(torch.equal(b[k], v) for k, v in copy.items())


def test_replay_and_units_given_back(case):
    r, b = case
    out = r(b, generator=g())
    a, c = g(), g()
    replay = r(b, mask=out.mask, generator=a)
    assert torch.equal(all_of(replay.pred), all_of(out.pred))
    r(b, generator=c)
    assert torch.equal(a.get_state(), c.get_state()), 'a given mask must take as many numbers as a drawn one'
    assert torch.equal(all_of(r(b, units=r.units(b), generator=g()).pred), all_of(out.pred))


def test_mask_may_be_a_tensor_a_strategy_or_a_function(case):
    r, b = case
    u = r.units(b)
    functions = lambda u: u.free.clone(), lambda u, generator: Random(.3)(u, generator)
    for mask in (Random(.5), *functions, u.none(), u.all()):
        assert r(b, mask=mask, generator=g()).loss.isfinite()
    nothing = r(b, mask=u.none())
    assert nothing.loss.item() == 0 or nothing.scored.any()


def test_units_are_pure_and_put_inverts_x(case):
    r, b = case
    u = r.units(b)
    assert len(u) == 3 and torch.equal(all_of(r.units(b).x), all_of(u.x))
    if u.put is None: return
    back = u.put(b, u.x)
    assert all(back_again(u, back[k], v) for k, v in b.items() if torch.is_tensor(v))
    assert back_again(u, r.units(back).x, u.x)


def test_fill_leaves_the_visible_untouched(case):
    r, b = case
    if r.fill is None: return
    out = r(b, generator=g())
    filled = r.fill(b, out)
    assert filled.keys() >= b.keys()    # it may say more: which units these are, where content decides that
    x, y = out.units.x, r.units(filled).x
    stays = lambda which: back_again(out.units, *(units_at(out.units, v, which) for v in (x, y)))
    assert stays(~out.mask) and not stays(out.mask)
    for k, v in filled.items():
        if torch.is_tensor(v) and v.is_floating_point():
            assert not v.requires_grad and v.isfinite().all() and v.shape == b.get(k, v).shape


def test_attention_names_units(case):
    r, b = case
    if r.attention is None: return
    out = r(b, generator=g())
    w, q, k = r.attention(b, out.mask)
    assert w.ndim == 5 and w.shape[1] == 3 and w.shape[3:] == (q.shape[1], k.shape[1])
    assert torch.allclose(w.sum(-1), torch.ones(()), atol=1e-4)
    assert int(q.max()) < out.units.count and int(q.min()) >= -1


def test_features_hide_nothing(case):
    r, b = case
    if r.features is None: return
    pooled, dense = r.features(b), r.features(b, pool=False)
    assert pooled.ndim == 2 and dense.ndim == 3 and len(pooled) == len(dense) == 3
    assert pooled.shape[1] % dense.shape[-1] == 0
    assert torch.equal(r.features(b), pooled), 'features depend on chance'
    one = {k: v[1:2] for k, v in b.items() if torch.is_tensor(v)}
    alone = r.features(one)[0]
    assert torch.allclose(alone, pooled[1], atol=1e-5), 'features of a sample depend on its batch'


def test_every_parameter_learns(case):
    r, b = case
    r.train()
    r(b, generator=g()).loss.backward()
    dead = [n for n, p in r.named_parameters() if p.requires_grad and p.grad is None]
    r.zero_grad(set_to_none=True)
    r.eval()
    assert not dead, dead


@pytest.mark.quick
def test_no_hidden_content_reaches_a_prediction(case):
    r, b = case
    before, state = {k: v.clone() for k, v in r.state_dict().items()}, torch.get_rng_state()
    report = ml.leak_check(r.train(), b)
    trained = r.training
    r.eval()
    assert report.ok, report
    assert trained and all(torch.equal(v, before[k]) for k, v in r.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    if any('nothing is secret' in n for n in report.notes):
        return      # it takes away what it has seen, by its own choice
    assert report.changes['units'] == 0 and report.changes.get('gradient', 0.) == 0
    assert report.control > 1e-3
    assert report.where is not None
    assert report.where.nan_to_num().max() <= (1e-5 if report.rounding else 0)


def test_no_hidden_content_reaches_a_prediction_under_a_painted_mask(case):
    r, b = case
    two = {k: v[:2] for k, v in b.items() if torch.is_tensor(v)}
    assert ml.leak_check(r, two, mask=ragged(r.units(two)), rounds=2).ok


def test_a_sample_does_not_depend_on_its_neighbours(case):
    """The others of its batch, and their masks, change places; what is said of the first one stays."""
    r, b = case
    turn = lambda x: x[[0, 2, 1]]
    mask = ragged(r.units(b))
    a = r(b, mask=mask, generator=g())
    c = r({k: turn(v) if torch.is_tensor(v) else v for k, v in b.items()}, mask=turn(mask), generator=g())
    assert torch.allclose(a.error[0].nan_to_num(-1), c.error[0].nan_to_num(-1), rtol=1e-3, atol=1e-4)


def test_padding_is_never_hidden_and_says_nothing(case):
    r, b = case
    u = r.units(b)
    if u.valid.all(): return
    out = r(b, units=u, generator=g())
    assert not (out.mask & ~u.valid).any() and not (out.scored & ~u.valid).any()
    other = u.x.flip(0).roll(1, 1)      # what stands beyond the end
    away = u.but(x=torch.where(u.valid.view(*u.valid.shape, *[1] * (u.x.ndim - u.valid.ndim)), u.x, other))
    assert not torch.equal(away.x, u.x)
    assert torch.allclose(r(b, units=away, generator=g()).pred, out.pred, atol=1e-5)


@pytest.mark.parametrize('which', ['ragged', 'none', 'all'])
def test_gradients_without_nan(case, which):
    r, b = case
    u = r.units(b)
    mask = {'ragged': ragged(u), 'none': u.none(), 'all': u.all()}[which]
    loss = r(b, mask=mask, generator=g()).loss
    if loss.requires_grad:
        loss.backward()
    broken = [n for n, p in r.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    r.zero_grad(set_to_none=True)
    assert loss.isfinite() and not broken, broken


def test_saved_and_loaded_it_is_the_same(case, tmp_path):
    r, b = case
    ours = type(r).__module__.startswith('maskedlab.')          # code of a file is run only where it is named
    back = ml.load_pretrained(r.save_pretrained(tmp_path / 'saved'), None if ours else type(r)).eval()
    assert type(back) is type(r)
    with torch.no_grad():
        assert torch.equal(all_of(back(b, generator=g()).pred), all_of(r(b, generator=g()).pred))


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
            self.outcomes[report.nodeid.split('::')[1]] = report.outcome


@pytest.mark.parametrize('named, more', [
    ('simmim', {}),
    ('{here}/mine.py:Mine', {'test_signature': 'failed'}),      # it inherits from another recipe
])
def test_one_recipe_alone_is_held_to_the_contract(named, more, tmp_path, capsys):
    code = 'from maskedlab.recipes.image.mae import MAE\n\n\nclass Mine(MAE): pass\n'
    (tmp_path / 'mine.py').write_text(code)
    named, said = named.format(here=tmp_path), Said()
    pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:cov', __file__, '--recipe', named,
                 '-k', 'rows or sizes or signature or names or saved'], plugins=[said])
    told = {name.split('[')[0]: outcome for name, outcome in said.outcomes.items()}
    assert all(name.endswith(f'[{named.rpartition("/")[2]}]') or named in name for name in said.outcomes)
    assert told == {'test_signature': 'passed', 'test_card_and_sizes': 'passed',
                    'test_out_speaks_in_rows': 'passed', 'test_attention_names_units': 'passed',
                    'test_saved_and_loaded_it_is_the_same': 'passed', **more}
