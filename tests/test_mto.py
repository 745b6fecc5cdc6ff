"""MTO: who listens to whom, three terms, around any recipe with a mask token; and wrappers at large."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from given import g, ragged, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.catalogue import RECIPES
from maskedlab.contract.create import recipe_class
from maskedlab.contract.wrapped import Drawn, Wrapped
from maskedlab.parts.watch import watched
from maskedlab.recipes.image.beit import BEiT
from maskedlab.recipes.image.hard_patches_mining import HardPatchesMining
from maskedlab.recipes.image.mae import MAE
from maskedlab.recipes.image.mto import (MTO, Listening, cosines_of, entering, in_holes, recalibrated,
                                         through_depth)
from maskedlab.recipes.image.simmim import SimMIM
from maskedlab.train.trainer import fit

IMAGE = dict(image=16, dim=32, depth=3, heads=2)
INNER = {'simmim': lambda: SimMIM(**IMAGE, token=2, cell=4, drop_path=0.),
         'mae': lambda: MAE(**IMAGE, patch=4, decoder_dim=16, decoder_depth=3, decoder_heads=2),
         'hard_patches_mining': lambda: HardPatchesMining(**IMAGE, patch=4, decoder_dim=16, decoder_depth=3,
                                                          decoder_heads=2),
         'beit': lambda: BEiT(**IMAGE, patch=4, drop_path=0., tokenizer=None, words=8)}
OFF = dict(recalibrate=False, spa=0., e=0., r=0.)


@pytest.fixture(scope='module')
def batch():
    return {'image': torch.rand(3, 3, 16, 16, generator=g(3))}


@pytest.fixture(scope='module', params=['simmim', 'mae'])
def r(request):
    torch.manual_seed(0)
    return stir(MTO(INNER[request.param]()), .2)


def rows_of(r, batch, mask):
    """Weights of every block as the network uses them, and which tokens are in holes."""
    at = Listening(Drawn(mask), 3, r.share)
    with watched(r.mixer, by=at) as weights:
        r.inner(batch, mask=mask, generator=g())
    return weights, at


# 1. all switches off

@pytest.mark.parametrize('name', INNER)
def test_with_all_switches_off_it_is_the_parent_bit_by_bit(name, batch, one_thread):
    if name == 'beit': return               # without a tokenizer it has no loss: see its attention below
    torch.manual_seed(0)
    parent = stir(INNER[name](), .2)
    off = MTO(parent, **OFF)
    luck = [g(5), g(5)]
    a, b = parent(batch, generator=luck[0]), off(batch, generator=luck[1])
    assert torch.equal(a.mask, b.mask) and torch.equal(a.pred, b.pred) and a.terms.keys() == b.terms.keys()
    assert torch.equal(luck[0].get_state(), luck[1].get_state())
    learning = [p for p in parent.parameters() if p.requires_grad]
    found = [torch.autograd.grad(out.loss, learning) for out in (a, b)]
    assert torch.equal(a.loss, b.loss) and all(map(torch.equal, *found))


def test_on_it_draws_what_the_parent_draws(r, batch):
    luck = [g(5), g(5)]
    a, b = r.inner(batch, generator=luck[0]), r(batch, generator=luck[1])
    assert torch.equal(a.mask, b.mask) and torch.equal(luck[0].get_state(), luck[1].get_state())
    assert not torch.equal(a.pred, b.pred) and set(b.terms) == {'pixels', 'spa', 'e', 'r'}


# 2. and 3. recalibration

@pytest.mark.parametrize('shape', ['drawn', 'ragged'])
def test_rows_sum_to_one_and_only_rows_of_visible_tokens_change(r, batch, shape):
    u = r.units(batch)
    mask = ragged(u) if shape == 'ragged' else r.strategy(u, generator=g(1))
    weights, at = rows_of(r, batch, mask)
    hidden, seen = at.tokens
    for block, w in enumerate(weights):
        assert_close(w.sum(-1), torch.ones(w.shape[:-1]))
        heard = ((w > 0) & hidden[:, None, None]).sum(-1)                            # `[B, heads, Q]`
        in_hole, n = hidden[:, None].expand_as(heard), hidden.sum(1)[:, None, None].expand_as(heard)
        assert torch.equal(heard[in_hole], n[in_hole])                               # holes see every hole
        assert torch.equal(heard[~in_hole], (block * n[~in_hole] / 2 - 1e-6).ceil().long())
    to_holes = weights[0] * hidden[:, None, None] * ~hidden[:, None, :, None]
    assert to_holes.abs().max() == 0 and (at.heard[0] == 0).all()


def test_the_most_looked_at_are_heard():
    logits, hidden = torch.randn(2, 3, 9, 9, generator=g()), torch.arange(9).expand(2, 9) > 3
    w, plain = recalibrated(logits, hidden, .4), logits.softmax(-1)
    for b in range(2):
        for h in range(3):
            worth = plain[b, h, :4, 4:].mean(0)
            kept = (w[b, h, 0, 4:] > 0).nonzero()[:, 0]
            assert set(kept.tolist()) == set(worth.topk(2).indices.tolist())
            left = torch.cat([torch.arange(4), 4 + kept])
            assert_close(w[b, h, :4][:, left], logits[b, h, :4][:, left].softmax(-1))    # nothing else moved
    assert torch.equal(w[:, :, 4:], plain[:, :, 4:])
    assert torch.equal(recalibrated(logits, hidden, 1.), plain)


def test_the_first_block_does_not_hear_the_mask_token(r, batch):
    mask = r.strategy(r.units(batch), generator=g(1))
    token = next(p for n, p in r.named_parameters() if n.endswith('mask_token'))

    def behind(which):
        found = []
        hooks = [b.register_forward_hook(lambda m, given, made: found.append(made.detach()))
                 for b in r.mixer.blocks]
        which(batch, mask=mask)
        for hook in hooks:
            hook.remove()
        seen = in_holes(mask, found[0].shape[1])[1]
        return [y[seen] for y in found]

    moved = {}
    for name, which in (('mto', r), ('parent', r.inner)):
        before = behind(which)
        token.data.mul_(-1)
        moved[name] = [float((a - b).abs().max()) for a, b in zip(behind(which), before)]
        token.data.mul_(-1)
    assert moved['mto'][0] == 0 and moved['mto'][1] > 1e-4 and moved['parent'][0] > 1e-4


# 4. the terms

def test_terms_at_their_ends():
    mask = torch.zeros(2, 4, 4).bool()
    mask[:, :2] = True
    hidden, seen = in_holes(mask, 17)
    first = seen[0].nonzero()[0, 0]
    one = F.one_hot(first, 17) * 1e3
    for logits, e in ((torch.zeros(2, 3, 17, 17), .5), (one.expand(2, 3, 17, 17).float(), 0.)):
        at = Listening(Drawn(mask), 5, lambda depth: 1.)
        for block in range(5):
            at(logits, block)
        assert_close(at.over_blocks(at.entropy, at.depth), torch.tensor(e), atol=1e-4, rtol=0)
        spa = at.over_blocks(at.heard, 1 - at.depth)
        assert_close(spa, torch.tensor(.5 * 8 / 17 if e else 0.), atol=1e-4, rtol=0)
    # looking at holes more or less, as long as visible tokens get the same among themselves, is not entropy
    at = Listening(Drawn(mask), 1, lambda depth: 1.)
    at(torch.zeros(2, 3, 17, 17) + 9. * hidden[:, None, None], 0)
    assert_close(at.entropy[0], torch.ones(2))


class Network(torch.nn.Module):
    """A network without positions, and one whose table of positions is taken off."""
    blocks = torch.nn.ModuleList([torch.nn.Identity()])

    def __init__(self, pos=None):
        super().__init__()
        if pos is not None:
            self.pos_embed, self.grid = pos, (4, 4)


@pytest.mark.parametrize('pos', [None, torch.randn(1, 17, 8, generator=g(2))])
def test_likeness_to_patches_at_its_ends(pos):
    mask = torch.zeros(2, 4, 4).bool()
    mask[0, :2] = mask[1, 0] = True
    hidden, seen = in_holes(mask, 17)
    x, token = torch.randn(2, 17, 8, generator=g()), torch.zeros(8)
    token[0] = 1
    where = lambda patches, size: torch.where(hidden[..., None], size * token, patches) + (
        0. if pos is None else pos)
    plane = torch.cat([torch.zeros(2, 17, 1), x[..., 1:]], -1)
    assert_close(cosines_of(Network(pos), where(plane, 1.), mask)[seen], torch.zeros(20), atol=1e-5, rtol=0)
    assert_close(cosines_of(Network(pos), where(-x.abs()[..., :1] * token, 1.), mask)[seen], -torch.ones(20))
    small, large = (cosines_of(Network(pos), where(x, size), mask)[seen] for size in (1., 50.))
    assert_close(small, large, atol=1e-5, rtol=1e-4)


def test_what_comes_in_is_the_mask_token(r, batch):
    with entering(r.mixer) as x:
        out = r(batch, generator=g())
    hidden, seen = in_holes(out.mask, x[0].shape[1])
    token = next(p for n, p in r.named_parameters() if n.endswith('mask_token')).flatten()
    if r.mask_token_in == 'encoder':
        patches = r.encoder.embed(r.cut.picture(out.units)).flatten(1, 2)
    else:
        rest = ~out.mask
        h = r.decoder.embed(r.encoder.see(r.cut.normal(out.units.x), rest))
        patches = torch.zeros(3, 16, 16)
        patches[rest.flatten(1)] = h[:, 1:].flatten(0, 1)
    want = F.cosine_similarity(F.pad(patches, (0, 0, 1, 0)), token, dim=-1)
    assert_close(cosines_of(r.mixer, x[0], out.mask)[seen], want[seen], atol=1e-5, rtol=1e-4)
    assert_close(out.terms['r'], .1 * want.square().masked_fill(~seen, 0).sum(1).div(seen.sum(1)).mean())
    assert not r.mixer.blocks[0]._forward_pre_hooks


# 5. whom the term on the mask token moves

def test_only_the_mask_token_is_pushed_away(r, batch):
    pushed = MTO(r.inner, recalibrate=False, spa=0., e=0., r=1.)
    pushed(batch, generator=g()).terms['r'].backward()
    reached = [n for n, p in pushed.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(reached) == 1 and reached[0].endswith('mask_token')
    pushed.zero_grad()


@pytest.mark.parametrize('term', ['spa', 'e'])
def test_terms_move_the_network(r, batch, term):
    r(batch, generator=g()).terms[term].backward()
    moved = [n for n, p in r.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any('attn' in n for n in moved) and not any('head' in n for n in moved)
    r.zero_grad()


# 6. nothing hidden, everything hidden

def test_without_holes_and_of_nothing_but_holes_the_terms_are_zero(r, batch):
    u = r.units(batch)
    for mask in (u.none(), u.all()):
        out = r(batch, mask=mask, generator=g())
        assert out.loss.isfinite() and all((out.terms[k] == 0).all() for k in ('spa', 'e', 'r'))
        out.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in r.parameters())
        r.zero_grad()
    mixed = u.none()
    mixed[0], mixed[1, :2] = True, True                     # all, half, none: one of three counts
    alone = r({'image': batch['image'][1:2]}, mask=mixed[1:2], generator=g())
    out = r(batch, mask=mixed, generator=g())
    for k in ('spa', 'e', 'r'):
        assert_close(3 * out.terms[k], alone.terms[k], atol=1e-5, rtol=1e-4)


# 7. the same masks, and nothing leaks

@pytest.mark.parametrize('name', INNER)
def test_attention_is_recalibrated_for_whoever_looks(name, batch):
    torch.manual_seed(0)
    r = stir(MTO(INNER[name]()), .2)
    mask = ml.masks.Random(.6)(r.units(batch), generator=g(1))
    part = {'part': 'decoder'} if 'decoder' in r.mask_token_in else {}
    w, query, key = r.attention(batch, mask, **part)
    plain = r.inner.attention(batch, mask, **part)[0]
    hidden = in_holes(mask, w.shape[-1])[0]
    assert torch.equal(hidden, (key >= 0) & mask.flatten(1).gather(1, key.clamp_min(0)))
    closed = ~hidden[:, None, :, None] & hidden[:, None, None]
    assert (w[0] * closed).abs().max() == 0 and (plain[0] * closed).max() > .01
    assert all(m.watch is None for m in r.mixer.modules() if hasattr(m, 'watch'))
    assert torch.equal(r.features(batch), r.inner.features(batch))


def test_hidden_pixels_change_no_prediction(r, batch):
    assert ml.leak_check(r, batch).ok
    assert ml.leak_check(r, batch, mask=ragged(r.units(batch))).ok


# through depth

def test_through_depth_tells_parent_and_wrapper_apart(r, batch):
    mask = r.strategy(r.units(batch), generator=g(1))
    a, b = (through_depth(x, batch, mask) for x in (r.inner, r))
    assert {k: v.shape for k, v in a.items()} == dict.fromkeys(('heard', 'entropy', 'unlike'), (3,))
    assert b['heard'][0] == 0 < a['heard'][0] and torch.equal(a['entropy'][0], b['entropy'][0])
    assert all(0 <= x <= 1 for x in a['entropy']) and all(0 <= x <= 2 for x in a['unlike'])
    # all tokens alike: no heterogeneity
    flat = copy.deepcopy(r)
    for block in flat.mixer.blocks:
        block.register_forward_hook(lambda m, given, made: torch.ones_like(made))
    assert_close(through_depth(flat, batch, mask)['unlike'], torch.zeros(3), atol=1e-5, rtol=0)


def test_around_a_recipe_whose_strategy_asks_the_network(batch):
    torch.manual_seed(0)
    r = stir(MTO(INNER['hard_patches_mining']()), .2)
    found = r.blockwise(batch)
    assert found['heard'][0] == 0 < found['heard'][-1]
    out = r(batch, generator=g())
    assert {'hardness', 'spa', 'e', 'r'} <= out.terms.keys() and out.loss.isfinite()
    before = copy.deepcopy(r.slow.state_dict())
    with torch.no_grad():
        next(r.inner.net.parameters()).add_(1)
    r.after_step(out, 0.)
    assert any(not torch.equal(v, before[k]) for k, v in r.slow.state_dict().items())


def test_training_lowers_the_terms(batch):
    torch.manual_seed(0)
    parent = INNER['simmim']()
    scores = []
    for weights in (OFF, dict(recalibrate=False, spa=3., e=3., r=3.)):
        r = MTO(copy.deepcopy(parent), **weights)
        fit(r, iter([batch] * 25), 25, lr=3e-3, seed=0, weight_decay=0.)
        scores.append(through_depth(r, batch, generator=g()))
    assert scores[1]['entropy'].mean() < scores[0]['entropy'].mean() - .01
    assert scores[1]['heard'].mean() < scores[0]['heard'].mean() - .01


# what it can be put around

def test_who_has_no_mask_token_is_told_who_has_one():
    have = [name for name in RECIPES if recipe_class(name).mask_token_in]
    assert {'mae', 'simmim', 'beit'} <= set(have)
    for name in ('cae', 'mfm'):
        with pytest.raises(ValueError, match='mae, simmim, beit') as told:
            MTO(f'{name}/micro')
        assert len(str(told.value)) <= 200


@pytest.mark.parametrize('inner', ['mae/huge', 'nothing', 'mine.py:Mine', '/tmp', 3, None, SimMIM.sizes])
def test_bad_words_are_one_sentence(inner):
    with pytest.raises((ValueError, TypeError)) as told:
        MTO(inner)
    assert len(str(told.value)) <= 200


@pytest.mark.parametrize('name', ['simmim', 'mae'])
def test_saved_and_loaded(name, batch, tmp_path):
    r = MTO(INNER[name](), spa=.2, recalibrate=False).eval()
    r.strategy = ml.masks.Block(.5)
    folder = r.save_pretrained(tmp_path / 'a')
    again = ml.load_pretrained(folder)
    assert type(again) is MTO and type(again.inner) is type(r.inner) and again.strategy == r.strategy
    assert (again.spa, again.recalibrate, again.config['dim']) == (.2, False, 32)
    assert torch.equal(again(batch, generator=g()).loss, r(batch, generator=g()).loss)
    twice = ml.load_pretrained(again.save_pretrained(tmp_path / 'b'), spa=.3)
    assert twice.spa == .3 and torch.equal(twice.features(batch), r.features(batch))


def test_words_and_arguments_of_the_inner_recipe():
    r = ml.create_recipe('mto', inner='mae/micro', decoder_depth=3, spa=0.)
    assert len(r.decoder.blocks) == 3 and r.config['inner'] == 'mae' and r.config['image'] == 64
    assert r.plan == MAE.plan and MTO.plan == SimMIM.plan
    with pytest.raises(ValueError, match='made already'):
        MTO(r.inner, dim=3)
    with pytest.raises(ValueError, match='both have'):
        MTO(r)


# wrappers at large

class Half(Wrapped):
    """Half of a loss."""

    def __init__(self, inner='mae/micro', **more):
        super().__init__(inner, **more)

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        out = self.inner(batch, self.strategy if mask is None else mask, units=units, generator=generator,
                         progress=progress)
        out.terms = {k: v / 2 for k, v in out.terms.items()}
        return out


class Moves(SimMIM):
    """Counts its steps, and grows a part for labels."""
    steps = grown = 0

    def after_step(self, out, progress):
        self.steps += 1

    def before_finetuning(self):
        self.grown += 1


def test_a_wrapper_hands_on_what_it_does_not_say(batch):
    r = Half(Moves(**IMAGE, token=2, cell=4))
    fit(r, iter([batch] * 3), 3, lr=1e-3, seed=0)
    r.before_finetuning()
    assert (r.inner.steps, r.inner.grown) == (3, 1) and r.encoder is r.inner.encoder
    assert r.view == r.inner.view and r.fill.__self__ is r.inner and not hasattr(r, 'nothing')
    other = copy.deepcopy(r)
    assert other.encoder is other.inner.encoder is not r.encoder


def test_drawn_remembers_and_promises():
    u = ml.layout((4, 4), batch=2)
    drawn = Drawn(ml.masks.Random(.5))
    assert drawn.given is drawn and drawn.mask is None and drawn.exact
    mask = ml.draw(ml.masks.Random(.1), u, drawn, g())
    assert torch.equal(mask, drawn.mask) and mask.promise[0] == 8
    assert torch.equal(mask, ml.draw(ml.masks.Random(.5), u, None, g()))
    assert math.prod(drawn.strategy.counts(u)[0].shape) == 2
    assert Drawn(mask).given is mask and Drawn(mask).mask is mask
