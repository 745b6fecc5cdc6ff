"""MAE: the invariants of the method (He et al. 2022), on a network small enough for seconds."""
import pytest
import torch
from given import g
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.corruptions.drop import keep
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import rows
from maskedlab.parts.patches import Patches, patchify, unpatchify
from maskedlab.parts.positions import sincos
from maskedlab.recipes.image.mae import MAE
from maskedlab.targets.pixels import patch_norm

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=1, decoder_heads=2)


def make(**more):
    torch.manual_seed(0)
    r = MAE(**{**SMALL, **more}).eval()
    with torch.no_grad():       # at the start many numbers are zero, which would hide a mistake
        for p in r.parameters():
            p.add_(torch.randn_like(p) * .05)
    return r


@pytest.fixture(params=[True, False], ids=['norm_pix', 'plain'])
def r(request):
    return make(norm_pix=request.param)


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


# 1. the count

@pytest.mark.parametrize('grid, ratio, kept',
                         [((14, 14), .75, 49), ((7, 7), .75, 12), ((8, 8), .75, 16), ((10, 10), .9, 9)])
def test_the_floor_is_on_the_kept_side(grid, ratio, kept):
    u = ml.layout(grid, batch=50)
    mask = Random(ratio, law='floor kept')(u, generator=g())
    assert ((~mask).flatten(1).sum(1) == kept).all()
    assert len(mask.flatten(1).unique(dim=0)) > 40                      # a mask for each picture


def test_same_generator_same_forward(r, batch):
    a, b = r(batch, generator=g()), r(batch, generator=g())
    assert torch.equal(a.mask, b.mask) and torch.equal(a.pred, b.pred)
    assert not torch.equal(a.mask, r(batch, generator=g(1)).mask)
    assert (a.mask.flatten(1).sum(1) == 12).all()


# 2. hidden content never matters

def test_hidden_pixels_change_no_prediction(r, batch):
    out = r(batch, generator=g())
    other = out.units.put(batch, torch.where(out.mask[..., None], torch.rand(out.units.x.shape), out.units.x))
    assert not torch.equal(other['image'], batch['image'])
    assert torch.equal(r(other, mask=out.mask).pred, out.pred)


def test_gradient_with_respect_to_hidden_pixels_is_exactly_zero(r, batch):
    mask = r(batch, generator=g()).mask
    image = batch['image'].clone().requires_grad_()
    r(dict(image=image), mask=mask).pred.square().sum().backward()
    grad = r.cut.cut(image.grad)
    assert (grad[mask] == 0).all() and (grad[~mask].abs().amax(-1) > 0).all()


# 3. lengths, and where the mask token is

def test_encoder_sees_visible_patches_only_and_decoder_all(r, batch):
    seen = {}
    for name in ('encoder', 'decoder'):
        getattr(r, name).blocks[0].register_forward_pre_hook(
            lambda m, args, name=name: seen.__setitem__(name, args[0].shape[1]))
    r(batch, generator=g())
    assert seen == dict(encoder=1 + 4, decoder=1 + 16)


def test_mask_token_is_not_in_the_encoders_graph(r, batch):
    u = r.units(batch)
    h = r.encoder.see(r.cut.normal(u.x), ~Random(.75)(u, generator=g()))
    assert torch.autograd.grad(h.sum(), r.decoder.mask_token, allow_unused=True) == (None,)


# 4. the loss

def test_loss_is_the_mean_over_hidden_patches_and_ignores_visible_predictions(r, batch):
    out = r(batch, generator=g())
    every = r.head(r.decoder(r.encoder.see(r.cut.normal(out.units.x), ~out.mask),
                             ~out.mask)).view(3, 4, 4, -1)
    every = torch.where(out.mask[..., None], every, torch.tensor(1e6))                  # edit what is visible
    e = (every - r.target(out.units)).pow(2).mean(-1)
    assert_close(out.loss, (e * out.mask).sum() / out.mask.sum(), rtol=1e-5, atol=1e-6)
    assert_close(out.error[out.mask], e[out.mask], rtol=1e-5, atol=1e-6)
    assert torch.equal(out.scored, out.mask)


def test_saying_zero_scores_p_minus_one_over_p(batch):
    r = make(norm_pix=True)
    torch.nn.init.zeros_(r.head.weight)
    torch.nn.init.zeros_(r.head.bias)
    assert_close(r(batch, generator=g()).loss, torch.tensor(191 / 192), rtol=1e-3, atol=0)


# 5. the normalised target

def test_normalised_target_is_joint_and_unbiased():
    x = torch.randn(5, 7, 48) * torch.rand(5, 7, 1) * 3 + 2
    y = patch_norm(x)
    assert_close(y.mean(-1), torch.zeros(5, 7), atol=1e-5, rtol=0)
    assert_close(y.std(-1), torch.ones(5, 7), atol=1e-3, rtol=0)
    assert_close(y, (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt())
    assert patch_norm(torch.full((1, 48), .7)).abs().max() < 1e-3


def test_constant_pictures_give_no_nan(batch):
    out = make(norm_pix=True)(dict(image=torch.full((2, 3, 32, 32), .5)), generator=g())
    assert out.loss.isfinite() and (out.target == out.target).all()


# 6. patches and positions

def test_patches_and_back():
    image = torch.rand(2, 3, 24, 40)
    for order in ('row column colour', 'colour row column'):
        assert torch.equal(unpatchify(patchify(image, 8, order), 8, order), image)
    # a pixel's colours lie together
    assert torch.equal(Patches(8, 3).cut(image)[0, 1, 2, :3], image[0, :, 8, 16])


def test_positions_are_fixed_and_the_column_comes_first(r, batch):
    assert not {n for n, _ in r.named_parameters() if 'pos_embed' in n}
    table = sincos((4, 5), 16, prefix=1)[0]
    assert (table[0] == 0).all()
    grid = table[1:].view(4, 5, 16)
    assert torch.equal(grid[:, :, :8], grid[:1, :, :8].expand(4, 5, 8)) and torch.equal(
        grid[:, :, 8:], grid[:, :1, 8:].expand(4, 5, 8))
    assert_close(grid[0, 1, :8],
                 torch.cat([f(torch.tensor([1., .1, .01, .001])) for f in (torch.sin, torch.cos)]))


# 7. order of the kept patches

def test_order_of_kept_patches_does_not_matter(r, batch):
    u = r.units(batch)
    x, index, _ = keep(r.encoder.embed(r.cut.normal(u.x)), ~Random(.75)(u, generator=g()))
    perm = torch.tensor([2, 0, 3, 1])
    y = r.encoder(x[:, perm], index=index[:, perm], grid=(4, 4))
    assert_close(y[:, 1:], r.encoder(x, index=index, grid=(4, 4))[:, 1:][:, perm], rtol=1e-5, atol=1e-5)


# any size, any mask

@pytest.mark.parametrize('size', [(32, 64), (8, 40), (16, 16), (8, 8)])
def test_any_size(r, size):
    b = dict(image=torch.rand(2, 3, *size))
    out = r(b, generator=g())
    assert out.loss.isfinite() and out.mask.shape[1:] == (size[0] // 8, size[1] // 8)
    assert (r.cut.cut(r.fill(b, out)['image'] - b['image'])[~out.mask] == 0).all()
    assert r.features(b).shape == (2, 32)


def ragged():
    m = torch.zeros(3, 4, 4, dtype=torch.bool)
    m[0, :2], m[1], m[2, 3, 1] = True, True, True                       # half, all, one
    return m


@pytest.mark.parametrize('mask', [ragged(), torch.zeros(3, 4, 4).bool(), torch.ones(3, 4, 4).bool()],
                         ids=['ragged', 'none', 'all'])
def test_a_batch_is_what_its_pictures_are_alone(r, batch, mask):
    both = r(batch, mask=mask)
    assert both.loss.isfinite()
    for i in range(3):
        alone = r(dict(image=batch['image'][i:i + 1]), mask=mask[i:i + 1])
        assert_close(both.pred[mask.nonzero()[:, 0] == i], alone.pred, rtol=0, atol=1e-5)
        assert_close(both.error[i], alone.error[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    if not mask.any():
        assert both.loss == 0


def test_ragged_masks_have_gradients_without_nan(r, batch):
    r(batch, mask=ragged()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in r.parameters())


def test_nothing_hidden_is_the_plain_encoder(r, batch):
    u = r.units(batch)
    x = r.encoder.embed(r.cut.normal(u.x))
    assert_close(r.encoder.see(r.cut.normal(u.x)), r.encoder(x))


# the doors

def test_fill_with_visible_statistics_does_not_read_what_is_hidden(batch):
    r = make(norm_pix=True)
    out = r(batch, generator=g())
    other = out.units.swap(out.mask)
    again = r(batch, mask=out.mask, units=other)
    a, b = (rows(r.units(r.fill(batch, o, statistics='visible')).x, out.mask) for o in (out, again))
    assert torch.equal(a, b)
    # the true ones are a hint
    assert not torch.equal(*(rows(r.units(r.fill(batch, o)).x, out.mask) for o in (out, again)))
    with pytest.raises(ValueError, match='visible'):
        r.fill(batch, out, statistics='guess')


def test_attention_names_units(r, batch):
    w, q, k = r.attention(batch, ragged())
    # the class token and the longest row, 15 patches
    assert w.shape == (2, 3, 4, 16, 16) and q.shape == (3, 16)
    assert q[0].tolist() == [-1, *range(8, 16)] + [-1] * 7 and q[1].tolist() == [-1] * 16
    assert_close(w[:, 0].sum(-1), torch.ones(2, 4, 16))
    assert (w[:, 0, ..., 9:] == 0).all()
    w, q, _ = r.attention(batch, ragged(), part='decoder')
    assert w.shape == (1, 3, 2, 17, 17) and q[0].tolist() == [-1, *range(16)]


def test_sizes_of_the_paper():
    with torch.device('meta'):
        base = MAE(**MAE.sizes['base'])
    n = sum(t.numel() for t in base.state_dict().values())
    assert n == 111_907_840 and len(base.state_dict()) == 254
