"The masks room: laws, determinism, shapes and bad input, for every strategy that the room holds."
from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from maskedlab.masks.block import Block
from maskedlab.masks.patterns import Checkerboard, Grid, Painted, Tube
from maskedlab.masks.schedules import Coin, Cosine, HalfCosine, Linear, Normal, Stepwise, Uniform
from maskedlab.masks.span import Span, distinct
from maskedlab.contract.strategy import Inverse, Strategy, Union, check_mask, controls, hide
from maskedlab.masks.strategies import (
    Random, count, create_strategy, first_k, list_strategies, rand, rates, sketch,
)
from maskedlab.contract.units import free_for, layout

ROOM = list_strategies()                    # a new strategy of the room is tested by being there
DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow],
                 derandomize=True)
each = pytest.mark.parametrize('name', ROOM)


def seeded(seed=0, device='cpu'):
    return torch.Generator(device=device).manual_seed(seed)


def shape_for(cls, shapes=((14, 14), (8, 6, 5), (60,), (64, 64))):
    "The first of these layouts that a strategy accepts."
    for shape in shapes:
        try:
            cls()(layout(shape), generator=seeded())
        except ValueError as e:
            assert str(shape) in str(e) and len(str(e)) <= 200
        else:
            return shape
    raise AssertionError(f'{cls.__name__} takes none of {shapes}')


@st.composite
def made(draw, cls):
    "A strategy of this class, its fields drawn from their ranges."
    fields = {}
    for c in controls(cls):
        if c['kind'] == 'choice':
            fields[c['name']] = draw(st.sampled_from(c['choices']))
        elif c['kind'] == 'bool':
            fields[c['name']] = draw(st.booleans())
        elif c['kind'] == 'int':
            fields[c['name']] = draw(st.integers(int(c['low']), min(int(c['high']), int(c['low']) + 12)))
        else:
            fields[c['name']] = draw(st.sampled_from([c['low'], c['high']]) | st.floats(c['low'], c['high']))
    try:
        return cls(**fields)
    except ValueError as e:             # fields that do not go together
        assert len(str(e)) <= 200 and cls.__name__ in str(e)
        reject()


def views_of(mask, u):
    "The mask of each view."
    return [mask] if mask.ndim == u.free.ndim else mask.unbind(1)


@st.composite
def units(draw):
    "A layout of one to three axes, with padding, special units or neither."
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    if len(shape) == 1:
        shape = (shape[0] * draw(st.integers(1, 8)),)
    B, g = draw(st.integers(1, 4)), seeded(draw(st.integers(0, 99)))
    some = lambda p: torch.rand(B, *shape, generator=g) < p
    valid = draw(st.sampled_from([None, some(.7), torch.zeros(B, *shape).bool()]))
    return layout(shape, batch=B, valid=valid, free=draw(st.sampled_from([None, some(.8)])))


@each
@quick
@given(data=st.data(), u=units(), seed=st.integers(0, 2 ** 31))
def test_any_fields_on_any_layout(name, data, u, seed):
    "Never hides what is not free, keeps its counts, repeats itself, or says in one sentence why not."
    s = data.draw(made(ROOM[name]))
    try:
        mask = s(u, generator=seeded(seed))
    except ValueError as e:
        assert len(str(e)) <= 200 and (str(u.shape) in str(e))
        return
    assert torch.equal(mask, s(u, generator=seeded(seed)))
    assert torch.equal((~s)(u, generator=seeded(seed)), free_for(mask, u) & ~mask)
    assert len(views_of(mask, u)) == s.views
    for m in views_of(mask, u):
        as_promised(s, m, u)


def as_promised(s, mask, u):
    "One view of a strategy hides what is free, in the counts and at the chances that it promises."
    assert mask.shape == u.free.shape and mask.dtype == torch.bool
    assert not (mask & ~u.free).any()
    low, high = s.counts(u)
    k = mask.flatten(1).sum(1)
    assert (low <= k).all() and (k <= high).all() and (high <= u.free.flatten(1).sum(1)).all()
    p = s.chance(u)
    if p is not None:
        assert p.shape == mask.shape and p.dtype == torch.float64 and not p[~u.free].any()
        assert not (mask & (p < 1e-9)).any() and not (u.free & ~mask & (p > 1 - 1e-9)).any()
        mean = p.flatten(1).sum(1)
        assert (mean > low.double() - 1e-6).all() and (mean < high.double() + 1e-6).all()


@each
@quick
@given(data=st.data())
def test_repr_recreates_it(name, data):
    s = data.draw(made(ROOM[name]))
    names = ROOM | {c.__name__: c for c in ROOM.values()}
    for t in (s, ~s, s | Random(.5), ~(s | s)):
        assert eval(repr(t), dict(names)) == t
    assert type(create_strategy(name)) is ROOM[name]


@each
def test_generator(name):
    "All randomness comes from the generator: other seed, other mask; the global one is not touched."
    s, u = ROOM[name](), layout(shape_for(ROOM[name]), batch=64)
    before = torch.get_rng_state()
    a, b, c = (s(u, generator=seeded(i)) for i in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, b)
    p = s.chance(u)
    constant = p is not None and ((p == 0) | (p == 1)).all()
    assert torch.equal(a, c) == constant
    g = seeded(1)
    assert constant or not torch.equal(s(u, generator=g), s(u, generator=g))
    rows = a.flatten(1)
    assert constant or len(rows.unique(dim=0)) > 1          # each sample has its own


@each
@pytest.mark.parametrize('device', DEVICES)
def test_devices(name, device):
    "The mask lies where the units are, and a generator on the CPU hides the same everywhere."
    s, shape = ROOM[name](), shape_for(ROOM[name])
    u = layout(shape, batch=5, device=device)
    mask = s(u, generator=seeded())
    assert mask.device.type == device
    assert torch.equal(mask.cpu(), s(layout(shape, batch=5), generator=seeded()))
    assert s(u, generator=seeded(device=device)).device.type == device


@each
def test_controls_are_enforced(name):
    for c in controls(ROOM[name]):
        if c['kind'] in ('int', 'float'):
            wrong = [c['low'] - 1, c['high'] + 1, math.nan, True, '0.5',
                     None] + [c['low'] + .5] * (c['kind'] == 'int')
            if c['open']:
                wrong[wrong.index(c['high'] + 1)] = math.inf      # only its slider ends there
        else:
            wrong = ['no such thing', None, 3]
        for value in wrong:
            with pytest.raises((ValueError, TypeError)) as e:
                ROOM[name](**{c['name']: value})
            assert len(str(e.value)) <= 200 and f"{ROOM[name].__name__}({c['name']}=" in str(e.value)
        assert getattr(ROOM[name](), c['name']) == c['value']


@each
def test_exact_where_it_says_so(name):
    s, u = ROOM[name](), layout(shape_for(ROOM[name]), batch=200)
    low, high = s.counts(u)
    for mask in views_of(s(u, generator=seeded()), u):
        k = mask.flatten(1).sum(1)
        if s.exact:
            assert len(k.unique()) == 1 and torch.equal(low, high)
        assert (low <= k).all() and (k <= high).all()


@each
def test_ratio_none_and_all(name):
    if 'ratio' not in [c['name'] for c in controls(ROOM[name])]:
        pytest.skip('has no ratio')
    u = layout(shape_for(ROOM[name]), batch=3)
    assert not ROOM[name](ratio=0.)(u).any() and ROOM[name](ratio=1.)(u).all() and ROOM[name](ratio=1)(
        u).all()


@each
def test_formula_of_the_chance(name):
    "What `chance` says is what happens, padding included."
    shape = shape_for(ROOM[name])
    free = torch.rand(3, *shape, generator=seeded(5)) < .8
    u = layout(shape, batch=1500, valid=free.repeat(500, *[1] * len(shape)))
    p = ROOM[name]().chance(u)
    if p is None:
        pytest.skip('has no formula')
    p = p.view(500, 3, -1)[0]
    for mask in views_of(ROOM[name]()(u, generator=seeded()), u):
        m = mask.reshape(500, 3, -1).double()
        assert ((m.mean(0) - p).abs() <= 6 * (p * (1 - p) / 500).sqrt() + 1e-9).all()
        assert abs(m.mean() - p.mean()) < .01


def test_a_thousand_awkward_layouts():
    shapes = [(1,), (2,), (3,), (11,), (1, 1), (1, 9), (9, 1), (2, 2), (3, 40), (1, 1, 1), (2, 3, 1)]
    for i in range(1000):
        cls = list(ROOM.values())[i % len(ROOM)]
        shape = shapes[(i // len(ROOM)) % len(shapes)]
        free = torch.rand(3, *shape, generator=seeded(i)) < (i % 4) / 3
        u = layout(shape, valid=free)
        try:
            mask = cls()(u, generator=seeded(i))
        except ValueError as e:
            assert str(shape) in str(e)
        else:
            assert not (mask & ~free_for(mask, u)).any()


# ------------------------------------------------------------------ laws of the count

@pytest.mark.parametrize('law,n,ratio,k', [
    ('floor kept', 49, .75, 37), ('floor kept', 196, .75, 147), ('floor kept', 100, .9, 91),
    ('floor hidden', 49, .75, 36),
    ('floor hidden', 196, .9, 176), ('ceil hidden', 36, .6, 22), ('ceil hidden', 49, .6, 30),
    ('ceil hidden', 100, .55, 56),
    ('round kept', 10, .75, 8), ('round hidden', 10, .25, 2), ('round hidden', 10, .35, 4)])
def test_count_laws_of_the_cards(law, n, ratio, k):
    assert count(law, torch.tensor([ratio], dtype=torch.float64), torch.tensor([n])).item() == k
    assert Random(ratio, law=law)(layout((n,), batch=4)).sum(1).tolist() == [k] * 4


@quick
@given(n=st.integers(1, 300), b=st.integers(1, 5), levels=st.integers(1, 4), seed=st.integers(0, 999))
def test_ties_do_not_change_the_count(n, b, levels, seed):
    noise = torch.randint(0, levels, (b, n), generator=seeded(seed)).float()
    some = torch.randint(0, n + 1, (b,), generator=seeded(seed))
    free = torch.rand(b, n, generator=seeded(seed)) < .8
    for k in (some, some[:1].expand(b)):
        m = first_k(noise, k, free)
        assert torch.equal(m.sum(1), torch.minimum(k, free.sum(1))) and not (m & ~free).any()
        # of equal numbers the first ones, whatever the type
        rank = noise.masked_fill(~free, torch.inf).argsort(dim=1, stable=True).argsort(1)
        assert torch.equal(m, rank < torch.minimum(k, free.sum(1))[:, None])
        assert all(torch.equal(m, first_k(noise.to(t), k, free)) for t in (torch.bfloat16, torch.float64))


def test_random_is_uniform_over_sets():
    m = Random(.5, law='floor hidden')(layout((4,), batch=30000), generator=seeded())
    sets = (m.long() << torch.arange(4)).sum(1).bincount()
    assert sets.count_nonzero() == 6 and ((sets[sets > 0] - 5000).abs() < 6 * 65).all()


def test_mae_by_hand():
    "The k smallest numbers are hidden, whichever way they are found; ragged rows agree with rows one by one."
    u = layout((7, 7), batch=3)
    noise = rand((3, 49), seeded(3))
    assert torch.equal(Random(.75)(u, generator=seeded(3)).flatten(1), noise.argsort(1).argsort(1) < 37)


# ------------------------------------------------------------------ blocks beside a literal reading of the
# card

def reference_block(H, W, n, rng, exact=False, area=16, aspect=.3, attempts=10):
    "One image, one attempt after another (beit.md and cae.md)."
    hidden, total = [[False] * W for _ in range(H)], 0
    while total < n:
        room, added = min(n - total, n), 0
        for _ in range(attempts):
            size = rng.uniform(area, room)
            shape = math.exp(rng.uniform(math.log(aspect), math.log(1 / aspect)))
            h, w = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
            if not (h < H and w < W): continue
            top, left = rng.randint(0, H - h), rng.randint(0, W - w)
            new = [(i, j) for i in range(top, top + h) for j in range(left, left + w) if not hidden[i][j]]
            if not 0 < len(new) <= room: continue
            for i, j in new:
                hidden[i][j] = True
            added = len(new)
            break
        if not added and not exact: break
        total += added
    return hidden


@pytest.mark.parametrize('H,W,n,area,exact,draws',
                         [(14, 14, 75, 16, False, 1500), (14, 14, 98, 16, True, 800),
                                                    (7, 20, 50, 6, False, 1000)])
def test_block_follows_the_card(H, W, n, area, exact, draws):
    rng = random.Random(0)
    ref = torch.tensor([reference_block(H, W, n, rng, exact, area) for _ in range(draws)])
    ours = Block(n=n, law='exact' if exact else 'at most',
                 min_area=area)(layout((H, W), batch=4000), generator=seeded())
    p, q = ours.double().mean(0), ref.double().mean(0)
    bound = 5 * (p * (1 - p)).clamp_min(.01).sqrt() * math.sqrt(1 / draws + 1 / 4000)
    assert ((p - q).abs() < bound).all()
    a, b = (m.flatten(1).sum(1).double() for m in (ours, ref))
    assert abs(a.mean() - b.mean()) < 5 * max(b.std().item(), .01) / math.sqrt(draws) + 1e-9
    assert abs((a == n).double().mean() - (b == n).double().mean()) < .08
    edges = lambda m: (m[:, 1:] ^ m[:, :-1]).flatten(1).sum(1).double() + (
        m[:, :, 1:] ^ m[:, :, :-1]).flatten(1).sum(1)
    assert abs(edges(ours).mean() - edges(ref).mean()) < 5 * edges(ref).std() / math.sqrt(draws)


def test_block_statistics_of_the_card():
    m = Block(n=75, law='at most')(layout((14, 14), batch=4000), generator=seeded(1))
    k, p = m.flatten(1).sum(1).double(), m.double().mean(0)
    assert k.max() == 75 and 74.2 < k.mean() < 74.8 and .64 < (k == 75).double().mean() < .71
    assert abs(p[0, 0] - .04) < .02 and abs(p[7, 7] - .72) < .04


@quick
@given(H=st.integers(1, 20), W=st.integers(1, 70), ratio=st.floats(0, 1),
       holes=st.sampled_from([1., .5, .05]), seed=st.integers(0, 99),
       law=st.sampled_from(['exact', 'single']), area=st.integers(0, 64))
def test_block_ends_and_is_exact(H, W, ratio, holes, seed, law, area):
    free = torch.rand(2, H, W, generator=seeded(seed)) <= holes
    m = Block(ratio, law=law, min_area=area)(layout((H, W), valid=free), generator=seeded(seed))
    n = free.flatten(1).sum(1)
    assert torch.equal(m.flatten(1).sum(1), (n.double() * ratio).floor().long()) and not (m & ~free).any()


def test_single_block_is_one_block():
    m = Block(.3, law='single')(layout((9, 12), batch=50), generator=seeded())
    for x in m:
        i, j = x.nonzero().unbind(1)
        h, w = (int(t.max() - t.min()) + 1 for t in (i, j))
        assert x.sum() == 32 and h * w - 32 < w


# ------------------------------------------------------------------ spans

def test_span_law():
    u = layout((1500,), batch=400)
    m = Span(prob=.65, length=10)(u, generator=seeded())
    assert abs(m.double().mean() - .49) < .01
    runs = (m[:, 1:] & ~m[:, :-1]).sum(1) + m[:, 0]
    assert (m.sum(1) >= 10 * runs).all()                    # no run is shorter than a span
    assert (m.sum(1) <= 980).all()                          # 97 or 98 spans of 10
    one = Span(prob=.5, length=1, least=0)(layout((41,), batch=2000), generator=seeded()).sum(1)
    assert set(one.tolist()) == {20, 21} and abs((one == 21).double().mean() - .5) < .06


def test_span_beside_transformers():
    masking = pytest.importorskip('transformers.models.wav2vec2.modeling_wav2vec2')
    import numpy as np
    state = np.random.get_state()
    np.random.seed(0)
    try:
        ref = torch.from_numpy(masking._compute_mask_indices((600, 200), .65, 10, min_masks=2)).double()
    finally:
        np.random.set_state(state)
    ours = Span()(layout((200,), batch=600), generator=seeded()).double()
    # its rounding is drawn once for the batch and its last start is one later, hence the room
    assert abs(ref.mean() - ours.mean()) < .02
    assert ((ref.mean(0) - ours.mean(0)).abs()[20:-20] < .12).all()


def test_span_never_crashes_on_short_clips_and_can_be_equal():
    for L in range(1, 30):
        for least in (0, 2, 5):
            assert Span(least=least)(layout((L,), batch=3), generator=seeded(L)).shape == (3, L)
    valid = torch.arange(200) < torch.tensor([200, 150, 60, 200])[:, None]
    m = Span(equal=True)(layout((200,), valid=valid), generator=seeded())
    assert len(m.sum(1).unique()) == 1 and not (m & ~valid).any()


@quick
@given(n=st.integers(0, 40), more=st.integers(0, 60), seed=st.integers(0, 99))
def test_distinct(n, more, seed):
    places = torch.tensor([n + more, n, n + more // 2])
    m = distinct(torch.tensor([n, n, n // 2]), places, n + more + 2, seeded(seed))
    assert m.sum(1).tolist() == [n, n, n // 2] and not (
        m & (torch.arange(m.shape[1]) >= places[:, None])).any()


# ------------------------------------------------------------------ patterns, combinations, schedules

def test_patterns():
    assert Grid()(layout((14, 14), batch=9)).flatten(1).sum(1).unique().tolist() == [147]
    m = Grid(shift=False)(layout((4, 4)))[0]
    assert m.tolist() == [[False, True] * 2, [True] * 4] * 2
    m = Checkerboard()(layout((5, 4), batch=40), generator=seeded())
    assert (m[:, 1:] ^ m[:, :-1]).all() and (m[:, :, 1:] ^ m[:, :, :-1]).all() and len(m.unique(dim=0)) == 2
    m = Tube(.9)(layout((8, 14, 14), batch=4), generator=seeded())
    assert (m == m[:, :1]).all() and (m.flatten(2).sum(2) == 176).all()


def test_painted():
    m = torch.rand(3, 4, generator=seeded()) < .5
    u = layout((3, 4), batch=2)
    assert torch.equal(Painted(m)(u), m.expand(2, 3, 4)) and Painted(m).exact is False
    assert torch.equal(Painted(m.flatten().nonzero()[:, 0])(u), m.expand(2, 3, 4))
    many = torch.stack([m, ~m])
    assert torch.equal(Painted(many)(u), many)
    assert hash(Painted(m)) == hash(Painted(m.clone()))


def test_union_and_inverse():
    u, a, b = layout((6, 6), batch=400), Random(.3), Block(.2)
    g = seeded(4)
    assert torch.equal((a | b)(u, generator=seeded(4)), a(u, generator=g) | b(u, generator=g))
    assert (~a).exact and not (a | b).exact and ~~a == a and isinstance(a | b, Union) and isinstance(
        ~a, Inverse)
    half = lambda u: torch.arange(6).lt(3).expand(u.free.shape)
    for s in (a | half, half | a):
        m = s(u, generator=seeded())
        assert m[..., :3].all() and 0 < m[..., 3:].double().mean() < .5
    p = (Random(.5) | Random(.5)).chance(layout((4,)))
    assert torch.allclose(p, torch.full((1, 4), .75).double())


@pytest.mark.parametrize('cls', [Random, Tube, Block])
@pytest.mark.parametrize('ratio', [Cosine(), Linear(0., .5), Coin(1., Uniform(.5, .8)), Uniform(), Normal(),
                                   HalfCosine(), Stepwise(Cosine())])
def test_schedules(cls, ratio):
    s, u = cls(ratio), layout((4, 5) if cls is not Tube else (3, 4, 5), batch=50)
    m = s(u, generator=seeded(), progress=.5)
    assert torch.equal(m, s(u, generator=seeded(), progress=.5)) and not s.exact and s.chance(u) is None
    assert (len(m.flatten(1).sum(1).unique()) == 1) == isinstance(ratio, Linear | HalfCosine | Normal)
    assert eval(repr(s)) == s and controls(s)[0]['value'] == ratio


def test_schedule_faults():
    u = layout((9,), batch=3)
    for bad, says in ((lambda n, **kw: torch.rand(n + 1), 'one rate'), (lambda n, **kw: .5, 'one rate'),
                      (lambda n, **kw: torch.full((n,), 1.5), '1.5'),
                      (lambda n, **kw: torch.full((n,), math.nan), 'nan')):
        with pytest.raises(ValueError, match=says):
            Random(bad)(u)
    with pytest.raises(ValueError, match='Linear'):
        Linear(0., 2.)
    assert rates(.5, 3).tolist() == [.5] * 3


# ------------------------------------------------------------------ bad input: one sentence

@pytest.mark.parametrize('make,says', [
    (lambda: Random(1.2), '1.2'), (lambda: Random(-.1), '-0.1'), (lambda: Random(math.nan), 'nan'),
    (lambda: Random(True), 'True'),
    (lambda: Random('0.5'), "'0.5'"), (lambda: Random(law='up'), "'up'"),
    (lambda: Span(length=0), 'length=0'),
    (lambda: Span(length=2.5), '2.5'), (lambda: Span(equal=1), 'equal=1'),
    (lambda: Block()(layout((3, 4, 5))), '(3, 4, 5)'),
    (lambda: Block()(layout((200,))), '(200,)'), (lambda: Span()(layout((4, 4))), '(4, 4)'),
    (lambda: Tube()(layout((4,))), '(4,)'),
    (lambda: Block(n=75)(layout((7, 7))), '49'), (lambda: Random()(torch.zeros(2, 3)), 'units'),
    (lambda: Random()(None), 'units'),
    (lambda: Random()(layout((3,)), generator=7), '7'),
    (lambda: Painted(torch.rand(3)), 'float32'), (lambda: Painted('abc'), 'abc'),
    (lambda: Painted([-1]), '-1'),
    (lambda: Painted([1.5]), '1.5'), (lambda: Painted([7])(layout((3,))), '7'),
    (lambda: Painted(torch.ones(3, 3).bool())(layout((3,))), '(3, 3)'),
    (lambda: create_strategy('blok'), 'block'),
    (lambda: create_strategy('xyz'), 'choose'), (lambda: hide(lambda u: 3, layout((3,))), 'int'),
    (lambda: hide(lambda u: torch.ones(1, 3), layout((3,))), 'float32'),
    (lambda: check_mask(torch.ones(1, 4).bool(), layout((3,))), '[1, 4]')])
def test_bad_input(make, says):
    with pytest.raises((ValueError, TypeError)) as e:
        make()
    assert says in str(e.value) and len(str(e.value)) <= 200 and '\n' not in str(e.value)


def test_a_subclass_must_say_where():
    with pytest.raises(NotImplementedError, match='where'):
        Strategy()(layout((3,)))


def test_numpy_numbers_print_as_python():
    np = pytest.importorskip('numpy')
    assert repr(Random(np.float64(.25))) == "Random(ratio=0.25, law='floor kept')"


def test_sketch():
    u = layout((3,), valid=torch.tensor([[True, True, False]]))
    assert sketch(torch.tensor([[True, False, False]]), u) == '#. '
    assert sketch(torch.eye(2).bool().expand(2, 2, 2)) == '#.   #.\n.#   .#'
