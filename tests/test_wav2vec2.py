"""wav2vec 2.0 by the invariants of its card, on networks small enough for seconds."""

import math
import warnings

import numpy as np
import pytest
import torch
from given import choosing_at_both_ends, g
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.data.sound import resample
from maskedlab.contract.units import layout, rows
from maskedlab.masks.span import Span
from maskedlab.parts.discrete import ProductQuantiser, even_use, falling
from maskedlab.parts.frames import ConvFrontEnd
from maskedlab.recipes.sound.wav2vec2 import Wav2Vec2
from maskedlab.targets.contrast import distractors, info_nce

SMALL = dict(
    rate=8000,
    channels=16,
    kernels=(10, 3, 3, 3, 2, 2),
    strides=(5, 2, 2, 2, 2, 2),
    dim=32,
    depth=2,
    heads=4,
    reach=8,
    words=8,
    width=16,
    distractors=12,
    strategy=Span(0.65, 5, equal=True),
)


def make(**more):
    torch.manual_seed(0)
    return Wav2Vec2(**SMALL | more).eval()


@pytest.fixture(scope='module')
def batch():
    return ml.sample('wave', 6, seconds=0.7)


# ---- 1, 2: the mask


def test_padding_is_never_hidden_and_counts_are_equal(batch):
    r = make()
    u = r.units(batch)
    assert not u.valid.all()
    for seed in range(5):
        out = r(batch, generator=g(seed))
        assert not (out.mask & ~u.valid).any() and out.mask.sum(1).unique().numel() == 1
        assert len(out.pred) == int(out.mask.sum())


def test_one_frame_spans_have_the_released_count():
    u = layout((50,), batch=4000)
    k = Span(0.65, 1)(u, generator=g()).sum(1).float()
    assert set(k.int().tolist()) == {32, 33} and abs(float(k.mean()) - 32.5) < 0.05
    means = [Span(p, 5)(u, generator=g()).float().mean() for p in (0.2, 0.5, 0.8)]
    most = [(int(p * 50 / 5) + 1) * 5 / 50 for p in (0.2, 0.5, 0.8)]
    assert means == sorted(means) and all(float(m) <= top for m, top in zip(means, most))


# ---- 3: what is hidden is read by the target alone


def test_a_guess_does_not_know_what_is_hidden_and_the_target_does(batch):
    r = make()
    u = r.units(batch)
    out = r(batch, units=u, generator=g())
    changed = u.swap(out.mask)
    again = r(batch, mask=out.mask, units=changed, generator=g())
    assert torch.equal(out.pred, again.pred) and not torch.equal(out.target, again.target)
    seen = r(batch, mask=out.mask, units=u.swap(u.valid & ~out.mask), generator=g())
    assert not torch.equal(seen.pred, out.pred)
    assert ml.leak_check(r, batch, rounds=2).ok


def test_hiding_after_the_convolution_of_positions_would_leak(batch):
    """The control: replaced behind it, hidden frames speak through their neighbours."""

    class Late(Wav2Vec2):
        def encode(self, f, u, mask):
            e, x = self.encoder, self.project(f)
            place = torch.nn.functional.gelu(e.place(x.mT)[..., : x.shape[1]]).mT
            x = torch.where(mask[..., None], self.mask_token, x) + place
            for block in e.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    assert not ml.leak_check(Late(**SMALL).eval(), {'wave': batch['wave']}, rounds=1).ok


# ---- 4: distractors


def test_distractors_are_others_of_the_same_recording():
    which = torch.rand(5, 40, generator=g()) < torch.tensor([0.1, 0.3, 0.5, 0.9, 0.0])[:, None]
    which[4, 3] = True
    sample, frame = which.nonzero(as_tuple=True)
    others, some = distractors(which, 300, g(1))
    n = len(sample)
    assert others.shape == (n, 300) and (some == (which.sum(1)[sample] > 1)).all()
    real = some[:, None].expand_as(others)
    assert (sample[others] == sample[:, None])[real].all()
    assert (others != torch.arange(n)[:, None])[real].all()
    one = others[sample == 3][0]  # every other one alike
    counts = one.bincount(minlength=n)[sample == 3]
    assert (counts > 0).sum() == which[3].sum() - 1


def test_a_word_that_is_the_right_one_adds_nothing():
    q, k = torch.randn(2, 4, 8, generator=g())
    others = torch.tensor([[1, 2], [0, 2], [3, 3], [0, 1]])
    none = torch.zeros(4, 2).bool()
    out = none.clone()
    out[0, 1] = True
    e, all_ = (info_nce(q, k, others, o)[0] for o in (out, none))
    alone = info_nce(q, k, others[:, :1], none[:, :1])[0]
    assert_close(e[:1], alone[:1])
    assert e[0] < all_[0] and torch.equal(e[1:], all_[1:])


def test_equal_words_are_out_of_the_comparison(batch):
    r = make(words=1)  # one word: nothing is told apart, and nothing is asked
    out = r(batch, generator=g())
    assert float(out.terms['contrast'].detach()) == pytest.approx(0, abs=1e-5)


# ---- 5: diversity


def test_diversity_of_even_and_of_single_words():
    assert float(even_use(torch.zeros(9, 2, 7))[0]) == pytest.approx(0, abs=1e-5)
    one = torch.full((9, 2, 7), -50.0)
    one[..., 3] = 50
    uneven, alike = even_use(one)
    assert float(uneven) == pytest.approx((14 - 2) / 14, abs=1e-5)
    assert float(alike) == pytest.approx(2, abs=1e-4)
    taken = one.clone()  # each row sure of its word, and all words taken: even
    for i in range(7):
        taken[i] = -50
        taken[i, :, i] = 50
    assert float(even_use(taken[:7])[0]) == pytest.approx(0, abs=1e-5)


def test_diversity_knows_neither_the_draw_nor_its_temperature(batch):
    """It is of the plain softmax: other noise and another temperature choose other words, no more."""
    r = make().train()
    mask = r(batch, generator=g()).mask
    a, b = (r(batch, mask=mask, generator=g(s), progress=p) for s, p in ((1, 0.0), (2, 1.0)))
    assert not torch.equal(a.words, b.words) and torch.equal(a.terms['diversity'], b.terms['diversity'])
    p = r.quantiser.choose(rows(r.norm(a.units.x), mask)).unflatten(-1, (2, 8)).softmax(-1).mean(0)
    by_hand = (16 - torch.exp(-(p * p.log()).sum(-1)).sum()) / 16
    assert_close(a.terms['diversity'], 0.1 * by_hand, atol=1e-5, rtol=1e-4)


def test_the_size_of_frames_counts_real_frames_before_the_norm(batch):
    r = make(penalty=10.0)
    out = r(batch, generator=g())
    x = r.cut(batch['wave'].masked_fill(~batch['wave_valid'], 0))
    assert_close(out.terms['size of frames'], 10 * x[out.units.valid].square().mean())
    assert_close(out.loss, sum(out.terms.values()))
    quiet = make(penalty=0.0)(batch, mask=out.mask, generator=g())
    assert float(quiet.terms['size of frames'].detach()) == 0


# ---- 6: the loss at the start, and its gradient


def test_random_vectors_have_the_loss_of_a_guess():
    which = torch.ones(10, 40).bool()
    q, k = torch.randn(2, 400, 256, generator=g())
    others, _ = distractors(which, 100, g())
    e = info_nce(q, k, others, torch.zeros_like(others).bool())[0]
    assert float(e.mean()) == pytest.approx(math.log(101), abs=0.3)


def test_the_gradient_reaches_choice_words_and_convolutions(batch):
    r = make().train()
    out = r(batch, generator=g())
    out.terms['contrast'].backward()
    q = r.quantiser
    for p in (q.choose.weight, q.codebook, r.cut.convs[0].weight, r.mask_token, r.told.weight):
        assert p.grad is not None and p.grad.abs().sum() > 0
    q.zero_grad()  # the choice learns from the contrast alone by the straight-through gradient
    f = r.norm(r.units(batch).x).detach()
    v, _, _ = q(rows(f, out.mask), out.mask, 0.7, g())
    v.square().sum().backward()
    assert q.choose.weight.grad.abs().sum() > 0


def test_a_colder_draw_has_a_steeper_gradient(batch):
    """The temperature falls over the run, and reaches the quantiser."""
    first, last = choosing_at_both_ends(make, batch)
    assert (first - last).abs().max() > 0.1 * first.abs().max()


def test_everything_starts_as_released():
    r = make(dim=512, width=256, words=64, channels=64)
    token, book = r.mask_token.detach(), r.quantiser.codebook.detach()
    for x in (token, book):  # uniform in 0..1
        assert 0 <= x.min() < 0.05 and 0.95 < x.max() <= 1 and abs(float(x.mean()) - 0.5) < 0.05
    choose = r.quantiser.choose
    assert abs(float(choose.weight.detach().std()) - 1) < 0.05 and not choose.bias.any()
    assert all(c.bias is None for c in r.cut.convs) and r.cut.norm.num_groups == 64


def test_a_tenth_of_the_gradient_reaches_the_convolutions(batch):
    found = []
    for share in (1.0, 0.1):
        r = make(gradient=share, penalty=0.0)
        r(batch, generator=g()).loss.backward()
        found.append((r.cut.convs[2].weight.grad, r.project.weight.grad))
    assert_close(found[1][0], found[0][0] * 0.1, rtol=1e-3, atol=1e-6)
    assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


# ---- 7: hard words in training, no chance in evaluation


def test_words_are_whole_and_evaluation_has_no_chance(batch):
    q = ProductQuantiser(6, 2, 5, 8)
    x, which = torch.randn(30, 6, generator=g()), torch.ones(3, 10).bool()
    v, ids, _ = q(x, which, 2.0, g())
    book = q.codebook.view(2, 5, 4)
    assert_close(v, torch.cat([book[i, ids[:, i]] for i in range(2)], 1))
    assert not torch.equal(ids, q(x, which, 2.0, g(1))[1])  # a draw
    q.eval()
    assert torch.equal(q(x, which, 2.0, g())[1], q(x, which, 0.1, g(1))[1])
    r = make()
    a, b = (r(batch, mask=r(batch, generator=g()).mask, generator=g(s)) for s in (1, 2))
    assert torch.equal(a.words, b.words) and torch.equal(a.target, b.target)


def test_draws_cool_down():
    by_step = [max(2 * 0.999995**s, 0.5) for s in (0, 100_000, 200_000, 400_000)]
    ours = [falling(2.0, 0.5, 0.135, p) for p in (0, 0.25, 0.5, 1)]
    assert np.allclose(ours, by_step, atol=0.01)
    q = ProductQuantiser(6, 1, 5, 8)
    x, which = torch.randn(1, 6, generator=g()).expand(4000, 6), torch.ones(1, 4000).bool()
    torch.nn.init.normal_(q.choose.weight, std=0.3)
    logits = q.choose(x[:1])
    ids = q(x, which, 0.5, g())[1]  # the draw itself has the odds of the plain softmax, at any temperature
    assert_close(ids[:, 0].bincount(minlength=5) / 4000, logits[0].softmax(-1).detach(), atol=0.03, rtol=0)


# ---- the rest


def test_padding_does_not_matter(batch):
    r = make()
    r.cut.norm = torch.nn.Identity()  # which looks at the whole clip
    wide = {
        'wave': torch.nn.functional.pad(batch['wave'], (0, 1600)),
        'wave_valid': torch.nn.functional.pad(batch['wave_valid'], (0, 1600)),
    }
    assert_close(r.features(wide), r.features(batch), atol=1e-4, rtol=0)


def test_ragged_masks_and_none(batch):
    r = make()
    u = r.units(batch)
    mask = u.none()
    mask[0, 3] = mask[1, 2:9] = True
    out = r(batch, mask=mask, generator=g())
    assert out.loss.isfinite() and out.error[0, 3] == 0  # nothing to tell it from
    assert (out.scored == mask).all()
    nothing = r(batch, mask=u.none(), generator=g())
    assert float(nothing.terms['contrast'].detach()) == float(nothing.terms['diversity'].detach()) == 0


def test_more_distractors_than_frames_come_twice_and_that_is_said(batch):
    """Drawn with replacement, as released; what no recording can give is said in a sentence."""
    with pytest.warns(UserWarning, match='distractors=500, and a sample has 34 units.*=17') as told:
        assert make(distractors=500)(batch, generator=g()).loss.isfinite()
    assert len(told) == 1 and len(str(told[0].message)) <= 200
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        out = make(distractors=30)(batch, generator=g())
    assert out.mask.sum(1).max() < 30 and out.loss.isfinite()


@pytest.mark.parametrize(
    'bad, why',
    [
        (lambda b: {}, 'ml.sample'),
        (lambda b: {'wave': b['wave'][:, None]}, 'stereo'),
        (lambda b: {'wave': b['wave'] * torch.nan}, 'NaN'),
        (lambda b: {'wave': b['wave'], 'rate': b['rate'] * 0}, 'rate=0'),
        (lambda b: {'wave': b['wave'][:, :150]}, 'a frame takes 200'),
        (lambda b: {'wave': b['wave'] * 30000}, '32768'),
        (lambda b: {'wave': (b['wave'] * 30000).short()}, 'int16'),
        (lambda b: b | {'wave_valid': b['wave_valid'][:, 1:]}, 'wave_valid'),
    ],
)
def test_bad_sound_is_said_in_a_sentence(batch, bad, why):
    with pytest.raises((ValueError, TypeError), match=why) as told:
        make()(bad(batch), generator=g())
    assert len(str(told.value)) <= 200


def test_silence_stays_finite(batch):
    out = make()({'wave': batch['wave'] * 0}, generator=g())
    assert out.loss.isfinite()


def test_sound_of_another_rate_is_refused_and_resampled_it_is_the_same(batch):
    r = make()
    twice = ml.sample('wave', 6, seconds=0.7, rate=16000)
    with pytest.raises(ValueError, match='made for 8000'):
        r.units(twice)
    back = {'wave': resample(twice['wave'], 16000, 8000)}
    assert_close(r.features(back), r.features({'wave': batch['wave']}), atol=0.2, rtol=0)


def test_frames_follow_from_kernels_and_strides():
    cut = ConvFrontEnd(4, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 16000)
    assert (cut.least, cut.step, cut.frames(16000)) == (400, 320, 49)
    for n in (400, 719, 720, 5000):
        assert cut(torch.zeros(1, n)).shape[1] == cut.frames(n) == (n - 400) // 320 + 1
