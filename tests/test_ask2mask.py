"""Ask2Mask by the invariants of its card, around both speech recipes, on small networks."""

import pytest
import torch
from given import g
from torch import nn
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import layout
from maskedlab.masks.guided import GuidedSpan
from maskedlab.masks.span import Span
from maskedlab.masks.strategies import Random
from maskedlab.parts.frames import ConvFrontEnd, MelFrontEnd, same_time
from maskedlab.recipes.sound.ask2mask import Ask2Mask
from maskedlab.recipes.sound.w2v_bert import W2VBert
from maskedlab.recipes.sound.wav2vec2 import Wav2Vec2
from maskedlab.stages.recogniser import Recogniser, under_noise
from maskedlab.stages.shelf import stage

EARS = dict(rate=8000, mels=20, channels=4)
INNER = {
    'w2v_bert': lambda: W2VBert(
        **EARS, dim=32, depth=2, below=1, heads=4, kernel=3, words=8, width=16, distractors=6,
        strategy=Span(0.65, 3, equal=True),
    ),
    'wav2vec2': lambda: Wav2Vec2(
        rate=8000, channels=16, kernels=(10, 3, 3, 3, 2, 2), strides=(5, 2, 2, 2, 2, 2), dim=32, depth=1,
        heads=4, reach=8, words=8, width=16, distractors=6, strategy=Span(0.65, 5, equal=True),
    ),
}


class Scripted(nn.Module):
    """A scorer that is as sure of each frame as one wants: `[B, L]`."""

    def __init__(self, sure):
        super().__init__()
        self.cut, self.sure = MelFrontEnd(4, 20, 8000), sure

    def says(self, batch):
        return torch.stack([1 - self.sure, self.sure], -1), self.cut.units(batch).valid


def make(name='w2v_bert', scorer=None, seed=0, **more):
    torch.manual_seed(seed)
    inner = INNER[name]()
    torch.manual_seed(0)
    return Ask2Mask(inner, Recogniser(**EARS, dim=16, depth=1) if scorer is None else scorer, **more).eval()


@pytest.fixture(scope='module')
def batch():
    return ml.sample('wave', 6, seconds=0.9, words=2)


@pytest.fixture(params=list(INNER))
def name(request):
    return request.param


# ---- 1: whose mask it is


def test_the_mask_is_the_scorers_and_no_networks(name, batch):
    one, two = make(name), make(name, seed=1)
    assert not torch.equal(next(one.inner.parameters()), next(two.inner.parameters()))
    out = one(batch, generator=g())
    assert torch.equal(out.mask, two(batch, generator=g()).mask)
    fixed = GuidedSpan('confidence', Random(0.4), 3)  # as many in each draw: the same mask in each step
    first, later = (one(batch, mask=fixed, generator=g(seed)).mask for seed in (0, 5))
    assert torch.equal(first, later)
    u = one.units(batch)
    hidden = u.swap(out.mask)
    assert torch.equal(one(batch, units=hidden, generator=g()).mask, out.mask)
    assert not torch.equal(one({**batch, 'wave': batch['wave'].roll(1, 0)}, generator=g()).mask, out.mask)


def test_the_scorer_hears_no_holes(name, batch):
    heard = []

    class Ear(Recogniser):
        def says(self, batch):
            heard.append(batch['wave'])
            return super().says(batch)

    make(name, Ear(**EARS, dim=16, depth=1))(batch, generator=g())
    assert len(heard) == 1 and torch.equal(heard[0], batch['wave'])


# ---- 2, 3: which frames, and how many


def by_hand(score, length, k):
    """Frames of the best runs, one run after the other."""
    runs = sorted(range(len(score) - length + 1), key=lambda i: (-float(score[i : i + length].mean()), i))
    chosen = []
    for i in runs:
        chosen += [j for j in range(i, i + length) if j not in chosen]
    return set(chosen[:k])


@pytest.mark.parametrize('length', [1, 3, 5])
def test_the_surest_runs_go_first(length):
    u, score = layout((40,), batch=8), torch.rand(8, 40, generator=g())
    mask = GuidedSpan('s', Span(0.5, 5), length)(u, generator=g(1), s=score)
    for row, m in zip(score, mask):
        assert set(m.nonzero()[:, 0].tolist()) == by_hand(row, length, int(m.sum()))
    if length == 1:
        assert (score.masked_fill(~mask, 9).amin(1) >= score.masked_fill(mask, -9).amax(1)).all()
    low = GuidedSpan('s', Span(0.5, 5), length, draws='kept')(u, generator=g(1), s=score)
    assert torch.equal(low, GuidedSpan('s', Span(0.5, 5), length)(u, generator=g(1), s=1 - score))


def test_as_many_as_at_random_and_no_padding(name, batch):
    r = make(name)
    u = r.units(batch)
    assert not u.valid.all()
    for seed in range(4):
        mask = r(batch, generator=g(seed)).mask
        assert torch.equal(mask.sum(1), r.inner(batch, generator=g(seed)).mask.sum(1))
        assert not (mask & ~u.valid).any()
    tempting = torch.rand(6, u.shape[0], generator=g()).masked_fill(~u.valid, 9.0)
    for share in (1.0, 0.5, 0.0):
        s = GuidedSpan('confidence', r.inner.strategy, 3, share=share)
        mask = s(u, generator=g(2), confidence=tempting)
        assert not (mask & ~u.valid).any()
        assert torch.equal(mask.sum(1), r.inner.strategy(u, generator=g(2)).sum(1)) or share < 1


def test_half_by_the_score_and_half_by_chance():
    u, score = layout((60,), batch=40), torch.rand(40, 60, generator=g())
    k = Random(0.4)
    top, half, none = (GuidedSpan('s', k, 3, share=x)(u, generator=g(1), s=score) for x in (1.0, 0.5, 0.0))
    assert (half.sum(1) == 24).all() and (none.sum(1) == 24).all()
    certain = GuidedSpan('s', Random(0.2), 3)(u, generator=g(1), s=score)
    assert (half & certain).sum() == certain.sum()  # what is surest is in
    mean = lambda m: float(score[m].mean())
    assert mean(top) > mean(half) > mean(none) and abs(mean(none) - 0.5) < 0.03


# ---- 4, 7: ties and weights


def test_equal_scores_are_a_valid_mask_and_weights_of_one(name, batch):
    r = make(name, Scripted(torch.full((6, 22), 0.7)))
    out = r(batch, generator=g())
    assert torch.equal(out.mask.sum(1), r.inner(batch, generator=g()).mask.sum(1))
    sure = r.confidence(batch, out.units.shape[0])
    assert_close(r.weights(sure, out.units), torch.ones(6))
    plain = r.inner(batch, mask=out.mask, generator=g())
    for k, v in plain.terms.items():
        assert_close(out.terms[k], v)
    half = make(name, Scripted(torch.full((6, 22), 0.7)), weigh='plain')(batch, mask=out.mask, generator=g())
    assert_close(half.terms['contrast'], 0.7 * plain.terms['contrast'])
    assert_close(half.terms['diversity'], plain.terms['diversity'])


@pytest.mark.parametrize('weigh', ['none', 'plain', 'even'])
def test_sure_of_nothing_at_all(name, batch, weigh):
    """Silence, to a scorer that knows no doubt: as many frames as ever, all alike, and no NaN."""
    r = make(name, Scripted(torch.zeros(6, 22)), weigh=weigh)
    out = r(batch, generator=g())
    assert out.loss.isfinite() and torch.equal(out.mask.sum(1), r.inner(batch, generator=g()).mask.sum(1))
    w = r.weights(r.confidence(batch, out.units.shape[0]), out.units)
    assert (w > 0).all() and torch.equal(w, w[:1].expand(6))


def test_each_recording_weighs_what_it_is_worth(name, batch):
    sure = torch.linspace(0.3, 0.9, 6)[:, None].expand(6, 22).contiguous()
    r = make(name, Scripted(sure))
    out = r(batch, generator=g())
    w = r.weights(r.confidence(batch, out.units.shape[0]), out.units)
    assert_close(w, sure[:, 0] / sure[:, 0].mean())
    error = out.each['words' if name == 'w2v_bert' else 'contrast']
    sample = out.mask.nonzero()[:, 0]
    assert_close(out.terms['words' if name == 'w2v_bert' else 'contrast'], (w[sample] * error).mean())
    assert out.terms['contrast'].requires_grad


# ---- 5: the scorer


def test_the_scorer_does_not_learn(batch):
    r = make().train()
    before = {k: v.clone() for k, v in r.scorer.net.state_dict().items()}
    assert not r.scorer.net.training and not any('scorer' in n for n, _ in r.named_parameters())
    ml.fit(r, iter([batch] * 2), 2, lr=0.1, seed=0)
    r(batch, generator=g()).loss.backward()
    assert all(p.grad is None for p in r.scorer.net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in r.scorer.net.state_dict().items())
    assert not any('scorer' in k for k in r.state_dict())


# ---- 6: scale, and what is left when all is off


def test_scaled_scores_change_the_weight_and_not_the_mask(batch):
    sure = torch.rand(6, 22, generator=g()) * 0.5 + 0.4
    less = sure * torch.tensor([1.0, 0.3, 1, 1, 1, 1])[:, None]
    a, b = (make(scorer=Scripted(s), weigh='plain') for s in (sure, less))
    one, two = a(batch, generator=g()), b(batch, generator=g())
    assert torch.equal(one.mask, two.mask)
    weigh = lambda r, out: r.weights(r.confidence(batch, out.units.shape[0]), out.units)
    assert_close(weigh(b, two), weigh(a, one) * torch.tensor([1.0, 0.3, 1, 1, 1, 1]))


def test_with_all_off_it_is_the_recipe_inside(name, batch):
    r = make(name, weigh='none')
    mask = r.inner.strategy
    out, inner = r(batch, mask=mask, generator=g()), r.inner(batch, generator=g())
    assert torch.equal(out.mask, inner.mask) and torch.equal(out.loss, inner.loss)
    assert all(torch.equal(out.terms[k], v) for k, v in inner.terms.items())
    u, score = layout((40,), batch=2000), torch.rand(1, 40, generator=g()).expand(2000, -1)
    often = GuidedSpan('s', Random(0.4), 3, share=0.0)(u, generator=g(), s=score).float().mean(0)
    assert (often[3:-3] - often[3:-3].mean()).abs().max() < 0.05  # everywhere alike, whatever the scores


# ---- the frames of both


def test_frames_of_different_steps_meet_in_time():
    ear, wave = MelFrontEnd(4, 20, 8000), ConvFrontEnd(4, (10, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2), 8000)
    at = same_time(ear, wave, 49)
    middle = lambda cut, i: i * cut.step + cut.least / 2
    off = (middle(ear, at) - middle(wave, torch.arange(49))).abs()
    assert (off[2:] <= ear.step / 2).all() and at[0] == 0


# ---- the stage


def test_the_recogniser_is_sure_of_silence_and_of_words():
    s = stage('recogniser/micro/wave/0')
    b = ml.sample('wave', 60, split='test', words=3)
    p, valid = s.says(b)
    said = b['words'][:, 3::4][:, : p.shape[1]] + 1
    assert (p.argmax(-1) == said)[valid].float().mean() > 0.8
    every, words = p.amax(-1), p[..., 1:].amax(-1)
    pause, speech = valid & (said == 0), valid & (said > 0)
    assert every[pause].mean() > every[speech].mean() and words[speech].mean() > words[pause].mean() + 0.5
    loud = s.says({**b, 'wave': under_noise(b['wave'], 0.0, 0.0, 1.0, g())})[0][..., 1:].amax(-1)
    assert loud[valid].mean() < words[valid].mean() - 0.05
    assert ml.create_recipe('atm', size='micro').scorer.key == s.key


def test_a_recogniser_wants_labels(batch):
    r = Recogniser(**EARS, dim=16, depth=1)
    with pytest.raises(ValueError, match='learns from labels') as told:
        r({'wave': batch['wave']})
    assert len(str(told.value)) <= 200


# ---- the rest


def test_no_answer_knows_what_it_answers(name, batch):
    assert ml.leak_check(make(name), batch, rounds=1).ok


@pytest.mark.parametrize(
    'bad, why',
    [
        (lambda b: {**b, 'wave': b['wave'] * torch.nan}, 'NaN'),
        (lambda b: {**b, 'rate': b['rate'] * 0}, 'rate=0'),
        (lambda b: {**b, 'wave': b['wave'][:, :150]}, 'wave_valid'),
        (lambda b: {'wave': b['wave'][:, :150]}, '150 samples'),
    ],
)
def test_bad_sound_is_said_in_a_sentence(name, batch, bad, why):
    with pytest.raises(ValueError, match=why) as told:
        make(name)(bad(batch), generator=g())
    assert len(str(told.value)) <= 200


def test_saved_and_loaded(batch, tmp_path, monkeypatch):
    torch.manual_seed(0)
    r = Ask2Mask('wav2vec2/micro', 'recogniser/micro/wave/0', weigh='plain').eval()
    again = ml.load_pretrained(r.save_pretrained(tmp_path / 'a'))
    assert type(again.inner) is Wav2Vec2 and again.strategy == r.strategy and again.weigh == 'plain'
    assert torch.equal(again(batch, generator=g()).loss, r(batch, generator=g()).loss)
    again.strategy = GuidedSpan('confidence', Random(0.3), 2, draws='kept')
    twice = ml.load_pretrained(again.save_pretrained(tmp_path / 'b'))
    assert twice.strategy == again.strategy


@pytest.mark.parametrize(
    'bad, why',
    [
        (lambda: Ask2Mask('mae/micro', Recogniser(**EARS)), 'no frames of sound'),
        (lambda: Ask2Mask(INNER['w2v_bert'](), nn.Linear(2, 2)), 'has no cut'),
        (lambda: Ask2Mask(INNER['w2v_bert'](), 'recogniser/huge/wave/0'), 'no size'),
        (lambda: GuidedSpan('s')(layout((9,))), 'only a network knows'),
        (lambda: GuidedSpan('s')(layout((9,)), s=torch.ones(2, 9)), r's=\[1, 9\]'),
        (lambda: GuidedSpan('s')(layout((3, 3)), s=torch.ones(1, 3, 3)), 'take Guided'),
        (lambda: make(scorer=Recogniser(**{**EARS, 'rate': 16000}))(ml.sample('wave', 2)), '16000'),
    ],
)
def test_bad_input_is_said_in_a_sentence(bad, why):
    with pytest.raises((ValueError, TypeError), match=why) as told:
        bad()
    assert len(str(told.value)) <= 200
