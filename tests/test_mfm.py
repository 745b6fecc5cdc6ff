"""MFM: the invariants of the method (Xie et al. 2023), on a network small enough for seconds."""
import pytest
import torch
from given import g
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.corruptions.degrade import CHANCES, DEGRADE, kernels
from maskedlab.masks.disc import Disc, paired
from maskedlab.masks.strategies import Random
from maskedlab.contract.strategy import controls
from maskedlab.contract.units import widen
from maskedlab.recipes.image.mfm import MFM
from maskedlab.targets.spectrum import by_radius, modulus, picture, spectrum
from maskedlab.train.loop import decay_groups

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, strategy=Disc(3))
LOW, HIGH = Disc(3, p=1), Disc(3, p=0)


def bands(x, mask):
    "The kept and the hidden part of pictures."
    return tuple(picture(torch.where(widen(m, spectrum(x)), 0., spectrum(x))) for m in (mask, ~mask))


@pytest.fixture
def r():
    torch.manual_seed(0)
    return MFM(**SMALL).eval()


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


# 1. the masks

@pytest.mark.parametrize('shape', [(32, 32), (31, 33), (32, 45), (20, 64)])
def test_complements_that_leave_the_picture_real(shape):
    u = ml.layout(shape, batch=2)
    low, high = LOW(u), HIGH(u)
    assert torch.equal(low, ~high) and torch.equal(paired(low), low)
    x = torch.fft.fftshift(torch.fft.fft2(torch.rand(2, *shape), norm='ortho'), (-2, -1))
    for m in (low, high):
        assert torch.fft.ifft2(torch.fft.ifftshift(x * ~m, (-2, -1)), norm='ortho').imag.abs().max() < 1e-6


def test_the_disc_is_centred_and_strict():
    keep = ~Disc(2, p=1)(ml.layout((8, 8)))[0]
    # two bins away is on the edge, and out
    assert keep.nonzero().tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]


# 2. the halves

def test_the_two_halves_add_up_before_the_clamp(r, batch):
    mask = LOW(r.units(batch))
    kept, lost = bands(batch['image'], mask)
    assert_close(kept + lost, batch['image'], rtol=0, atol=1e-5)
    seen = [r(batch, mask=m).seen['image'] for m in (mask, ~mask)]
    assert_close(seen[1], lost.clamp(0, 1), rtol=0, atol=1e-5)
    assert (sum(seen) - batch['image']).abs().max() > .1 and seen[1].min() == 0


# 3. no leak

@pytest.mark.parametrize('strategy', [LOW, HIGH, Random(.5)])
def test_a_pattern_of_hidden_frequencies_changes_the_target_alone(r, batch, strategy):
    mask = r(batch, mask=strategy, generator=g()).mask
    _, pattern = bands(torch.rand(3, 3, 32, 32, generator=g(2)) - .5, mask)
    a, b = r(batch, mask=mask), r(r.units(batch).put(batch, spectrum(batch['image'] + pattern)), mask=mask)
    assert_close(a.seen['image'], b.seen['image'], rtol=0, atol=1e-5)
    assert_close(a.pred, b.pred, rtol=0, atol=1e-5)
    assert (a.target - b.target).abs().max() > .05


@pytest.mark.parametrize('more, masks', [({}, (LOW, HIGH, Random(.3))),
                                         (dict(encoder='test_resnet', stride=8), (None,))])
def test_leak_check(more, masks, batch):
    torch.manual_seed(0)
    r = MFM(**SMALL, **more)
    for mask in masks:
        report = ml.leak_check(r, batch, mask=mask, rounds=2)
        assert report.ok and report.changes['units'] == report.changes['gradient'] == 0, report


def test_without_the_filter_it_leaks(batch):
    class Bare(MFM):
        def hide(self, u, mask, generator, progress):
            return super().hide(u, mask, generator, progress)[0], picture(u.x).clamp(0, 1)

    class Late(MFM):                # normalised by its own mean and deviation before the filter
        def units(self, batch):
            x = batch['image'] - batch['image'].mean((1, 2, 3), keepdim=True)
            return super().units({**batch, 'image': (x / x.std((1, 2, 3), keepdim=True) * .1
                                                     + .5).clamp(0, 1)})

    torch.manual_seed(0)
    assert 'units, data, gradient' in repr(ml.leak_check(Bare(**SMALL), batch, rounds=2))
    contrast = dict(image=batch['image'] * torch.tensor([.3, .6, 1.]).view(3, 1, 1, 1))
    report = ml.leak_check(Late(**SMALL), contrast)
    assert not report.ok and report.changes['units'] == 0 < report.changes['data']


# 4. a constant picture

def test_a_constant_picture(r):
    flat = dict(image=torch.full((1, 3, 32, 32), .6))
    assert_close(r(flat, mask=LOW).seen['image'], flat['image'])
    assert_close(r(flat, mask=HIGH).seen['image'], torch.zeros(1, 3, 32, 32), rtol=0, atol=1e-6)
    assert (modulus(r.units(flat).x).mean(-1) > 1e-4).nonzero().tolist() == [[0, 16, 16]]


# 5. the transform

def test_parseval_and_a_perfect_answer(r, batch):
    x = batch['image']
    assert_close(spectrum(x).square().sum(), x.square().sum())
    assert_close(picture(spectrum(x)), x, rtol=0, atol=1e-6)
    exact = r.cut.colours(x).requires_grad_()
    r.predict = lambda maps: exact
    out = r(batch, generator=g())
    out.loss.backward()
    assert 1e-6 <= out.loss < 2e-5 and exact.grad.isfinite().all()
    assert_close(modulus(torch.zeros(2)), torch.tensor(1e-6))


def test_the_target_is_that_of_the_normalised_picture(r, batch):
    assert_close(r.target(r.units(batch)), spectrum(r.cut.colours(batch['image'])), rtol=1e-5, atol=1e-4)


def test_half_precision_transforms_in_single(r, batch):
    for dtype in (torch.float16, torch.bfloat16):
        assert spectrum(batch['image'].to(dtype)).dtype == torch.float32
        assert picture(spectrum(batch['image']).to(dtype)).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        half = r(batch, generator=g())
    assert half.pred.dtype == torch.float32
    assert_close(half.loss, r(batch, generator=g()).loss, rtol=.02, atol=0)


# 6. where the loss looks

def test_visible_frequencies_do_not_matter_and_errors_count_singly(r, batch):
    x, mask = r.cut.colours(batch['image']), LOW(r.units(batch))
    error = torch.randn(3, 3, 32, 32, generator=g(3))
    visible, hidden = (picture(torch.where(widen(m, spectrum(error)), 0., spectrum(error)))
                       for m in (mask, ~mask))
    losses = []
    for y in (hidden, hidden + visible, 2 * hidden):
        r.predict = lambda maps, y=y: x + y
        losses.append(r(batch, mask=mask).loss.detach())
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert_close(losses[2], 2 * losses[0], rtol=1e-5, atol=0)


def test_reduction_over_the_batch_or_each_sample(batch):
    u = MFM(**SMALL).units(batch)
    mask = torch.cat([LOW(ml.layout((32, 32))), HIGH(ml.layout((32, 32), batch=2))])
    found = {}
    for reduction in ('batch', 'sample'):
        torch.manual_seed(0)
        r = MFM(**SMALL, reduction=reduction).eval()
        out = r(batch, mask=mask)
        found[reduction] = float(out.loss.detach())
        each = [out.error[i][mask[i]] for i in range(3)]
        want = torch.cat(each).mean() if reduction == 'batch' else torch.stack(
            [e.mean() for e in each]).mean()
        assert_close(out.loss.detach(), want)
        d = modulus(spectrum(r.predict(r.encoder.maps(r.cut.colours(out.seen['image'])))) - spectrum(
            r.cut.colours(batch['image'])))
        theirs = (d * mask[..., None]).sum() / mask.sum() / 3           # as the released code writes it
        if reduction == 'batch':
            assert_close(out.loss, theirs, rtol=1e-4, atol=1e-5)
    assert found['batch'] != found['sample'] and len(u) == 3


def test_a_weight_prefers_large_errors(batch):
    losses = []
    for weight in (0., 1.):
        torch.manual_seed(0)
        out = MFM(**SMALL, weight=weight).eval()(batch, mask=HIGH)
        losses.append(float(out.loss.detach()))
        # the map shows plain errors
        assert float(out.error[out.mask].mean()) == pytest.approx(losses[0], rel=1e-5)
    assert 0 < losses[1] < losses[0]


@pytest.mark.parametrize('weight', [.5, 1., 2.])
@pytest.mark.parametrize('strategy', [LOW, HIGH])
def test_a_weight_is_a_share_of_the_largest_error_of_the_whole_spectrum(weight, strategy, batch):
    torch.manual_seed(0)
    r = MFM(**SMALL, weight=weight).eval()
    out = r(batch, mask=strategy)
    d = modulus(spectrum(r.predict(r.encoder.maps(r.cut.colours(out.seen['image'])))) - spectrum(
        r.cut.colours(batch['image'])))
    share = d ** weight / (d ** weight).amax((1, 2), keepdim=True)      # of kept bins, too
    assert_close(out.loss, ((share * d) * out.mask[..., None]).sum() / out.mask.sum() / 3, rtol=1e-3,
                 atol=1e-6)


# 7. the count

def test_one_of_two_counts_and_a_fair_coin():
    k = Disc()(ml.layout((224, 224), batch=400), generator=g()).flatten(1).sum(1)
    assert set(k.tolist()) == {793, 49_383} and abs(float((k == 49_383).float().mean()) - .5) < .08
    u = ml.layout((32, 32), batch=4000)
    for p in (.3, 0., 1.):
        low = Disc(3, p=p)(u, generator=g())[:, 0, 0]
        assert abs(float(low.float().mean()) - p) < .03
    assert ml.count_law(Disc(3), ml.layout((32, 32), batch=8), 200).alarms == ()
    assert [t.tolist() for t in Disc(3).counts(ml.layout((32, 32)))] == [[25], [999]]


# 8. fill

def test_fill_keeps_what_was_seen_and_takes_the_rest_from_the_prediction(r, batch):
    out = r(batch, generator=g())
    filled = spectrum(r.fill(batch, out)['image'])
    y = r.cut.colours.undo(r.predict(r.encoder.maps(r.cut.colours(out.seen['image']))))
    assert_close(filled[~out.mask], spectrum(batch['image'])[~out.mask], rtol=0, atol=1e-5)
    assert_close(filled[out.mask], spectrum(y)[out.mask], rtol=0, atol=1e-5)
    nothing = r(batch, mask=torch.zeros(3, 32, 32).bool())
    assert nothing.loss == 0 and torch.allclose(r.fill(batch, nothing)['image'], batch['image'], atol=1e-5)


# painted masks, bodies, sister tasks

def test_a_painted_bin_takes_its_twin_along(r, batch):
    one = torch.zeros(3, 32, 32).bool()
    one[0, 10, 20] = one[1, 16, 16] = one[2, 0, 5] = True
    out = r(batch, mask=one)
    assert [m.nonzero().tolist() for m in out.mask] == [[[10, 20], [22, 12]], [[16, 16]], [[0, 5], [0, 27]]]
    assert torch.equal(r(batch, mask=out.mask).mask, out.mask)


def test_a_body_from_outside(batch):
    class Body(torch.nn.Module):
        stride, dim = 4, 8
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 4, 4)
        def maps(self, image):
            return self.conv(image)

    r = MFM(encoder=Body(), strategy=Disc(3)).eval()
    assert ml.leak_check(r, batch).ok and r.features(batch).shape == (3, 8)


@pytest.mark.parametrize('name', DEGRADE)
def test_sister_tasks_hide_no_bin_and_score_all(name, batch):
    torch.manual_seed(0)
    r = MFM(**SMALL, corruption=name).eval()
    out, again = r(batch, generator=g()), r(batch, generator=g())
    assert out.mask is None and out.scored.all() and out.pred.shape == (3 * 1024, 3, 2)
    assert torch.equal(out.pred, again.pred) and not torch.equal(out.seen['image'], batch['image'])
    seen = out.seen['image']
    assert seen.shape == batch['image'].shape and seen.isfinite().all()
    y = r.cut.colours.undo(r.predict(r.encoder.maps(r.cut.colours(seen))))
    assert_close(r.fill(batch, out)['image'], y, rtol=0, atol=1e-5)
    assert 'hides nothing' in repr(ml.leak_check(r, batch))


def test_blur_shrinks_fast_waves_and_leaves_slow_ones():
    x = ml.sample('image', n=16, size=64)['image']
    for name in ('down', 'blur', 'blur5'):
        before, after = (by_radius(modulus(spectrum(v)).mean(-1)).mean(0) for v in (x, DEGRADE[name](x, g())))
        assert_close(after[0], before[0], rtol=.02, atol=0)
        assert after[20:30].sum() < .6 * before[20:30].sum()


def test_a_small_picture_is_not_smoothed_on_its_way_and_is_clamped_twice():
    x = torch.rand(2, 3, 45, 33, generator=g())
    small = torch.nn.functional.interpolate(x, (5, 4), mode='bicubic').clamp(0, 1)
    assert torch.equal(DEGRADE['down'](x),
                       torch.nn.functional.interpolate(small, (45, 33), mode='bicubic').clamp(0, 1))


def test_kernels_of_the_released_mixture():
    assert sum(CHANCES) == pytest.approx(1) and len(CHANCES) == 7
    k = kernels(4000, g())
    assert_close(k.sum((1, 2)), torch.ones(4000))
    assert_close(k, k.flip(1, 2))                                                   # none moves the picture
    turned = (k - k.rot90(1, (1, 2))).abs().amax((1, 2)) < 1e-5                     # as tall as wide
    ringing = k.amin((1, 2)) < -1e-6                                      # a sinc alone is negative somewhere
    assert float(ringing.float().mean()) == pytest.approx(CHANCES[6], abs=.02)
    assert float(turned.float().mean()) == pytest.approx(CHANCES[0] + CHANCES[2] + CHANCES[4] + CHANCES[6],
                                                         abs=.04)
    sides = torch.tensor([int((m.abs().amax(0) > 0).sum())
                          for m in kernels(400, g(), sigma=(9., 9.), chances=(1.,))])
    assert sides.unique().tolist() == [7, 9, 11, 13, 15, 17, 19, 21]


@pytest.mark.parametrize('size, low', [(11, 1 / 3), (13, 1 / 5)])
def test_the_cutoff_of_a_sinc_begins_lower_for_large_kernels(size, low):
    k = kernels(3000, g(), (size, size), chances=(0,) * 6 + (1.,))
    middle = k[:, size // 2, size // 2]                     # before all sum to 1, that is cut ** 2 / (4 pi)
    cut = (middle * 4 * torch.pi).sqrt() / torch.pi
    assert cut.min() == pytest.approx(low, abs=.05) and cut.median() == pytest.approx((1 + low) / 2, abs=.05)


def test_noise_is_grey_with_its_chance_and_not_clamped():
    x = torch.rand(600, 3, 16, 16, generator=g())
    for poisson in (0., 1.):
        d = DEGRADE['noise'](x, g(1), poisson=poisson) - x
        grey = (d - d[:, :1]).abs().amax((1, 2, 3)) < 1e-6
        assert float(grey.float().mean()) == pytest.approx(.4, abs=.06) and d.mean().abs() < .01
    y = DEGRADE['noise'](x, g())
    assert y.min() < 0 and y.max() > 1
    assert float((DEGRADE['noise75'](x, g()) - x).std()) == pytest.approx(75 / 255, rel=.01)
    one = DEGRADE['noise'](torch.rand(50, 1, 16, 16), g())
    assert one.shape == (50, 1, 16, 16) and one.isfinite().all()


def test_grain_is_counted_in_as_many_steps_as_there_are_values():
    # three values: four steps
    x = torch.tensor([0., 100, 200]).repeat_interleave(100).view(1, 1, 15, 20) / 255
    d = DEGRADE['noise'](x, g(), poisson=1.) - x
    assert d[x == 0].abs().max() == 0                       # without light no grain
    jumps = d[x > .5].sort().values.diff()
    jumps = jumps[jumps > 1e-4]
    # the same step between all
    assert_close(jumps / jumps.min(), (jumps / jumps.min()).round(), rtol=0, atol=1e-3)
    factor = float(jumps.min()) * 4
    assert .05 <= factor <= 3
    assert float(d[x > .5].var()) == pytest.approx(factor ** 2 * 200 / 255 / 4, rel=.5)


# sizes and doors

@pytest.mark.parametrize('image', [lambda x: x * 2 - 1, lambda x: (x - .45) / .225, lambda x: x + .1])
def test_pictures_outside_0_to_1_are_refused_as_mae_does(r, batch, image):
    other, mae = dict(image=image(batch['image'])), ml.create_recipe('mae', size='micro', image=32)
    said = []
    for net in (mae, r):
        for door in (net, net.features):
            with pytest.raises(ValueError, match='undo any mean') as error:
                door(other)
            said.append(str(error.value))
    assert len(set(said)) == 1 and len(said[0]) <= 200


def test_bins_put_together_may_leave_0_to_1(r, batch):
    u = r.units(batch)
    mixed = u.put(batch, torch.where(widen(LOW(u), u.x), u.x.roll(1, 0), u.x))
    assert mixed['image'].min() < -.01 and r(mixed, generator=g()).loss.isfinite()
    filled = r.fill(batch, r(batch, generator=g()))
    assert r.units(filled).shape == (32, 32) and set(filled) == {'image', 'put'}
    with pytest.raises(ValueError, match='undo any mean'):
        r(dict(image=mixed['image']))


def test_a_sweep_of_radii_up_to_the_corner():
    u = ml.layout((224, 224))
    kept = [int(Disc(radius, p=0)(u).sum()) for radius in (1, 16, 64, 70, 112, 158)]
    assert kept == sorted(set(kept)) and kept[0] == 1 and kept[1] == 793 and kept[-1] < 224 ** 2
    with pytest.raises(ValueError, match='ends 158.4') as error:
        Disc(1e9)(u)
    assert len(str(error.value)) <= 200
    radius, p = controls(Disc(70))
    # the slider ends, the radius does not
    assert (radius['value'], radius['high']) == (70, 64) and p['high'] == 1
    assert eval(repr(Disc(70))) == Disc(70)


def test_plan_says_what_the_card_says():
    plan = MFM.plan
    assert (plan.lr, plan.per, plan.clip, plan.betas, plan.schedule) == (3e-4, 512, 3., (.9, .95), 'cosine')
    assert_close(plan.floor * plan.lr, 2.5e-6)
    assert_close(plan.warmup * 300, 20.)

def test_attention_and_other_sizes(r, batch):
    w, q, k = r.attention(batch, LOW(r.units(batch)))
    assert w.shape == (2, 3, 4, 17, 17) and (q == -1).all() and (k == -1).all()
    assert_close(w.sum(-1), torch.ones(2, 3, 4, 17))
    b = dict(image=torch.rand(2, 3, 24, 40))
    assert r(b, generator=g()).mask.shape == (2, 24, 40)


def test_sizes_of_the_paper():
    with torch.device('meta'):
        base, resnet = MFM(**MFM.sizes['base']), MFM(encoder='resnet50', strategy=Disc(p=.3))
    assert sum(p.numel() for p in base.head.parameters()) == 590_592 and sum(
        p.numel() for p in resnet.head.parameters()) == 6_294_528
    assert base.encoder.net.no_weight_decay() == {'pos_embed'}
    spared = decay_groups(base, .05)[1]['params']
    assert any(p is base.encoder.net.pos_embed for p in spared)


@pytest.mark.parametrize('make, words', [
    (lambda r, b: r(b, mask=Disc(30)), 'Disc(radius=30): this spectrum of (32, 32) bins ends 22.6'),
    (lambda r, b: Disc(0), 'from 1'), (lambda r, b: Disc(8, outer=8), 'more than the radius'),
    (lambda r, b: Disc(8, 'x'), 'a number'), (lambda r, b: Disc(float('inf')), 'a number'),
    (lambda r, b: Disc(p=2), 'from 0 to 1'),
    (lambda r, b: Disc('9'), "radius='9'"), (lambda r, b: Disc(70)(ml.layout((64, 64))), 'ends 45.3'),
    (lambda r, b: MFM(corruption='fog'), "choose one of 'mask', 'down'"),
    (lambda r, b: MFM(reduction='sum'), "'batch', 'sample'"),
    (lambda r, b: MFM(encoder='resnet5'), 'did you mean'),
    (lambda r, b: MFM(encoder='resnet18', stride=5), 'stride 5'),
    (lambda r, b: MFM(encoder=3), 'name of timm'), (lambda r, b: MFM(image=30, patch=8), 'divide'),
    (lambda r, b: r(dict(image=b['image'] * 255)), '0..1'),
    (lambda r, b: r(dict(image=b['image'][..., :30])), 'multiple'),
    (lambda r, b: r(b, mask=torch.zeros(3, 4, 4).bool()), '[3, 32, 32]'),
    (lambda r, b: r(b, mask=torch.zeros(3, 32, 32)), 'bool')])
def test_bad_input_is_one_sentence(r, batch, make, words):
    with pytest.raises((ValueError, TypeError)) as error:
        make(r, batch)
    assert words in str(error.value) and len(str(error.value)) <= 200
