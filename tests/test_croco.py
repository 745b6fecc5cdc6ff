"""CroCo: the invariants of the method (Weinzaepfel et al. 2022), and pairs of views."""
import pytest
import torch
import torch.nn.functional as F
from given import g, ragged, stir
from PIL import Image
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import rest
from maskedlab.data.embedded import photographs, stereo_photograph
from maskedlab.data.pairs import NUMBERS, pairs_of
from maskedlab.instruments.matches import matched, matches
from maskedlab.parts.two_views import true_places
from maskedlab.recipes.image.croco import CroCo
from maskedlab.train.feed import source_of

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=2, decoder_heads=2)


@pytest.fixture(scope='module')
def r():
    torch.manual_seed(0)
    return stir(CroCo(**SMALL))


@pytest.fixture(scope='module')
def batch():
    return ml.sample('pairs', 4, g(1), 'test', size=32)


# ---------------------------------------------------------------- the card's invariants

@pytest.mark.parametrize('grid, hidden', [((14, 14), 176), ((8, 8), 57), ((6, 6), 32)])
def test_int_of_nine_tenths_is_hidden(r, grid, hidden):
    mask = r.strategy(ml.layout(grid, 20), generator=g())
    assert (mask.flatten(1).sum(1) == hidden).all() and len(mask.flatten(1).unique(dim=0)) == 20


def test_the_papers_size():
    with torch.device('meta'):
        base = CroCo(**CroCo.sizes['base'])
    count = lambda net: sum(p.numel() for p in net.parameters())
    assert count(base) == 120_076_288 and count(base.encoder) == 85_646_592       # 120.1 M and 85.6 M
    assert base.encoder.pos_embed.shape == (1, 196, 768) and base.decoder.pos_embed.shape == (1, 196, 512)


def test_hidden_pixels_change_nothing_and_the_other_view_does(r, batch):
    out = r(batch, generator=g())
    u = out.units.but(x=out.units.x.masked_fill(out.mask[..., None], torch.nan))
    assert torch.equal(r(batch, mask=out.mask, units=u).pred, out.pred)
    other = batch['other'].clone().requires_grad_()
    pred = r({**batch, 'other': other}, mask=out.mask).pred
    grad, = torch.autograd.grad(pred.square().sum(), other)
    assert (grad.flatten(1).abs().sum(1) > 0).all()
    assert (r({**batch, 'other': batch['other'].roll(1, 0)}, mask=out.mask).pred - pred).abs().max() > 1e-3


def test_one_encoder_for_both_views(r, batch):
    seen = []
    hook = r.encoder.register_forward_hook(lambda m, given, made: seen.append(made))
    r({**batch, 'other': batch['image']}, mask=r.units(batch).none())
    hook.remove()
    assert len(seen) == 2 and torch.equal(*seen)


def test_the_memory_is_normed_in_each_block_and_never_written_to(r, batch):
    got = []
    hooks = [b.norm_memory.register_forward_pre_hook(lambda m, x: got.append(x[0].clone()))
             for b in r.decoder.blocks]
    r(batch, generator=g())
    for hook in hooks:
        hook.remove()
    assert len(got) == 2 and torch.equal(*got)
    assert len({id(b.norm_memory) for b in r.decoder.blocks}) == 2


def test_the_memory_has_no_order_but_its_positions(r, batch):
    u = r.units(batch)
    visible = rest(r.strategy(u, generator=g()))
    h, memory = r.encoder.see(r.cut.normal(u.x), visible), r.encoder.see(r.cut.normal(r.cut.other(batch)))
    d = r.decoder
    z, m = d.lay(d.embed(h), visible, d.mask_token), d.embed(memory) + d.pos_embed
    order = torch.randperm(16, generator=g())
    for block in d.blocks:
        z, same = block(z, m), block(z, m[:, order])
        assert_close(z, same)
    assert_close(d.norm(z), d(h, visible, memory))
    assert (d(h, visible, memory[:, order]) - d(h, visible, memory)).abs().max() > 1e-3


def test_without_cross_attention_the_other_view_is_not_there(batch):
    r = stir(CroCo(**SMALL))
    with torch.no_grad():
        for block in r.decoder.blocks:
            block.cross.proj.weight.zero_()
            block.cross.proj.bias.zero_()
    mask = r.strategy(r.units(batch), generator=g())
    a, b = (r({**batch, 'other': x}, mask=mask).pred for x in (batch['other'], batch['other'].roll(1, 0)))
    assert torch.equal(a, b)


def test_targets_are_normed_and_zero_scores_the_trivial_loss(r, batch):
    u = r.units(batch)
    t, P = r.cut.wanted(u, own=True), 8 * 8 * 3
    x = r.cut.normal(u.x)
    var = x.var(-1)
    assert t.mean(-1).abs().max() < 1e-5
    assert_close(t.var(-1), var / (var + 1e-6), atol=1e-4, rtol=1e-4)
    assert t.square().mean(-1)[var > .01].mean().item() == pytest.approx((P - 1) / P, abs=1e-4)
    out = r(batch, mask=ragged(u))
    assert torch.equal(out.scored, out.mask) and out.loss.item() == pytest.approx(
        F.mse_loss(out.pred, out.target).item(), rel=1e-5)


def test_true_rows_fill_the_first_view(r, batch):
    out = r(batch, generator=g())
    out.pred = out.target
    filled = r.fill(batch, out)
    assert_close(filled['image'], batch['image'], atol=1e-4, rtol=0)
    assert torch.equal(filled['other'], batch['other'])


def test_nothing_leaks(r, batch):
    report = ml.leak_check(r, batch, rounds=3)
    assert report.ok and report.control > 1e-3


# ---------------------------------------------------------------- the released layout

def test_the_released_layout_gives_the_same_numbers(r, batch, tmp_path):
    "Their names, and their steps written down once more."
    file = r.save_pretrained(tmp_path, layout='original') / 'croco.pth'
    w = torch.load(file, weights_only=True)['model']
    assert w['enc_pos_embed'].shape == (16, 32)
    assert w['dec_blocks.1.cross_attn.projk.weight'].shape == (16, 16)
    lin = lambda x, n: F.linear(x, w[f'{n}.weight'], w[f'{n}.bias'])
    norm = lambda x, n: F.layer_norm(x, x.shape[-1:], w[f'{n}.weight'], w[f'{n}.bias'], 1e-6)
    cut = lambda t, heads: t.unflatten(-1, (heads, -1)).transpose(1, 2)

    def attend(q, k, v, heads):
        q, k, v = (cut(t, heads) for t in (q, k, v))
        return ((q @ k.mT / q.shape[-1] ** .5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def own(x, n, heads):
        return lin(attend(*lin(x, f'{n}.attn.qkv').chunk(3, -1), heads), f'{n}.attn.proj')

    def mlp(x, n):
        return lin(F.gelu(lin(x, f'{n}.mlp.fc1')), f'{n}.mlp.fc2')

    def encode(image, keep=None):
        mean, std = r.cut.colours.mean.view(3, 1, 1), r.cut.colours.std.view(3, 1, 1)
        x = F.conv2d((image - mean) / std, w['patch_embed.proj.weight'], w['patch_embed.proj.bias'], stride=8)
        x = x.flatten(2).mT + w['enc_pos_embed']
        x = x if keep is None else x[keep].view(len(x), -1, x.shape[-1])
        for i in range(2):
            n = f'enc_blocks.{i}'
            x = x + own(norm(x, f'{n}.norm1'), n, 4)
            x = x + mlp(norm(x, f'{n}.norm2'), n)
        return norm(x, 'enc_norm')

    out = r(batch, generator=g())
    mask = out.mask.flatten(1)
    seen = lin(encode(batch['image'], ~mask), 'decoder_embed')
    y = lin(encode(batch['other']), 'decoder_embed')
    x = w['mask_token'].expand(4, 16, -1).clone()
    x[~mask] = seen.flatten(0, 1)
    x, y = x + w['dec_pos_embed'], y + w['dec_pos_embed']
    for i in range(2):
        n = f'dec_blocks.{i}'
        x = x + own(norm(x, f'{n}.norm1'), n, 2)
        q, m = norm(x, f'{n}.norm2'), norm(y, f'{n}.norm_y')
        c = f'{n}.cross_attn'
        x = x + lin(attend(lin(q, f'{c}.projq'), lin(m, f'{c}.projk'), lin(m, f'{c}.projv'), 2), f'{c}.proj')
        x = x + mlp(norm(x, f'{n}.norm3'), n)
    assert_close(lin(norm(x, 'dec_norm'), 'prediction_head')[mask], out.pred, atol=1e-4, rtol=1e-4)
    again = ml.load_pretrained(tmp_path, heads=4, decoder_heads=2)
    assert_close(again.eval()(batch, mask=out.mask).pred, out.pred)


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('change, words', [
    (lambda b: {'image': b['image']}, "give the second as 'other'"),
    (lambda b: {**b, 'other': b['other'][..., :24]}, 'both views must have the same shape'),
    (lambda b: {**b, 'other': b['other'][:2]}, 'both views must have the same shape'),
    (lambda b: {**b, 'other': b['other'].numpy()}, 'numpy'),
    (lambda b: {**b, 'other': b['other'] * 255}, 'other has values'),
    (lambda b: {**b, 'other': b['other'] * torch.nan}, 'other holds NaN')])
def test_bad_pairs_are_told_in_one_sentence(r, batch, change, words):
    with pytest.raises((ValueError, TypeError), match=words) as e:
        r(change(batch))
    assert len(str(e.value)) <= 200


def test_no_weights_yet_or_weights():
    try:
        ml.create_recipe('croco', pretrained=True)
    except ValueError as error:
        assert 'ships no weights' in str(error)


# ---------------------------------------------------------------- pairs

def test_flow_is_where_the_cameras_say(batch):
    "A point of the far plane, followed by hand, and the second view brought back to the first."
    b = ml.sample('pairs', 24, g(3), jitter=False)
    x, y = torch.meshgrid(torch.arange(64), torch.arange(64), indexing='xy')
    at = (b['flow'] + torch.stack([x, y]) + .5) / 32 - 1
    back = F.grid_sample(b['other'], at.permute(0, 2, 3, 1), align_corners=False, padding_mode='border')
    off = lambda z: (z - b['image']).abs().mean(1)[b['flow_valid']].mean()
    assert off(back) < .35 * off(b['other'])
    assert b['real'].any() and not b['real'].all() and not b['flow'][~b['flow_valid'][:, None].expand_as(
        b['flow'])].any()


def test_training_and_test_scenes_share_nothing():
    held = stereo_photograph()
    third = held['disparity'].shape[1] * 2 // 3
    marked = {k: v.clone() for k, v in held.items()}
    table = torch.rand(40, NUMBERS, generator=g())
    before = {s: pairs_of(table, s, real=1., jitter=False) for s in ('train', 'test')}
    try:        # what a test crop shows is painted over: no training crop may notice
        held['left'][..., third:] = 0
        held['right'][..., third - int(held['disparity'].nan_to_num(0).max()) - 1:] = 0
        after = {s: pairs_of(table, s, real=1., jitter=False) for s in ('train', 'test')}
    finally:
        for k in ('left', 'right'):
            held[k].copy_(marked[k])
    for k in ('image', 'other'):
        assert torch.equal(before['train'][k], after['train'][k])
        assert not torch.equal(before['test'][k], after['test'][k])
    made = {s: set(pairs_of(table, s, real=0.)['label'].tolist()) for s in ('train', 'test')}
    assert len(made['train']) > 15 and made['test'] == set(range(12, 16)) and not made['train'] & made['test']


def test_light_is_drawn_for_each_view_and_moves_nothing_else():
    table = torch.rand(20, NUMBERS, generator=g())
    lit, plain = pairs_of(table), pairs_of(table, jitter=False)
    assert torch.equal(lit['flow'], plain['flow']) and torch.equal(lit['label'], plain['label'])
    by = lambda k: (lit[k].mean((1, 2, 3)) / plain[k].mean((1, 2, 3)).clamp_min(.01))
    assert abs(float(torch.corrcoef(torch.stack([by('image'), by('other')]))[0, 1])) < .6


@pytest.mark.parametrize('size', [(32, 48), 40])
def test_views_of_any_shape(size):
    b = ml.sample('pairs', 6, g(), size=size)
    shape = size if isinstance(size, tuple) else (size, size)
    assert b['image'].shape == b['other'].shape == (6, 3, *shape) and b['flow_valid'].shape == (6, *shape)
    assert b['flow_valid'].float().mean() > .5


def test_without_the_stereo_file_all_pairs_are_made(monkeypatch):
    monkeypatch.setattr('maskedlab.data.pairs.stereo_photograph', lambda: None)
    b = ml.sample('pairs', 8, real=1.)
    assert not b['real'].any() and set(b['label'].tolist()) <= set(range(len(photographs('train'))))


@pytest.fixture
def folder(tmp_path, batch):
    "Two views of four scenes, in two folders."
    for side, key in (('left', 'image'), ('right', 'other')):
        (tmp_path / side).mkdir()
        for i, x in enumerate(batch[key]):
            x = (x.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(x).save(tmp_path / side / f'{i}.png')
    return tmp_path


def test_training_on_own_pairs(folder, batch):
    source = source_of(str(folder), 0, 16, modality='pairs')
    whole = source.batch(range(8))
    assert whole['image'].shape == whole['other'].shape == (8, 3, 16, 16)
    assert torch.equal(source.batch(range(5, 6))['other'][0], whole['other'][5])
    plain = source_of(ml.view_pairs(folder), 0, 32, augment=False).batch(range(4))
    order = [int((plain['image'] - x).abs().flatten(1).sum(1).argmin()) for x in batch['image']]
    assert sorted(order) == [0, 1, 2, 3]
    for key in ('image', 'other'):
        assert_close(plain[key][order], batch[key], atol=1 / 254, rtol=0)
    run = ml.Trainer(CroCo(**SMALL), data=str(folder), steps=2, batch=4, out=folder / 'run', show=False)
    run.fit()
    assert len(run.history) == 2 and all(row['loss'] > 0 for row in run.history)


def test_pairs_that_are_none_are_said(folder):
    Image.new('RGB', (20, 30)).save(folder / 'right' / '3.png')
    (folder / 'left' / '9.png').write_bytes(b'no picture')
    with pytest.warns(UserWarning, match='2 of 5 left out.*3.png has 32 x 32 pixels'):
        found = ml.view_pairs(folder)
    assert len(found) == 3 and len(found.skipped) == 2
    for wrong, words in ((folder / 'left', 'holds no pairs'), (folder / 'left' / '0.png', 'is no folder'),
                         (['a.png'], 'two files each')):
        with pytest.raises((ValueError, TypeError), match=words):
            ml.view_pairs(wrong)


# ---------------------------------------------------------------- matches

def test_attention_at_the_match_scores_one_and_chance_is_chance():
    b = ml.sample('pairs', 24, g(), 'test', real=0.)
    places, every = true_places(b, (8, 8)), torch.ones(24, 8, 8).bool()
    cell = places.nan_to_num(0).floor().clamp(0, 7).long()
    perfect = F.one_hot((cell[..., 1] * 8 + cell[..., 0]).flatten(1), 64).float()[None, :, None]
    assert matched(perfect, places, every)['share'] == 1.
    blind = matched(torch.rand(1, 24, 1, 64, 64, generator=g()), places, every)
    assert abs(blind['share'] - blind['chance']) < .04 and blind['chance'] < .15
    swapped = F.one_hot((cell[..., 0] * 8 + cell[..., 1]).flatten(1), 64).float()[None, :, None]
    assert matched(swapped, places, every)['share'] < .5                    # rows for columns


def test_matches_of_a_recipe(r, batch):
    found = matches(r, batch)
    assert found['patches'] > 10 and len(found['layers']) == 2 and 0 <= found['share'] <= 1
    with pytest.raises(ValueError, match='flow'):
        matches(r, {k: batch[k] for k in ('image', 'other')})
