"""Hard Patches Mining: the invariants of the method (Wang et al. 2023), on networks that take seconds."""
import copy
import math

import pytest
import torch
from given import g, ragged, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import rest, rows, spread
from maskedlab.instruments.coverage import coverage_map
from maskedlab.masks.guided import Guided
from maskedlab.masks.schedules import Linear, Stepwise
from maskedlab.masks.strategies import Random
from maskedlab.recipes.image.hard_patches_mining import HARD, HardPatchesMining
from maskedlab.show.explorer.doors import answer
from maskedlab.show.explorer.page import Page
from maskedlab.targets.ranks import kendall, leads, ranking, whitened_error
from maskedlab.train.loop import decay_groups
from maskedlab.train.trainer import fit

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=1, decoder_heads=2)
EPOCHS = Guided('loss', .75, draws='hidden', lottery=False, share=Stepwise(Linear(0., .5), 200))


def make(**more):
    torch.manual_seed(0)
    return stir(HardPatchesMining(**{**SMALL, **more}))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


def given(strategy, u, scores, progress, seed=0):
    return strategy(u, generator=g(seed), loss=scores, progress=progress).flatten(1)


# 1. the count, and who is certain

@pytest.mark.parametrize('epoch, hard', [(0, 0), (1, 0), (2, 1), (99, 36), (198, 73), (199, 73)])
def test_the_share_of_the_card(epoch, hard):
    u, scores = ml.layout((14, 14), batch=6), torch.rand(6, 14, 14, generator=g(1))
    top = torch.zeros(6, 196, dtype=torch.bool)
    top.scatter_(1, scores.flatten(1).argsort(1, descending=True)[:, :hard], True)
    for progress in (epoch / 200, (epoch + .9) / 200):
        certain = EPOCHS.certain(u, progress, loss=scores).flatten(1)
        assert torch.equal(certain, top)
        masks = [given(EPOCHS, u, scores, progress, seed) for seed in range(40)]
        assert all((m.sum(1) == 147).all() and (m | ~top).all() for m in masks)
        always = torch.stack(masks).all(0)
        assert not (always & ~top).any(), 'more are certain than were chosen'


@pytest.mark.parametrize('share', [0., .1, .37, .5, .99, 1.])
@pytest.mark.parametrize('ratio', [.5, .75, .9])
def test_the_count_never_moves(share, ratio):
    u = ml.layout((8, 8), batch=4)
    free = torch.rand(4, 8, 8, generator=g(2)) < .8
    few = ml.layout((8, 8), batch=4, free=free)
    for units in (u, few):
        s = Guided('loss', ratio, draws='hidden', lottery=False, share=share)
        mask = s(units, generator=g(), loss=torch.randn(4, 8, 8, generator=g(1)))
        n = units.free_counts()
        assert torch.equal(mask.flatten(1).sum(1), n - (n.double() * (1 - ratio)).long())
        assert not (mask & ~units.free).any()
    assert s.exact


# 2. the two ends

def test_without_a_share_every_place_is_alike_and_with_all_there_is_no_chance():
    u, scores = ml.layout((8, 8), batch=2), torch.rand(2, 8, 8, generator=g(1))
    none, every = (Guided('loss', .75, draws='hidden', lottery=False, share=s) for s in (0., 1.))
    often = sum(none(u, generator=g(i), loss=scores).float() for i in range(800)) / 800
    assert (often - .75).abs().max() < .07      # more than four deviations
    assert torch.equal(given(every, u, scores, 1., 0), given(every, u, scores, 1., 1))
    assert coverage_map(Guided('loss', .75, lottery=False, share=0.), ml.layout((8, 8)), 500).ok


def test_those_that_are_not_chosen_are_alike():
    u, scores = ml.layout((16,), batch=6000), torch.arange(16.).expand(6000, 16)
    hard = Guided('loss', .75, draws='hidden', lottery=False, share=.5)      # 12 of 16 hidden, 6 for certain
    often = hard(u, generator=g(), loss=scores).float().mean(0)
    assert (often[10:] == 1).all() and (often[:10] - .6).abs().max() < .03
    easy = Guided('loss', .75, lottery=False, share=.5)                      # the lowest instead
    assert_close(easy(u, generator=g(), loss=scores).float().mean(0).flip(0), often, atol=.03, rtol=0)


def test_who_needs_no_score_asks_for_none(r, batch):
    asked = []
    r = copy.deepcopy(r)
    r.hardness = lambda u, of=r.hardness: (asked.append(1), of(u))[1]
    r(batch, generator=g(), mask=Random(.75))
    r(batch, generator=g(), mask=Guided('loss', .75, lottery=False, share=0.))
    r(batch, mask=r(batch, mask=Random(.75)).mask)
    assert not asked
    r(batch, generator=g())
    assert asked == [1]


# 3., 4. the ranking loss

def test_only_the_order_of_losses_and_differences_of_scores_count():
    s, t = torch.randn(4, 9, generator=g(1)), torch.rand(4, 9, generator=g(2))
    assert_close(ranking(s + torch.randn(4, 1, generator=g(3)), t), ranking(s, t))
    for up in (torch.exp, lambda x: x ** 3, lambda x: 100 * x - 7):
        assert_close(ranking(s, up(t)), ranking(s, t))
    assert abs(float(ranking(s, -t) - ranking(s, t))) > .01
    assert_close(ranking(0 * s, t), torch.tensor(.693145), atol=1e-6, rtol=0)
    rank = t.argsort(1).argsort(1).float()
    assert_close(ranking(50 * rank, t), torch.tensor(-1e-6), atol=1e-7, rtol=0)
    assert kendall(rank, t) == 1 and kendall(-rank, t) == -1


def test_pairs_are_within_a_sample_and_among_what_is_known():
    s, t = torch.randn(2, 6, generator=g(1)), torch.rand(2, 6, generator=g(2))
    t[0, 2:], t[1, 1] = torch.nan, t[1, 0]
    assert len(leads(s, t)) == 1 + 14               # one pair of two; fifteen of six without a tie
    both = torch.cat([leads(s[i:i + 1], t[i:i + 1]) for i in (0, 1)])
    assert_close(leads(s, t), both)
    assert whitened_error(s, t).isfinite()


def test_by_both_orders_of_each_pair_as_released(r, batch):
    """The double sum of the released code, written out, is the loss of the recipe."""
    mask = ragged(r.units(batch))
    out = r(batch, mask=mask)
    _, scores = r.net(r.cut.normal(out.units.x), rest(mask))
    total, count = 0., 0
    for b in range(3):
        s, l = scores[b][mask[b]].double(), out.error[b][mask[b]]
        d = s[None] - s[:, None]                                    # d[i, j] = s_j - s_i
        more, less = (l[None] > l[:, None]), (l[None] < l[:, None])
        total = total - (d.sigmoid() + 1e-6).log()[more].sum() - (1 - d.sigmoid() + 1e-6).log()[less].sum()
        count += int(more.sum() + less.sum())
    assert_close(out.terms['hardness'].double(), total / count, rtol=1e-5, atol=1e-6)
    assert count == 2 * (0 + 6 + 10)


# 5. who learns from what

def test_each_loss_moves_its_own_decoder_and_both_the_encoder(r, batch):
    out = r(batch, generator=g())
    moved = {}
    for name, term in out.terms.items():
        r.zero_grad()
        term.backward(retain_graph=True)
        moved[name] = {part: max((float(p.grad.abs().max()) for p in getattr(r.net, part).parameters()
                                  if p.grad is not None), default=0.)
                       for part in ('encoder', 'head', 'predictor', 'score_head')}
        moved[name]['painter'] = max((float(p.grad.abs().max()) for p in r.net.decoder.blocks.parameters()
                                      if p.grad is not None), default=0.)
        moved[name]['shared'] = float(r.net.decoder.mask_token.grad.abs().max())
    r.zero_grad()
    assert all(moved['pixels'][k] > 0 for k in ('encoder', 'head', 'painter', 'shared'))
    assert moved['pixels']['predictor'] == moved['pixels']['score_head'] == 0
    assert all(moved['hardness'][k] > 0 for k in ('encoder', 'predictor', 'score_head', 'shared'))
    assert moved['hardness']['head'] == moved['hardness']['painter'] == 0


# 6. the slow copy

def test_the_slow_copy_follows_and_learns_nothing_itself(batch, tmp_path):
    r = make(momentum=Linear(.5, .9))
    r.train()
    out = r(batch, generator=g())
    out.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in r.slow.parameters())
    trained = {id(p) for group in decay_groups(r, .05) for p in group['params']}
    assert not trained & {id(p) for p in r.slow.parameters()}
    assert len(trained) == len([*r.net.parameters()])
    assert r.net.training and not any(m.training for m in r.slow.net.modules())
    with torch.no_grad():
        for p in r.net.parameters():
            p += torch.randn(p.shape, generator=g(3))
    before = copy.deepcopy(r.slow)
    r.after_step(out, .5)
    for a, b, c in zip(r.slow.parameters(), before.parameters(), r.net.parameters(), strict=True):
        assert_close(a, .7 * b + .3 * c)
    back = ml.load_pretrained(r.save_pretrained(tmp_path))
    assert back.config['momentum'] == Linear(.5, .9)
    assert all(torch.equal(a, b) for a, b in zip(back.slow.parameters(), r.slow.parameters(), strict=True))
    still = make(momentum=1.)
    before = copy.deepcopy(still.slow.state_dict())
    fit(still, iter([batch] * 3), 3, lr=.01, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in still.slow.state_dict().items())


def test_a_run_goes_on_with_the_slow_copy_that_it_had(tmp_path):
    words = dict(steps=4, batch=4, seed=0, show=False, precision='no')
    whole = ml.Trainer(make(), **words)
    whole.fit(background=False)
    ml.Trainer(make(), **words, out=tmp_path, watch=lambda step, _: step == 1).fit(background=False)
    rest_ = ml.Trainer.resume(tmp_path, show=False)
    rest_.fit(background=False)
    mine = rest_.recipe.state_dict()
    assert all(torch.equal(v, mine[k]) for k, v in whole.recipe.state_dict().items())
    assert any(not torch.equal(mine['slow.net' + k[3:]], v) for k, v in mine.items() if k.startswith('net.'))


# 7., 8. who sees what

def test_the_student_is_blind_to_what_is_hidden_and_the_mask_is_not(r, batch):
    out = r(batch, generator=g())
    other = out.units.swap(out.mask)
    again = r(batch, mask=out.mask, units=other)
    assert torch.equal(again.pred, out.pred)
    blind = r.net(r.cut.normal(other.x), rest(out.mask))[1]
    assert torch.equal(blind, r.net(r.cut.normal(out.units.x), rest(out.mask))[1])
    every = Guided('loss', .75, draws='hidden', lottery=False)
    assert not torch.equal(r(batch, mask=every, units=other).mask, r(batch, mask=every).mask)
    report = ml.leak_check(r, batch)
    assert report.ok and any('slow copy' in note for note in report.notes)


def test_a_score_that_reads_a_hidden_patch_is_found(batch):
    """The broken version: the student's encoder gets the whole picture."""
    r = make()
    r.net.tokens = lambda x, visible: type(r.net).tokens(r.net, x, torch.ones_like(visible))
    assert not ml.leak_check(r, batch).ok


def test_hardness_is_of_all_patches_and_of_the_slow_copy(r, batch):
    r = copy.deepcopy(r)
    u = r.units(batch)
    before = r.hardness(u)
    assert before.shape == (3, 4, 4) and not before.requires_grad
    with torch.no_grad():
        for p in r.net.parameters():
            p += 1.
        for p in (r.slow.decoder.mask_token, *r.slow.head.parameters(), *r.slow.decoder.blocks.parameters()):
            p += 1.
    assert torch.equal(r.hardness(u), before), 'it knows neither student, nor mask, nor painter'
    x = u.x.clone()
    x[:, 0, 0] = 0
    assert ((r.hardness(u.but(x=x)) - before).abs().amax((1, 2)) > 0).all()


def test_it_is_a_masked_autoencoder_with_one_term_more(r, batch):
    from maskedlab.recipes.image.mae import MAE
    mae = MAE(**SMALL, norm_pix=False).eval()
    mine = {k.removeprefix('net.'): v for k, v in r.state_dict().items() if k.startswith('net.')}
    mae.load_state_dict({k: mine[k] for k in mae.state_dict()})
    out = r(batch, generator=g(), mask=Random(.75))
    same = mae(batch, mask=out.mask)
    assert torch.equal(same.pred, out.pred) and torch.equal(same.loss, out.terms['pixels'])
    assert torch.equal(mae.features(batch), r.features(batch))


# what is asked, and what it learns

def test_either_question(batch):
    out = make(asked='loss')(batch, generator=g())
    t = rows(out.error, out.mask).view(3, 12)
    assert_close(out.target, make().cut.normal(rows(out.units.x, out.mask)))
    assert out.terms['hardness'] > .3 and t.isfinite().all()
    normal = make(norm_pix=True)(batch, generator=g())
    assert_close(normal.target.mean(-1), torch.zeros(36), atol=1e-5, rtol=0)


def test_it_learns_which_patches_are_hard():
    """On digits ink is hard: the student says so of holes, and the slow copy of what it sees."""
    torch.manual_seed(0)
    r = HardPatchesMining(image=28, patch=7, channels=1, dim=32, depth=2, heads=4, decoder_dim=32,
                          decoder_depth=1, decoder_heads=4, mean=(.13,), std=(.3,), momentum=.9,
                          strategy=Random(.5))
    train, b = ml.sample('digits', n=None), ml.sample('digits', n=60, split='test')
    ml.Trainer(r, data=train, steps=100, batch=16, lr=3e-3, seed=0, show=False).fit(background=False)
    out = r.eval()(b, generator=g())
    assert out.logs['tau'] > .3 and kendall(r.hardness(out.units), out.error) > .2
    r.strategy = HARD
    mask, ink = r(b, generator=g()).mask, r.units(b).x.mean(-1) > .2
    assert mask[ink].float().mean() > mask[~ink].float().mean() + .1


def test_training_on_one_batch_brings_the_loss_down(batch):
    torch.manual_seed(0)
    r = HardPatchesMining(**SMALL)
    history = fit(r, iter([batch] * 25), 25, lr=3e-3, seed=0, weight_decay=0.)
    assert history[-1]['pixels'] < .9 * history[0]['pixels']
    assert all(math.isfinite(step['loss']) for step in history)


# bad input

@pytest.mark.parametrize('arguments, words', [
    (dict(asked='size'), "asked='size'"), (dict(momentum=1.2), 'momentum=1.2'), (dict(patch=7), '7')])
def test_bad_arguments(arguments, words, batch):
    with pytest.raises(ValueError, match=words) as told:
        make(**arguments)(batch)
    assert len(str(told.value)) <= 200


def test_bad_scores(r):
    u = ml.layout((4, 4))
    for scores, words in ((None, 'only a network knows'), (torch.rand(1, 9), r'\[1, 9\]'),
                          (torch.full((1, 4, 4), torch.nan), 'NaN')):
        with pytest.raises(ValueError, match=words) as told:
            HARD(u, loss=scores)
        assert len(str(told.value)) <= 200
    with pytest.raises(ValueError, match='share=1.5'):
        Guided('loss', share=1.5)


def test_no_weights_are_told_in_one_sentence():
    from maskedlab.contract.create import SHIPPED
    if (SHIPPED / 'hard_patches_mining-micro').is_dir():
        pytest.skip('they are there')
    with pytest.raises(ValueError, match='hpm|hard_patches_mining') as told:
        ml.create_recipe('hpm', pretrained=True)
    assert len(str(told.value)) <= 200


# the explorer

def test_the_page_shows_three_maps_and_who_was_chosen():
    page = Page('hpm')
    shown = page.show(page.state)
    assert {'hardness', 'chosen', 'error'} <= shown.pictures.keys()
    assert page.state.fields['share'] == .5
    reply, _ = answer(page, dict(kind='draw', seq=1, view='v', state=vars(page.state)))
    assert reply['under']['chosen'] == '24 of 48 as hard'
    page.state = page.state.__class__(**{**vars(page.state), 'fields': {**page.state.fields, 'share': 0.}})
    reply, _ = answer(page, dict(kind='draw', seq=1, view='v', state=vars(page.state)))
    assert reply['under']['chosen'] == '0 of 48 as hard'
    page.state = page.state.__class__(**{**vars(page.state), 'painted': [0, 1, 2, 9]})
    reply, _ = answer(page, dict(kind='draw', seq=1, view='v', state=vars(page.state)))
    assert reply['under']['chosen'] == '0 of 4 as hard'
    menu, _ = answer(page, dict(kind='open', recipe='hpm', view='v', seq=2))
    share = next(c for s in menu['spec']['strategies'] for c in s['controls'] if c['name'] == 'share')
    assert (share['low'], share['high'], share['value']) == (0, 1, .5)


def test_scores_have_no_row_where_nothing_is_hidden(r, batch):
    out = r(batch, mask=r.units(batch).none())
    assert out.loss.item() == 0 and out.error.isnan().all()
    assert spread(torch.rand(0), out.mask).isnan().all()
