"""Several masks a sample: the partition of DMJD, and the three instruments on samplers with views."""
from __future__ import annotations

import pytest
import torch
from given import g
from torch import nn

import maskedlab as ml
from maskedlab.contract.recipe import Out, Recipe, draw
from maskedlab.contract.units import each_in, layout, mean, split_views, stack_views
from maskedlab.instruments.count_law import count_law
from maskedlab.instruments.coverage import coverage_map
from maskedlab.instruments.leak import leak_check
from maskedlab.masks.strategies import Random, first_k
from maskedlab.masks.views import Disjoint, Independent

GRIDS = [((7, 7), 1, 49), ((14, 14), 1, 196), ((14, 14), 2, 49), ((8, 8), 2, 16)]


def counted(strategy, shape, n=40):
    "H of each view, their overlap and their union, in cells; each must be the same in all samples."
    m = strategy(layout(shape, batch=n), generator=g())
    c = strategy.cell
    for axis in range(2, m.ndim):                       # the units of a cell share their state
        m = m.unflatten(axis, (-1, c)).transpose(axis + 1, -1)
        assert (m == m[..., :1]).all()
        m = m[..., 0]
    a, b = m.flatten(2).unbind(1)
    found = [x.sum(1).unique() for x in (a, b, a & b, a | b)]
    assert all(len(x) == 1 for x in found)
    return [int(x) for x in found]


# 1. to 3.: exact counts

@pytest.mark.parametrize('shape, cell, U', GRIDS)
@pytest.mark.parametrize('rho, pi', [(.6, 1.), (.75, 1.), (.5, 1.), (.6, .8), (.6, .6), (.3, 1.), (.3, .5),
                                     (.9, 1.)])
def test_counts_of_two_views(shape, cell, U, rho, pi):
    keep, extra = int(U * (1 - rho)), int(min(pi - rho, rho) * U)
    H = U - keep
    a, b, overlap, union = counted(Disjoint(rho, pi, cell), shape)
    assert a == b == H and overlap == H - extra and union == min(U, H + extra)
    if pi == 1 and rho >= .5:
        assert union == U
    if pi == rho:
        assert union == H


def test_the_numbers_of_the_paper_s_grids():
    assert counted(Disjoint(.6), (7, 7)) == [30, 30, 11, 49]
    assert counted(Disjoint(.6), (14, 14)) == [118, 118, 40, 196]
    assert counted(Disjoint(.6, cell=2), (14, 14)) == [30, 30, 11, 49]
    assert counted(Disjoint(.6, cell=2), (8, 8)) == [10, 10, 4, 16]


@pytest.mark.parametrize('rho, views', [(.6, 2), (.4, 3), (.34, 3), (.25, 4), (.21, 5)])
def test_views_enough_to_reach_all_do(rho, views):
    s, u = Disjoint(rho, views=views), layout((7, 7), batch=30)
    m = s(u, generator=g())
    assert m.shape == (30, views, 7, 7) and m.any(1).all()
    assert (m.flatten(2).sum(2) == 49 - int(49 * (1 - rho))).all()
    assert all((k == 49).all() for k in s.served(u))


def test_ragged_units_keep_their_promises():
    free = torch.rand(60, 8, 8, generator=g(3)) < .7
    u = layout((8, 8), valid=free)
    for s in (Disjoint(.6), Disjoint(.6, cell=2), Disjoint(.3, .5, 4), Disjoint(.4, views=3)):
        m = s(u, generator=g())
        assert not (m & ~free[:, None]).any()
        for k, (low, high) in ((m.flatten(2).sum(2), s.counts(u)), (m.any(1).flatten(1).sum(1)[:, None],
                                                                    s.served(u))):
            assert (low[:, None] <= k).all() and (k <= high[:, None]).all()
        assert s.ratio < .5 or torch.equal(m.any(1), free)


# 4. marginals, and the whole law on a small grid

def test_each_view_hides_each_unit_equally_often():
    m = Disjoint(.6)(layout((3, 3), batch=20_000), generator=g()).float().mean(0)
    assert (m - 6 / 9).abs().max() < 4 * (2 / 9 / 20_000) ** .5


def test_every_partition_is_equally_likely():
    m = Disjoint(.5)(layout((4,), batch=30_000), generator=g())        # two of four, then the other two
    kinds, times = m.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 6 and ((times - 5000).abs() < 5 * 5000 ** .5).all()
    m = Disjoint(2 / 3)(layout((3,), batch=30_000), generator=g())     # two of three, then the third and one
    kinds, times = m.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 6 and ((times - 5000).abs() < 5 * 5000 ** .5).all()


def test_what_cannot_be_shared_is_refused_in_one_sentence():
    for make, says in ((lambda: Disjoint(.6, .5), 'a prediction of 0.6 or more'),
                       (lambda: Disjoint(cell=2)(layout((7, 7))), '(7, 7)'),
                       (lambda: Disjoint(views=1), 'views=1'),
                       (lambda: Independent(Disjoint()), 'several views itself'),
                       (lambda: ml.create_recipe('mae')(ml.sample('image', n=2), mask=Disjoint()),
                        'one mask a sample')):
        with pytest.raises(ValueError) as told:
            make()
        assert says in str(told.value) and len(str(told.value)) <= 200 and '\n' not in str(told.value)


# the contract

def test_a_known_count_goes_with_the_views():
    u = layout((8, 8), batch=3)
    m = draw(Disjoint(.6, cell=2), u, generator=g(), views=True)
    stacked = stack_views(m, u)
    assert each_in(m) == 80 and each_in(stacked) == 40 and stacked.shape == (6, 8, 8)
    assert torch.equal(split_views(stacked, u), m) and torch.equal(stacked[:3], m[:, 0])
    with pytest.raises(ValueError, match='calls itself exact'):
        stack_views(draw(Lopsided(), u, views=True), u)


class Lopsided(Disjoint):
    "As many in both together, and not in each."
    def where(self, u, generator, **signals):
        m = super().where(u, generator)
        m[:] = False
        m.flatten(2)[:, 0, :50], m.flatten(2)[:, 1, :28] = True, True
        return m


def test_views_go_through_union_and_inverse():
    u, d = layout((6, 6), batch=4), Disjoint(.5)
    m = d(u, generator=g())
    assert torch.equal((~d)(u, generator=g()), ~m) and (~d).views == 2
    for s in (d | Random(.2), Random(.2) | d):
        both = s(u, generator=g())
        assert both.shape == m.shape and s.views == 2
        assert coverage_map(s, u, 400).ok and count_law(s, u, 400).ok


# the two instruments that look at masks

@pytest.mark.parametrize('s', [Disjoint(), Disjoint(.6, cell=2), Disjoint(.3, .5), Disjoint(.4, views=3),
                               Independent(Random(.6)), Independent(Random(.5), 3)], ids=repr)
def test_right_samplers_of_views(s):
    u = layout((8, 8), batch=5)
    law, cover = count_law(s, u, 1500), coverage_map(s, u, 1500)
    assert law.alarms == () == cover.alarms
    assert cover.rate.shape == (s.views, 8, 8) and cover.served.shape == (8, 8)
    assert law.served.shape == (len(law.counts) // s.views,)
    assert 'in one view or another' in law.promise and 'one view or another' in repr(cover)
    assert cover.plot().data and law.plot().data and cover.together(3, view=1).shape == (8, 8)


def test_the_map_shows_that_every_unit_serves():
    u = layout((8, 8), batch=8)
    assert (coverage_map(Disjoint(.6, cell=2), u, 800).served == 1).all()
    assert 'hidden in one view or another 1.000 of the time, from 1.000 to 1.000' in repr(
        coverage_map(Disjoint(.6), u, 800))
    apart = coverage_map(Independent(Random(.6)), u, 4000).served
    p = 1 - (25 / 64) ** 2                      # 25 of 64 are shown
    assert abs(float(apart.mean()) - p) < .01


def faulty(name):
    "A sampler that promises the partition and does something else."
    def where(self, u, generator, **signals):
        m = Disjoint.where(self, u, generator)
        if name == 'drawn apart':               # what is asked about is left to chance
            return torch.stack([Random(.6)(u, generator), Random(.6)(u, generator)], 1)
        if name == 'complement':                # another ratio in the second view
            return torch.stack([m[:, 0], ~m[:, 0]], 1)
        if name == 'not uniform':               # the first places of what the first view hid
            first = m[:, 0].flatten(1)
            old = first_k(torch.arange(64.).expand(first.shape), torch.full((len(u),), 13), first)
            return torch.stack([first, ~first | old], 1).view(m.shape)
        if name == 'one for the batch':
            return Disjoint(.6)(layout(u.shape), generator).expand(m.shape)
        return torch.stack([m[:, 0], m[:, 1], m[:, 1]], 1)
    return type('Faulty', (Disjoint,), {'where': where})()


@pytest.mark.parametrize('name, says, by', [
    ('drawn apart', 'in one view or another where exactly 64', count_law),
    ('complement', 'hidden where exactly 39', count_law),
    ('not uniform', 'view 2: ', coverage_map),
    ('one for the batch', 'view 1: samples', coverage_map),
    ('a third', 'says that it draws 2 views, and draws 3', count_law)])
def test_planted_faults(name, says, by):
    report = by(faulty(name), layout((8, 8), batch=8), 1500)
    assert any(says in a for a in report.alarms), report


# the leak check: one view may show what the other hides, and must not tell it

class Pair(Recipe):
    "Predicts each patch of each view from the mean of what that view shows; `tells` leaks between views."
    card = ml.Card('Pair', 2020, 'image', 'where', 'how', 'what', 'use', '', '')

    def __init__(self, tells: bool = False, joined: bool = False):
        super().__init__()
        self.cut, self.strategy = ml.parts.patches.Patches(16, 3), Disjoint(.6)
        self.head, self.tells, self.joined = nn.Linear(768, 768), tells, joined

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator, views=True)
        m = stack_views(mask, u)
        x = u.x.repeat(len(m) // len(u), 1, 1, 1)
        seen = (x * ~m[..., None]).mean((1, 2))
        if self.tells:
            seen = seen + seen.roll(len(u), 0)              # the other view of the same sample
        pred = self.head(seen)[:, None, None].expand(x.shape)
        e = (pred - x).square().mean(-1)
        pred, x, e = (split_views(t, u) for t in (pred, x, e))
        e = e.detach() if mask.ndim > u.valid.ndim else e[:, 0].detach()
        if self.joined and e.ndim > 3:                      # one map for both views
            pred, x, e = pred.mean(1), x.mean(1), e.mean(1)
        return Out({'pixels': mean(e)}, mask, pred.flatten(0, -2), x.flatten(0, -2), e, u)


@pytest.mark.parametrize('joined', [False, True])
def test_views_that_keep_to_themselves_leak_nothing(joined):
    torch.manual_seed(0)
    report = leak_check(Pair(joined=joined), ml.sample('image', n=3), rounds=2)
    assert report.ok and report.control > 0 and report.where.shape == (3, 4, 4)
    assert joined or 'each of 2 views' in repr(report)


def test_a_view_that_hears_of_the_other_is_found():
    torch.manual_seed(0)
    report = leak_check(Pair(tells=True), ml.sample('image', n=3), rounds=2)
    assert not report.ok and 'depend on hidden content' in report.faults[0]
    assert float(report.where.nan_to_num().max()) > 0
