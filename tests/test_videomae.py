"""VideoMAE: the invariants of the method (Tong et al. 2022), its format, and copying over time."""
import pytest
import torch
from given import g, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import rest, rows
from maskedlab.instruments.baselines import beside_baselines, hidden_pixels, temporal_copy, visible_mean
from maskedlab.masks import Frames, Random, Tube
from maskedlab.parts.positions import fit_positions, sinusoid
from maskedlab.recipes.video.videomae import VideoMAE
from maskedlab.targets.pixels import colour_norm, colour_stats, un_norm

SMALL = dict(image=32, frames=8, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=1,
             decoder_heads=2, strategy=Tube(.75))


@pytest.fixture(scope='module')
def r():
    torch.manual_seed(0)
    return stir(VideoMAE(**SMALL))


@pytest.fixture(scope='module')
def batch():
    return ml.sample('video', 4, g(1), 'test', size=32, frames=8)


# ---------------------------------------------------------------- the card's invariants

@pytest.mark.parametrize('grid, ratio, hidden', [((8, 14, 14), .9, 176), ((8, 14, 14), .75, 147),
                                                 ((8, 4, 4), .75, 12), ((8, 4, 4), .9, 14),
                                                 ((4, 3, 5), .5, 7)])
def test_a_tube_hides_the_floor_of_its_share_of_places_at_all_times(grid, ratio, hidden):
    mask = Tube(ratio)(ml.layout(grid, 30), generator=g())
    assert (mask == mask[:, :1]).all() and (mask.sum((2, 3)) == hidden).all()
    assert len(mask.flatten(1).unique(dim=0)) > 10         # one draw for each clip


def test_hidden_pixels_change_nothing_but_the_target(r, batch):
    out = r(batch, generator=g())
    u = out.units.but(x=out.units.x.masked_fill(out.mask[..., None], torch.nan))
    assert torch.equal(r(batch, mask=out.mask, units=u).pred, out.pred)
    swapped = r(batch, mask=out.mask, units=out.units.swap(out.mask))
    assert torch.equal(swapped.pred, out.pred) and (swapped.target - out.target).abs().max() > .1


def test_the_encoder_sees_visible_cubes_alone_and_all_where_nothing_is_hidden(r, batch):
    u = r.units(batch)
    mask = r(batch, generator=g()).mask
    assert r.encoder.see(r.cut.normal(u.x), rest(mask)).shape == (4, 4 * (16 - 12), 32)
    none = r(batch, mask=u.none())
    assert none.loss == 0 and len(none.pred) == 0
    whole = r.encoder(r.encoder.embed(r.cut.normal(u.x)))
    assert_close(r.features(batch, pool=False), whole)
    assert_close(r.features(batch), whole.mean(1))


def test_a_target_has_mean_0_and_deviation_1_in_each_colour_and_a_flat_cube_is_0(r):
    x = torch.rand(3, 2, 2, 2, 384, generator=g()) * torch.tensor([1., .1, .5]).repeat(128)
    t = colour_norm(x, 3).unflatten(-1, (128, 3))
    assert_close(t.mean(-2), torch.zeros_like(t[..., 0, :]), atol=1e-4, rtol=0)
    assert_close(t.std(-2), torch.ones_like(t[..., 0, :]), atol=1e-3, rtol=0)
    flat = colour_norm(torch.full((2, 384), .5), 3)
    assert (flat == 0).all() and not flat.isnan().any()
    # a colour that is flat by itself is 0, although the others are not
    some = x.clone().unflatten(-1, (128, 3))
    some[..., 1] = .5
    assert (colour_norm(some.flatten(-2), 3).unflatten(-1, (128, 3))[..., 1].abs() < 1e-3).all()
    mask = torch.zeros(3, 2, 2, 2).bool()
    mask[:, :, 0] = True
    back = un_norm(rows(colour_norm(x, 3), mask), x, mask, stats=lambda x: colour_stats(x, 3))
    assert_close(back, rows(x, mask), atol=1e-5, rtol=0)


def test_the_small_number_is_added_to_the_deviation():
    "Nearly flat cubes: inside the root it would count for a thousand times as much."
    x = .5 + 1e-4 * torch.randn(4, 128, 1, generator=g()).expand(-1, -1, 3).flatten(1)
    each = x.unflatten(-1, (128, 3))
    want = (each - each.mean(1, keepdim=True)) / (each.var(1, keepdim=True).sqrt() + 1e-6)
    assert_close(colour_norm(x, 3), want.flatten(1), atol=1e-3, rtol=1e-3)


def test_the_mask_token_is_trained_and_positions_are_not(r, batch):
    r(batch, generator=g()).loss.backward()
    assert r.decoder.mask_token.grad.abs().sum() > 0
    assert not any('pos_embed' in k for k in [*dict(r.named_parameters()), *r.state_dict()])
    assert r.encoder.pos_embed.grad is None and r.decoder.pos_embed.grad is None
    assert not torch.equal(r.encoder.pos_embed[..., :16], r.decoder.pos_embed)      # a table of its own width
    r.zero_grad(set_to_none=True)


def test_order_of_visible_cubes_does_not_matter(r, batch):
    u = r.units(batch)
    mask = r(batch, generator=g()).mask
    tokens, _ = r.encoder.tokens(r.cut.normal(u.x), rest(mask))
    perm = torch.randperm(tokens.shape[1], generator=g())
    assert_close(r.encoder(tokens[:, perm]), r.encoder(tokens)[:, perm], atol=1e-5, rtol=1e-5)
    # nor does that in which the decoder is handed visible and hidden ones: each cell gets its own prediction
    z = r.decoder.lay(r.decoder.embed(r.encoder(tokens)), rest(mask), r.decoder.mask_token)
    perm = torch.randperm(z.shape[1], generator=g(2))
    assert_close(r.decoder.decode(z[:, perm]), r.decoder.decode(z)[:, perm], atol=1e-5, rtol=1e-5)
    pred = r.head(rows(r.decoder.decode(z).unflatten(1, mask.shape[1:]), mask))
    assert_close(pred, r(batch, mask=mask).pred, atol=1e-5, rtol=1e-5)
    # but places do: the same cubes at other times are another clip
    other = r.encoder.see(r.cut.normal(u.x.flip(1)), rest(mask.flip(1)))
    assert (other.mean(1) - r.encoder(tokens).mean(1)).abs().max() > 1e-3


def test_values_of_a_cube_stand_frame_by_frame_row_by_row(r, batch):
    x = batch['video']
    cubes = r.cut.cut(x)
    assert torch.equal(r.cut.image(cubes), x)
    for frame, row, column, colour in ((0, 0, 0, 2), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)):
        at = ((frame * 8 + row) * 8 + column) * 3 + colour
        assert torch.equal(cubes[:, 2, 1, 3, at], x[:, colour, 4 + frame, 8 + row, 24 + column])


def test_fill_leaves_what_is_visible_and_the_truth_paints_the_clip(r, batch):
    out = r(batch, generator=g())
    filled = r.fill(batch, out)['video']
    hidden = hidden_pixels(out.units, out.mask)[:, None].expand_as(filled)
    assert torch.equal(filled[~hidden], batch['video'][~hidden])
    out.pred = out.target
    assert_close(r.fill(batch, out)['video'], batch['video'], atol=1e-5, rtol=0)
    plain = stir(VideoMAE(**SMALL, norm_pix=False))
    p = plain(batch, mask=out.mask)
    p.pred = p.target
    assert_close(plain.fill(batch, p)['video'], batch['video'], atol=1e-6, rtol=0)


def test_what_hidden_cubes_hold_does_not_leak(r, batch):
    assert ml.leak_check(r, batch).ok

    class Tells(VideoMAE):
        def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
            out = super().forward(batch, mask, units=units, generator=generator, progress=progress)
            h = self.encoder.see(self.cut.normal(out.units.x))          # mask tokens are not what is missing
            out.pred = out.pred + h.mean() * 1e-2
            return out
    assert not ml.leak_check(stir(Tells(**SMALL)), batch).ok


def test_the_loss_is_the_mean_over_hidden_cubes_and_their_values(r, batch):
    mask = torch.rand(4, 4, 4, 4, generator=g(3)) < torch.tensor([.1, .4, .6, .9]).view(4, 1, 1, 1)
    out = r(batch, mask=mask)
    assert_close(out.loss, (out.pred - rows(r.target(out.units), mask)).square().mean())
    assert torch.equal(out.scored, mask)


def test_the_papers_size():
    with torch.device('meta'):
        base = VideoMAE(**VideoMAE.sizes['base'])
    assert sum(p.numel() for p in base.parameters()) == 94_210_944
    assert base.encoder.pos_embed.shape == (1, 1568, 768) and base.decoder.pos_embed.shape == (1, 1568, 384)
    assert base.decoder.embed.bias is None and base.head.out_features == 1536


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('x, words', [
    (torch.rand(1, 3, 1, 32, 32), ['1 x 32 x 32', 'smaller than the cube, 2 x 8 x 8', '2 x 32 x 32']),
    (torch.rand(1, 3, 7, 32, 32), ['not a multiple', '6 x 32 x 32']),
    (torch.rand(1, 3, 32, 32), ['[B, 3, T, H, W]']), (torch.rand(1, 16, 3, 32, 32), ['16 channels']),
    (torch.full((1, 3, 8, 32, 32), torch.nan), ['NaN']), (torch.rand(1, 3, 8, 32, 32) * 255, ['0..1']),
    (torch.rand(0, 3, 8, 32, 32), ['empty'])])
def test_clips_that_cannot_be_meant(r, x, words):
    with pytest.raises(ValueError) as e:
        r({'video': x})
    assert all(w in str(e.value) for w in words) and len(str(e.value)) <= 200


# ---------------------------------------------------------------- positions and masks

def test_places_are_counted_through_time_rows_and_columns():
    pos = sinusoid(2 * 3 * 4, 12)
    number = torch.arange(24.)
    assert_close(pos[0, :, 0], number.sin())
    assert_close(pos[0, :, 3], (number * 10000 ** (-2 / 12)).cos(), atol=1e-5, rtol=0)
    assert_close(fit_positions(pos, (2, 3, 4), (5, 3, 4))[:, :24], pos, atol=1e-6, rtol=0)
    assert (fit_positions(pos, (2, 3, 4), (2, 4, 4))[0, 12] - pos[0, 12]).abs().max() < 1e-6


@pytest.mark.parametrize('shape', [(8, 4, 4), (5, 3, 7), (6, 2)])
def test_frames_hide_whole_steps(shape):
    s, u = Frames(.6), ml.layout(shape, 40)
    mask = s(u, generator=g())
    steps = mask.flatten(2)
    assert (steps == steps[..., :1]).all() and (steps[..., 0].sum(1) == int(.6 * shape[0])).all()
    assert (s.counts(u)[0] == mask.flatten(1).sum(1)).all() and s.exact
    assert_close(s.chance(u)[0].flatten()[0], torch.tensor(int(.6 * shape[0]) / shape[0]).double())
    assert steps[..., 0].any(0).all()


# ---------------------------------------------------------------- copying over time

def test_what_is_copied_over_time():
    x = torch.rand(2, 3, 6, 4, 4, generator=g())
    hidden = torch.rand(2, 6, 4, 4, generator=g(1)) < .6
    made = temporal_copy(x, hidden)
    for b, t, y, z in hidden.nonzero().tolist():
        seen = (~hidden[b, :, y, z]).nonzero()[:, 0]
        if len(seen):
            near = min(seen.tolist(), key=lambda s: (abs(s - t), s))
            assert torch.equal(made[b, :, t, y, z], x[b, :, near, y, z])
        else:
            assert torch.equal(made[b, :, t, y, z], visible_mean(x, hidden)[b, :, t, y, z])
    seen = ~hidden[:, None].expand_as(x)
    assert torch.equal(made[seen], x[seen])


def test_tubes_leave_nothing_to_copy_and_other_masks_do(r, batch):
    at = {s: beside_baselines(r, batch, mask=s) for s in (Tube(.75), Random(.75), Frames(.75))}
    assert at[Tube(.75)]['temporal copy'] == at[Tube(.75)]['visible mean']
    for s in (Random(.75), Frames(.75)):
        assert at[s]['temporal copy'] > at[s]['visible mean'] + 1
    still = ml.sample('video', 3, g(), real=0., speed=0., size=32, frames=8)
    assert beside_baselines(r, still, mask=Frames(.75))['temporal copy'] == 100.


# ---------------------------------------------------------------- the format of transformers

@pytest.mark.parametrize('norm_pix', [True, False])
def test_same_weights_same_mask_same_numbers(tmp_path, batch, norm_pix):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining
    torch.manual_seed(0)
    theirs = VideoMAEForPreTraining(VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, decoder_hidden_size=16, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2, decoder_intermediate_size=64, use_mean_pooling=False,
        norm_pix_loss=norm_pix)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(.1 * torch.randn(p.shape, generator=g(p.numel())))
    theirs.save_pretrained(tmp_path / 'theirs')
    imagenet = dict(mean=(.485, .456, .406), std=(.229, .224, .225))
    r = ml.load_pretrained(tmp_path / 'theirs', **imagenet)
    mask = Tube(.75)(r.units(batch), generator=g())
    with torch.no_grad():
        out = r(batch, mask=mask)
        asked = dict(pixel_values=r.cut.colours(batch['video']).transpose(1, 2),
                     bool_masked_pos=mask.flatten(1))
        want = theirs(**asked)
    assert_close(out.loss, want.loss, atol=1e-4, rtol=0)
    assert_close(out.pred, want.logits.flatten(0, 1), atol=1e-4, rtol=0)
    r.save_pretrained(tmp_path / 'back', layout='transformers')
    again = VideoMAEForPreTraining.from_pretrained(tmp_path / 'back').eval()
    with torch.no_grad():
        assert_close(again(**asked).loss, want.loss)
