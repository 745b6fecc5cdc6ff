"""SIGMA by the invariants of its card (Salehi et al. 2024), and the two ways to collapse."""
import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch import nn
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import rows
from maskedlab.masks import Tube
from maskedlab.recipes.video import sigma
from maskedlab.recipes.video.sigma import SIGMA
from maskedlab.targets.pixels import colour_norm
from maskedlab.targets.transport import sinkhorn, swapped

SMALL = dict(image=32, frames=8, patch=8, dim=32, depth=1, heads=2, decoder_dim=16, decoder_depth=1,
             decoder_heads=2, hidden=(32,), width=16, prototypes=12, strategy=Tube(.75))
TOLD, CLIP = 'told by the target', 'told by the clip'


class Looks(nn.Module):
    "A teacher of pictures of 8 x 8 patches, one level."
    patch, channels, dim, depth, heads, grid = 8, 3, 20, 1, 0, None

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 20, 8, 8)

    def look(self, image):
        x = self.net(image).flatten(2).mT
        return [torch.cat([x.mean(1, keepdim=True), x], 1)], x.norm(dim=-1)


def make(**more):
    torch.manual_seed(0)
    return stir(SIGMA(**SMALL | more))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return ml.sample('video', 4, g(1), 'test', size=32, frames=8)


def reached(net, loss):
    "Names of the parameters that a loss moves."
    names, params = zip(*[(k, p) for k, p in net.named_parameters() if p.requires_grad])
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return {k for k, v in zip(names, grads) if v is not None and v.abs().sum() > 0}


# ---------------------------------------------------------------- the card's invariants

def test_1_rows_of_the_plan_sum_to_1_columns_to_their_share_and_a_constant_changes_nothing(r, batch):
    out = r(batch, generator=g())
    for side in out.extra.values():
        scores = r.prototypes(side).detach()
        plan = sinkhorn(scores, 10, .05)
        assert_close(plan.sum(1), torch.ones(len(plan)))
        off = [(sinkhorn(scores, n, .05).mean(0) * 12 - 1).abs().max() for n in (0, 10, 200)]
        assert off[0] > .5 and off[1] < off[0] and off[2] < 1e-2
        assert_close(sinkhorn(scores + 3., 10, .05), plan, atol=1e-4, rtol=0)


def test_2_without_rounds_it_is_the_softmax_of_each_row(r, batch):
    out = r(batch, generator=g())
    nearest = make(rounds=0)
    a, b = nearest.prototypes(out.extra['told']), nearest.prototypes(out.extra['said'])
    want = F.cross_entropy(a / .1, (b / .05).softmax(1).argmax(1)), F.cross_entropy(b / .1, a.argmax(1))
    found = nearest(batch, mask=out.mask).terms
    assert_close((found[TOLD], found[CLIP]), want)
    assert abs(r(batch, mask=out.mask).terms[TOLD] - want[0]) > 1e-3
    assert r.joint and not nearest.joint


def test_3_no_gradient_through_the_plan_and_each_term_moves_its_own_side(r, batch):
    out = r(batch, generator=g())
    assert not sinkhorn(r.prototypes(out.extra['told'])).requires_grad
    told, clip = reached(r, out.terms[TOLD]), reached(r, out.terms[CLIP])
    assert told == {k for k, _ in r.named_parameters() if k.startswith(('target.', 'prototypes.'))}
    assert clip == {k for k, _ in r.named_parameters() if k.startswith(('encoder.', 'decoder.', 'head.'))}
    # not detached, the clip's side would move the prototypes too
    loose = swapped(r.prototypes(out.extra['told']), r.prototypes(out.extra['said']))[0][1].sum()
    assert 'prototypes.weight' in reached(r, loose)


def test_4_prototypes_are_of_length_1_at_each_look_and_after_each_step(batch):
    r = make()
    r.prototypes.shorten()
    out = r(batch, generator=g())
    with torch.no_grad():
        r.prototypes.weight.mul_(torch.linspace(.2, 5., 12)[:, None])
    held = r.prototypes.weight.detach().clone()
    again = r(batch, mask=out.mask)
    assert_close(again.terms, out.terms, atol=1e-5, rtol=1e-4)
    assert torch.equal(held, r.prototypes.weight)             # a forward changes nothing
    assert_close(r.prototypes(out.extra['told']).detach(), F.cosine_similarity(
        out.extra['told'][:, None], held[None], dim=-1).detach(), atol=1e-5, rtol=1e-4)
    t = ml.Trainer(make(), {'video': batch['video']}, steps=2, batch=4, seed=0, show=False, precision='no')
    t.fit(background=False)
    assert_close(t.recipe.prototypes.weight.norm(dim=1), torch.ones(12))


def test_4_the_gradient_is_that_of_the_shortened_prototypes(batch):
    "In place at each forward, as the released code has it, against ours."
    r = make()
    with torch.no_grad():
        r.prototypes.weight.mul_(3.)
    out = r(batch, generator=g())
    out.loss.backward()
    short = F.normalize(r.prototypes.weight.detach(), dim=1).requires_grad_()
    a, b = (F.normalize(x.detach(), dim=1) for x in (out.extra['told'], out.extra['said']))
    torch.stack([x.mean() for x in swapped(a @ short.T, b @ short.detach().T)[0]]).sum().backward()
    assert_close(r.prototypes.weight.grad, short.grad, atol=1e-6, rtol=1e-4)


def test_5_with_a_frozen_target_prototypes_still_learn(batch):
    torch.manual_seed(0)
    r = SIGMA(**SMALL, teacher=Looks())
    assert not any(p.requires_grad for p in r.target.parameters()) and r.head.out_features == 20
    out = r(batch, generator=g())
    assert reached(r, out.terms[TOLD]) == {'prototypes.weight'}
    assert not out.extra['told'].requires_grad
    # each channel over all cubes of a clip
    every = r.target(r.cut, out.units, out.units.all()).unflatten(0, (4, -1))
    assert_close(every.mean(1), torch.zeros(4, 20), atol=1e-5, rtol=0)
    assert_close(every.std(1), torch.ones(4, 20), atol=1e-3, rtol=0)
    # it looks at the first frame of each cube alone
    other = {'video': batch['video'].clone()}
    other['video'][:, :, 1::2] = 0.
    assert torch.equal(r(other, mask=out.mask).extra['told'], out.extra['told'])
    assert ml.leak_check(r, batch, rounds=2).ok


def test_6_hidden_cubes_and_no_others_are_shared_out(r, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(sigma, 'swapped', lambda a, b, *rest: (seen.append((a, b)), swapped(a, b, *rest))[1])
    out = r(batch, generator=g())
    again = r(batch, mask=out.mask, units=out.units.swap(~out.mask))
    assert all(x.shape == (4 * 4 * 12, 12) for pair in seen for x in pair)
    assert torch.equal(seen[0][0], seen[1][0])                  # the target knows hidden cubes alone
    assert not torch.equal(seen[0][1], seen[1][1]) and not torch.equal(out.pred, again.pred)
    wanted = nn.Sequential(*r.target)(rows(colour_norm(out.units.x, 3), out.mask))
    assert_close(out.extra['told'], wanted)


def test_7_the_two_branches_may_change_roles(r, batch):
    out = r(batch, generator=g())
    said, told = out.extra['said'], out.extra['told']
    one, two = r.compare(said, told)[2], r.compare(told, said)[2]
    assert_close(one[TOLD], two[CLIP])
    assert_close(sum(x.sum() for x in one.values()), sum(x.sum() for x in two.values()))
    assert abs(out.terms[TOLD] - out.terms[CLIP]) > 1e-4


# ---------------------------------------------------------------- leaks, and nothing at all

def test_what_hidden_cubes_hold_does_not_leak(r, batch):
    assert ml.leak_check(r, batch, rounds=2).ok

    class Tells(SIGMA):
        def forward(self, batch, mask=None, **more):
            out = super().forward(batch, mask, **more)
            out.pred = out.pred + out.target[:, None] * 1e-3
            return out
    assert not ml.leak_check(stir(Tells(**SMALL)), batch, rounds=2).ok


@pytest.mark.parametrize('more', [{}, dict(asked='features'), dict(rounds=0)])
def test_nothing_hidden_is_a_loss_of_0_and_no_nan(more, batch):
    r = make(**more)
    out = r(batch, mask=r.units(batch).none())
    out.loss.backward()
    assert out.loss == 0 and all(v == 0 for v in out.logs.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in r.parameters())


# ---------------------------------------------------------------- the two ways to collapse

@pytest.mark.parametrize('more, meter', [(dict(asked='features'), 'deviation'),
                                         (dict(rounds=0), 'prototypes in use'), ({}, None)])
def test_plain_questions_collapse_and_balanced_codes_do_not(more, meter):
    torch.manual_seed(0)
    r = SIGMA(**SMALL | more)
    clips = ml.sample('video', 32, g(), size=32, frames=8, real=0.)['video']
    step, luck, logs = torch.optim.AdamW(r.parameters(), lr=3e-3), g(), []
    for _ in range(40):
        out = r({'video': clips[torch.randint(32, (8,), generator=luck)]}, generator=luck)
        step.zero_grad()
        out.loss.backward()
        step.step()
        r.after_step(out, 1.)
        logs.append({k: float(v) for k, v in out.logs.items()})
    left = {k: logs[-1][k] / logs[0][k] for k in logs[0]}
    assert (min(left.values()) > .8) if meter is None else left[meter] < .5


# ---------------------------------------------------------------- sizes and bad input

def test_the_papers_size():
    with torch.device('meta'):
        base = SIGMA(**SIGMA.sizes['base'])
    assert [m.in_features for m in base.target if isinstance(m, nn.Linear)] == [1536, 1024, 1024, 512]
    assert base.head.out_features == 256 and base.prototypes.weight.shape == (3000, 256)
    assert (base.rounds, base.sharpness, base.temperature) == (10, .05, .1)


def test_bad_input(batch):
    with pytest.raises(ValueError, match='asked'):
        SIGMA(**SMALL, asked='pixels')
    with pytest.raises(ValueError, match='temperature'):
        SIGMA(**SMALL, temperature=0.)
    with pytest.raises(ValueError, match='smaller than the cube'):
        make()({'video': batch['video'][:, :, :1]})
    with pytest.raises(ValueError, match='NaN'):
        make()({'video': batch['video'] * torch.nan})
    with pytest.raises(ValueError, match='teacher looks at 4 x 4 patches'):
        teacher = Looks()
        teacher.grid = (4, 4)
        SIGMA(**SMALL | dict(image=64), teacher=teacher)
