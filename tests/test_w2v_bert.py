"""w2v-BERT by the invariants of its card, on networks small enough for seconds."""

import math

import pytest
import torch
import torch.nn.functional as F
from given import choosing_at_both_ends, g
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.recipe import child
from maskedlab.contract.units import rows
from maskedlab.masks.span import Span
from maskedlab.parts.frames import MelFrontEnd
from maskedlab.recipes.sound.w2v_bert import W2VBert
from maskedlab.targets.contrast import among_own

SMALL = dict(
    rate=8000,
    mels=20,
    channels=4,
    dim=32,
    depth=3,
    below=2,
    heads=4,
    kernel=3,
    words=8,
    width=16,
    distractors=6,
    strategy=Span(0.65, 3, equal=True),
)


def make(**more):
    torch.manual_seed(0)
    return W2VBert(**SMALL | more).eval()


@pytest.fixture(scope='module')
def batch():
    return ml.sample('wave', 6, seconds=0.9, words=2)


def reached(term, recipe):
    """Parameters that a term teaches."""
    recipe.zero_grad()
    term.backward(retain_graph=True)
    return {n for n, p in recipe.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


# ---- 1, 2: the words


def test_words_do_not_depend_on_the_mask_nor_on_the_noise(batch):
    r = make()
    u = r.units(batch)
    every = r(batch, mask=u.free.clone(), generator=g())
    some = r(batch, generator=g(3))
    assert torch.equal(rows(every.units.valid, some.mask), torch.ones(len(some.target)).bool())
    ids = u.free.long()[..., None].clone()
    ids[u.free] = every.target
    assert torch.equal(some.target, ids[some.mask])
    again = r(batch, mask=some.mask, generator=g(4))
    assert torch.equal(again.target, some.target) and not torch.equal(again.pred, some.pred)
    moved = r(batch, mask=some.mask, units=u.swap(some.mask), generator=g(3))
    assert not torch.equal(moved.target, some.target)


def test_holes_are_random_vectors_drawn_anew(batch):
    r, seen = make(), []
    hook = r.project.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    out = r(batch, generator=g())
    r(batch, mask=out.mask, generator=g(1))
    hook.remove()
    one, two = (rows(x, out.mask) for x in seen)
    assert not (one == two).any()
    one, two = one.detach(), two.detach()
    assert abs(float(one.mean())) < 0.1 and float(one.std()) == pytest.approx(1, abs=0.1)
    clean = r.norm(r.units(batch).x)
    assert all(torch.equal(rows(x, ~out.mask), rows(clean, ~out.mask)) for x in seen)


def test_what_is_hidden_is_read_by_the_target_alone(batch):
    r = make()
    u = r.units(batch)
    out = r(batch, units=u, generator=g())
    changed = r(batch, mask=out.mask, units=u.swap(out.mask), generator=g())
    assert torch.equal(out.pred, changed.pred) and torch.equal(out.extra['middle'], changed.extra['middle'])
    seen = r(batch, mask=out.mask, units=u.swap(u.valid & ~out.mask), generator=g())
    assert not torch.equal(seen.pred, out.pred)
    assert ml.leak_check(r, batch, rounds=2).ok


# ---- 3: the weights of the two losses


def test_without_naming_it_is_the_contrast_alone(batch):
    r = make(gamma=0.0)
    out = r(batch, generator=g())
    both = make()(batch, generator=g())
    f = r.norm(r.units(batch).x)
    v, ids, _ = r.quantiser(rows(f, out.mask), out.mask)
    whole = g()
    _, luck = child(whole), child(whole)  # of the mask, and of all else
    torch.randn(f.shape, generator=luck)  # the noise comes first
    e = among_own(r.guess(out.extra['middle']), r.told(v), ids, out.mask, r.k, r.sharpness, luck)[0]
    assert_close(out.terms['contrast'], e.mean())
    assert torch.equal(out.terms['contrast'], both.terms['contrast'])
    assert float(out.terms['words'].detach()) == 0 < float(both.terms['words'].detach())


def test_words_are_constants_for_those_who_name_them(batch):
    r = make(beta=0.0).train()
    got = reached(r(batch, generator=g()).loss, r)
    assert not any(n.startswith(('quantiser', 'guess', 'told')) for n in got)
    assert {'say.weight', 'encoder.blocks.0.conv.near.weight', 'cut.convs.0.weight'} <= got


def test_naming_through_the_words_is_what_breaks_it(batch):
    """The control: a straight-through word hands the gradient on, and a few steps make all words one."""

    class Through(W2VBert):
        def missed(self, pred, ids, logits):
            soft = logits.softmax(-1)
            hot = F.one_hot(ids, soft.shape[-1]) + soft - soft.detach()
            return -(hot * pred.log_softmax(-1)).sum(-1).mean(-1)

    torch.manual_seed(0)
    r = Through(**SMALL | dict(beta=0.0)).train()
    out = r(batch, generator=g())
    assert 'quantiser.choose.weight' in reached(out.loss, r)
    assert_close(out.terms['words'], make(beta=0.0).train()(batch, generator=g()).terms['words'])


# ---- 4: which way the gradient goes


def test_naming_teaches_all_blocks_and_the_contrast_those_below(batch):
    r = make().train()
    out = r(batch, generator=g())
    block = lambda names: {n.split('.')[2] for n in names if n.startswith('encoder.blocks.')}
    assert block(reached(out.terms['words'], r)) == {'0', '1', '2'}
    assert block(reached(out.terms['contrast'], r)) == {'0', '1'}
    assert 'quantiser.choose.weight' in reached(out.terms['diversity'], r)


def test_a_second_mask_for_naming_would_be_seen(batch):
    """One pass and one mask: what is named is a function of the very vectors that were compared."""
    r = make()
    out = r(batch, generator=g())
    u, middle = out.units, []
    hook = r.encoder.blocks[1].register_forward_hook(lambda m, x, y: middle.append(y))
    r(batch, mask=out.mask, generator=g())
    hook.remove()
    assert len(middle) == 1
    assert_close(rows(middle[0], out.mask), out.extra['middle'])
    top = r.encoder.blocks[2](middle[0], ~u.valid)
    assert_close(r.say(rows(top, out.mask)), out.pred.flatten(1))


# ---- 5: one set of frames for all terms


def test_all_terms_count_the_hidden_frames_and_padding_never(batch):
    r = make()
    u = r.units(batch)
    assert not u.valid.all()
    out = r(batch, generator=g())
    n = int(out.mask.sum())
    assert out.counts == dict.fromkeys(('contrast', 'words', 'diversity'), n)
    assert len(out.pred) == len(out.target) == len(out.extra['middle']) == n
    assert not (out.mask & ~u.valid).any() and torch.equal(out.scored, out.mask)
    noisy = {**batch, 'wave': batch['wave'].masked_fill(~batch['wave_valid'], 0.7)}
    again = r(noisy, mask=out.mask, generator=g())
    assert_close(again.loss, out.loss)
    x = u.x.masked_fill(~u.valid[..., None], 9.0)  # nor what a network makes of it
    assert_close(r(batch, mask=out.mask, units=u.but(x=x), generator=g()).loss, out.loss)


# ---- 6: diversity and distractors


def test_diversity_stays_below_one_and_distractors_are_others(batch):
    r = make(diversity=1.0)
    torch.nn.init.zeros_(r.quantiser.choose.weight)
    assert float(r(batch, generator=g()).terms['diversity'].detach()) == pytest.approx(0, abs=1e-5)
    r.quantiser.choose.bias.data[3] = 50
    out = r(batch, generator=g())
    assert float(out.terms['diversity'].detach()) == pytest.approx(7 / 8, abs=1e-4)
    assert float(out.terms['contrast'].detach()) == pytest.approx(0, abs=1e-4)  # nothing is asked
    out = make()(batch, generator=g())
    others, near = out.extra['others'], out.choices
    rec = out.mask.nonzero()[:, 0]
    assert (rec[others] == rec[:, None]).all() and (others != torch.arange(len(others))[:, None]).all()
    same = (out.target[others] == out.target[:, None]).all(-1)
    assert same.any() and torch.equal(near[:, 1:].isinf(), same)


# ---- 7: how the blocks are split


@pytest.mark.parametrize('below', [0, 3])
def test_all_blocks_may_lie_on_one_side(batch, below):
    r = make(below=below)
    out = r(batch, generator=g())
    out.loss.backward()
    assert out.loss.isfinite()
    middle, top = r.encode(r.norm(out.units.x), out.units, out.mask, g())
    assert torch.equal(middle, top) == (below == 3)
    assert r.features(batch).shape == (6, 32)


def test_depth_is_the_same_however_it_is_split():
    count = lambda below: sum(p.numel() for p in make(below=below).parameters())
    assert count(0) == count(1) == count(3)
    with pytest.raises(ValueError, match='below=4: the network has depth=3') as told:
        make(below=4)
    assert len(str(told.value)) <= 200


# ---- the rest


def test_a_guess_at_the_start_is_worth_the_logarithm(batch):
    out = make(words=32)(batch, generator=g())
    assert float(out.terms['words'].detach()) == pytest.approx(math.log(32), abs=0.7)


def test_two_dictionaries(batch):
    r = make(groups=2)
    out = r(batch, generator=g())
    n = int(out.mask.sum())
    assert out.pred.shape == (n, 2, 8) and out.target.shape == (n, 2)
    by_hand = F.cross_entropy(out.pred.flatten(0, 1), out.target.flatten())
    assert_close(out.terms['words'], by_hand)


def test_frames_are_forty_milliseconds_and_hear_nothing_of_the_whole(batch):
    cut = MelFrontEnd(4, 80, 16000)
    assert (cut.step, cut.frames(16000), cut.frames(cut.least)) == (640, 24, 1)
    r = make()
    x = r.units({'wave': batch['wave']}).x
    louder = batch['wave'].clone()
    louder[:, 4000:] *= 3
    y = r.units({'wave': louder}).x
    first = (4000 - 6 * 80 - 128) // 320  # the last frame that ends before
    assert torch.equal(x[:, :first], y[:, :first]) and not torch.equal(x[:, first + 3 :], y[:, first + 3 :])


def test_a_mask_of_nothing_and_silence(batch):
    r = make()
    nothing = r(batch, mask=r.units(batch).none(), generator=g())
    assert all(float(v.detach()) == 0 for v in nothing.terms.values())
    assert r({'wave': batch['wave'] * 0}, generator=g()).loss.isfinite()


@pytest.mark.parametrize('rate', [1, 50, 99])
def test_a_rate_without_ten_milliseconds(rate):
    with pytest.raises(ValueError, match=f'rate={rate}.* give 8000') as told:
        make(rate=rate)
    assert len(str(told.value)) <= 200


def test_more_distractors_than_frames_are_said(batch):
    with pytest.warns(UserWarning, match='distractors=400, and a sample has'):
        assert make(distractors=400)(batch, generator=g()).loss.isfinite()


def test_the_temperature_of_the_draw_reaches_the_words(batch):
    first, last = choosing_at_both_ends(make, batch)
    assert (first - last).abs().max() > 0.1 * first.abs().max()


@pytest.mark.parametrize(
    'bad, why',
    [
        (lambda b: {}, 'ml.sample'),
        (lambda b: {'wave': b['wave'] * torch.nan}, 'NaN'),
        (lambda b: {'wave': b['wave'], 'rate': b['rate'] * 0}, 'rate=0'),
        (lambda b: {'wave': b['wave'][:, :400]}, 'a frame takes 480'),
    ],
)
def test_bad_sound_is_said_in_a_sentence(batch, bad, why):
    with pytest.raises((ValueError, TypeError), match=why) as told:
        make()(bad(batch), generator=g())
    assert len(str(told.value)) <= 200
