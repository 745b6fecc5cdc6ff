"""TGM: the invariants of the method (Fan et al. 2024), its scorer, and what a caption may not carry."""
import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import rest
from maskedlab.data.video import caption_ids
from maskedlab.masks import Guided, GuidedSteps, Tube
from maskedlab.recipes.video.text_guided_video_mae import TextGuidedVideoMAE, cube_scores
from maskedlab.recipes.video.videomae import VideoMAE
from maskedlab.stages.frame_text import FrameText, one_caption
from maskedlab.targets.contrast import PairContrast
from maskedlab.train.trainer import fit

NET = dict(image=32, frames=8, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=1,
           decoder_heads=2)
TOP = dict(by='likeness', ratio=.6, law='floor hidden', lottery=False)
SAID = 'a shirt moves up', 'a boot in front of the leopard sinks', 'over the picture, the bag grows'


def scorer(**more):
    torch.manual_seed(1)
    return stir(FrameText(**{**dict(image=32, patch=8, dim=16, width=8, blocks=1), **more}), .3)


def make(**more):
    torch.manual_seed(0)
    return stir(TextGuidedVideoMAE(**{**NET, 'scorer': scorer(), **more}))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return {'video': torch.rand(3, 3, 8, 32, 32, generator=g(1)),
            'caption': caption_ids([SAID, SAID[::-1], (*SAID[1:], SAID[0])])}


def told(batch, text):
    "The same clips, all of them with this one caption."
    return {**batch, 'caption': caption_ids([[text]] * len(batch['video']))}


# ---------------------------------------------------------------- the mask

@pytest.mark.parametrize('grid, ratio, hidden', [((8, 14, 14), .6, 117), ((4, 4, 4), .6, 9),
                                                 ((3, 2, 5), .75, 7), ((2, 4, 4), 0., 0),
                                                 ((2, 4, 4), 1., 16)])
@pytest.mark.parametrize('draws', ['hidden', 'kept'])
def test_every_step_of_every_sample_hides_the_same_number(grid, ratio, hidden, draws):
    u, score = ml.layout(grid, 5), torch.randn(5, *grid, generator=g(2))
    s = GuidedSteps(**{**TOP, 'ratio': ratio}, draws=draws)
    mask = s(u, likeness=score)
    assert (mask.sum((2, 3)) == hidden).all() and s.exact
    assert (s.counts(u)[0] == hidden * grid[0]).all()
    seen, gone = score.masked_fill(mask, -torch.inf), score.masked_fill(~mask, torch.inf)
    if draws == 'kept':
        seen, gone = -score.masked_fill(mask, torch.inf), -score.masked_fill(~mask, -torch.inf)
    assert (gone.amin((2, 3)) >= seen.amax((2, 3))).all()


def test_the_recipe_hides_what_is_most_like_the_caption_in_each_step(r, batch):
    one = told(batch, SAID[0])
    u = r.units(one)
    mask = r(one, generator=g()).mask
    score = r.scorer.net.likeness(batch['video'], one['caption'][:, 0]).unflatten(1, (4, 2)).mean(2)
    assert (mask.sum((2, 3)) == 9).all() and score.flatten().unique().numel() > 100
    assert (score.masked_fill(~mask, 9).amin((2, 3)) >= score.masked_fill(mask, -9).amax((2, 3))).all()
    assert r.encoder.see(r.cut.normal(u.x), rest(mask)).shape == (3, 4 * (16 - 9), 32)
    low = r(one, mask=GuidedSteps(**TOP, draws='kept'), generator=g()).mask
    assert (score.masked_fill(~low, -9).amax((2, 3)) <= score.masked_fill(low, 9).amin((2, 3))).all()


def test_over_the_whole_clip_frames_would_differ(r, batch):
    "What each step by itself is for: the same scores, compared over the clip."
    score = torch.rand(3, 4, 4, 4, generator=g()) + torch.arange(4.).view(4, 1, 1)
    clip = Guided(**TOP, draws='hidden')(r.units(batch), likeness=score)
    assert clip[:, 3].all() and not clip[:, 0].any()


def test_ties_do_no_harm(batch):
    flat = make()
    flat.likeness = lambda u, ids: torch.ones(u.valid.shape)
    out = flat(batch, generator=g())
    assert (out.mask.sum((2, 3)) == 9).all() and out.loss.isfinite()


def test_an_equal_caption_gives_the_equal_mask_and_another_can_change_it(r, batch):
    masks = [r(told(batch, t), generator=g(k)).mask for k, t in enumerate((SAID[0], SAID[0], SAID[1]))]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    # of several one is drawn, of each clip its own
    drawn = torch.stack([r(batch, generator=g(k)).mask for k in range(24)])
    for i in range(3):
        alone = {tuple(r(told(batch, t)).mask[i].flatten().tolist()) for t in SAID}
        assert {tuple(m.flatten().tolist()) for m in drawn[:, i]} == alone
    ids = torch.stack([one_caption(batch, 3, g(k)) for k in range(300)])
    share = torch.stack([(ids[:, 0] == c).all(1).float().mean() for c in batch['caption'][0]])
    assert_close(share, torch.full((3,), 1 / 3), atol=.1, rtol=0)


def test_the_mask_does_not_depend_on_the_weights_that_are_trained(r, batch):
    before = r(batch, generator=g()).mask
    other = make()
    stir(other, .5)
    assert torch.equal(other(batch, generator=g()).mask, before)
    assert not torch.equal(make(scorer=stir(scorer(), 1.))(batch, generator=g()).mask, before)


def test_no_gradient_reaches_the_scorer_and_nothing_of_it_is_in_the_state(batch):
    r = make()
    held = {k: v.clone() for k, v in r.scorer.net.state_dict().items()}
    video = batch['video'].clone().requires_grad_()
    out = r.train()({**batch, 'video': video}, generator=g())
    out.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in r.scorer.net.parameters())
    assert not any('scorer' in k for k in [*r.state_dict(), *dict(r.named_parameters())])
    fit(r, iter([batch] * 2), 2, lr=.1, seed=0)
    assert all(torch.equal(v, held[k]) for k, v in r.scorer.net.state_dict().items())
    assert not r.scorer.net.training


def test_scores_of_frames_become_those_of_cubes():
    score = torch.rand(2, 6, 4, 4, generator=g())
    assert_close(cube_scores(score, (3, 4, 4)), score.view(2, 3, 2, 4, 4).mean(2))
    ramp = torch.arange(8.).view(1, 1, 1, 8).expand(1, 2, 8, 8)
    assert_close(cube_scores(ramp, (1, 4, 4))[0, 0, 0], torch.tensor([.5, 2.5, 4.5, 6.5]))
    assert cube_scores(score, (6, 7, 3)).shape == (2, 6, 7, 3)


# ---------------------------------------------------------------- both losses

def test_without_the_contrast_it_is_the_masked_autoencoder(batch):
    r = make(weight=0.)
    plain = VideoMAE(**NET)
    plain.load_state_dict(r.state_dict())
    mask = r(batch, generator=g()).mask
    a, b = r.train()(batch, mask=mask), plain.train()(batch, mask=mask)
    a.loss.backward()
    b.loss.backward()
    assert list(a.terms) == ['pixels'] and torch.equal(a.loss, b.loss)
    grads = dict(plain.named_parameters())
    assert all(torch.equal(p.grad, grads[n].grad) for n, p in r.named_parameters())
    assert r.described is None


def test_a_weight_that_vanishes_leaves_the_gradient_of_the_masked_autoencoder(batch):
    r = make()
    out = r(batch, generator=g())
    params = [p for n, p in r.named_parameters() if n.startswith(('encoder', 'decoder', 'head'))]
    of = lambda loss: torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    half = make(weight=1e-9)(batch, mask=out.mask, generator=g())
    assert_close(half.terms['caption'] * 1e9, out.terms['caption'])
    assert any(x is not None and x.abs().max() > 0 for x in of(out.terms['caption']))
    both, pixels, words = of(out.loss), of(out.terms['pixels']), of(out.terms['caption'])
    for x, y, z in zip(both, pixels, words):
        assert_close(x, y if z is None else z if y is None else y + z, atol=1e-5, rtol=1e-4)


def test_the_contrast_reads_visible_cubes_alone(r, batch):
    out = r(batch, generator=g())
    poisoned = out.units.but(x=out.units.x.masked_fill(out.mask[..., None], torch.nan))
    again = r(batch, mask=out.mask, units=poisoned, generator=g())
    assert torch.equal(again.terms['caption'], out.terms['caption']) and torch.equal(again.pred, out.pred)
    seen = out.units.but(x=out.units.x.masked_fill(~out.mask[..., None], .3))
    assert not torch.equal(r(batch, mask=out.mask, units=seen, generator=g()).terms['caption'],
                           out.terms['caption'])


def test_mask_tokens_never_enter_the_embedding_of_a_clip(batch):
    r = make()
    out = r(batch, generator=g())
    grads = torch.autograd.grad(out.terms['caption'], [*r.parameters()], allow_unused=True)
    moved = {n for (n, _), x in zip(r.named_parameters(), grads) if x is not None}
    assert not any(n.startswith(('decoder', 'head')) for n in moved) and 'described.video.weight' in moved
    with torch.no_grad():
        r.decoder.mask_token.add_(3.)
    assert torch.equal(r(batch, generator=g()).terms['caption'], out.terms['caption'])


def test_the_contrast_by_hand_and_with_uneven_masks(r, batch):
    mask = torch.rand(3, 4, 4, 4, generator=g(4)) < torch.tensor([.2, .5, .8]).view(3, 1, 1, 1)
    three = {**batch, 'caption': caption_ids([[t] for t in SAID])}
    u = r.units(three)
    h = r.encoder.see(r.cut.normal(u.x), ~mask)
    v = torch.stack([h[i, :n].mean(0) for i, n in enumerate((~mask).flatten(1).sum(1))])
    a = F.normalize(r.described.video(v), dim=1)
    b = F.normalize(r.described.text(r.scorer.net.text(three['caption'][:, 0])), dim=1)
    logits = a @ b.T * r.described.pairs.log_scale.exp()
    want = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits.T, torch.arange(3))) / 2
    assert_close(r(three, mask=mask).terms['caption'], want, atol=1e-4, rtol=1e-4)


def test_clips_with_one_caption_are_no_strangers(r, batch):
    "All with the same sentence: there is nobody to be told from."
    assert r(told(batch, SAID[0]), generator=g()).terms['caption'].abs() < 1e-5
    assert r(batch, mask=r.units(batch).all(), generator=g()).terms['caption'] == 0


def test_pairs_are_told_apart_both_ways():
    pairs, like = PairContrast(), torch.tensor([[.9, .1], [.8, .2]])
    forth, back = (F.cross_entropy(x / .07, torch.arange(2), reduction='none') for x in (like, like.T))
    assert_close(pairs(like), (forth + back) / 2)
    with torch.no_grad():
        pairs.log_scale.fill_(50.)
    assert pairs(like).isfinite().all()                 # no sharper than .01


# ---------------------------------------------------------------- across the streams

def test_a_caption_carries_no_hidden_pixel_and_hidden_pixels_change_no_prediction(r, batch):
    assert ml.leak_check(r, batch, rounds=3).ok
    mask = r(batch, generator=g()).mask
    a = r(batch, mask=mask, generator=g())
    b = r(told(batch, SAID[2]), mask=mask, generator=g())
    assert torch.equal(a.pred, b.pred)          # whatever is said: words only choose the mask

    class Told(TextGuidedVideoMAE):
        "Its caption is a number that was read off the hidden pixels."
        def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
            out = super().forward(batch, mask, units=units, generator=generator, progress=progress)
            words = self.text((out.units.x.mean((1, 2, 3, 4)) * 2000).long()[:, None] + 10)
            out.pred = out.pred + words.mean()
            return out
    assert not ml.leak_check(stir(Told(**NET, scorer=scorer())), batch, rounds=1).ok


@pytest.mark.parametrize('caption, error, words', [
    (None, ValueError, "'caption' [B, captions, pieces]"),
    (torch.zeros(3, 2, 5).long(), ValueError, 'has no words'),
    (torch.tensor([[[2, 600, 3]], [[2, 3, 0]], [[2, 3, 3]]]), ValueError,
     'the caption of clip 1 has no words'),
    (torch.full((3, 1, 4), 5000), ValueError, 'piece 5000 does not exist'),
    (torch.ones(3, 1, 4), TypeError, 'int64'), (torch.ones(3, 4).long(), ValueError, '[B, captions, pieces]'),
    (torch.full((2, 1, 4), 600), ValueError, '2 clips have captions')])
def test_captions_that_cannot_be_meant(r, batch, caption, error, words):
    given = {k: v for k, v in {**batch, 'caption': caption}.items() if v is not None}
    with pytest.raises(error) as e:
        r(given)
    assert words in str(e.value) and len(str(e.value)) <= 200


@pytest.mark.parametrize('x, words', [
    (torch.rand(3, 3, 1, 32, 32), 'smaller than the cube, 2 x 8 x 8'),
    (torch.rand(3, 3, 7, 32, 32), '6 x 32'),
    (torch.full((3, 3, 8, 32, 32), torch.nan), 'NaN')])
def test_clips_that_cannot_be_meant(r, batch, x, words):
    with pytest.raises(ValueError, match=words) as e:
        r({**batch, 'video': x})
    assert len(str(e.value)) <= 200


def test_without_captions_it_is_still_an_encoder(batch):
    silent = {'video': batch['video']}
    r = make(weight=0.)
    assert r(silent, mask=Tube(.5), generator=g()).loss.isfinite() and r.features(silent).shape == (3, 32)
    with pytest.raises(TypeError, match='Linear has no likeness'):
        make(scorer=torch.nn.Linear(2, 2))


# ---------------------------------------------------------------- the scorer

def test_padding_and_special_pieces_say_nothing():
    s = scorer()
    short, long = (caption_ids([[SAID[0]]], n)[:, 0] for n in (12, 32))
    assert torch.equal(s.text(short), s.text(long))
    assert_close(s.text(short), s.text(short[:, [0, 4, 3, 2, 1, *range(5, 12)]]))       # a bag has no order
    assert_close(s.text(short).norm(), torch.tensor(1.))


def test_a_place_sees_its_own_frame_only():
    s = scorer()
    x = torch.rand(2, 3, 4, 32, 32, generator=g())
    y = x.clone()
    y[:, :, 2] = torch.rand(2, 3, 32, 32, generator=g(1))
    a, b = s.places(x), s.places(y)
    assert torch.equal(a[:, [0, 1, 3]], b[:, [0, 1, 3]]) and not torch.equal(a[:, 2], b[:, 2])


def test_the_shipped_scorer_finds_the_thing_that_a_caption_names():
    "A white square is where the thing is: of two made clips that differ in the thing alone."
    from maskedlab.data.video import CLIP_NUMBERS, clips_of
    from maskedlab.stages.shelf import stage
    s, table = stage('frame_text/micro/video/0'), torch.rand(40, CLIP_NUMBERS, generator=g(3))
    other = table.clone()
    other[:, 1] = (other[:, 1] + .37) % 1
    a, b = (clips_of(t, 'test', 32, real=0., frames=2) for t in (table, other))
    thing = F.avg_pool2d(((a['video'] - b['video']).abs().amax(1) > .02).float(), 8) > .3
    with torch.no_grad():
        score = s.likeness(a['video'], a['caption'][:, 0])
    right = torch.stack([(x[t][:, None] > x[~t]).float().mean()
                         for x, t in zip(score.flatten(0, 1), thing.flatten(0, 1))
                         if t.any() and not t.all()])
    assert right.mean() > .6, right.mean()


# ---------------------------------------------------------------- the page

def test_the_page_takes_a_caption_and_its_line_of_code_gives_it_back():
    from maskedlab.show.explorer.page import Page
    page = Page('tgm', index=3, said=SAID[1])
    shown = page.show(page.state)
    whole = page.menus.whole(page.state)
    with torch.no_grad():
        mine = {**whole, 'caption': caption_ids([[SAID[1]]])}
        assert torch.equal(shown.mask, page.recipe.eval()(mine, generator=g()).mask[0])
    scope = {}
    exec(page.code(page.state).replace('; ', '; shown = '), scope)
    again = scope['shown'].page
    assert again.state.said == SAID[1] and torch.equal(again.show(again.state).mask, shown.mask)
    first = Page('tgm', index=3)
    assert not torch.equal(first.show(first.state).mask, shown.mask)        # the clip's own first caption
    with pytest.raises(ValueError, match="said='a shirt': this method reads no captions") as e:
        Page('videomae', said='a shirt')
    assert len(str(e.value)) <= 200


def test_a_clip_of_ones_own_waits_for_a_caption():
    from dataclasses import asdict, replace

    from maskedlab.show.explorer.doors import answer
    from maskedlab.show.explorer.page import Page
    own = {'video': ml.sample('video', 2, g(), 'test', size=32)['video']}
    page = Page('tgm', batch=own, mask=torch.ones(8, 4, 4).bool(), said=SAID[0])
    assert page.show(page.state).scores
    silent = dict(kind='draw', state=asdict(replace(page.state, said=None, painted=None)))
    reply, _ = answer(page, silent)
    assert reply['kind'] == 'trouble' and 'words need words' in reply['words'].lower()
    silent['state']['said'] = SAID[0]
    reply, _ = answer(page, silent)
    assert reply['kind'] == 'drawn' and reply['sayings'] == [] and reply['state']['said'] == SAID[0]


@pytest.mark.parametrize('said, words', [(' ... ', 'no words'), ('a shoe ' * 60, 'pieces'), (7, 'caption')])
def test_captions_that_the_page_cannot_use_are_sentences(said, words):
    from dataclasses import asdict, replace

    from maskedlab.show.explorer.doors import answer
    from maskedlab.show.explorer.page import Page
    page = Page('tgm')
    reply, _ = answer(page, dict(kind='draw', state=asdict(replace(page.state, said=said))))
    assert reply['kind'] == 'trouble' and words in reply['words'] and len(reply['words']) <= 200
    reply, _ = answer(page, dict(kind='draw', state=asdict(page.state)))
    assert reply['kind'] == 'drawn' and len(reply['sayings']) == 3
