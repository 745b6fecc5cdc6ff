"""SimMIM: the invariants of the method (Xie et al. 2022), on a network small enough for seconds."""
import pytest
import torch
from given import g
import torch.nn.functional as F
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import repeat_to
from maskedlab.parts.patches import unpatchify
from maskedlab.parts.transformer import Transformer
from maskedlab.recipes.image.simmim import SimMIM

SMALL = dict(image=32, token=4, cell=8, dim=32, depth=2, heads=4, drop_path=0.)


@pytest.fixture
def r():
    torch.manual_seed(0)
    r = SimMIM(**SMALL).eval()
    with torch.no_grad():
        for p in r.parameters():
            p.add_(torch.randn_like(p) * .05)
    return r


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


def pixels(mask):
    return repeat_to(mask, (32, 32))[:, None].expand(-1, 3, -1, -1)


# 1. the count

@pytest.mark.parametrize('grid, ratio, hidden',
                         [((6, 6), .6, 22), ((7, 7), .6, 30), ((10, 10), .55, 56), ((4, 4), .6, 10)])
def test_the_ceiling_is_on_the_hidden_side(grid, ratio, hidden):
    mask = Random(ratio, law='ceil hidden')(ml.layout(grid, batch=20), generator=g())
    assert (mask.flatten(1).sum(1) == hidden).all()


def test_cells_are_hidden_whole(r, batch):
    out = r(batch, generator=g())
    assert out.mask.shape == (3, 4, 4) and (out.mask.flatten(1).sum(1) == 10).all()
    seen = []
    r.encoder.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    assert r(batch, mask=out.mask).pred.shape == (30, 8 * 8 * 3)
    hidden = (seen[0][:, 1:] == r.mask_token).all(-1).view(3, 8, 8)
    assert torch.equal(hidden, repeat_to(out.mask, (8, 8)))              # 40 of 64 tokens, four for each cell
    assert (hidden.flatten(1).sum(1) == 40).all()


# 2. hidden content never matters

def test_hidden_pixels_change_no_prediction(r, batch):
    out = r(batch, generator=g())
    other = torch.where(pixels(out.mask), torch.rand(batch['image'].shape), batch['image'])
    assert torch.equal(r(dict(image=other), mask=out.mask).pred, out.pred)


def test_gradient_with_respect_to_hidden_pixels_is_exactly_zero(r, batch):
    mask = r(batch, generator=g()).mask
    image = batch['image'].clone().requires_grad_()
    r(dict(image=image), mask=mask).pred.square().sum().backward()
    assert (image.grad[pixels(mask)] == 0).all() and (image.grad[~pixels(mask)] != 0).all()


# 3. lengths and extremes

def test_length_does_not_depend_on_the_ratio(r, batch):
    seen = []
    r.encoder.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    for ratio in (0., .3, 1.):
        r(batch, mask=Random(ratio, law='ceil hidden'), generator=g())
    assert seen == [65] * 3


def test_nothing_hidden_and_all_hidden(r, batch):
    none, every = torch.zeros(3, 4, 4).bool(), torch.ones(3, 4, 4).bool()
    assert r(batch, mask=none).loss == 0
    pred = r(batch, mask=every).pred.view(3, 16, -1)
    assert_close(pred, pred[:1].expand(3, 16, -1), rtol=0, atol=1e-6)
    r(batch, mask=none).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in r.parameters())


def test_a_batch_is_what_its_pictures_are_alone(r, batch):
    mask = torch.zeros(3, 4, 4).bool()
    mask[0, :2], mask[1], mask[2, 3, 1] = True, True, True
    both = r(batch, mask=mask)
    for i in range(3):
        alone = r(dict(image=batch['image'][i:i + 1]), mask=mask[i:i + 1])
        assert_close(both.error[i], alone.error[0], rtol=1e-5, atol=1e-5, equal_nan=True)


# 4. the loss

def full(r, out):
    "Predicted pictures, normalised, as the forward computes them."
    x = r.encoder.embed(r.cut.picture(out.units))
    x = torch.where(repeat_to(out.mask, (8, 8))[..., None], r.mask_token, x)
    return r.predict(r.encoder.maps(x))


def test_loss_is_that_of_the_released_code(r, batch):
    out = r(batch, generator=g())
    x, y, m = r.cut.colours(batch['image']), r.cut.image(full(r, out)), pixels(out.mask)[:, :1].float()
    theirs = ((x - y).abs() * m).sum() / (m.sum() + 1e-5) / 3
    assert_close(out.loss, theirs, rtol=1e-5, atol=0)


def test_an_offset_of_one_scores_one(r, batch):
    r.predict = lambda maps: r.cut.normal(r.units(batch).x) + 1
    assert_close(r(batch, generator=g()).loss, torch.tensor(1.))


# 5. visible predictions

def test_visible_predictions_do_not_matter(r, batch):
    out = r(batch, generator=g())
    out.loss.backward()
    before, predict = r.head.weight.grad.clone(), r.predict
    r.zero_grad()
    r.predict = lambda maps: predict(maps) + torch.where(out.mask[..., None], 0., 1e3)
    again = r(batch, mask=out.mask)
    again.loss.backward()
    assert torch.equal(again.loss, out.loss) and torch.equal(r.head.weight.grad, before)


# 6. the head

def test_head_is_a_linear_layer_in_the_order_of_colours(r):
    maps = torch.randn(2, 8, 8, 32)
    linear = F.linear(maps, r.head.weight.flatten(1), r.head.bias)       # [B, h, w, colour*row*column]
    image = unpatchify(linear, 4, 'colour row column')
    assert_close(r.cut.image(r.predict(maps)), image, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unpatchify(linear, 4, 'row column colour'), image, atol=.1)


# 7. the shared bias

def test_one_table_serves_all_blocks_and_starts_without_effect(batch):
    torch.manual_seed(0)
    r = SimMIM(**SMALL).eval()
    assert r.encoder.rel_pos_bias((8, 8)).shape == (1, 4, 65, 65)         # no axis of layers
    assert [n for n, _ in r.named_parameters() if 'table' in n] == ['encoder.rel_pos_bias.table']
    x = torch.cat([r.encoder.cls_token.expand(3, -1, -1),
                   r.encoder.embed(r.cut.colours(batch['image'])).flatten(1, 2)], 1)
    plain = Transformer.forward(r.encoder, x)
    assert_close(Transformer.forward(r.encoder, x, bias=r.encoder.rel_pos_bias((8, 8))), plain, rtol=1e-5,
                 atol=1e-6)
    torch.nn.init.normal_(r.encoder.rel_pos_bias.table)
    assert (Transformer.forward(r.encoder, x, bias=r.encoder.rel_pos_bias((8, 8))) - plain).abs().max() > 1e-3


# 8. scale

def test_loss_scales_with_the_picture_and_not_with_its_square(r, batch):
    out = r(batch, generator=g())
    fixed = full(r, out).detach()
    for c in (2., .5):
        r.predict = lambda maps, c=c: c * fixed
        std = r.cut.colours.std
        before = std.clone()
        std.copy_(before / c)                                             # the normalised picture, times c
        assert_close(r(batch, mask=out.mask).loss, c * out.loss, rtol=1e-5, atol=0)
        std.copy_(before)


# sizes and doors

def test_smaller_and_oblong_pictures(r):
    b = dict(image=torch.rand(2, 3, 16, 32))
    out = r(b, generator=g())
    assert out.mask.shape == (2, 2, 4)
    assert (r.cut.cut(r.fill(b, out)['image'] - b['image'])[~out.mask] == 0).all()
    with pytest.raises(ValueError, match='larger'):
        r(dict(image=torch.rand(1, 3, 32, 64)))


def test_attention_names_the_cell_of_each_token(r, batch):
    w, q, _ = r.attention(batch)
    assert w.shape == (2, 3, 4, 65, 65) and q.shape == (3, 65)
    assert q[0, 0] == -1 and (q[0, 1:].bincount() == 4).all()
    assert_close(w.sum(-1), torch.ones(2, 3, 4, 65))


def test_sizes_of_the_paper():
    with torch.device('meta'):
        base = SimMIM(**SimMIM.sizes['base'])
    assert sum(p.numel() for p in base.head.parameters()) == 590_592 and len(
        base.encoder.rel_pos_bias.table) == 732
    with pytest.raises(ValueError, match='multiple'):
        SimMIM(image=48, token=16, cell=24)
