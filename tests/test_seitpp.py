"""SeiT++: the invariants of the method (Lee et al. 2024), on a toy tokenizer of eight greys, and its
augmentations of words."""

import math

import pytest
import torch
from given import g
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.schedules import Normal
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import repeat_to
from maskedlab.parts.moves import move, movements, snap
from maskedlab.recipes.image.seitpp import SeiTPP, blocks, color_adapt, deflate, storage, unblock, inflate
from maskedlab.stages.shelf import stage
from maskedlab.stages.token_adapt import TokenAdapt


class Cells(nn.Module):
    "A tokenizer: each cell of 4 x 4 pixels is one of eight greys."

    words, stride, channels = 8, 4, 3
    codebook = torch.stack([torch.linspace(0, 3, 8).cos(), torch.linspace(0, 3, 8).sin()], 1)

    def ids(self, image):
        return (F.avg_pool2d(image.mean(1, keepdim=True), 4)[:, 0] * 7.999).long()

    def decode(self, ids):
        return (ids / 7)[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


SMALL = dict(
    image=40,
    patch=8,
    dim=32,
    depth=2,
    heads=4,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=4,
    code=8,
    adapt=None,
)
UNITS, DROP = 25, 10


@pytest.fixture
def r():
    torch.manual_seed(0)
    r = SeiTPP(**SMALL, tokenizer=Cells()).eval()
    with torch.no_grad():
        for p in r.parameters():
            p.add_(torch.randn(p.shape, generator=g(3)) * 0.05)
    return r


@pytest.fixture
def batch():
    return dict(ids=torch.randint(8, (3, 10, 10), generator=g(1)))


def encoded(r, *args, **kw):
    "The forward, and what went into the encoder's first block and the decoder."
    seen = []
    hooks = [
        r.encoder.blocks[0].register_forward_pre_hook(lambda m, a: seen.append(a[0].detach())),
        r.decoder.blocks[0].register_forward_pre_hook(lambda m, a: seen.append(a[0].detach())),
    ]
    out = r(*args, **kw)
    for h in hooks:
        h.remove()
    return out, *seen


# 1., 2. the three fates of a unit


@pytest.mark.parametrize('rate', [0.4, 0.5, 0.77, 1.0])
def test_dropped_are_a_fixed_number_of_the_masked_and_length_is_constant(r, batch, rate):
    out, x, _ = encoded(r, batch, mask=Random(rate, law='ceil hidden'), generator=g())
    dropped = out.extra['dropped']
    assert (out.mask.flatten(1).sum(1) == math.ceil(rate * UNITS)).all() and (
        dropped.flatten(1).sum(1) == DROP
    ).all()
    assert not (dropped & ~out.mask).any() and x.shape == (3, 1 + UNITS - DROP, 32)


def test_the_encoder_holds_a_mask_vector_for_each_masked_unit_that_stays(r, batch):
    r.encoder.pos_embed.zero_()
    out, x, _ = encoded(r, batch, generator=g())
    vectors = (x[:, 1:] - r.encoder.mask_token).abs().amax(-1) < 1e-6
    assert (vectors.sum(1) == (out.mask & ~out.extra['dropped']).flatten(1).sum(1)).all() and vectors.any()


def test_one_rate_for_a_batch_and_another_for_the_next(r):
    u = ml.layout((14, 14), batch=16)
    counts = []
    for i in range(60):
        n = r.strategy(u, generator=g(i)).flatten(1).sum(1)
        assert (n == n[0]).all()
        counts.append(int(n[0]))
    assert min(counts) >= math.ceil(0.4 * 196) == 79 and max(counts) <= 196 and len(set(counts)) > 20
    share = torch.cat([Normal(0.45, 0.25, 0.4, 1.0)(1, generator=g(i)) for i in range(2000)])
    assert 0.55 < share.mean() < 0.61  # the cut normal's mean is .58


# 3. the loss, and where gradients go


def test_loss_is_the_mean_over_masked_units_of_four_words(r, batch):
    out = r(batch, generator=g())
    each = F.cross_entropy(out.pred.flatten(0, 1), out.target.flatten(), reduction='none')
    assert_close(out.loss, each.mean())
    assert_close(out.error[out.mask], each.view(-1, 4).mean(1))
    assert torch.equal(out.scored, out.mask)
    assert torch.equal(blocks(batch['ids'])[out.mask], out.target)


def test_loss_changes_through_masked_units_alone(r, batch):
    out = r(batch, generator=g())
    fill = r.decoder.fill
    r.decoder.fill = lambda *a: fill(*a) + torch.where(out.mask.flatten(1)[..., None], 0.0, 5.0)
    assert torch.equal(r(batch, mask=out.mask, generator=g()).loss, out.loss)
    for which in (
        out.extra['dropped'],
        out.mask & ~out.extra['dropped'],
    ):  # dropped ones count as much as the other masked ones
        r.decoder.fill = lambda *a, which=which: (
            fill(*a) + 5.0 * which.flatten(1)[..., None] * torch.arange(16.0)
        )
        assert not torch.equal(r(batch, mask=out.mask, generator=g()).loss, out.loss)


def test_gradient_reaches_the_table_by_the_input_and_not_by_the_output(r, batch):
    y = torch.randn(6, 16, requires_grad=True)
    table = r.encoder.word_embed
    r.head(y, table).square().sum().backward()
    assert table.weight.grad is None and r.head.weight.grad.abs().max() > 0 and y.grad.abs().max() > 0
    r.zero_grad(set_to_none=True)
    r(batch, generator=g()).loss.backward()
    assert table.weight.grad.abs().max() > 0
    # with the input cut off nothing is left
    r.zero_grad(set_to_none=True)
    r.encoder.see = lambda *a, see=r.encoder.see: see(*a).detach()
    r(batch, generator=g()).loss.backward()
    assert table.weight.grad is None


# 4. the two ends


def test_smallest_and_largest_rate(r, batch):
    r.encoder.pos_embed.zero_()
    out, x, _ = encoded(r, batch, mask=Random(0.4, law='ceil hidden'), generator=g())
    assert torch.equal(out.mask, out.extra['dropped'])
    assert not ((x[:, 1:] - r.encoder.mask_token).abs().amax(-1) < 1e-6).any()  # MAE: no mask vector
    out, x, _ = encoded(r, batch, mask=Random(1.0, law='ceil hidden'), generator=g())
    assert ((x[:, 1:] - r.encoder.mask_token).abs().amax(-1) < 1e-6).all()
    other = r(dict(ids=(batch['ids'] + 3) % 8), mask=out.mask, generator=g())
    assert torch.equal(other.pred, out.pred)  # position and class token are all there is


def test_hidden_words_change_no_prediction(r, batch):
    out = r(batch, generator=g())
    ids = torch.where(repeat_to(out.mask, (10, 10)), (batch['ids'] + 3) % 8, batch['ids'])
    assert torch.equal(r(dict(ids=ids), mask=out.mask, generator=g()).pred, out.pred)
    visible = torch.where(repeat_to(out.mask, (10, 10)), batch['ids'], (batch['ids'] + 3) % 8)
    assert not torch.equal(r(dict(ids=visible), mask=out.mask, generator=g()).pred, out.pred)


# 5. ColorAdapt


def test_color_adapt_gives_the_partners_statistics(r):
    code = (
        torch.randn(4, 6, 6, 5, generator=g()) * torch.tensor([1.0, 2, 0.5, 3, 1])
        + torch.arange(4.0)[:, None, None, None]
    )
    other = code.flip(0)
    y = color_adapt(code)
    assert_close(y.mean((1, 2)), other.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert_close(
        y.flatten(1, 2).std(1, correction=0), other.flatten(1, 2).std(1, correction=0), rtol=1e-4, atol=1e-5
    )
    assert_close(color_adapt(y, other), y, rtol=1e-4, atol=1e-5)
    assert_close(color_adapt(code, code), code, rtol=1e-4, atol=1e-5)
    flat = torch.ones(2, 3, 3, 5)
    assert color_adapt(flat).isfinite().all()


# 6. words again, and conversion off


def test_snapping_vectors_of_words_gives_the_words():
    book = torch.randn(391, 32, generator=g())
    ids = torch.randint(391, (2, 9, 9), generator=g(1))
    assert torch.equal(snap(book[ids], book), ids) and torch.equal(snap(book[ids] * 7, book), ids)


def test_without_conversion_training_reads_the_words_as_they_are(r, batch):
    assert torch.equal(r.augmented(r.units(batch), g()).x, r.units(batch).x)
    r.train()
    out = r(batch, generator=g())
    assert torch.equal(out.units.x, blocks(batch['ids']))


class Mirror(torch.nn.Module):
    "Stands in for a trained TokenAdapt: whatever is asked, it mirrors."

    words, flip = 8, True

    def moved(self, ids, theta):
        return ids.flip(2)


def test_one_half_is_cropped_and_the_other_converted(batch):
    torch.manual_seed(0)
    r = SeiTPP(**{**SMALL, 'adapt': Mirror()}, tokenizer=Cells()).train()
    ids = torch.randint(8, (6, 10, 10), generator=g(1))
    got = unblock(r(dict(ids=ids), generator=g()).units.x)
    assert torch.equal(got[3:], ids[3:].flip(2)) and not torch.equal(got[:3], ids[:3])
    assert got.min() >= 0 and got.max() < 8
    assert torch.equal(unblock(r.eval()(dict(ids=ids), generator=g()).units.x), ids)
    r.train()
    r.colour, r.adapt = 1.0, None
    ids = ids // 2 + 4 * (torch.arange(6) > 2)[:, None, None]  # dark pictures get bright partners
    got = unblock(r(dict(ids=ids), generator=g()).units.x)
    assert torch.equal(got[3:], ids[3:]) and not torch.equal(got[:3], ids[:3])
    assert r(dict(ids=ids[:1]), generator=g()).loss.isfinite()


# 7. the filler


def test_filler_is_the_class_token_of_the_picture(r, batch):
    with torch.no_grad():
        r.decoder.pos_embed.zero_()
    out, _, z = encoded(r, batch, generator=g())
    fillers = [z[i, 1:][out.mask[i].flatten()] for i in range(3)]
    for i in range(3):
        assert_close(fillers[i], z[i, :1].expand_as(fillers[i]))  # equal in every hole, dropped or not
    assert (fillers[0][0] - fillers[1][0]).abs().max() > 1e-3
    assert 'decoder_mask' not in ''.join(n for n, _ in r.named_parameters())


# movements, TokenAdapt


def test_a_movement_moves_pixels_and_maps_alike():
    still = movements(2, g(), degrees=0, offset=0, shear=0, area=(1, 1), flip=False)
    x = torch.rand(2, 3, 16, 16, generator=g())
    assert_close(move(x, still), x, rtol=0, atol=1e-5)
    mirror = still * torch.tensor([[-1.0, 1, 1], [1, 1, 1]])
    assert_close(move(x, mirror), x.flip(-1), rtol=0, atol=1e-5)
    ramp = torch.linspace(-1, 1, 33)[:-1] + 1 / 32  # x = horizontal coordinate
    theta = movements(50, g(1), degrees=0, offset=0, shear=0, flip=True)
    assert (
        theta[:, 0, 0].abs().min() >= math.sqrt(0.2) - 1e-6
        and (theta[:, 0, 0] < 0).any()
        and (theta[:, 0, 0] > 0).any()
    )
    ends = theta[:, :, 2].abs() + theta[:, :, :2].abs().sum(2)
    assert ends.max() <= 1 + 1e-5, 'a crop alone lies inside the picture'
    y = move(ramp.expand(50, 1, 32, 32), theta)
    mid = theta[:, 0, 0] * ramp[16] + theta[:, 0, 2]
    assert_close(y[:, 0, 16, 16], mid, rtol=0, atol=0.05)


def test_token_adapt_takes_any_size_and_all_of_it_learns():
    torch.manual_seed(0)
    t = TokenAdapt(dim=32, heads=2, tokenizer=Cells())
    assert t(dict(image=torch.rand(2, 3, 32, 40)), generator=g()).loss.isfinite()
    t(dict(image=torch.rand(2, 3, 32, 32)), generator=g()).loss.backward()
    assert all(p.grad is not None for p in t.parameters())
    assert t.moved(torch.zeros(2, 6, 8).long(), movements(2, g())).shape == (2, 6, 8)


def test_the_shipped_token_adapt_moves_better_than_the_map_of_words():
    """By a little: what is painted from its words is nearer to the moved picture than from words that were
    moved as they are."""
    t = stage('token_adapt/fine/image/0')
    photos = ml.sample('image', n=24, split='test')['image']
    ids, theta = t.tokenizer.ids(photos), movements(24, g(), flip=True)
    moved = move(photos, theta)
    far = lambda words: float((t.tokenizer.decode(words) - moved).square().mean())
    naive = move(ids.float()[:, None], theta, mode='nearest')[:, 0].long()
    assert far(t.tokenizer.ids(moved)) < far(t.moved(ids, theta)) < far(naive)


@pytest.mark.parametrize('n', [1, 2, 3])
def test_small_batches_are_augmented_too(n):
    torch.manual_seed(0)
    r = SeiTPP(
        **{**SMALL, 'adapt': TokenAdapt(dim=32, heads=2, tokenizer=Cells()), 'colour': 1.0}, tokenizer=Cells()
    ).train()
    assert r(dict(ids=torch.randint(8, (n, 10, 10), generator=g(1))), generator=g()).loss.isfinite()


# bytes


def test_packing_is_exact_and_small():
    ids = torch.randint(391, (4, 32, 32), generator=g())
    data = deflate(ids)
    assert torch.equal(inflate(data, ids.shape), ids) and len(data) < ids.numel() * 1.3
    assert torch.equal(
        inflate(deflate(torch.tensor([0, 255, 510, 1023])), (4,)), torch.tensor([0, 255, 510, 1023])
    )
    with pytest.raises(ValueError, match='words'):
        inflate(data, (4, 32, 31))


def test_storage():
    image = ml.sample('image', n=2)['image']
    costs = storage(image, Cells().ids(image), 8)
    assert (
        list(costs.values())[0] == 3 * 64 * 64
        and costs['words, packed'] < costs['PNG']
        and costs['words, log2(8) bits each'] == 96
    )


# batches, doors, bad input


def test_pictures_and_stored_words_give_the_same(r):
    image = torch.rand(2, 3, 40, 40, generator=g())
    a, b = r(dict(image=image), generator=g()), r(dict(ids=Cells().ids(image).to(torch.uint8)), generator=g())
    assert torch.equal(a.pred, b.pred) and torch.equal(unblock(a.units.x), Cells().ids(image))


def test_ragged_masks(r, batch):
    mask = torch.zeros(3, 5, 5).bool()
    mask[0, 0, 0], mask[1] = True, True
    both = r(batch, mask=mask, generator=g())
    assert (
        both.extra['dropped'].flatten(1).sum(1).tolist() == [1, DROP, 0]
        and both.loss.isfinite()
        and len(both.pred) == 26
    )
    assert r(batch, mask=torch.zeros(3, 5, 5).bool()).loss == 0
    alone = r(dict(ids=batch['ids'][:1]), mask=mask[:1], generator=g())
    assert_close(alone.error[0][mask[0]], both.error[0][mask[0]], rtol=1e-4, atol=1e-5)


def test_other_sizes_and_attention(r):
    b = dict(ids=torch.randint(8, (2, 8, 14), generator=g()))
    out = r(b, generator=g())
    assert out.mask.shape == (2, 4, 7) and r.fill(b, out)['image'].shape == (2, 3, 32, 56)
    w, q, k = r.attention(b, out.mask)
    assert w.shape[-1] == 1 + 28 - math.ceil(0.4 * 28) and q[0, 0] == -1
    assert r.attention(b, out.mask, part='decoder')[1][0].tolist() == list(range(-1, 28))


@pytest.mark.parametrize(
    'ids, error, words',
    [
        (torch.full((1, 4, 4), 8), ValueError, '0 to 7'),
        (torch.full((1, 4, 4), -1), ValueError, 'from -1'),
        (torch.zeros(1, 4, 4), TypeError, 'whole'),
        (torch.zeros(1, 4, 5).long(), ValueError, 'even'),
        (torch.zeros(4, 4).long(), TypeError, r'\[B, h, w\]'),
        ([1], TypeError, 'list'),
    ],
)
def test_bad_words(r, ids, error, words):
    with pytest.raises(error, match=words):
        r(dict(ids=ids))


def test_bad_arguments(r):
    with pytest.raises(ValueError, match='8 words'):
        SeiTPP(**SMALL, tokenizer=Cells(), words=391)
    with pytest.raises(ValueError, match='patch=8'):
        SeiTPP(**{**SMALL, 'patch': 4}, tokenizer=Cells())
    with pytest.raises(ValueError, match='drop=1.5'):
        SeiTPP(**SMALL, tokenizer=Cells(), drop=1.5)
    with pytest.raises(TypeError, match='tokenizer'):
        SeiTPP(**SMALL, tokenizer=nn.Linear(2, 2))
    other = Mirror()
    other.words = 9
    with pytest.raises(ValueError, match='9 words'):
        SeiTPP(**{**SMALL, 'adapt': other}, tokenizer=Cells())
    with pytest.raises(ValueError, match='names no stage'):
        SeiTPP(**SMALL, tokenizer='nothing/micro/image/0')
    with pytest.raises(ValueError, match='part='):
        r.attention(dict(ids=torch.zeros(1, 4, 4).long()), part='middle')


def test_it_learns():
    from maskedlab.train.trainer import fit

    torch.manual_seed(0)
    r, luck = SeiTPP(**SMALL, tokenizer=Cells()), g()

    def stripes():  # each picture has one word: a visible one tells the rest
        while True:
            yield dict(ids=torch.randint(8, (16, 1, 1), generator=luck).expand(-1, 10, 10).contiguous())

    history = fit(r, stripes(), 40, lr=1e-2, seed=0)
    assert sum(h['loss'] for h in history[-5:]) / 5 < 1.2 < math.log(8)
