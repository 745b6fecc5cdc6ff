"""SparK: the invariants of the method (Tian et al. 2023), on networks small enough for seconds."""
import warnings

import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.units import repeat_to, rows
from maskedlab.masks.strategies import Random
from maskedlab.parts.pyramid import ResNet, Stages, TimmStages, stages_encoder
from maskedlab.recipes.image.spark import SparK
from maskedlab.targets.pixels import patch_norm
from maskedlab.train.loop import decays

SMALL = dict(image=32, patch=8, widths=(8, 12, 16), depths=(1, 2, 1), bottleneck=False, decoder_dim=32,
             drop_path=0.)


def make(**more):
    torch.manual_seed(0)
    return stir(SparK(**{**SMALL, **more}))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


def hidden(mask, m):
    return repeat_to(mask, m.shape[2:])[:, None].expand_as(m)


# 1. the count

@pytest.mark.parametrize('side, rho, gone', [(7, .6, 29), (12, .75, 108), (8, .6, 38), (4, .6, 10)])
def test_the_count_of_visible_units_is_rounded(side, rho, gone):
    mask = Random(rho, law='round kept')(ml.layout((side, side), batch=9), generator=g())
    assert (mask.flatten(1).sum(1) == gone).all() and gone == side ** 2 - round(side ** 2 * (1 - rho))


def test_the_unit_is_a_place_of_the_last_map(r, batch):
    out = r(batch, generator=g())
    assert out.mask.shape == (3, 4, 4) and r.encoder.stride == 8 and out.pred.shape == (30, 192)
    assert [m.shape[-1] for m in r.encoder.maps(batch['image'])] == [16, 8, 4]


# 2. zeros at each layer, with shifts everywhere

@pytest.mark.parametrize('mode', [True, False])
def test_every_layer_of_the_encoder_is_zero_where_nothing_is_visible(r, batch, mode):
    mask, seen, hooks = r(batch, generator=g()).mask, [], []
    for m in r.encoder.modules():
        if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            hooks.append(m.register_forward_hook(lambda m, given, made: seen.append(made.detach())))
    r.encoder.train(mode)
    maps = r.encoder.see(r.cut.picture(r.units(batch)), ~mask)
    r.encoder.eval()
    for h in hooks:
        h.remove()
    assert len(seen) == 22 and all((m[hidden(mask, m)] == 0).all() for m in [*seen, *maps])
    assert all((m[~hidden(mask, m)] != 0).float().mean() > .2 for m in maps)


# 3. all visible

@pytest.mark.parametrize('mode', [True, False])
def test_with_all_visible_it_is_the_plain_network(r, batch, mode):
    r.encoder.train(mode)
    image, everything = r.cut.picture(r.units(batch)), torch.ones(3, 4, 4).bool()
    for a, b in zip(r.encoder.see(image, everything), r.encoder.maps(image)):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    r.encoder.eval()


# 4. hidden pixels

def test_hidden_pixels_change_the_target_alone(r, batch):
    out = r(batch, generator=g())
    other = r(batch, mask=out.mask, units=out.units.swap(out.mask, torch.rand(30, 192)))
    assert torch.equal(other.pred, out.pred) and (other.target - out.target).abs().max() > .1
    image = batch['image'].clone().requires_grad_()
    r(dict(image=image), mask=out.mask).pred.sum().backward()
    grad = r.cut.cut(image.grad)
    assert (grad[out.mask] == 0).all() and (grad[~out.mask] != 0).any()


# 5. batch norms of the encoder and of the layers that fill

def test_statistics_are_those_of_visible_places(r, batch):
    mask, net = r(batch, generator=g()).mask, r.encoder
    image = r.cut.picture(r.units(batch))
    seen = []
    hook = net.bn1.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    net.bn1.momentum = 1.
    net.train().see(image, ~mask)
    hook.remove()
    net.eval()
    visible = seen[0].movedim(1, -1)[~repeat_to(mask, (16, 16))]
    assert_close(net.bn1.running_mean, visible.mean(0))
    assert_close(net.bn1.running_var, visible.var(0))
    wide = F.pad(image, (8, 8, 8, 16), value=1.)                 # more area, all of it hidden
    net.train().see(wide, F.pad(~mask, (1, 1, 1, 2)))
    net.eval()
    assert_close(net.bn1.running_mean, visible.mean(0))
    net.bn1.reset_running_stats()


# 6. nested supports; a vector for each scale

def test_what_fills_a_hole_is_the_vector_of_its_scale(r, batch):
    mask = r(batch, generator=g()).mask
    maps = r.encoder.see(r.cut.picture(r.units(batch)), ~mask)[::-1]
    given = []
    hooks = [p.register_forward_pre_hook(lambda m, args: given.append(args[0])) for p in r.densify.projs]
    made = r.densify(maps, ~mask)
    for h in hooks:
        h.remove()
    for i, (x, m, token) in enumerate(zip(given, maps, r.densify.tokens)):
        assert_close(x[hidden(mask, m)], token.expand_as(m)[hidden(mask, m)])
        assert_close(x[~hidden(mask, m)], r.densify.norms[i](m)[~hidden(mask, m)])
        assert torch.equal(~(m != 0).any(1), ~(m != 0).any(1) | repeat_to(mask, m.shape[2:]))
    assert [m.shape[1:] for m in made] == [(32, 4, 4), (16, 8, 8), (8, 16, 16)]
    assert [p.kernel_size for p in r.densify.projs] == [(1, 1), (3, 3), (3, 3)]
    assert isinstance(SparK(**{**SMALL, 'decoder_dim': 16}).densify.projs[0], torch.nn.Identity)


# 7. the target

def test_target_and_the_price_of_silence(r, batch):
    out = r(batch, generator=g())
    x = r.cut.normal(rows(out.units.x, out.mask))
    z = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt()
    assert_close(out.target, z, atol=1e-5, rtol=1e-4)
    assert_close(out.target.square().mean(), torch.tensor(191 / 192), atol=1e-4, rtol=0)
    assert (patch_norm(torch.full((2, 192), .7)) == 0).all()
    assert_close(out.loss, (out.pred - out.target).square().mean(1).sum() / (30 + 1e-8))


# 8. where the loss looks

def test_the_loss_looks_at_hidden_units_only(r, batch):
    out = r(batch, generator=g())
    assert torch.equal(out.scored, out.mask)
    assert torch.equal(r.cut.image(r.cut.cut(batch['image'])), batch['image'])
    painted = []
    hook = r.decoder.register_forward_hook(lambda m, given, made: painted.append(made))
    loss = r(batch, mask=out.mask).loss
    hook.remove()
    grad = r.cut.cut(torch.autograd.grad(loss, painted[0])[0])
    assert (grad[~out.mask] == 0).all() and (grad[out.mask] != 0).all()


# 9. gradients and names

def test_gradient_reaches_every_vector_and_none_decays(r, batch):
    r.train()
    r(batch, generator=g()).loss.backward()
    assert all((t.grad != 0).any() for t in r.densify.tokens)
    r.zero_grad()
    r.eval()
    law = decays(r)
    assert not any(law[f'densify.tokens.{i}'] for i in range(3)) and law['encoder.layer1.0.conv1.weight']
    assert not any(law[n] for n, p in r.named_parameters() if p.ndim == 1)


def test_the_encoder_has_the_names_and_shapes_of_timms_resnet():
    timm = pytest.importorskip('timm')
    wide = dict(widths=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), bottleneck=True)
    for name, more in (('resnet18', dict(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2))),
                       ('resnet50', wide)):
        with torch.device('meta'):
            theirs, ours = timm.create_model(name, num_classes=0), ResNet(3, 32, **more)
        assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in
                                                                       theirs.state_dict().items()}


def test_only_as_many_scales_as_are_wanted(batch):
    one, all_ = make(scales=1), make()
    assert len(one.densify.tokens) == 1 and len(all_.densify.tokens) == 3
    assert one(batch, generator=g()).loss.isfinite()


def test_features_are_those_of_the_plain_network(r, batch):
    last = r.encoder.maps(r.cut.colours(batch['image']))[-1]
    assert_close(r.features(batch), last.mean((2, 3)))
    assert_close(r.features(batch, pool=False), last.flatten(2).mT)


def test_stochastic_depth_repeats_and_skips(batch):
    r = make(drop_path=.5).train()
    same = [r(batch, generator=g(5)).pred for _ in range(2)]
    without = make(drop_path=0.).train()(batch, generator=g(5)).pred
    assert torch.equal(*same) and not torch.equal(same[0], without)


def test_it_learns(batch):
    from maskedlab.train.trainer import fit
    torch.manual_seed(0)
    r = SparK(**SMALL)
    history = fit(r, iter([batch] * 25), 25, lr=4e-3, seed=0, weight_decay=0.)
    assert history[-1]['loss'] < .96 * history[0]['loss']


# ---------------------------------------- any convnet

@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_efficientnet'])
def test_a_convnet_of_timm_by_name_or_as_it_is(name):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    r = stir(SparK(encoder=name, decoder_dim=32))
    b = dict(image=torch.rand(2, 3, 64, 96, generator=g()))
    assert name != 'test_convnext' or ml.leak_check(r, b).ok
    out = r.train()(b, generator=g())
    out.loss.backward()
    assert out.mask.shape == (2, 2, 3) and all((t.grad != 0).any() for t in r.densify.tokens)
    assert not [n for n, p in r.named_parameters() if p.requires_grad and p.grad is None]
    net = timm.create_model(name, num_classes=0)
    assert {k: v.shape for k, v in r.encoder.net.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()}
    r.eval()
    again = SparK(encoder=r.encoder.net, decoder_dim=32).eval()
    assert again.encoder.net is r.encoder.net and torch.equal(again.features(b), r.features(b))


@pytest.mark.parametrize('name', ['test_convnext2', 'seresnet18', 'regnety_002'])
def test_an_encoder_cannot_tell_a_hidden_unit_from_the_border(name):
    "Whatever a forgotten layer counts, it counts hidden places too; then these differ."
    pytest.importorskip('timm')
    torch.manual_seed(0)
    e = stir(TimmStages(name)).train()
    image = torch.randn(2, 3, 64, 96, generator=g())
    visible = torch.tensor([[[1, 0, 1], [0, 1, 0]]] * 2).bool()
    with torch.no_grad():
        inner = e.see(image, visible)[-1]
        outer = e.see(F.pad(image, (32,) * 4, value=2.), F.pad(visible, (1,) * 4))[-1][..., 1:-1, 1:-1]
        assert_close(inner, outer, rtol=1e-3, atol=1e-4)
        dense = e.maps(F.pad(image * repeat_to(visible, (64, 96))[:, None], (32,) * 4))[-1][..., 1:-1, 1:-1]
    assert (dense - inner).abs().max() > .01


# ---------------------------------------- bad input

BAD = {
    'no stages': (lambda: SparK(encoder=torch.nn.Conv2d(3, 8, 3)), 'does not give the maps of its stages'),
    'a transformer': (lambda: SparK(encoder='vit_tiny_patch16_224'), 'strides 16, 16'),
    'dilated': (lambda: SparK(encoder=of_timm('resnet18', output_stride=8)), 'strides 2, 4, 8, 8, 8'),
    'attention inside': (lambda: SparK(encoder='gcresnext26ts'), 'no sparse form'),
    'other channels': (lambda: SparK(encoder=of_timm('test_resnet'), channels=1),
                       'takes 3 channels, the recipe 1'),
    'no such name': (lambda: SparK(encoder='resnet_50'), 'did you mean'),
    'no network': (lambda: SparK(encoder=5), "such as 'resnet50'"),
    'a picture of half a unit': (lambda: SparK(**{**SMALL, 'image': 36}), '36 x 36'),
    'a batch of half a unit': (lambda: make()(dict(image=torch.rand(1, 3, 32, 36))),
                               'multiple of the unit, 8'),
    'a stride between': (lambda: SparK(**{**SMALL, 'patch': 16, 'image': 48, 'widths': (8, 8)}),
                         'end at stride'),
    'a depth too few': (lambda: SparK(**{**SMALL, 'depths': (1, 1)}), 'for each stage'),
    'a width that is not halved': (lambda: SparK(**{**SMALL, 'decoder_dim': 36}), 'a multiple of 8'),
    'a mask of another grid': (lambda: make().encoder.see(torch.rand(1, 3, 32, 32),
                                                          torch.ones(1, 2, 2).bool()), 'units of 8'),
    'computed twice': (lambda: SparK(encoder=checkpointed()), 'computes its blocks twice'),
}


def of_timm(name, **more):
    return pytest.importorskip('timm').create_model(name, **more)


def checkpointed():
    net = of_timm('test_resnet')
    net.set_grad_checkpointing()
    return net


@pytest.mark.parametrize('name', BAD)
def test_what_does_not_fit_is_told_in_one_sentence(name):
    does, word = BAD[name]
    with pytest.raises((ValueError, TypeError), match=word) as told:
        does()
    assert len(str(told.value)) <= 200


def test_an_encoder_from_outside():
    class Mine(Stages):
        stride, widths = 4, (8,)

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 4, 4)

        def maps(self, image, generator=None):
            return [self.conv(image)]
    mine = Mine()
    assert stages_encoder(mine, 3, 8, (8,), (1,)) is mine
    r = SparK(image=32, encoder=mine, decoder_dim=16)
    assert ml.leak_check(r, dict(image=torch.rand(2, 3, 32, 32))).ok


# ---------------------------------------- released files

def test_a_whole_file_comes_back(tmp_path, batch):
    for more in (dict(image=64, strategy=Random(.5, law='round kept')), dict(scales=2), dict(norm='layer')):
        r = make(**more)
        again = ml.load_pretrained(r.save_pretrained(tmp_path / 'a', layout='original')).eval()
        assert torch.equal(again(batch, generator=g()).pred, r(batch, generator=g()).pred)
        assert again.config['image'] == r.config['image'] and again.strategy == r.strategy


def test_the_names_of_a_whole_file(tmp_path):
    make().save_pretrained(tmp_path, layout='original')
    file = torch.load(tmp_path / 'spark_style.pth', weights_only=True)
    shapes = {k: list(v.shape) for k, v in file['module'].items()}
    assert shapes['sparse_encoder.sp_cnn.conv1.weight'] == [8, 3, 3, 3]
    assert shapes['sparse_encoder.sp_cnn.layer2.0.downsample.0.weight'] == [12, 8, 1, 1]
    assert shapes['dense_decoder.dec.2.conv.3.weight'] == [4, 8, 3, 3]
    assert shapes['mask_tokens.2'] == [1, 8, 1, 1]
    assert shapes['densify_projs.1.weight'] == [16, 12, 3, 3] and shapes['norm_black'] == [1, 3, 32, 32]
    assert file['config']['mask_ratio'] == .6


def test_a_config_among_the_tensors_is_read(tmp_path):
    make().save_pretrained(tmp_path, layout='original')
    file = torch.load(tmp_path / 'spark_style.pth', weights_only=True)
    file['module']['config'] = {**file.pop('config'), 'mask_ratio': .75}
    torch.save(file, tmp_path / 'spark_style.pth')
    assert ml.load_pretrained(tmp_path).strategy.ratio == .75


def test_an_encoder_alone_under_timms_names(tmp_path, batch):
    timm = pytest.importorskip('timm')
    r = make()
    r.save_pretrained(tmp_path, layout='timm')
    with pytest.warns(UserWarning, match='untrained: densify, decoder'):
        again = ml.load_pretrained(tmp_path, image=32).eval()
    assert torch.equal(again.features(batch), r.features(batch))
    net = timm.create_model('resnet18')                     # of any other training, its classifier and all
    torch.save({'module': net.state_dict()}, tmp_path / 'timm_style.pth')
    with warnings.catch_warnings(action='ignore'):
        other = ml.load_pretrained(tmp_path, decoder_dim=32).eval()
    image = torch.rand(1, 3, 64, 64)
    want = net.eval().forward_features(other.cut.colours(image)).mean((2, 3))
    assert_close(other.features(dict(image=image)), want, rtol=1e-4, atol=1e-5)


def test_a_convnext_in_the_names_of_its_first_release(tmp_path, monkeypatch):
    timm = pytest.importorskip('timm')
    from timm.models.convnext import ConvNeXt
    from maskedlab.formats import spark
    torch.manual_seed(0)
    small = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 32), num_classes=0)
    r = stir(SparK(encoder=ConvNeXt(**small), decoder_dim=32, image=64))
    assert isinstance(r.densify.projs[0], torch.nn.Identity) and r.densify.norms[0].eps == 1e-6
    r.save_pretrained(tmp_path, layout='original convnext')
    names = torch.load(tmp_path / 'spark_style.pth', weights_only=True)['module']
    assert 'sparse_encoder.sp_cnn.stages.2.1.pwconv1.weight' in names and not any('head' in n for n in names)
    assert names['sparse_encoder.sp_cnn.downsample_layers.3.1.weight'].shape == (32, 16, 2, 2)
    with pytest.raises(ValueError, match='give encoder='):
        ml.load_pretrained(tmp_path)
    monkeypatch.setitem(spark.CONVNEXTS, (8, 2), 'convnext_small')
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: ConvNeXt(**small))
    with warnings.catch_warnings(action='ignore'):
        again = ml.load_pretrained(tmp_path).eval()
    b = dict(image=torch.rand(2, 3, 64, 64, generator=g()))
    assert torch.equal(again(b, generator=g()).pred, r(b, generator=g()).pred)
