"""Selfie: the invariants of the method (Trinh et al. 2019), on a network small enough for seconds."""
import copy
import math

import pytest
import torch
from given import g
import torch.nn.functional as F
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import rows
from maskedlab.recipes.image.selfie import Selfie, right_answers, shift, undecidable

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, stages=(1, 1, 1), stem='small')


@pytest.fixture
def r():
    torch.manual_seed(0)
    r = Selfie(**SMALL)
    with torch.no_grad():
        for _ in range(3):
            # batch statistics of its own
            r.train()(dict(image=torch.rand(8, 3, 32, 32, generator=g(2))), generator=g())
        for p in r.parameters():
            p.add_(torch.randn(p.shape, generator=g(3)) * .05)
    return r.eval()


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


def vectors(r, u, mask):
    return r.pool(r.embed(u), ~mask)


# 1. the count

@pytest.mark.parametrize('grid, hidden', [((4, 4), 4), ((7, 7), 12), ((3, 3), 2), ((5, 5), 6)])
def test_a_quarter_is_hidden_rounded_down(grid, hidden):
    mask = Selfie(**SMALL).strategy(ml.layout(grid, batch=50), generator=g())
    # a mask for each picture
    assert (mask.flatten(1).sum(1) == hidden).all() and len(mask.flatten(1).unique(dim=0)) > 5


def test_hidden_and_context_cover_the_grid(r, batch):
    pooled, asked = [], []
    r.pooling[0].register_forward_pre_hook(lambda m, args: pooled.append(args[0][:, 1:]))
    h = r.embed(r.units(batch)).flatten(1, 2)
    out = r(batch, generator=g())
    asked = out.extra['index'].view(3, 4, 4)[:, 0]
    for i in range(3):
        context = [(h[i] == row).all(1).nonzero()[0, 0].item() for row in pooled[0][i]]
        assert sorted(context + asked[i].tolist()) == list(range(16))
        assert set(asked[i].tolist()) == set(out.mask[i].flatten().nonzero()[:, 0].tolist())


# 2. u and v do not change with hidden pixels (eval mode); the logits do

def test_hidden_pixels_change_no_vector_and_do_change_the_answers(r, batch):
    out = r(batch, generator=g())
    u = out.units.swap(out.mask)
    other = r(batch, mask=out.mask, units=u)
    assert torch.equal(other.pred, out.pred) and torch.equal(vectors(r, u, out.mask),
                                                             vectors(r, out.units, out.mask))
    assert (other.extra['logits'] - out.extra['logits'])[:, :4].abs().max() > 1e-3


def test_gradient_of_the_vectors_with_respect_to_hidden_pixels_is_exactly_zero(r, batch):
    image = batch['image'].clone().requires_grad_()
    out = r(dict(image=image), generator=g())
    out.pred.square().sum().backward()
    grad = r.cut.cut(image.grad)
    assert (grad[out.mask] == 0).all() and (grad[~out.mask] != 0).any(-1).all()


def test_in_training_batch_norms_couple_everything(r, batch):
    "Why the leak check runs in evaluation mode."
    r.train()
    r.pad = 0
    out = r(batch, generator=g())
    other = r(batch, mask=out.mask, units=out.units.swap(out.mask, torch.rand(12, 192, generator=g(5))),
              generator=g())
    assert (other.pred - out.pred).abs().max() > 1e-4
    assert ml.leak_check(r, batch, rounds=2).ok and r.training


# 3., 4. permutations

def permuted(u, mask, order):
    "The chosen units of each picture in another order; the places stay."
    x = u.x.clone()
    for i in range(len(u)):
        x[i][mask[i]] = u.x[i][mask[i]][order]
    return u.but(x=x)


def test_the_order_of_the_context_does_not_matter(r, batch):
    out = r(batch, generator=g())
    moved = permuted(out.units, ~out.mask, torch.randperm(12, generator=g(4)))
    assert_close(vectors(r, moved, out.mask), vectors(r, out.units, out.mask), rtol=1e-5, atol=1e-5)
    r.context_positions = True
    assert (vectors(r, moved, out.mask) - vectors(r, out.units, out.mask)).abs().max() > 1e-4


def test_permuting_hidden_patches_permutes_rows_and_columns_together(r, batch):
    out = r(batch, generator=g())
    v, h = rows(vectors(r, out.units, out.mask)[:, None, None] + r.places.code((4, 4)),
                out.mask).view(3, 4, -1), r.embed(out.units)
    order = torch.tensor([2, 0, 3, 1])
    answers = rows(h, out.mask).view(3, 4, -1)
    plain, both = v @ answers.mT, v[:, order] @ answers[:, order].mT
    assert_close(plain, out.extra['logits'].view(3, 4, 5)[..., :4], rtol=1e-5, atol=1e-5)
    assert_close(both, plain[:, order][:, :, order], rtol=1e-5, atol=1e-5)
    right = torch.arange(4).repeat(3)
    assert_close(F.cross_entropy(both.flatten(0, 1), right), out.loss, rtol=1e-5, atol=1e-6)
    # the patches alone: the columns move, and so does the loss
    alone = r(batch, mask=out.mask, units=permuted(out.units, out.mask, order))
    assert_close(alone.extra['logits'].view(3, 4, 5)[..., :4], plain[..., order], rtol=1e-4, atol=1e-4)


# 5. a patch alone

def test_a_patch_is_embedded_alone(r, batch):
    u = r.units(batch)
    h = r.embed(u)
    for i, y, x in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        patch = r.cut.colours(batch['image'][i:i + 1, :, 8 * y:8 * y + 8, 8 * x:8 * x + 8])
        assert_close(r.patches(patch).mean((2, 3))[0], h[i, y, x], rtol=1e-5, atol=1e-5)
    changed = u.x.clone()
    changed[:, 1:] = .3
    assert torch.equal(r.embed(u.but(x=changed))[:, 0], h[:, 0])


# 6. equal patches

def test_equal_patches_have_equal_columns(r, batch):
    mask = torch.zeros(1, 4, 4).bool()
    mask[0, 0] = True
    image = batch['image'][:1].clone()
    image[..., :8, 8:16] = image[..., :8, :8]
    out = r(dict(image=image), mask=mask)
    logits = out.extra['logits'][:, :4]
    assert torch.equal(logits[:, 0], logits[:, 1])
    assert (out.error[0, 0, :2] >= math.log(2) - 1e-6).all()
    assert undecidable(out)[0, 0].tolist() == [True, True, False, False]
    # the best that can be reached: all else ruled out
    best = F.cross_entropy(torch.tensor([[50., 50., 0., 0.]]), torch.tensor([0]))
    assert_close(best, torch.tensor(math.log(2)))


# 7. codes of the places

def test_codes_of_rows_and_columns(r):
    assert sum(p.numel() for p in r.places) == (4 + 4) * 32
    code = r.places.code((4, 4))
    for c, d in ((0, 1), (2, 3)):
        assert_close(code[0, c] - code[0, d], code[3, c] - code[3, d])
    each = Selfie(**SMALL, positions='each')
    assert sum(p.numel() for p in each.places) == 16 * 32
    assert r.places.code((2, 3)).shape == each.places.code((2, 3)).shape == (2, 3, 32)


# 8. gradients, and chance

@pytest.mark.parametrize('side', ['context', 'answers'])
def test_gradient_reaches_the_patch_network_from_both_sides(r, batch, side):
    out, h = r(batch, generator=g()), r.embed(r.units(batch))
    a, c = (h, h.detach()) if side == 'context' else (h.detach(), h)
    v = r.pool(a, ~out.mask)[:, None, None] + r.places.code((4, 4))
    loss = F.cross_entropy(r.quiz(v, c, out.mask)[0], right_answers(out.mask))
    assert_close(loss, out.loss)
    loss.backward()
    assert r.patches.stem.weight.grad.abs().max() > 0


def test_gradients_of_both_sides_add_up(r, batch):
    out, h = r(batch, generator=g()), r.embed(r.units(batch))
    out.loss.backward()
    whole = r.patches.stem.weight.grad.clone()
    parts = torch.zeros_like(whole)
    for a, c in ((h, h.detach()), (h.detach(), h)):
        r.zero_grad()
        v = r.pool(a, ~out.mask)[:, None, None] + r.places.code((4, 4))
        F.cross_entropy(r.quiz(v, c, out.mask)[0], right_answers(out.mask)).backward(retain_graph=True)
        parts += r.patches.stem.weight.grad
    assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('n, image', [(4, 32), (12, 56)])
def test_chance_is_the_logarithm_of_the_choices(r, n, image):
    blank = copy.deepcopy(r)
    with torch.no_grad():
        for p in (*blank.places, *blank.pooling[-1].norm2.parameters()):
            p.zero_()
    out = blank(dict(image=torch.rand(2, 3, image, image)), generator=g())
    assert len(out.pred) == 2 * n and abs(out.loss.item() - math.log(n)) < 1e-6


# the grid that moves, ragged masks, doors, bad input

def test_the_grid_moves_in_training_only(r, batch):
    r(batch, generator=g())
    assert torch.equal(r(batch, generator=g()).units.x, r.units(batch).x)
    r.train()
    a, b, c = (r(batch, generator=g(s)).units.x for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, r.units(batch).x)


def test_shifted_pictures_are_windows_of_the_padded_one():
    x = torch.rand(5, 2, 6, 9, generator=g())
    y, big = shift(x, 2, g(1)), F.pad(x, [2] * 4)
    at = [[(d, e) for d in range(5) for e in range(5) if torch.equal(big[i, :, d:d + 6, e:e + 9], y[i])]
          for i in range(5)]
    assert all(at) and len({a[0] for a in at}) > 1


def test_a_batch_is_what_its_pictures_are_alone(r, batch):
    mask = torch.zeros(3, 4, 4).bool()
    mask[0, :2], mask[1, 3, 1] = True, True
    both = r(batch, mask=mask)
    assert len(both.pred) == 9 and both.extra['logits'].isinf().sum() == 9 + 7
    for i in range(3):
        alone = r(dict(image=batch['image'][i:i + 1]), mask=mask[i:i + 1])
        assert_close(both.error[i], alone.error[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    both.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in r.parameters())


@pytest.mark.parametrize('hidden, loss', [(0, 0.), (1, 0.), (16, None)])
def test_none_one_and_all(r, batch, hidden, loss):
    mask = (torch.arange(16) < hidden).view(1, 4, 4).expand(3, 4, 4)
    out = r(batch, mask=mask)
    out.loss.backward()
    assert out.loss.isfinite() and (loss is None or out.loss == loss) and len(out.pred) == 3 * hidden
    assert all(p.grad is None or p.grad.isfinite().all() for p in r.parameters())
    assert r.fill(batch, out)['image'].shape == batch['image'].shape


def test_holes_are_filled_with_patches_of_the_same_picture(r, batch):
    out = r(batch, mask=Random(.5), generator=g())
    x, y = r.units(batch).x, r.units(r.fill(batch, out)).x
    assert torch.equal(x[~out.mask], y[~out.mask])
    for i in range(3):
        pool = x[i][out.mask[i]]
        assert all((p == pool).all(1).any() for p in y[i][out.mask[i]])


def test_attention_is_that_of_the_pooling(r, batch):
    mask = torch.zeros(3, 4, 4).bool()
    mask[0, 0] = True
    w, q, k = r.attention(batch, mask)
    assert w.shape == (2, 3, 4, 17, 17) and torch.equal(q, k)
    assert q[0].tolist() == [-1, *range(4, 16), -1, -1, -1, -1] and (w[:, 0, :, :, 13:] == 0).all()


def test_features_are_convolutions_over_the_whole_picture(r, batch):
    dense = r.features(batch, pool=False)
    assert dense.shape == (3, 64, 32)
    assert_close(dense.mean(1), r.features(batch))
    assert_close(dense[1].T.view(32, 8, 8), r.patches(r.cut.colours(batch['image'][1:2]))[0], rtol=1e-5,
                 atol=1e-5)
    r.before_finetuning()
    assert r.features(batch).shape == (3, 64) and sum(p.numel() for p in r.fourth.parameters()) > 0


def test_fine_tuning_adds_the_fourth_stage_at_the_rate_of_the_head():
    "And only once; MaskAlign's final norm, which nothing moved before, joins too."
    from maskedlab.uses.finetune import Classifier, depth_groups, finetune
    torch.manual_seed(0)
    r = Selfie(**SMALL)
    train = dict(image=torch.rand(8, 3, 32, 32, generator=g()), label=torch.arange(8) % 2)
    finetune(r, train, train, steps=2, batch=4)
    stage = r.fourth
    finetune(r, train, train, steps=1, batch=4)
    assert r.fourth is stage and r.features(train).shape == (8, 64)
    model = Classifier(r, 2, 64)
    rate = {id(p): group['lr'] for group in depth_groups(model, 1., .5, .05) for p in group['params']}
    assert {rate[id(p)] for p in stage.parameters()} == {rate[id(model.head.weight)]} == {1.}
    assert rate[id(r.patches.stem.weight)] < rate[id(r.patches.blocks[1].conv1.weight)] < 1


def test_too_few_patches_for_a_choice_are_refused():
    with pytest.raises(ValueError, match='fewer than 8') as said:
        Selfie(**{**SMALL, 'image': 16})
    assert len(str(said.value)) <= 200


def test_it_learns_the_quiz():
    from maskedlab.train.trainer import fit
    torch.manual_seed(0)
    r = Selfie(**SMALL)
    y, x = torch.meshgrid(torch.linspace(0, .6, 32), torch.linspace(0, .6, 32), indexing='ij')
    luck = g()
    def gradients():            # two colours say where a patch lies
        while True:
            yield dict(image=torch.stack([y, x, 0 * y]) + .3 * torch.rand(8, 3, 32, 32, generator=luck))
    history = fit(r, gradients(), 40, optimiser='AdamW', lr=1.2e-2, seed=0)
    assert sum(h['loss'] for h in history[-5:]) / 5 < 1.1 < math.log(4)


@pytest.mark.parametrize('change, words', [(dict(dim=40), 'multiple of 16'),
                                           (dict(stem='huge'), "'small', 'large'"),
                                           (dict(positions='none'), "'row column', 'each'"),
                                           (dict(patch=7), 'not divide'),
                                           (dict(heads=5), 'heads')])
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        Selfie(**{**SMALL, **change})


def test_bad_batches(r, batch):
    with pytest.raises(ValueError, match='multiple'):
        r(dict(image=torch.rand(1, 3, 30, 32)))
    with pytest.raises(ValueError, match='channels'):
        r(dict(image=torch.rand(1, 1, 32, 32)))
    with pytest.raises(TypeError, match='bool'):
        r(batch, mask=torch.ones(3, 4, 4))
