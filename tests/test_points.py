"""Point clouds: data, groups, Point-MAE and Point-BERT by their invariants, on networks small enough for
seconds."""

import shutil
import warnings
from functools import cache
from importlib import resources
from itertools import islice

import numpy as np
import pytest
import torch
from given import g, stir
import torch.nn.functional as F
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.data.points import (
    FURNITURE,
    _about,
    clouds,
    load_points,
    point_classes,
    point_credits,
    points_source,
    read_points,
)
from maskedlab.masks.ball import Ball
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import rows
from maskedlab.instruments.probes import features
from maskedlab.targets.sets import chamfer
from maskedlab.train.feed import Joined, source_of
from maskedlab.parts.groups import fps, groups, knn, overlap, seen_points
from maskedlab.recipes.points.point_bert import PointBERT, contrast, mix
from maskedlab.stages.point_dvae import PointDVAE, uniform_kl
from maskedlab.recipes.points.point_mae import PointMAE

SMALL = dict(
    groups=16,
    size=8,
    dim=32,
    depth=2,
    heads=4,
    decoder_depth=1,
    decoder_heads=2,
    pointnet=(8, 16, 32),
    drop_path=0.0,
)
WORDS = dict(
    groups=16,
    size=8,
    words=16,
    code=8,
    pointnet=(8, 16, 32),
    width=16,
    edges=(16,),
    first=16,
    hidden=16,
    fine=16,
)


@pytest.fixture
def mae():
    torch.manual_seed(0)
    return stir(PointMAE(**SMALL))


@pytest.fixture
def bert():
    torch.manual_seed(0)
    t = PointDVAE(**WORDS).eval().requires_grad_(False)
    return stir(
        PointBERT(
            groups=16, size=8, dim=32, depth=2, heads=4, drop_path=0.0, contrast_dim=16, queue=12, tokenizer=t
        )
    )


@pytest.fixture
def batch():
    return ml.sample('points', n=4, points=128)


# ---------------------------------------------------------------- data


def test_sample_is_in_the_unit_sphere_and_splits_do_not_meet():
    train, test = (ml.sample('points', n=None, split=s) for s in ('train', 'test'))
    assert len(train['points']) + len(test['points']) == 820 and train['points'].dtype == torch.float32
    for b in (train, test):
        assert_close(b['points'].norm(dim=-1).amax(1), torch.ones(len(b['points'])), atol=1e-5, rtol=0)
    seen = {p.numpy().tobytes() for p in train['points']}
    assert not any(p.numpy().tobytes() in seen for p in test['points'])
    names = {s: {m['name'].lower() for m in point_credits() if m['split'] == s} for s in ('train', 'test')}
    assert not names['train'] & names['test']


@pytest.mark.parametrize('left', [(), ('points.json',)], ids=['no files', 'no clouds'])
def test_made_up_furniture_where_the_embedded_clouds_are_missing(left, mae, tmp_path, monkeypatch):
    "It says which of the two it gave: in a warning and by `points_source()`."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embedded = ml.sample('points', n=6, points=128)
        assert points_source() == 'furniture'
    for name in left:
        shutil.copy(resources.files('maskedlab') / 'data' / 'files' / name, tmp_path)
    monkeypatch.setattr('maskedlab.data.points._FILES', tmp_path)
    monkeypatch.setattr('maskedlab.data.points._about', cache(_about.__wrapped__))
    with pytest.warns(UserWarning, match='embedded clouds are missing, this is parametric furniture'):
        b = ml.sample('points', n=6, points=128)
    assert points_source() == 'parametric' and b['points'].shape == embedded['points'].shape
    assert_close(b['points'].norm(dim=-1).amax(1), torch.ones(6), atol=1e-5, rtol=0)
    assert mae(b, generator=g()).loss.isfinite()
    with pytest.warns(UserWarning):
        train, test, drawn = (clouds(500, **k) for k in ({}, dict(split='test'), dict(generator=g(3))))
    assert not torch.equal(train['points'], test['points']) and not torch.equal(
        train['points'], drawn['points']
    )
    assert {point_classes()[i] for i in train['label'].tolist()} == set(FURNITURE)
    spread = {
        k: train['points'][train['label'] == point_classes().index(k)].std((0, 1)) for k in FURNITURE
    }  # labels say what shapes are
    assert spread['bed'][1] > 2 * spread['bed'][2] and spread['lamp'][2] > 2 * spread['lamp'][:2].max()


def test_files_that_are_no_clouds(tmp_path):
    for name, content, words in (
        ('a.ply', b'nonsense', 'ply header'),
        ('a.xyz', b'\xff\xfe\x00', 'cannot be read'),
        ('a.off', b'OFF', 'whole .off file'),
        ('a.obj', b'', 'no points'),
        ('a.png', b'', 'no cloud'),
        ('b.xyz', b'0 0 0\n0 inf 0\n', 'point 1'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=words) as said:
            read_points(tmp_path / name)
        assert len(str(said.value)) <= 200 and '\n' not in str(said.value)
    with pytest.raises(FileNotFoundError):
        read_points(tmp_path / 'none.xyz')


def test_own_clouds_of_two_sizes_go_through_a_recipe(tmp_path, mae):
    for name, n in (('a', 100), ('b', 60)):
        np.savetxt(tmp_path / f'{name}.xyz', np.random.default_rng(n).random((n, 3)) * 50)
    b = load_points([tmp_path / 'a.xyz', tmp_path / 'b.xyz'])
    assert b['points_valid'].sum(1).tolist() == [100, 60]
    out = mae(b, generator=g())
    alone = mae.features(load_points(tmp_path / 'b.xyz'))
    assert out.loss.isfinite() and torch.allclose(
        mae.features(b)[1], alone[0], atol=1e-5
    )  # padding changes nothing
    assert (out.units.index[1] < 60).all()


# ---------------------------------------------------------------- groups


def reference(p, n):
    far, chosen = np.full(len(p), np.inf), [0]
    for _ in range(n - 1):
        far[chosen[-1]] = -1
        gap = p - p[chosen[-1]]
        far = np.minimum(far, gap[:, 0] ** 2 + gap[:, 1] ** 2 + gap[:, 2] ** 2)
        chosen.append(int(far.argmax()))
    return chosen


@pytest.mark.parametrize('ties', [False, True])
def test_farthest_points_are_those_of_numpy(ties):
    x = (
        torch.randint(3, (100, 50, 3), generator=g()).double()
        if ties
        else torch.rand(200, 70, 3, generator=g(), dtype=torch.float64)
    )
    assert fps(x, 20).tolist() == [reference(p, 20) for p in x.numpy()]


def test_nearest_neighbours_and_their_ties():
    x = torch.randint(4, (20, 50, 3), generator=g()).double()
    want = [
        [sorted(range(50), key=lambda i: (((p[i] - c) ** 2).sum(), i))[:9] for c in p[:5]] for p in x.numpy()
    ]
    assert knn(x, x[:, :5], 9).tolist() == want


@pytest.mark.parametrize(
    'points, words',
    [
        (torch.zeros(2, 10, 3), 'has 10 points'),
        (torch.zeros(2, 40, 3), 'different points'),
        (torch.zeros(2, 40, 2), r'\[B, N, 3\]'),
        (torch.full((1, 40, 3), torch.nan), 'is NaN'),
        (torch.zeros(1, 40, 3, dtype=torch.long), 'float'),
    ],
)
def test_bad_clouds(mae, bert, points, words):
    for r in (mae, bert):
        with pytest.raises(ValueError, match=words) as said:
            r(dict(points=points))
        assert len(str(said.value)) <= 200


def test_put_leaves_points_of_visible_groups(batch):
    u = groups(batch, 16, 16)
    mask = Random(0.5)(u, generator=g())
    new = u.put(batch, torch.where(mask[..., None, None], u.x + 3, u.x))['points']
    seen = seen_points(u, mask)
    assert torch.equal(new[seen], batch['points'][seen]) and not torch.equal(new, batch['points'])
    assert 0 < float(overlap(u, mask)) < 1


def test_chamfer():
    p, q = torch.randn(5, 9, 3, generator=g()), torch.randn(5, 7, 3, generator=g(1))
    assert (chamfer(p, p) == 0).all() and (chamfer(p, p, squared=False) == 0).all()
    assert_close(chamfer(p, q), chamfer(q, p))
    assert_close(chamfer(p[:, torch.randperm(9, generator=g())], q), chamfer(p, q))
    assert_close(chamfer(2 * p, 2 * q), 4 * chamfer(p, q))


# ---------------------------------------------------------------- Point-MAE, by the numbers of its card


def test_count_and_length(mae, batch):  # 1, 3
    lengths = []
    mae.encoder.blocks[0].register_forward_pre_hook(lambda m, a: lengths.append(a[0].shape[1]))
    out = mae(batch, generator=g())
    assert (out.mask.sum(1) == int(0.6 * 16)).all() and lengths == [16 - 9]
    assert 'decoder.mask_token' in dict(mae.named_parameters()) and not any(
        'mask_token' in n for n, _ in mae.encoder.named_parameters()
    )
    out.loss.backward()
    assert mae.decoder.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize('which', ['mae', 'bert'])
def test_hidden_points_change_no_prediction(which, batch, request):  # 2
    r = request.getfixturevalue(which)
    out = r(batch, generator=g())
    u = out.units
    other = u.but(x=torch.where(out.mask[..., None, None], torch.randn(u.x.shape, generator=g(2)), u.x))
    assert torch.equal(r(batch, mask=out.mask, units=other, generator=g()).pred, out.pred)
    assert ml.leak_check(r, batch).ok and len(ml.leak_check(r, batch).notes) >= 2


def test_moving_the_cloud_moves_the_centres_alone(mae, batch):  # 4
    u, v = mae.units(batch), mae.units({**batch, 'points': batch['points'] + 2})
    assert_close(u.x, v.x, atol=1e-5, rtol=0)
    assert_close(u.pos + 2, v.pos)


def test_order_inside_a_group_and_of_groups(mae, batch):  # 5, 6
    out = mae(batch, generator=g())
    u, order, turn = out.units, torch.randperm(8, generator=g()), torch.randperm(16, generator=g(1))
    inside = mae(batch, mask=out.mask, units=u.but(x=u.x[:, :, order]), generator=g())
    assert_close(inside.pred, out.pred, atol=1e-5, rtol=1e-4)
    assert_close(inside.loss, out.loss, atol=1e-5, rtol=1e-4)
    turned = mae(
        batch,
        mask=out.mask[:, turn],
        units=u.but(x=u.x[:, turn], pos=u.pos[:, turn], index=u.index[:, turn]),
        generator=g(),
    )
    assert_close(turned.loss, out.loss, atol=1e-5, rtol=1e-4)


def test_the_centre_is_its_first_neighbour_and_fill_is_in_the_clouds_frame(mae, batch):  # 7, 8
    out = mae(batch, generator=g())
    assert (out.units.x[:, :, 0] == 0).all()
    filled = mae.fill(batch, out)
    seen = seen_points(out.units, out.mask)
    assert torch.equal(filled['points'][seen], batch['points'][seen])
    drawn = (out.pred + rows(out.units.pos, out.mask)[:, None]).detach().flatten(0, 1)
    moved = filled['points'][filled['points'] != batch['points']].view(-1, 3)
    gap = torch.cdist(moved, drawn, compute_mode='donot_use_mm_for_euclid_dist')
    assert gap.amin(1).max() < 1e-5


def test_all_hidden_is_centres_only(mae, batch):  # 9
    u = mae.units(batch)
    a, b = (mae(batch, mask=u.all(), units=v) for v in (u, u.but(x=torch.randn_like(u.x))))
    assert torch.equal(a.pred, b.pred)


def test_the_released_layout(tmp_path, mae, batch):
    "The file, its names as the card lists them, and the formulas computed from it alone."
    mae.save_pretrained(tmp_path, layout='original')
    held = torch.load(tmp_path / 'pretrain.pth', weights_only=True)['base_model']
    w = {k.removeprefix('module.'): v for k, v in held.items()}
    need = [
        'MAE_encoder.encoder.first_conv.0.weight',
        'MAE_encoder.encoder.second_conv.3.bias',
        'MAE_encoder.pos_embed.2.weight',
        'MAE_encoder.blocks.blocks.1.attn.qkv.weight',
        'MAE_encoder.norm.bias',
        'mask_token',
        'decoder_pos_embed.0.bias',
        'MAE_decoder.blocks.0.mlp.fc2.weight',
        'MAE_decoder.norm.weight',
        'increase_dim.0.weight',
    ]
    assert (
        set(need) <= set(w)
        and all(k.startswith('module.') for k in held)
        and w['increase_dim.0.weight'].shape == (24, 32, 1)
    )
    assert not any('qkv.bias' in k for k in w)
    r = ml.load_pretrained(tmp_path / 'pretrain.pth', groups=16, heads=4, decoder_heads=2, drop_path=0.0)
    out = mae(batch, generator=g())
    assert_close(r(batch, mask=out.mask, generator=g()).pred, out.pred)

    def conv(x, name):
        return F.linear(x, w[f'{name}.weight'].flatten(1), w[f'{name}.bias'])

    def norm(x, name):
        n = [w[f'{name}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')]
        return (x - n[0]) / (n[1] + 1e-5).sqrt() * n[2] + n[3]

    def pointnet(x, at='MAE_encoder.encoder'):
        h = conv(norm(conv(x, f'{at}.first_conv.0'), f'{at}.first_conv.1').relu(), f'{at}.first_conv.3')
        h = torch.cat([h.amax(-2, keepdim=True).expand_as(h), h], -1)
        return conv(
            norm(conv(h, f'{at}.second_conv.0'), f'{at}.second_conv.1').relu(), f'{at}.second_conv.3'
        ).amax(-2)

    def mlp(x, name):
        return conv(F.gelu(conv(x, f'{name}.0')), f'{name}.2')

    def layer(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f'{name}.weight'], w[f'{name}.bias'])

    def block(x, name, heads):
        q, k, v = (
            F.linear(layer(x, f'{name}.norm1'), w[f'{name}.attn.qkv.weight'])
            .view(len(x), -1, 3, heads, 32 // heads)
            .unbind(2)
        )
        a = (torch.einsum('bqhd,bkhd->bhqk', q, k) * (32 // heads) ** -0.5).softmax(-1)
        x = x + conv(torch.einsum('bhqk,bkhd->bqhd', a, v).flatten(2), f'{name}.attn.proj')
        return x + conv(F.gelu(conv(layer(x, f'{name}.norm2'), f'{name}.mlp.fc1')), f'{name}.mlp.fc2')

    u, m = out.units, out.mask
    x, p = pointnet(u.x)[~m].view(4, 7, 32), u.pos[~m].view(4, 7, 3)
    for i in range(2):
        x = block(x + mlp(p, 'MAE_encoder.pos_embed'), f'MAE_encoder.blocks.blocks.{i}', 4)
    x = torch.cat([layer(x, 'MAE_encoder.norm'), w['mask_token'].expand(4, 9, -1)], 1)
    p = mlp(torch.cat([p, u.pos[m].view(4, 9, 3)], 1), 'decoder_pos_embed')
    x = layer(block(x + p, 'MAE_decoder.blocks.0', 2), 'MAE_decoder.norm')[:, 7:]
    assert_close(conv(x, 'increase_dim.0').view(-1, 8, 3), out.pred, atol=1e-4, rtol=1e-4)


def test_a_batch_of_pyg(mae, bert, batch):
    data = pytest.importorskip('torch_geometric.data')
    b = data.Batch.from_data_list([data.Data(pos=p) for p in (batch['points'][0], batch['points'][1, :90])])
    plain = dict(
        points=batch['points'][:2].clone(), points_valid=torch.arange(128) < torch.tensor([128, 90])[:, None]
    )
    for r in (mae, bert):
        assert torch.equal(r(b, generator=g()).pred, r(plain, generator=g()).pred)
        assert 'points' in r.fill(b, r(b, generator=g()))
    assert mae(data.Data(pos=batch['points'][0]), generator=g()).loss.isfinite()
    assert len(load_points(b)['points']) == 2


def test_data_sets_and_loaders_of_pyg(mae):
    data, loader = pytest.importorskip('torch_geometric.data'), pytest.importorskip('torch_geometric.loader')

    class Shapes(data.InMemoryDataset):
        def __init__(self):
            super().__init__()
            made = [data.Data(pos=torch.rand(40, 3), y=torch.tensor([i])) for i in range(6)]
            self.data, self.slices = self.collate(made)

    for source in (Shapes(), [*Shapes()], loader.DataLoader(Shapes(), 4)):
        b = load_points(source)
        assert b['points'].shape == (6, 40, 3) and b['label'].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(source_of(Shapes(), 0, modality='points')) == 6
    stream = list(islice(Joined(loader.DataLoader(Shapes(), 4), 'points', 4, 64, 3, 0), 2))
    assert [len(b['points']) for b in stream] == [4, 2] and stream[0]['label'].tolist() == [0, 1, 2, 3]
    r = mae
    b = data.Batch.from_data_list([Shapes()[i] for i in range(4)])
    assert features(r, b).shape == (4, 64) and ml.leak_check(r, b).ok


# ---------------------------------------------------------------- Point-BERT, by the numbers of its card


def test_a_ball_of_16_to_28_of_64():  # 1
    u = ml.layout(64, batch=300, kind='set').but(pos=torch.rand(300, 64, 3, generator=g()))
    mask = PointBERT.__init__.__defaults__[-1](u, generator=g())
    k = mask.sum(1)
    assert k.min() >= 16 and k.max() <= 28 and len(k.unique()) > 5
    one = Ball(0.4)(u, generator=g(3))
    seed = Ball(1 / 64)(u, generator=g(3))
    d = (u.pos - u.pos[seed][:, None]).square().sum(-1)
    assert (d.masked_fill(~one, 0).amax(1) <= d.masked_fill(one, 9).amin(1)).all()


def test_mixing_and_contrast_at_both_ends():  # 3, 4
    x, word = torch.randn(3, 4, 2, 3, generator=g()), torch.arange(12).view(3, 4)
    own = torch.rand(3, 4, generator=g()) < 0.5
    mx, mw = mix(own, x, word)
    for b in range(3):
        for s in range(4):
            source = b if own[b, s] else 2 - b
            assert (
                torch.equal(mx[b, s], x[source, s]) and mw[b, s] == word[source, s]
            )  # the word of what sits there
    q, k, queue = (F.normalize(torch.randn(n, 8, generator=g(n)), dim=1) for n in (4, 5, 6))
    k = k[:4]
    plain = lambda answer: F.cross_entropy(q @ torch.cat([k, queue]).T / 0.07, answer)
    assert_close(contrast(q, k, queue, torch.ones(4)), plain(torch.arange(4)))
    assert_close(contrast(q, k, queue, torch.zeros(4)), plain(torch.arange(4).flip(0)))


def test_uniform_kl():  # 5
    assert_close(uniform_kl(torch.zeros(2, 6, 8)), torch.zeros(2), atol=1e-6, rtol=0)
    logits = torch.randn(2, 6, 8, generator=g())
    q = logits.softmax(-1).mean(1)
    assert_close(uniform_kl(logits), (1 / 8 * ((1 / 8) / q).log()).sum(-1))


def test_only_the_student_learns_and_the_follower_follows(bert, batch):  # 6, 8
    bert.train()
    state = {k: v.clone() for k, v in bert.tokenizer.state_dict().items()}
    out = bert(batch, generator=g())
    assert set(out.terms) == {'words', 'mixed words', 'contrast'}
    out.loss.backward()
    assert all(p.grad is None for p in bert.mixing.follower.parameters()) and all(
        p.grad is None for p in bert.tokenizer.parameters()
    )
    assert all(p.grad is not None for p in bert.student.parameters()) and not bert.mixing.queue.requires_grad
    old = [p.clone() for p in bert.mixing.follower.parameters()]
    queue = bert.mixing.queue.clone()
    with torch.no_grad():
        for p in bert.student.parameters():
            p.add_(1)
    bert.after_step(out, 0.0)
    for a, p, q in zip(old, bert.mixing.follower.parameters(), bert.student.parameters()):
        assert_close(p, (0.999 * a + 0.001 * q).detach())
    assert (
        bert.mixing.queue.shape == queue.shape
        and torch.equal(bert.mixing.queue[:4], out.after['keys'])
        and torch.equal(bert.mixing.queue[4:], queue[4:])
    )
    assert_close(bert.mixing.queue.norm(dim=1), torch.ones(12))
    assert all(
        torch.equal(v, state[k]) or 'batches' in k or 'running' in k
        for k, v in bert.tokenizer.state_dict().items()
    )


def test_nothing_hidden_costs_nothing(bert, batch):  # 9
    assert bert(batch, mask=bert.units(batch).none()).loss == 0


def test_the_tokenizer_is_no_part_of_the_checkpoint(tmp_path, batch):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = ml.create_recipe('point_bert').train()
        assert not r.tokenizer.net.training and not any('tokenizer' in k for k in r.state_dict())
        r.save_pretrained(tmp_path)
        again = ml.load_pretrained(tmp_path)
    b = ml.sample('points', n=2)
    r.eval()
    assert again.tokenizer.key == r.tokenizer.key and torch.equal(
        again(b, generator=g()).pred, r(b, generator=g()).pred
    )
