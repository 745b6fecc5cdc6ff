"""Encoders from timm: what they compute with nothing hidden, with ragged masks, and what is refused."""
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.parts.patches import patchify
from maskedlab.parts.timm_vit import TimmViT
from maskedlab.parts.watch import watched
from maskedlab.recipes.image.mae import MAE
from maskedlab.train.loop import decays

timm = pytest.importorskip('timm')
DECODER = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)
NETS = {'plain': 'vit_tiny_patch16_224', 'deit3': 'deit3_small_patch16_224',
        'registers': 'vit_small_patch14_reg4_dinov2',
        'rotary': 'vit_small_patch16_rope_224', 'rotary by layer': 'vit_small_patch16_rope_mixed_224',
        'no token of its own': 'vit_base_patch16_siglip_gap_224', 'eva': 'eva02_tiny_patch14_224',
        'distilled': 'deit_tiny_distilled_patch16_224'}


def shake(net):
    "Many numbers are zero at the start, and zeros hide mistakes."
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * .02)
    return net


def small(name, side=4):
    "A network of timm, two blocks deep, for `side` x `side` patches."
    torch.manual_seed(0)
    patch = int(name.partition('patch')[2][:2])
    return shake(timm.create_model(name, depth=2, num_classes=0, img_size=side * patch,
                                   dynamic_img_size=True).eval())


@pytest.fixture(params=NETS.values(), ids=NETS)
def net(request):
    return small(request.param)


@pytest.fixture
def r(net):
    return MAE(encoder=net, **DECODER).eval()


def picture(r, h=4, w=4, n=3):
    return dict(image=torch.rand(n, 3, h * r.cut.size, w * r.cut.size,
                                 generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize('name', [NETS['plain'], NETS['deit3'], 'vit_wee_patch16_reg1_gap_256',
                                  NETS['rotary']])
def test_whole_networks_by_name(name):
    torch.manual_seed(0)
    r = MAE(encoder=name, **DECODER).eval()
    shake(r)
    side = r.encoder.grid[0] * r.cut.size
    b = dict(image=torch.rand(1, 3, side, side))
    u = r.units(b)
    assert_close(r.encoder.see(r.cut.normal(u.x)), r.encoder.net.forward_features(r.cut.colours(b['image'])),
                 rtol=0,
                 atol=1e-5)
    out = r(b, generator=torch.Generator().manual_seed(0))
    assert out.loss.isfinite() and out.mask.sum() == u.count - int(u.count * .25)


def test_nothing_hidden_is_what_timm_computes(r, net):
    for h, w in ((4, 4), (2, 6)):                     # another size too, which timm resizes its positions for
        b = picture(r, h, w)
        u = r.units(b)
        assert_close(r.encoder.see(r.cut.normal(u.x)), net.forward_features(r.cut.colours(b['image'])),
                     rtol=0, atol=1e-5)
    b = picture(r)
    assert_close(r.features(b, pool=False),
                 net.forward_features(r.cut.colours(b['image']))[:, r.encoder.prefix:],
                 rtol=0, atol=1e-5)


def test_ragged_masks(r):
    b, mask = picture(r), torch.zeros(3, 4, 4).bool()
    mask[0, :2], mask[1], mask[2, 3, 1] = True, True, True               # half, all, one
    both = r(b, mask=mask)
    assert both.loss.isfinite()
    for i in range(3):
        alone = r(dict(image=b['image'][i:i + 1]), mask=mask[i:i + 1])
        assert_close(both.error[i], alone.error[0], rtol=0, atol=1e-5, equal_nan=True)
    both.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in r.parameters())
    assert r(b, mask=torch.ones(3, 4, 4).bool()).loss.isfinite() and r(
        b, mask=torch.zeros(3, 4, 4).bool()).loss == 0


def test_no_leak(r):
    report = ml.leak_check(r, picture(r))
    assert report.ok, report


def test_attention_is_watched_and_nothing_else_changes(r, net):
    b, mask = picture(r), torch.zeros(3, 4, 4).bool()
    mask[:, :2], mask[0, 2] = True, True
    before = r(b, mask=mask).pred
    w, q, k = r.attention(b, mask)
    front = r.encoder.prefix
    assert len(w) == 2 and w.shape[-1] == q.shape[1] == front + 8 and torch.equal(q, k)
    assert q[1].tolist() == [-1] * front + list(range(8, 16))
    assert_close(w.sum(-1), torch.ones(w.shape[:-1]), rtol=0, atol=1e-5)
    assert (w[:, 0, ..., front + 4:] == 0).all()                          # nobody looks at padding
    assert torch.equal(r(b, mask=mask).pred, before)
    assert all(m.fused_attn for m in net.modules() if hasattr(m, 'fused_attn'))
    x = r.cut.normal(r.units(b).x)
    with watched(r.encoder):
        seen = r.encoder.see(x, ~mask)
    assert_close(seen, r.encoder.see(x, ~mask), rtol=0, atol=1e-5)


def test_attention_can_be_changed_too(r, net):
    x, own = r.cut.normal(r.units(picture(r)).x), r.encoder.see(r.cut.normal(r.units(picture(r)).x))
    with watched(r.encoder, by=lambda logits, layer: logits.softmax(-1)) as weights:
        same = r.encoder.see(x)
    assert_close(same, own, rtol=1e-4, atol=1e-4)
    assert len(weights) == 2 and weights[0].requires_grad
    alike = lambda logits, layer: torch.full_like(logits, 1 / logits.shape[-1])
    with watched(r.encoder, by=alike) as weights:
        even = r.encoder.see(x)
    assert not torch.allclose(even, own, atol=1e-3) and weights[1].std() < 1e-6
    assert torch.equal(r.encoder.see(x), own)


def test_rotary_positions_repeat_in_training():
    """DINOv3 changes its coordinates at random in training, from the global generator; a forward must repeat
    itself."""
    r = MAE(encoder=small('vit_tiny_patch16_dinov3_qkvb'), **DECODER).train()
    b = picture(r)
    assert torch.equal(*(r(b, generator=torch.Generator().manual_seed(0)).pred for _ in range(2)))


@pytest.mark.parametrize('name, word', [
    ('vit_tiny_r_s16_p8_224', 'HybridEmbed'), ('swin_tiny_patch4_window7_224', 'SwinTransformer'),
    ('beit_base_patch16_224', 'Beit'),
    ('vit_relpos_small_patch16_224', 'VisionTransformerRelPos'), ('convnext_tiny', 'ConvNeXt'),
    ('resnet18', 'ResNet'),
    ('vit_tinny_patch16_224', 'did you mean vit_tiny_patch16_224'),
    ('hf-hub:somebody/something', 'no model')])
def test_what_cannot_be_cut_is_refused_by_name(name, word):
    with pytest.raises(ValueError, match=word) as e:
        MAE(encoder=name, **DECODER)
    assert name in str(e.value) and len(str(e.value)) <= 200


def test_other_refusals():
    with pytest.raises(TypeError, match='encoder='):
        MAE(encoder=3)
    with pytest.raises(ValueError, match='channels'):
        MAE(encoder=small(NETS['plain']), channels=1)
    with pytest.raises(ValueError, match='patch_drop_rate'):
        MAE(encoder=timm.create_model(NETS['plain'], depth=1, patch_drop_rate=.5))
    fixed = MAE(encoder=timm.create_model(NETS['rotary'], depth=1, img_size=64), **DECODER)
    with pytest.raises(ValueError, match='dynamic_img_size'):
        fixed(dict(image=torch.rand(1, 3, 32, 128)))
    with pytest.raises(ValueError, match='multiple of the patch'):
        fixed(dict(image=torch.rand(1, 3, 30, 30)))


def test_another_number_of_channels():
    r = MAE(encoder='vit_tiny_patch16_224', channels=1, **DECODER)
    assert r(dict(image=torch.rand(1, 1, 32, 32))).loss.isfinite()


def test_an_encoder_of_ones_own_is_taken_as_it_is(net):
    own = TimmViT(net)
    assert MAE(encoder=own, **DECODER).encoder is own
    x = own.embed(patchify(torch.rand(1, 3, 4 * own.patch, 4 * own.patch), own.patch, 'row column colour'))
    assert x.shape == (1, 16, own.dim)


def test_checkpoints(tmp_path):
    torch.manual_seed(0)
    r = MAE(encoder='vit_tiny_patch16_224', **DECODER).eval()
    again = ml.load_pretrained(r.save_pretrained(tmp_path))
    b = picture(r)
    mask = torch.eye(4).bool().expand(3, 4, 4)
    assert torch.equal(again(b, mask=mask).pred, r(b, mask=mask).pred)
    for layout in ('original', 'transformers'):
        with pytest.raises(ValueError, match='TimmViT'):
            r.save_pretrained(tmp_path / 'x', layout=layout)
    with pytest.raises(ValueError, match='encoder='):
        MAE(encoder=small(NETS['plain']), **DECODER).save_pretrained(tmp_path / 'x')


def test_timm_is_imported_only_when_it_is_asked_for(monkeypatch):
    code = ("import sys, maskedlab.recipes.image.mae, maskedlab.formats.pretrained; "
            "print('timm' in sys.modules or 'transformers' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=True).stdout.strip() == 'False'
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match=r'maskedlab\[timm\]'):
        MAE(encoder='vit_tiny_patch16_224')


def test_weight_decay():
    r = MAE(encoder=small(NETS['plain']), **DECODER)
    decay = decays(r)
    assert not decay['encoder.net.pos_embed'] and not decay['encoder.net.cls_token'] and decay['head.weight']


@pytest.mark.parametrize('name', ['mae', 'simmim', 'beit', 'cae', 'mfm', 'maskalign', 'hybrid_distillation',
                                  'hard_patches_mining', 'mto', 'dmjd', 'croco'])
def test_a_recipe_leaves_its_encoder_to_timm(name, tmp_path):
    torch.manual_seed(0)
    r = shake(ml.create_recipe(name)).eval()
    r.save_pretrained(tmp_path, layout='timm')
    net = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    b = ml.sample('pairs' if name == 'croco' else 'image', n=2)
    colours = (r.inner if name == 'mto' else r).cut.colours
    with torch.no_grad():
        assert_close(net(colours(b['image'])), r.features(b), atol=1e-4, rtol=1e-4)
    size = timm.data.resolve_data_config(model=net)
    assert size['input_size'] == tuple(b['image'].shape[1:])
    assert_close(torch.tensor(size['mean']), colours.mean, atol=1e-5, rtol=0)


def test_an_encoder_of_timm_goes_back_as_it_came(tmp_path):
    torch.manual_seed(0)
    r = shake(MAE(encoder='vit_tiny_patch16_224', **DECODER)).eval()
    r.save_pretrained(tmp_path, layout='timm')
    net = timm.create_model('vit_tiny_patch16_224', num_classes=0,
                            checkpoint_path=tmp_path / 'model.safetensors')
    b = picture(r, 14, 14)
    with torch.no_grad():
        tokens = net.eval().forward_features(r.cut.colours(b['image']))
        assert_close(tokens[:, 1:].mean(1), r.features(b), atol=1e-4, rtol=1e-4)


def test_a_folder_of_timm_is_read_as_an_encoder(tmp_path):
    r = shake(ml.create_recipe('mae', mean=(.1, .2, .3), std=(.4, .5, .6))).eval()
    r.save_pretrained(tmp_path, layout='timm')
    with pytest.warns(UserWarning, match='untrained: decoder, head'):
        again = ml.load_pretrained(tmp_path)
    b = ml.sample('image', n=2)
    assert_close(again.features(b), r.features(b))


@pytest.mark.parametrize('name, more, said', [
    ('selfie', {}, 'none at all'), ('seitpp', {}, 'a WordViT'), ('videomae', {}, 'use layout='),
    ('mae', {'eps': 1e-5}, 'eps=1e-05')])
def test_what_timm_cannot_make_is_said(name, more, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        ml.create_recipe(name, **more).save_pretrained(tmp_path, layout='timm')
    assert not any(tmp_path.iterdir())
