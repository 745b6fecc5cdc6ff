"""HiCMAE by the invariants of its card (Sun et al. 2024), and the data of two streams."""
import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import rest, rows
from maskedlab.data.voiced import PACES
from maskedlab.masks import Random, Streams, Tube
from maskedlab.recipes.video.hicmae import HiCMAE, likeness_at
from maskedlab.targets.pixels import colour_norm, colour_stats, frame_difference, patch_stats

SMALL = dict(image=32, frames=8, patch=8, rate=8000, window=256, mels=32, spot=8, steps=64, dim=32, depth=3,
             heads=2, taps=(1, 2), fusion=1, decoder_dim=16, decoder_depth=3, decoder_heads=2, weight=.1,
             strategy=Streams(Tube(.75), Random(.75, law='floor hidden')))


def make(**more):
    torch.manual_seed(0)
    return stir(HiCMAE(**SMALL | more))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return ml.sample('voiced', 4, g(1), 'test')


def crossing(r):
    "The blocks of the fusion, of both streams."
    return [block for stream in r.fusion.blocks.values() for block in stream]


def silent(r, *blocks):
    "These blocks find nothing in the other sequence."
    with torch.no_grad():
        for block in blocks:
            block.cross.proj.weight.zero_()
            block.cross.proj.bias.zero_()
    return r


def looked(r, u, mask):
    return r.encoders(r.cut.normal(u.x), u.split(mask))


# ---------------------------------------------------------------- the card's invariants

def test_1_a_decoder_of_n_blocks_asks_n_minus_1_levels_the_deepest_first(r, batch):
    out = r(batch, generator=g())
    u, hidden = out.units, out.units.split(out.mask)
    levels, real = looked(r, u, out.mask)
    met = r.fusion({k: h[-1] for k, h in levels.items()}, real)
    for k, m in hidden.items():
        decode = lambda order, k=k, m=m: r.decoders[k](met[k], rest(m), [levels[k][i] for i in order])
        say = lambda order, k=k, m=m, decode=decode: rows(r.heads[k](decode(order)), m)
        assert_close(say((2, 1)), out.pred[k], atol=1e-5, rtol=1e-4)
        assert (say((1, 2)) - out.pred[k]).abs().max() > 1e-3
    for taps in ((1,), (0, 1, 2), (1, 3)):
        with pytest.raises(ValueError, match='a decoder of 3 blocks asks 2 levels, of 0 to 2'):
            make(taps=taps)
    # each level is normed as the last one is
    for net in r.encoders.values():
        assert isinstance(net.norm, torch.nn.LayerNorm)
    assert_close(levels['video'][-1], r.encoders['video'].see(r.cut.video.normal(u.x['video']),
                                                              rest(hidden['video'])))


@pytest.mark.parametrize('stream', ['video', 'audio'])
def test_2_what_is_hidden_in_either_stream_changes_no_prediction(r, batch, stream):
    out = r(batch, generator=g())
    u, hidden = out.units, out.units.split(out.mask)
    holes = {**u.x, stream: u.x[stream].masked_fill(hidden[stream][..., None], torch.nan)}
    again = r(batch, mask=out.mask, units=u.but(x=holes))
    assert all(torch.equal(again.pred[k], out.pred[k]) for k in out.pred)
    assert again.target[stream].isnan().any()


def test_2_leaks_of_either_stream_are_found(r, batch):
    report = ml.leak_check(r, batch, rounds=2)
    assert report.ok and report.where.shape == (4, 96) and report.where.nan_to_num().max() == 0

    class Hears(HiCMAE):
        def forward(self, batch, mask=None, **more):
            out = super().forward(batch, mask, **more)
            heard = self.encoders['audio'].see(out.units.x['audio'])        # all of the sound
            out.pred['video'] = out.pred['video'] + heard.mean() * .1
            return out
    caught = ml.leak_check(stir(Hears(**SMALL)), batch, rounds=2)
    assert not caught.ok and caught.where[:, :64].nan_to_num().max() > 0
    assert caught.where[:, 64:].nan_to_num().max() == 0


def test_3_another_sound_changes_the_clip_through_the_fusion_alone(batch):
    r = make()
    out = r(batch, generator=g())
    other = out.units.but(x={**out.units.x, 'audio': out.units.x['audio'].roll(1, 0)})
    moved = lambda: (r(batch, mask=out.mask, units=other).pred['video']
                     - r(batch, mask=out.mask).pred['video']).abs().max()
    assert moved() > 1e-4
    silent(r, *crossing(r))
    assert moved() == 0


def test_4_both_streams_of_the_fusion_ask_what_the_other_was_before(r):
    x = {'video': torch.randn(2, 5, 32, generator=g()), 'audio': torch.randn(2, 3, 32, generator=g(1))}
    a, b = x.values()
    one, two = crossing(r)
    met = r.fusion(x, {k: torch.ones(v.shape[:2]).bool() for k, v in x.items()})
    assert_close(met['video'], r.fusion.norms['video'](one(a, b)))
    assert_close(met['audio'], r.fusion.norms['audio'](two(b, a)))
    in_turn = r.fusion.norms['audio'](two(b, one(a, b)))
    assert (met['audio'] - in_turn).abs().max() > 1e-3


def test_5_both_directions_count_and_one_clip_alone_has_nothing_to_find(r, batch):
    out = r(batch, generator=g())
    levels, real = looked(r, out.units, out.mask)
    own, want, scale = torch.arange(4), 0., r.contrast.log_scale.exp()
    for s in likeness_at(levels, real, r.taps):
        assert s.shape == (4, 4)
        want += (F.cross_entropy(s * scale, own) + F.cross_entropy(s.T * scale, own)) / 2
    assert_close(out.terms['contrast'], .1 * want)          # a sum over levels, not their mean
    alone = {k: v[:1] for k, v in batch.items()}
    assert r(alone, generator=g()).terms['contrast'] == 0
    fresh = HiCMAE(**SMALL).contrast.log_scale
    assert not fresh.requires_grad and abs(float(fresh.exp()) - 1 / .07) < 1e-3


def test_6_the_contrast_looks_at_visible_tokens_of_each_encoder_alone(batch):
    r = make()
    out = r(batch, generator=g())
    hidden = out.units.split(out.mask)
    levels, real = looked(r, out.units, out.mask)
    for i, s in zip(r.taps, likeness_at(levels, real, r.taps)):
        own = {k: net.norm(net.levels(r.cut.video.normal(out.units.x[k]) if k == 'video' else out.units.x[k],
                                      rest(hidden[k]))[i]).mean(1) for k, net in r.encoders.items()}
        assert_close(s, F.cosine_similarity(own['video'][:, None], own['audio'][None], dim=-1))
    silent(r, *crossing(r), *(b for d in r.decoders.values() for b in d.skips))
    assert_close(r(batch, mask=out.mask).terms['contrast'], out.terms['contrast'])
    # padding of a clip that shows less than its neighbours does not count
    mask = out.mask.clone()
    mask[0, :64] = True
    mask[0, 3], mask[0, 19] = False, False
    few = looked(r, out.units, mask)
    alone = looked(r, r.units({k: v[:1] for k, v in batch.items()}), mask[:1])
    for i in r.taps:
        pool = lambda found, i=i: found[0]['video'][i][0][found[1]['video'][0]].mean(0)
        assert_close(pool(few), pool(alone), atol=1e-5, rtol=1e-4)


def test_levels_of_the_contrast_may_be_others_than_those_that_are_asked(batch):
    full, top, same = make(), make(contrasted=(2,)), make(taps=(2, 2), contrasted=(1, 2))
    out, alone, looks_up = (r(batch, generator=g()) for r in (full, top, same))
    assert torch.equal(out.pred['video'], alone.pred['video'])
    assert 0 < alone.terms['contrast'] < out.terms['contrast']
    assert torch.equal(looks_up.terms['contrast'], out.terms['contrast'])       # all begin alike
    assert (looks_up.pred['video'] - out.pred['video']).abs().max() > 1e-3
    with pytest.raises(ValueError, match='of 0 to 2'):
        make(contrasted=(3,))


def test_7_the_first_frame_of_a_cube_is_kept_and_a_clip_that_stands_still_asks_for_no_second(r, batch):
    u = r.units(batch)
    x = u.x['video']
    plain, asked = (net.cut.wanted(u.x)['video'] for net in (make(difference=False), r))
    assert torch.equal(plain, colour_norm(x, 3))
    assert torch.equal(asked[..., :192], plain[..., :192])
    assert_close(asked[..., 192:], plain[..., 192:] - plain[..., :192])
    still = batch['video'][:, :, :1].expand_as(batch['video'])
    t = r.cut.wanted(r.units({**batch, 'video': still}).x)['video']
    assert (t[..., 192:] == 0).all() and t[..., :192].abs().max() > .5
    assert_close(frame_difference(torch.arange(6.)[None], 3), torch.tensor([[0., 1., 2., 2., 4., 4.]]))


# ---------------------------------------------------------------- back to clip and spectrum

@pytest.mark.parametrize('more', [{}, dict(norm_pix=False), dict(difference=False),
                                  dict(norm_pix=False, difference=False)])
def test_fill_leaves_what_is_visible_and_the_truth_paints_clip_and_spectrum(batch, more):
    r = make(**more)
    out = r(batch, generator=g())
    u, hidden = out.units, out.units.split(out.mask)
    whole, filled = u.put(batch, u.x), r.fill(batch, out)
    assert_close(whole['video'], batch['video'], atol=0, rtol=0)
    assert_close(whole['mel'], r.cut.mel(batch['wave'])[:, :64], atol=1e-4, rtol=0)
    again = r.units(filled)
    for k, m in hidden.items():
        assert_close(again.x[k][~m], u.x[k][~m], atol=1e-5, rtol=0)
        assert (again.x[k][m] - u.x[k][m]).abs().max() > .1
    assert 0 <= filled['video'].min() and filled['video'].max() <= 1
    out.pred = out.target
    for k, v in r.fill(batch, out).items():
        assert_close(v, whole[k], atol=2e-4, rtol=0)


def test_statistics_are_those_of_hidden_units_or_of_visible_ones(r, batch):
    out = r(batch, generator=g())
    u, hidden = out.units, out.units.split(out.mask)
    out.pred = {k: torch.zeros_like(v) for k, v in out.pred.items()}            # nothing but the mean
    own, lent = (r.units(r.fill(batch, out, statistics=s)).x for s in ('true', 'visible'))
    means = {'video': colour_stats(u.x['video'], 3)[0], 'audio': patch_stats(u.x['audio'])[0]}
    for k, m in hidden.items():
        mean = means[k].expand_as(u.x[k])
        assert_close(own[k][m], mean[m], atol=1e-4, rtol=0)
        for i in range(len(batch['video'])):
            want = mean[i][~m[i]].mean(0).expand_as(lent[k][i][m[i]])
            assert_close(lent[k][i][m[i]], want, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match='statistics'):
        r.fill(batch, out, statistics='mine')


def test_a_spectrum_in_the_batch_is_heard_instead_of_its_wave(r, batch):
    u = r.units(batch)
    other = u.but(x={**u.x, 'audio': u.x['audio'].roll(1, 0)})
    back = r.units(other.put(batch, other.x))
    assert_close(back.x['audio'], other.x['audio'], atol=1e-5, rtol=0)
    alone = u.alone('audio')
    assert alone.shape == (8, 4) and list(alone.put({}, alone.x)) == ['mel']
    assert 'data' in ml.leak_check(r, batch, rounds=1).changes


# ---------------------------------------------------------------- masks and sizes

def test_two_masks_by_two_laws(batch):
    r = make(strategy=Streams(Tube(.9), Random(.8, law='floor hidden')))
    hidden = r.units(batch).split(r(batch, generator=g()).mask)
    assert (hidden['video'] == hidden['video'][:, :1]).all()
    assert hidden['video'].sum((2, 3)).unique().tolist() == [14]
    assert hidden['audio'].sum((1, 2)).unique().tolist() == [25]        # the floor of 25.6
    assert ml.masks.parse(repr(r.strategy)) == r.strategy


def test_the_published_size():
    with torch.device('meta'):
        base = HiCMAE(**HiCMAE.sizes['base'])
    assert [net.grid for net in base.encoders.values()] == [(8, 10, 10), (16, 8)]
    assert [len(net.blocks) for net in base.encoders.values()] == [10, 10] and base.taps == (3, 6, 9)
    assert len(base.fusion.blocks['video']) == 2 and [len(d.skips) for d in base.decoders.values()] == [3, 3]


# ---------------------------------------------------------------- data, and bad input

def test_a_voice_is_of_its_clip():
    b = ml.sample('voiced', 60, g(3), seconds=2.)
    again = ml.sample('voiced', 60, g(3), seconds=2.)
    assert all(torch.equal(v, again[k]) for k, v in b.items())
    long = b['wave_valid'].sum(1).float()
    means = [float(long[b['pace'] == i].mean()) for i in range(len(PACES))]
    assert means[0] > 1.5 * means[-1] and means[1] > 1.1 * means[3]
    assert not b['real'].any() and b['label'].unique().tolist() == list(range(10))
    assert (b['wave'].masked_fill(b['wave_valid'], 0) == 0).all()


@pytest.mark.parametrize('change, words', [
    (lambda b: {**b, 'wave': b['wave'][:2], 'wave_valid': b['wave_valid'][:2]}, ['4 clips and 2 waves']),
    (lambda b: {**b, 'rate': b['rate'] * 0}, ['rate=0']),
    (lambda b: {**b, 'wave': b['wave'] * torch.nan}, ['NaN']),
    (lambda b: {**b, 'wave': b['wave'][:, :300], 'wave_valid': b['wave_valid'][:, :300]}, ['300 samples']),
    (lambda b: {**b, 'video': b['video'][:, :, :1]}, ['smaller than the cube']),
    (lambda b: {**b, 'mel': torch.zeros(4, 64, 31)}, ['mel must be [B, steps, 32]', '31']),
    (lambda b: {**b, 'mel': torch.zeros(3, 64, 32)}, ['4 clips and 3 waves']),
    (lambda b: {k: v for k, v in b.items() if k != 'wave'}, ["'wave'"])])
def test_bad_input(r, batch, change, words):
    with pytest.raises((ValueError, TypeError)) as e:
        r(change(batch))
    assert all(w in str(e.value) for w in words) and len(str(e.value)) <= 200


def test_streams_are_for_two_streams():
    with pytest.raises(ValueError, match='two streams'):
        Streams(Random(.5), Random(.5))(ml.layout((4, 4), 2))
