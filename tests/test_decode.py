"""Filling in rounds: the rules of MaskGIT's decoding over every recipe that says ids, and what is refused."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from given import g, plain, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.create import recipe_class
from maskedlab.contract.recipe import Out, Recipe, child, draw
from maskedlab.contract.units import Units, mean, place, rows, spread
from maskedlab.masks.strategies import Random
from maskedlab.uses.decode import FALLS, decode, drawn_from, left, shares_left

ABLE = [n for n in ml.list_recipes() if recipe_class(n).write_ids is not None]


@pytest.fixture(scope='module', params=ABLE)
def case(request):
    torch.manual_seed(0)
    r = stir(ml.create_recipe(request.param))
    return r, plain(r)


@pytest.fixture(scope='module')
def some(case):
    """A batch in which each sample has another number of holes, and what came of it."""
    r, b = case
    u = r.units(b)
    chance = torch.rand(u.valid.shape, generator=g(1)) < torch.tensor([0.2, 0.5, 0.8]).view(
        -1, *[1] * (u.valid.ndim - 1))
    known = u.valid & ~(u.free & chance)
    return known, u.free & chance, decode(r, b, known, steps=3, generator=g())


def test_six_recipes_can_be_decoded():
    assert {'beit', 'cae', 'seitpp', 'maskgit', 'bert_mlm', 'point_bert'} <= set(ABLE)


def test_every_round_gives_something_and_the_last_one_the_rest(case, some):
    known, holes, d = some
    assert torch.equal(d.revealed.sum(0), holes.long())  # all, and each once
    after = holes.flatten(1).sum(1) - d.revealed.flatten(2).sum(2).cumsum(0)
    assert torch.equal(after, left(holes.flatten(1).sum(1), 3))


def test_what_is_known_stays_to_the_last_bit(case, some):
    r, b = case
    known, holes, d = some
    u, made = r.units(b), r.units(d.batch)
    assert torch.equal(rows(made.x, known), rows(u.x, known))
    assert (d.ids.flatten(d.revealed.ndim)[:, known] == -1).all() if d.ids.ndim > d.revealed.ndim else (
        d.ids[:, known] == -1).all()
    assert {k: v.shape for k, v in b.items() if torch.is_tensor(v)}.items() <= {
        k: v.shape for k, v in d.batch.items() if torch.is_tensor(v)}.items()


def test_an_id_that_was_given_is_not_changed_again(some):
    _, holes, d = some
    for t in range(1, len(d.ids)):
        before = d.revealed[:t].any(0)
        assert torch.equal(rows(d.ids[t], before), rows(d.ids[t - 1], before))
        assert d.confidence[t][before].isnan().all()


def test_the_result_is_the_last_grid_before_hiding_again_and_holds_ids_alone(case, some):
    r, b = case
    _, holes, d = some
    last = r.write_ids(r.units(b), holes, rows(d.ids[-1], holes))
    made = last.put(b, last.x)
    assert all(torch.equal(d.batch[k], made[k]) for k in made if torch.is_tensor(made[k]))
    most = r(b, holes, generator=g()).pred.shape[-1]
    assert 0 <= rows(d.ids[-1], holes).min() and rows(d.ids[-1], holes).max() < most


def test_the_same_seed_gives_the_same_and_what_stood_in_the_holes_says_nothing(case, some):
    r, b = case
    known, holes, d = some
    assert torch.equal(decode(r, b, known, steps=3, generator=g()).ids, d.ids)
    assert not torch.equal(decode(r, b, known, steps=3, generator=g(1)).ids, d.ids)
    u = r.units(b)
    other = u.swap(holes)
    mine = type(r).units
    try:
        type(r).units = lambda self, batch: other
        assert torch.equal(decode(r, b, known, steps=3, generator=g()).ids, d.ids)
    finally:
        type(r).units = mine


def test_one_round_is_one_forward_and_independent_draws(case):
    r, b = case
    u, luck = r.units(b), child(g())
    d = decode(r, b, steps=1, generator=g())
    shares, r.shares = r.shares, (1., 0., 0.) if r.shares is not None else None
    with torch.no_grad():
        ids, log = drawn_from(r(b, u.free, units=u, generator=luck).pred, luck)
    r.shares = shares
    assert torch.equal(rows(d.ids[0], u.free), ids) and len(d.ids) == 1
    assert_close(rows(d.confidence[0], u.free), log.exp())


def test_it_leaves_the_recipe_as_it_was(case):
    r, b = case
    before, shares, state = {k: v.clone() for k, v in r.state_dict().items()}, r.shares, torch.get_rng_state()
    was = [m.training for m in r.train().modules()]
    decode(r, b, steps=2, generator=g())
    assert [m.training for m in r.modules()] == was and r.shares == shares
    r.eval()
    assert all(torch.equal(v, before[k]) for k, v in r.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------- the rules, on a network that says what it is told to say
class Told(Recipe):
    """Logits by place, whatever stands there; it keeps what it was asked."""

    strategy = Random(0.5)
    condition = ('label',)

    def __init__(self, n: int = 12, ids: int = 5):
        super().__init__()
        self.logits, self.asked = torch.randn(n, ids, generator=g(3)), []

    def units(self, batch):
        x = batch['ids']
        return Units('sequence', x.shape[1:], x=x, put=lambda b, x: {**b, 'ids': x})

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.0):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        self.asked.append((mask, u.x))
        pred = self.logits * (3.0 if 'label' in batch else 1.0)
        pred, target = rows(pred.expand(len(u), -1, -1), mask), rows(u.x, mask)
        e = F.cross_entropy(pred, target, reduction='none')
        return Out({'ids': mean(e)}, mask, pred, target, spread(e, mask), u)

    def write_ids(self, u, hidden, ids):
        return u.but(x=place(u.x, hidden, ids))


BATCH = dict(ids=torch.zeros(3, 12).long())


@pytest.mark.parametrize('schedule', ['cosine', 'uniform', lambda r: 1 - r**2, lambda r: 1 - r**0.5])
@pytest.mark.parametrize('steps', [1, 2, 5, 12])
def test_counts_are_those_of_the_released_code(schedule, steps):
    """`max(1, min(now - 1, floor(n * gamma)))` of the initial count, where each round gives something."""
    f = FALLS.get(schedule, schedule) if isinstance(schedule, str) else schedule
    for n in range(steps, 60):
        now, theirs = n, []
        for t in range(steps - 1):
            now = max(1, min(now - 1, math.floor(n * f((t + 1) / steps))))
            theirs.append(now)
        ours = left(torch.tensor([n]), steps, schedule)[:, 0].tolist()
        if all(a > b for a, b in zip([n, *theirs], theirs)) and all(
                k >= steps - 1 - t for t, k in enumerate(theirs)):
            assert ours == [*theirs, 0]
        assert all(a > b for a, b in zip([n, *ours], ours)) and ours[-1] == 0


@pytest.mark.parametrize('name', FALLS)
def test_schedules_fall_to_nothing(name):
    assert FALLS[name](0) == 1 and abs(FALLS[name](1)) < 1e-9
    found = shares_left(name, 100)
    assert found == sorted(found, reverse=True)


def test_without_noise_the_surest_draws_are_given_and_confidence_is_of_the_drawn():
    r = Told()
    d = decode(r, BATCH, steps=4, temperature=0.0, generator=g())
    p = r.logits.softmax(-1)
    hidden = torch.ones(3, 12).bool()
    for t in range(4):
        drawn = p.expand(3, -1, -1).gather(-1, d.ids[t][..., None])[..., 0]
        assert_close(d.confidence[t][hidden], drawn[hidden])
        for i in range(3):
            given, kept = d.revealed[t, i], hidden[i] & ~d.revealed[t, i]
            assert not kept.any() or drawn[i][given].min() >= drawn[i][kept].max()
        hidden = hidden & ~d.revealed[t]


def test_noise_falls_to_nothing():
    """In the last but one of many rounds the order is nearly that of confidence; in the first it is not."""
    r, n = Told(200, 5), 200
    d = decode(r, dict(ids=torch.zeros(16, n).long()), steps=20, schedule='uniform', temperature=20.0,
               generator=g())

    def agreement(t):
        held = []
        for i in range(16):
            c, asked = d.confidence[t, i], ~d.confidence[t, i].isnan()
            best = c.nan_to_num(-1).topk(int(d.revealed[t, i].sum())).indices
            held.append(d.revealed[t, i][best].float().mean() / (asked.sum() > 0))
        return float(torch.stack(held).mean())
    assert agreement(18) > agreement(0) + 0.3


def test_causal_goes_from_the_first_to_the_last_and_random_does_not():
    d = decode(Told(), BATCH, steps=12, order='causal', generator=g())
    assert d.revealed.float().argmax(0).tolist() == [list(range(12))] * 3
    e = decode(Told(), BATCH, steps=12, order='random', generator=g())
    assert e.revealed.float().argmax(0).tolist() != [list(range(12))] * 3


def test_the_network_is_asked_with_what_was_given_and_nothing_else_on_view():
    r = Told()
    d = decode(r, BATCH, steps=3, generator=g())
    for t, (mask, x) in enumerate(r.asked):
        assert torch.equal(mask, ~d.revealed[:t].any(0))
        assert t == 0 or torch.equal(x[~mask], d.ids[t - 1][~mask])


def test_guidance_goes_from_without_the_condition_through_it():
    r, b = Told(), {**BATCH, 'label': torch.zeros(3).long()}
    for w, scale in ((0.0, 1.0), (1.0, 3.0), (2.0, 5.0)):       # 1 + w (3 - 1)
        r.asked.clear()
        d = decode(r, b, steps=1, guidance=w, generator=g())
        p = (r.logits * scale).softmax(-1).expand(3, -1, -1)
        assert_close(d.confidence[0], p.gather(-1, d.ids[0][..., None])[..., 0])
        assert len(r.asked) == (1 if w == 1 else 2)


def test_bert_hides_all_that_is_to_be_filled(monkeypatch):
    r = ml.create_recipe('bert_mlm')
    b, outs, forward = plain(r), [], type(r).forward

    def listen(self, *a, **k):
        outs.append(forward(self, *a, **k))
        return outs[-1]
    monkeypatch.setattr(type(r), 'forward', listen)
    decode(r, b, steps=3, generator=g())
    for out in outs:
        assert not out.kept.any() and (out.seen['ids'][out.mask] == r.cut.mask_id).all()


def test_right_samples_of_a_language_are_more_with_more_rounds():
    """A network that knows all texts: rows of one colour. All at once, 2 ** -5 of them are right."""
    class Alike(Told):
        def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.0):
            u = self.units(batch) if units is None else units
            mask = draw(self.strategy, u, mask, generator)
            seen = ((u.x * 2 - 1) * ~mask).sum(1).sign()[:, None, None] * 20.0
            pred = rows((seen * torch.tensor([-1.0, 1.0])).expand(-1, u.shape[0], -1), mask)
            e = F.cross_entropy(pred, rows(u.x, mask), reduction='none')
            return Out({'ids': mean(e)}, mask, pred, rows(u.x, mask), spread(e, mask), u)
    batch = dict(ids=torch.zeros(4000, 6).long())
    right = {}
    for T in (1, 2, 6):
        share = decode(Alike(6, 2), batch, steps=T, generator=g()).batch['ids'].float().mean(1)
        right[T] = float((share % 1 == 0).float().mean())
    assert abs(right[1] - 2 / 64) < 0.01 and abs(right[2] - 0.5) < 0.03 and right[6] == 1


# ------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize('how, said', [
    (dict(known=torch.ones(3, 4).bool()), r'known must be bool \[3, 12\], True where .* \[3, 4\]'),
    (dict(known=torch.ones(3, 12)), r'known must be bool .*float32 \[3, 12\]'),
    (dict(known='left'), 'known must be bool .*got str'),
    (dict(known=torch.ones(3, 12).bool()), 'nothing to fill'),
    (dict(schedule=lambda r: r), 'grows from'),
    (dict(schedule=lambda r: 1.5 - r), r'a share of 1\.4'),
    (dict(schedule=lambda r: math.nan), 'a share of nan'),
    (dict(schedule='sine'), "'cosine' or 'uniform', or a function"),
    (dict(guidance=2.0), 'leans on label, which the batch does not have'),
    (dict(guidance=-1.0), 'guidance=-1.0'),
    (dict(temperature=-1.0), 'temperature=-1.0'),
    (dict(steps=0), 'steps=0'),
    (dict(order='first'), "order='first'.*'confidence', 'random', 'causal'")])
def test_bad_input_is_one_sentence(how, said):
    with pytest.raises((ValueError, TypeError), match=said) as e:
        decode(Told(), BATCH, **how)
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)


def test_a_recipe_without_ids_or_condition_is_named():
    with pytest.raises(ValueError, match='^MAE says no ids .*these can: .*bert_mlm') as e:
        decode(ml.create_recipe('mae'), ml.sample('image', n=1))
    assert len(str(e.value)) <= 200
    with pytest.raises(ValueError, match='^CAE says no ids'):
        decode(ml.create_recipe('cae', target='pixels'), ml.sample('image', n=1))
    with pytest.raises(ValueError, match='^BertMLM has no condition to lean on'):
        decode(ml.create_recipe('bert_mlm'), ml.sample('text', n=1), guidance=2.0)


def test_more_rounds_than_holes_are_said_and_not_run():
    r, known = Told(), torch.ones(3, 12).bool()
    known[0, :2] = known[1, :7] = False
    with pytest.warns(UserWarning, match='steps=9, and a sample has 2 holes: it is filled in 2 rounds'):
        d = decode(r, BATCH, known, steps=9, generator=g())
    assert d.revealed.flatten(2).sum(2).T.tolist() == [[1, 1, 0, 0, 0, 0, 0], [1] * 7, [0] * 7]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        decode(r, BATCH, steps=12, generator=g())
