"""MFM: the invariants of the method (Xie et al. 2023), on a network small enough for seconds."""
import pytest
import torch
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.corruptions.degrade import DEGRADE
from maskedlab.masks.disc import Disc, paired
from maskedlab.masks.strategies import Random
from maskedlab.masks.units import widen
from maskedlab.recipes.mfm import MFM
from maskedlab.targets.spectrum import by_radius, modulus, picture, spectrum

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, strategy=Disc(3))
LOW, HIGH = Disc(3, p=1), Disc(3, p=0)


def g(seed=0): return torch.Generator().manual_seed(seed)


def bands(x, mask):
    "The kept and the hidden part of pictures."
    return tuple(picture(torch.where(widen(m, spectrum(x)), 0., spectrum(x))) for m in (mask, ~mask))


@pytest.fixture
def r():
    torch.manual_seed(0)
    return MFM(**SMALL).eval()


@pytest.fixture
def batch(): return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


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
    assert keep.nonzero().tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]      # two bins away is on the edge, and out


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
    a, b = r(batch, mask=mask), r(dict(image=batch['image'] + pattern), mask=mask)
    assert_close(a.seen['image'], b.seen['image'], rtol=0, atol=1e-5)
    assert_close(a.pred, b.pred, rtol=0, atol=1e-5)
    assert (a.target - b.target).abs().max() > .05


@pytest.mark.parametrize('more, masks', [({}, (LOW, HIGH, Random(.3))), (dict(encoder='test_resnet', stride=8), (None,))])
def test_leak_check(more, masks, batch):
    torch.manual_seed(0)
    r = MFM(**SMALL, **more)
    for mask in masks:
        report = ml.leak_check(r, batch, mask=mask)
        assert report.ok and report.changes['units'] == report.changes['gradient'] == 0, report


def test_without_the_filter_it_leaks(batch):
    class Bare(MFM):
        def keep(self, u, mask): return picture(u.x).clamp(0, 1)

    class Late(MFM):                # normalised by its own mean and deviation before the filter
        def units(self, batch):
            x = batch['image'] - batch['image'].mean((1, 2, 3), keepdim=True)
            return super().units(dict(image=(x / x.std((1, 2, 3), keepdim=True) * .2 + .5).clamp(-1, 2)))

    torch.manual_seed(0)
    assert 'units, data, gradient' in repr(ml.leak_check(Bare(**SMALL), batch))
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
    exact = r.colours(x).requires_grad_()
    r.predict = lambda maps: exact
    out = r(batch, generator=g())
    out.loss.backward()
    assert 1e-6 <= out.loss < 2e-5 and exact.grad.isfinite().all()
    assert_close(modulus(torch.zeros(2)), torch.tensor(1e-6))


def test_the_target_is_that_of_the_normalised_picture(r, batch):
    assert_close(r.target(r.units(batch)), spectrum(r.colours(batch['image'])), rtol=1e-5, atol=1e-4)


def test_half_precision_transforms_in_single(r, batch):
    for dtype in (torch.float16, torch.bfloat16):
        assert spectrum(batch['image'].to(dtype)).dtype == torch.float32
        assert picture(spectrum(batch['image']).to(dtype)).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16): half = r(batch, generator=g())
    assert half.pred.dtype == torch.float32
    assert_close(half.loss, r(batch, generator=g()).loss, rtol=.02, atol=0)


# 6. where the loss looks

def test_visible_frequencies_do_not_matter_and_errors_count_singly(r, batch):
    x, mask = r.colours(batch['image']), LOW(r.units(batch))
    error = torch.randn(3, 3, 32, 32, generator=g(3))
    visible, hidden = (picture(torch.where(widen(m, spectrum(error)), 0., spectrum(error))) for m in (mask, ~mask))
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
        want = torch.cat(each).mean() if reduction == 'batch' else torch.stack([e.mean() for e in each]).mean()
        assert_close(out.loss.detach(), want)
        d = modulus(spectrum(r.predict(r.encoder.maps(r.colours(out.seen['image'])))) - spectrum(r.colours(batch['image'])))
        theirs = (d * mask[..., None]).sum() / mask.sum() / 3           # as the released code writes it
        if reduction == 'batch': assert_close(out.loss, theirs, rtol=1e-4, atol=1e-5)
    assert found['batch'] != found['sample'] and len(u) == 3


def test_a_weight_prefers_large_errors(batch):
    losses = []
    for weight in (0., 1.):
        torch.manual_seed(0)
        out = MFM(**SMALL, weight=weight).eval()(batch, mask=HIGH)
        losses.append(float(out.loss.detach()))
        assert float(out.error[out.mask].mean()) == pytest.approx(losses[0], rel=1e-5)      # the map shows plain errors
    assert 0 < losses[1] < losses[0]


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
    y = r.colours.undo(r.predict(r.encoder.maps(r.colours(out.seen['image']))))
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


@pytest.mark.parametrize('name, stride, cells', [('test_resnet', 8, 16), ('resnet18', None, 1), ('test_convnext', None, 1),
                                                 ('test_vit2', None, 4)])
def test_any_body_of_timm(name, stride, cells, batch):
    r = MFM(encoder=name, stride=stride, strategy=Disc(3)).eval()
    out = r(batch, generator=g())
    assert r.features(batch, pool=False).shape == (3, cells, r.encoder.dim)
    assert r.fill(batch, out)['image'].shape == (3, 3, 32, 32)
    assert (r.attention is None) == (name != 'test_vit2')
    r.train()(batch, generator=g()).loss.backward()
    assert all(p.grad is not None for p in r.parameters())


def test_a_body_from_outside(batch):
    class Body(torch.nn.Module):
        stride, dim = 4, 8
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 4, 4)
        def maps(self, image, watch=None): return self.conv(image)

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
    assert seen.shape == batch['image'].shape and 0 <= seen.min() and seen.max() <= 1
    y = r.colours.undo(r.predict(r.encoder.maps(r.colours(seen))))
    assert_close(r.fill(batch, out)['image'], y, rtol=0, atol=1e-5)
    assert 'hides nothing' in repr(ml.leak_check(r, batch))


def test_blur_shrinks_fast_waves_and_leaves_slow_ones():
    x = ml.sample('image', n=16, size=64)['image']
    for f in (DEGRADE['down'], DEGRADE['blur']):
        before, after = (by_radius(modulus(spectrum(v)).mean(-1)).mean(0) for v in (x, f(x, g())))
        assert_close(after[0], before[0], rtol=.02, atol=0)
        assert after[20:30].sum() < .6 * before[20:30].sum()


# sizes and doors

def test_attention_and_other_sizes(r, batch):
    w, q, k = r.attention(batch, LOW(r.units(batch)))
    assert w.shape == (2, 3, 4, 17, 17) and (q == -1).all() and (k == -1).all()
    assert_close(w.sum(-1), torch.ones(2, 3, 4, 17))
    b = dict(image=torch.rand(2, 3, 24, 40))
    assert r(b, generator=g()).mask.shape == (2, 24, 40)


def test_sizes_of_the_paper():
    with torch.device('meta'): base, resnet = MFM(**MFM.sizes['base']), MFM(encoder='resnet50', strategy=Disc(p=.3))
    assert sum(p.numel() for p in base.head.parameters()) == 590_592 and sum(p.numel() for p in resnet.head.parameters()) == 6_294_528
    assert base.no_weight_decay() == {'encoder.net.pos_embed'} and 'encoder.net.pos_embed' in dict(base.named_parameters())


@pytest.mark.parametrize('make, words', [
    (lambda r, b: r(b, mask=Disc(30)), 'Disc(radius=30): this spectrum of (32, 32) bins ends 22.6'),
    (lambda r, b: Disc(0), 'from 1 to 64'), (lambda r, b: Disc(8, outer=8), 'more than the radius'),
    (lambda r, b: Disc(8, 'x'), 'a number'),
    (lambda r, b: MFM(corruption='fog'), "choose 'mask' or 'down'"), (lambda r, b: MFM(reduction='sum'), "'batch' or 'sample'"),
    (lambda r, b: MFM(encoder='resnet5'), 'did you mean'), (lambda r, b: MFM(encoder='resnet18', stride=5), 'stride 5'),
    (lambda r, b: MFM(encoder=3), 'name of timm'), (lambda r, b: MFM(image=30, patch=8), 'divide'),
    (lambda r, b: r(dict(image=b['image'] * 255)), '0..1'), (lambda r, b: r(dict(image=b['image'][..., :30])), 'multiple'),
    (lambda r, b: r(b, mask=torch.zeros(3, 4, 4).bool()), '[3, 32, 32]'), (lambda r, b: r(b, mask=torch.zeros(3, 32, 32)), 'bool')])
def test_bad_input_is_one_sentence(r, batch, make, words):
    with pytest.raises((ValueError, TypeError)) as error: make(r, batch)
    assert words in str(error.value) and len(str(error.value)) <= 200
