"""DMJD: the invariants of the method (Ma et al. 2022), on networks small enough for seconds."""
import math

import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.create import SHIPPED
from maskedlab.masks.strategies import Random
from maskedlab.masks.views import Disjoint
from maskedlab.recipes.image.dmjd import DMJD, PLAN
from maskedlab.targets.features import whiten
from maskedlab.targets.gradients import HOG, hog
from maskedlab.train.trainer import fit

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=1, decoder_heads=2,
             decoder_ratio=2., width=16, cell=4)


def make(**more):
    torch.manual_seed(0)
    return stir(DMJD(**{**SMALL, **more}))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return dict(image=ml.sample('image', n=3)['image'][..., :32, :32].contiguous())


@torch.no_grad()
def by_hand(r, batch, mask):
    "Both losses of one batch of both views, from the parts of the network, patch by patch."
    sums, counts = dict(hidden=0., visible=0.), dict(hidden=0, visible=0)
    for i in range(len(mask)):
        one = {'image': batch['image'][i:i + 1]}
        u = r.units(one)
        t = r.target(u)[0].flatten(0, 1)
        for m in mask[i].flatten(1):
            see = (~m).view(1, *u.shape)
            h = r.encoder.see(r.cut.normal(u.x), see)
            y, z = r.hidden_head(r.decoder(h, see))[0], r.visible_head(h[0, 1:])
            at = (~m).nonzero()[:, 0].tolist()
            for p in range(u.count):
                if m[p]:
                    sums['hidden'] += float((y[p] - t[p]).square().mean())
                else:
                    d = (z[at.index(p)] - t[p]).abs()
                    sums['visible'] += float(torch.where(d < 2, d ** 2 / 4, d - 1).mean())
                counts['hidden' if m[p] else 'visible'] += 1
    return {k: sums[k] / counts[k] for k in sums}


# 1. to 5.: the masks (their law is held in test_views_of_a_sample.py)

def test_both_views_are_drawn_by_the_card_s_counts(r, batch):
    out = r(batch, mask=Disjoint(.6), generator=g())
    first, second = out.mask.flatten(2).unbind(1)
    keep = int(16 * .4)
    assert (first.sum(1) == 16 - keep).all() and (second.sum(1) == 16 - keep).all()
    assert (first | second).all() and ((first & second).sum(1) == 16 - 2 * keep).all()
    whole = r(batch, generator=g()).mask
    assert (whole[:, :, ::2, ::2] == whole[:, :, 1::2, 1::2]).all()          # squares of two by two


# 6. two branches, two losses

def test_losses_are_those_of_the_card(r, batch):
    out = r(batch, generator=g())
    found = by_hand(r, batch, out.mask)
    for k, v in out.terms.items():
        assert_close(v.item(), found[k], rtol=1e-4, atol=1e-5)
    assert_close(out.loss.item(), found['hidden'] + found['visible'], rtol=1e-4, atol=1e-5)


def test_unequal_views_are_still_means_over_patches(r, batch):
    mask = torch.rand(3, 2, 4, 4, generator=g(1)) < .5
    out = r(batch, mask=mask)
    found = by_hand(r, batch, mask)
    for k, v in out.terms.items():
        assert_close(v.item(), found[k], rtol=1e-4, atol=1e-5)


def test_each_branch_speaks_of_its_own_patches(r, batch):
    out = r(batch, generator=g())
    other = make()
    with torch.no_grad():
        other.visible_head[-1].bias += 1.
    moved = other(batch, mask=out.mask).pred - r(batch, mask=out.mask).pred
    assert (moved[out.mask.flatten()] == 0).all() and (moved[~out.mask.flatten()] > .9).all()
    assert out.pred.shape == (3 * 2 * 16, 108) and out.error.shape == (3, 2, 4, 4)


def test_weight_of_the_visible_branch(batch):
    for theta in (0., .3):
        r = make(theta=theta)
        r(batch, generator=g()).loss.backward()
        here, one = r.visible_head, make()
        one(batch, generator=g()).loss.backward()
        for p, q in zip(here.parameters(), one.visible_head.parameters(), strict=True):
            assert_close(p.grad, theta * q.grad)
        assert sum(float(p.grad.abs().sum()) for p in r.decoder.parameters()) > 0


def test_the_split_of_a_batch_is_the_batch(r, batch):
    "Terms are means over patches, so that rounds can be joined: see `mean`."
    out = r(batch, generator=g())
    assert out.counts == {'hidden': int(out.mask.sum()), 'visible': int((~out.mask).sum())}


# 7. nothing of what a view hides reaches that view

def test_hidden_content_changes_no_output_of_its_view(r, batch):
    out = r(batch, generator=g())
    u = out.units
    for v in range(2):
        other = u.swap(out.mask[:, v], torch.rand(int(out.mask[:, v].sum()), u.x.shape[-1]))
        again = r(batch, mask=out.mask, units=other)
        a, b = (o.pred.view(3, 2, 16, -1)[:, v] for o in (out, again))
        assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert (again.target - out.target).abs().max() > .1             # but the question knows it
    assert ml.leak_check(r, batch, rounds=2).ok


def test_hidden_patches_never_enter_the_encoder(r, batch):
    seen = []
    handle = r.encoder.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    r(batch, generator=g())
    handle.remove()
    assert seen == [(6, 1 + 4, 32)]             # of four squares each view shows one


def test_views_share_one_target_and_give_what_they_give_alone(r, batch):
    out = r(batch, generator=g())
    t = out.target.view(3, 2, 16, -1)
    assert torch.equal(t[:, 0], t[:, 1])
    for v in range(2):
        alone = r(batch, mask=out.mask[:, v])
        assert_close(alone.pred, out.pred.view(3, 2, 16, -1)[:, v].flatten(0, 1), rtol=1e-4, atol=1e-5)
    turned = r(batch, mask=out.mask.flip(1))
    assert_close(turned.loss, out.loss)


# 8. the target

def test_a_constant_picture_a_ramp_and_its_transpose():
    ramp = torch.arange(24.).expand(2, 3, 24, 24).contiguous()
    assert not hog(torch.full((1, 3, 16, 16), 9.)).any()
    for image, k in ((ramp, 0), (ramp.mT, 4)):
        h = hog(image)
        assert (h[..., k] > 0).all() and h.sum(-1).equal(h[..., k])
        assert h[0, 0, 1, 1, k] == 2                    # a difference over two pixels, not halved
    assert hog(ramp)[0, 0, 1, 0, 0] == 2 * 7 / 8        # 0 at the border


@pytest.mark.parametrize('cell, bins', [(4, 9), (8, 9), (2, 6)])
def test_groups_are_whitened(cell, bins):
    image = ml.sample('image', n=2)['image']
    plain = hog(image * 255, cell, bins)
    t = HOG(8, 3, cell, bins)(image)
    side = 8 // cell
    assert t.shape == (2, 8, 8, side * side * bins * 3)
    groups = t.view(2, 8, 8, side, side, bins, 3)
    assert groups.mean(-2).abs().max() < 1e-4
    v = plain.var(-1, unbiased=False)
    want = (v / (v + 1e-5)).unflatten(3, (8, side)).unflatten(2, (8, side)).permute(0, 2, 4, 3, 5, 1)
    assert_close(groups.var(-2, unbiased=False), want, rtol=1e-3, atol=1e-3)
    assert_close(HOG(8, 3, cell, bins)(image / 2), t, atol=.05, rtol=0)     # the contrast does not matter


def test_values_of_a_patch_lie_cell_row_cell_column_bin_colour():
    image = ml.sample('image', n=1)['image']
    t = HOG(16, 3)(image)[0, 2, 1].view(2, 2, 9, 3)
    whole = whiten(hog(image * 255))
    for i, j, c in ((0, 1, 0), (1, 0, 2)):
        assert_close(t[i, j, :, c], whole[0, c, 4 + i, 2 + j])


def test_histograms_are_those_of_scikit_image():
    theirs = pytest.importorskip('skimage.feature').hog
    image = ml.sample('image', n=1)['image'][0].mean(0) * 255
    mine = F.normalize(hog(image[None, None])[0, 0], dim=-1, eps=1e-9)
    there = theirs(image.numpy(), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(1, 1),
                   block_norm='L2', feature_vector=False)[:, :, 0, 0]
    assert_close(mine, torch.from_numpy(there).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('degrees', range(10, 180, 20))
def test_directions_have_bins_of_twenty_degrees(degrees):
    a = math.radians(degrees)
    y, x = torch.meshgrid(torch.arange(24.), torch.arange(24.), indexing='ij')
    for sign in (1, -1):
        h = hog((sign * (math.cos(a) * x + math.sin(a) * y))[None, None])[0, 0, 1, 1]
        assert int(h.argmax()) == degrees // 20 and float(h.max()) > .999 * float(h.sum())


def test_the_target_has_no_gradient(r, batch):
    image = batch['image'].clone().requires_grad_()
    out = r({'image': image}, generator=g())
    assert not out.target.requires_grad
    out.loss.backward()
    shown = r.cut.cut(image.grad)
    assert (shown[out.mask.all(1)] == 0).all() and (shown[~out.mask.all(1)].abs().amax(-1) > 0).all()


# 9. the learning rate

@pytest.mark.parametrize('rho, pi', [(.6, 1.), (.6, .6), (.75, .9)])
def test_rate_grows_with_what_is_asked(rho, pi):
    plan = PLAN.but(lr=6e-4 * Disjoint(rho, pi).gain, per=256, small=None)
    assert_close(plan.highest(512, 1), 6e-4 * 512 / 256 * pi / rho)
    assert_close(PLAN.highest(512, 10 ** 8), 2e-3)


# the rest

def test_base_has_the_released_sizes():
    with torch.device('meta'):
        base = DMJD(**DMJD.sizes['base'])
    assert base.hog.values == base.hidden_head.out_features == 108 and base.encoder.grid == (14, 14)
    assert [m.out_features for m in base.visible_head if hasattr(m, 'out_features')] == [512, 512, 512, 108]
    assert base.decoder.blocks[0].mlp.fc1.out_features == 8 * 512 and len(base.decoder.blocks) == 8
    assert base.visible_head[-2].weight is None             # a norm without a scale of its own


@pytest.mark.parametrize('arguments, words', [
    (dict(cell=3), 'cell=3'), (dict(theta=-1.), 'theta=-1'), (dict(decoder_ratio=0), 'decoder_ratio=0')])
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as told:
        make(**arguments)
    assert len(str(told.value)) <= 200


def test_a_picture_that_has_no_whole_squares_is_told(r):
    with pytest.raises(ValueError, match='do not divide into cells of 2') as told:
        r(dict(image=torch.rand(1, 3, 24, 40)), generator=g())
    assert len(str(told.value)) <= 200
    assert r(dict(image=torch.rand(1, 3, 24, 40)), mask=Random(.5), generator=g()).loss.isfinite()


def test_training_lowers_both_losses(batch):
    r = make(strategy=Disjoint(.5))
    history = fit(r, iter([batch] * 80), 80, lr=5e-3, seed=0, weight_decay=0.)
    for k in ('hidden', 'visible'):
        assert history[-1][k] < .8 * history[0][k], k


def test_without_weights_one_sentence_says_so():
    if (SHIPPED / 'dmjd-micro').is_dir():
        pytest.skip('they ship')
    with pytest.raises(ValueError, match='dmjd') as told:
        ml.create_recipe('dmjd', pretrained=True)
    assert len(str(told.value)) <= 200


def test_what_the_explorer_shows():
    from maskedlab.show.explorer.page import Page
    page = Page('dmjd')
    d = page.show(page.state)
    assert set(d.pictures) == {'original', 'seen', 'second', 'together', 'target', 'returned', 'of_hidden',
                               'of_visible', 'error', 'mean'}
    m = d.out.mask[0]
    assert torch.equal(d.mask, m[0]) and d.hidden == int(m[0].sum()) == 40
    assert '64 of 64 patches are hidden in one or another' in d.notes['']
    assert -30 < d.scores['the mean of the visible'] < 0            # which is not that of the hidden
    assert torch.equal(d.pictures['second'][4::8, 4::8, 3] == 0, m[1])
    colours = d.pictures['together'][4::8, 4::8]
    kinds = {tuple(c.tolist()): set(zip(m[0][w].tolist(), m[1][w].tolist()))
             for c in colours.flatten(0, 1).unique(dim=0) if (w := (colours == c).all(-1)).any()}
    assert len(kinds) == 3 and sorted(map(len, kinds.values())) == [1, 1, 1]      # neither does not occur
    assert (d.pictures['of_hidden'][..., 3] == 255).all()                    # every patch is hidden once
    seen = d.pictures['of_visible'][..., 3].view(8, 24, 8, 24)[:, 0, :, 0] == 255
    assert torch.equal(seen, ~m.all(0))


def test_a_painted_mask_is_one_view_and_sliders_are_those_of_the_partition():
    from maskedlab.show.explorer.page import Page
    page = Page('dmjd')
    names = {c['name'] for c in page.menus.panels('dmjd')[page.state.strategy]}
    assert names == {'ratio', 'prediction', 'cell', 'views'}
    one = Page('dmjd', mask=torch.eye(8).bool())
    d = one.show(one.state)
    assert d.hidden == 8 and 'second' not in d.pictures and d.pictures['returned'].shape == (192, 192, 4)
    assert 'disjoint' not in Page('mae').menus.strategies('mae')
