"""Checkpoints: three layouts give the same numbers, every key is accounted for, nothing in a file runs."""
import argparse
import json
import math
import os
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from given import g
import torch.nn.functional as F
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.block import Block
from maskedlab.contract import create as table
from maskedlab.contract.catalogue import RECIPES, formats_of
from maskedlab.contract.parse import parse
from maskedlab.contract.saved import OLDER, read_checkpoint, save, write_files
from maskedlab.formats.format import Format, find_format
from maskedlab.formats.mae import ORIGINAL, TRANSFORMERS
from maskedlab.formats.names import Names
from maskedlab.masks.schedules import Uniform
from maskedlab.masks.strategies import Random
from maskedlab.recipes.image.mae import MAE
from maskedlab.recipes.image.simmim import SimMIM
from maskedlab.stages.point_dvae import PointDVAE

SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, decoder_dim=16, decoder_depth=1, decoder_heads=2)
HEADS = dict(heads=4, decoder_heads=2)
COLOURS = dict(mean=(.485, .456, .406), std=(.229, .224, .225))      # what a folder without a processor lacks


def make(cls=MAE, **more):
    torch.manual_seed(0)
    r = cls(**{**SMALL, **more}).eval() if cls is MAE else cls(**more).eval()
    with torch.no_grad():
        for p in r.parameters():
            p.add_(torch.randn_like(p) * .05)
    return r


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


def same(a, b, batch):
    "Two recipes with the same answer, from their own masks on."
    x, y = a(batch, generator=g()), b(batch, generator=g())
    assert torch.equal(x.mask, y.mask)
    assert_close(y.pred, x.pred, rtol=0, atol=1e-5)
    assert_close(y.loss, x.loss, rtol=0, atol=1e-5)


# The original layout, written down here from its description and from nothing of ours

def waves(side, dim):
    rate = 1 / 10000 ** (torch.arange(dim // 4).double() / (dim // 4))
    code = lambda place: torch.cat([torch.sin(place * rate), torch.cos(place * rate)])
    # the first half codes the column
    rows = [torch.cat([code(column), code(row)]) for row in range(side) for column in range(side)]
    return torch.cat([torch.zeros(1, dim), torch.stack(rows).float()])[None]


def original(side=4, patch=8, dim=32, depth=2, decoder_dim=16, decoder_depth=1):
    "Random weights under the names of the original code."
    gen = g(7)
    w = lambda *shape: torch.randn(*shape, generator=gen) * .3 / math.sqrt(shape[-1])
    def block(name, d):
        s = {f'{name}.norm{i}.{k}': w(d) + (k == 'weight') for i in (1, 2) for k in ('weight', 'bias')}
        for part, (i, o) in {'attn.qkv': (d, 3 * d), 'attn.proj': (d, d), 'mlp.fc1': (d, 4 * d),
                             'mlp.fc2': (4 * d, d)}.items():
            s |= {f'{name}.{part}.weight': w(o, i) * 3, f'{name}.{part}.bias': w(o)}
        return s
    state = {'cls_token': w(1, 1, dim), 'pos_embed': waves(side, dim)}
    state |= {'patch_embed.proj.weight': w(dim, 3, patch, patch), 'patch_embed.proj.bias': w(dim)}
    for i in range(depth):
        state |= block(f'blocks.{i}', dim)
    state |= {'norm.weight': w(dim) + 1, 'norm.bias': w(dim)}
    state |= {'mask_token': w(1, 1, decoder_dim), 'decoder_pos_embed': waves(side, decoder_dim)}
    state |= {'decoder_embed.weight': w(decoder_dim, dim) * 3, 'decoder_embed.bias': w(decoder_dim)}
    for i in range(decoder_depth):
        state |= block(f'decoder_blocks.{i}', decoder_dim)
    state |= {'decoder_norm.weight': w(decoder_dim) + 1, 'decoder_norm.bias': w(decoder_dim)}
    return state | {'decoder_pred.weight': w(patch * patch * 3, decoder_dim) * 3,
                    'decoder_pred.bias': w(patch * patch * 3)}


def reference(s, image, noise, heads, decoder_heads, norm_pix, ratio=.75, eps=1e-6):
    """MAE's forward on a normalised picture, formula by formula: loss, predictions of all patches, mask with
    1 = hidden."""
    def block(x, name, heads):
        B, N, D = x.shape
        y = F.layer_norm(x, (D,), s[f'{name}.norm1.weight'], s[f'{name}.norm1.bias'], eps)
        q, k, v = (F.linear(y, s[f'{name}.attn.qkv.weight'],
                            s[f'{name}.attn.qkv.bias'])[..., i * D:(i + 1) * D]
                   .view(B, N, heads, D // heads).transpose(1, 2) for i in range(3))
        y = ((q @ k.mT / math.sqrt(D // heads)).softmax(-1) @ v).transpose(1, 2).reshape(B, N, D)
        x = x + F.linear(y, s[f'{name}.attn.proj.weight'], s[f'{name}.attn.proj.bias'])
        y = F.layer_norm(x, (D,), s[f'{name}.norm2.weight'], s[f'{name}.norm2.bias'], eps)
        y = F.gelu(F.linear(y, s[f'{name}.mlp.fc1.weight'], s[f'{name}.mlp.fc1.bias']))
        return x + F.linear(y, s[f'{name}.mlp.fc2.weight'], s[f'{name}.mlp.fc2.bias'])

    w = s['patch_embed.proj.weight']
    p = w.shape[-1]
    x = F.conv2d(image, w, s['patch_embed.proj.bias'], stride=p).flatten(2).mT + s['pos_embed'][:, 1:]
    B, L, D = x.shape
    n = int(L * (1 - ratio))
    shuffle = noise.argsort(1)
    restore = shuffle.argsort(1)
    x = torch.stack([x[b, shuffle[b, :n]] for b in range(B)])
    x = torch.cat([(s['cls_token'] + s['pos_embed'][:, :1]).expand(B, 1, D), x], 1)
    for i in range(sum(k.endswith('qkv.bias') and k.startswith('blocks') for k in s)):
        x = block(x, f'blocks.{i}', heads)
    x = F.layer_norm(x, (D,), s['norm.weight'], s['norm.bias'], eps)

    x = F.linear(x, s['decoder_embed.weight'], s['decoder_embed.bias'])
    d = x.shape[-1]
    y = torch.cat([x[:, 1:], s['mask_token'].expand(B, L - n, d)], 1)
    x = torch.cat([x[:, :1], torch.stack([y[b, restore[b]] for b in range(B)])], 1) + s['decoder_pos_embed']
    for i in range(sum(k.endswith('qkv.bias') and k.startswith('decoder') for k in s)):
        x = block(x, f'decoder_blocks.{i}', decoder_heads)
    x = F.layer_norm(x, (d,), s['decoder_norm.weight'], s['decoder_norm.bias'], eps)
    pred = F.linear(x, s['decoder_pred.weight'], s['decoder_pred.bias'])[:, 1:]

    h = image.shape[2] // p
    target = torch.einsum('bchpwq->bhwpqc', image.reshape(B, 3, h, p, h, p)).reshape(B, L, -1)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    mask = (restore >= n).float()
    return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum(), pred, mask


def agrees(r, batch, loss, pred, mask):
    "Our recipe, with the mask that somebody else drew, against somebody else's answer."
    hidden = mask.bool().view(r.units(batch).valid.shape)
    out = r(batch, mask=hidden)
    assert_close(out.loss, loss, rtol=0, atol=1e-4)
    assert_close(out.pred, pred[mask.bool()], rtol=0, atol=1e-4)


@pytest.mark.parametrize('norm_pix', [True, False])
def test_the_original_layout_gives_the_reference_numbers(tmp_path, batch, norm_pix):
    state = original()
    torch.save({'model': state}, tmp_path / 'mae.pth')
    r = ml.load_pretrained(tmp_path / 'mae.pth', norm_pix=norm_pix, **HEADS)
    noise = torch.rand(3, 16, generator=g(2))
    assert r.config['image'] == 32 and r.config['depth'] == 2
    agrees(r, batch, *reference(state, r.cut.colours(batch['image']), noise, 4, 2, norm_pix))
    r.save_pretrained(tmp_path / 'back', layout='original')
    back = torch.load(next((tmp_path / 'back').glob('*.pth')), weights_only=True)['model']
    assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize('norm_pix', [True, False])
def test_transformers_opens_ours_and_we_open_theirs(tmp_path, batch, norm_pix):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32,
        patch_size=8,
        decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=64, norm_pix_loss=norm_pix, mask_ratio=.6)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if 'position' not in n and 'pos_embed' not in n:
                p.add_(torch.randn_like(p) * .05)
        theirs.vit.embeddings.cls_token.mul_(1e-4)                        # small tokens: here the eps matters
    noise = torch.rand(3, 16, generator=g(2))

    theirs.save_pretrained(tmp_path / 'theirs')
    with pytest.raises(ValueError, match='give mean= and std='):
        ml.load_pretrained(tmp_path / 'theirs')
    r = ml.load_pretrained(tmp_path / 'theirs', **COLOURS)
    o = theirs(r.cut.colours(batch['image']), noise=noise)
    agrees(r, batch, o.loss, o.logits, o.mask)
    assert r.encoder.norm.eps == 1e-12 and r.norm_pix == norm_pix and r.strategy == Random(.6)
    assert (r(batch).mask.flatten(1).sum(1) == o.mask.sum(1)).all()        # our law counts as they do

    folder = r.save_pretrained(tmp_path / 'ours', layout='transformers')
    again, info = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    p = again.eval()(r.cut.colours(batch['image']), noise=noise)
    assert_close((p.loss, p.logits), (o.loss, o.logits), rtol=0, atol=1e-6)
    same(r, ml.load_pretrained(folder), batch)
    image = transformers.ViTImageProcessorPil if hasattr(
        transformers, 'ViTImageProcessorPil') else transformers.ViTImageProcessor
    assert_close(torch.tensor(image.from_pretrained(folder).image_std), r.cut.colours.std)

    # names as they stand in version 5 in memory, and an encoder saved by itself
    state = {k: v for k, v in theirs.state_dict().items()}
    assert any('q_proj' in k for k in state)
    write_files(tmp_path / 'five', {'model.safetensors': state, 'config.json': config.to_dict()})
    same(r, ml.load_pretrained(tmp_path / 'five', **COLOURS), batch)
    theirs.vit.save_pretrained(tmp_path / 'encoder')
    with pytest.warns(UserWarning, match='untrained: decoder, head'):
        half = ml.load_pretrained(tmp_path / 'encoder', **COLOURS)
    assert_close(half.features(batch), r.features(batch))


def test_there_and_back_is_the_identity_on_254_tensors():
    state = original(depth=12, decoder_depth=8)
    assert len(state) == 254 and sum(not k.startswith(('decoder', 'mask_token')) for k in state) == 150
    r = make(depth=12, decoder_depth=8)
    ours = ORIGINAL.ours(state)
    theirs = TRANSFORMERS.theirs(ours, r)
    assert len(theirs) == 334 and 'decoder.decoder_layers.7.attention.attention.query.weight' in theirs
    for back in (ORIGINAL.theirs(TRANSFORMERS.ours(theirs), r), ORIGINAL.theirs(ours, r)):
        assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in state)


# What the file does not say

def test_published_sizes_need_no_heads(tmp_path):
    state = original(side=2, patch=16, dim=768, depth=1, decoder_dim=512, decoder_depth=1)
    torch.save({'model': state}, tmp_path / 'mae_visualize_vit_base.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = ml.load_pretrained(tmp_path / 'mae_visualize_vit_base.pth')
    assert (r.encoder.blocks[0].attn.heads, r.decoder.blocks[0].attn.heads, r.norm_pix) == (12, 16, False)


def test_heads_and_normalisation_are_asked_for(tmp_path, batch):
    torch.save({'model': original()}, tmp_path / 'mae.pth')
    with pytest.raises(ValueError, match='heads='):
        ml.load_pretrained(tmp_path / 'mae.pth')
    with pytest.raises(ValueError, match='norm_pix='):
        ml.load_pretrained(tmp_path / 'mae.pth', **HEADS)
    assert ml.load_pretrained(tmp_path / 'mae.pth', norm_pix=True, **HEADS).norm_pix


def test_a_whole_training_checkpoint(tmp_path):
    args = argparse.Namespace(norm_pix_loss=False, mask_ratio=.5, model='mae_vit_base_patch16')
    more = {'args': args, 'epoch': 3, 'optimizer': {'state': {}, 'param_groups': []}, 'scaler': {}}
    torch.save({'model': original(), **more}, tmp_path / 'checkpoint-3.pth')
    r = ml.load_pretrained(tmp_path / 'checkpoint-3.pth', **HEADS)
    assert not r.norm_pix and r.strategy == Random(.5, law='floor kept')


def test_an_encoder_alone_says_what_is_untrained(tmp_path, batch):
    state = {k: v for k, v in original().items() if not k.startswith(('decoder', 'mask_token'))}
    torch.save({'model': state}, tmp_path / 'mae_pretrain.pth')
    with pytest.warns(UserWarning, match='untrained: decoder, head'):
        r = ml.load_pretrained(tmp_path / 'mae_pretrain.pth', heads=4, decoder_dim=16, decoder_depth=1,
                               decoder_heads=2)
    assert torch.equal(r.encoder.blocks[1].mlp.fc2.bias, state['blocks.1.mlp.fc2.bias'])


def test_oblong_pictures_in_the_original_layout(tmp_path):
    r = make(image=(16, 40))
    again = ml.load_pretrained(r.save_pretrained(tmp_path, layout='original'), **HEADS)
    assert again.config['image'] == (16, 40)
    same(r, again, dict(image=torch.rand(2, 3, 16, 40)))


# Every key

@pytest.mark.parametrize('drop, add', [
    ('blocks.1.attn.qkv.bias', None), ('decoder_pred.bias', None), ('decoder_blocks.0.norm1.weight', None),
    (None, 'blocks.1.gamma'),
    ('norm.weight', 'fc_norm.weight')])
def test_every_key_is_accounted_for(tmp_path, drop, add):
    state = {k: v for k, v in original().items() if k != drop} | ({add: torch.ones(1)} if add else {})
    torch.save({'model': state}, tmp_path / 'mae_full.pth')
    with pytest.raises(ValueError) as e:
        ml.load_pretrained(tmp_path / 'mae_full.pth', **HEADS)
    said = ' '.join([str(e.value), *e.value.__notes__])
    assert ('missing' in said) == bool(drop) and ('unexpected' in said) == bool(add) and len(
        str(e.value)) <= 200
    for k in filter(None, (drop, add)):
        assert k.split('.', 1)[1].split('.')[-1] in said


def test_one_of_three_projections_is_missed(tmp_path, batch):
    r = make()
    r.save_pretrained(tmp_path, layout='transformers')
    config = json.loads((tmp_path / 'config.json').read_text())
    state = TRANSFORMERS.theirs(r.state_dict(), r)
    state.pop('vit.encoder.layer.0.attention.attention.key.weight')
    write_files(tmp_path, {'model.safetensors': state, 'config.json': config})
    with pytest.raises(ValueError, match='encoder.blocks.0.attn.qkv.weight'):
        ml.load_pretrained(tmp_path)


def test_other_sizes_do_not_fit(tmp_path):
    folder = make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='expected') as e:
        ml.load_pretrained(folder, dim=64)
    assert len(str(e.value)) <= 200


# Our own layout

@pytest.mark.parametrize('strategy', [Random(.75), Random(Uniform(.2, .9)), Block(.4) | ~Random(.9),
                                      Block(n=5, law='at most')])
def test_ours_there_and_back(tmp_path, batch, strategy):
    r = make(strategy=strategy, norm_pix=False, mean=(.5, .4, .3), std=(.2, .2, .2))
    r.strategy = strategy
    again = ml.load_pretrained(r.save_pretrained(tmp_path))
    assert again.strategy == strategy and not again.training
    same(r, again, batch)
    same(r, ml.load_pretrained(tmp_path / 'model.safetensors'), batch)    # the weights can travel alone
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['recipe'] == 'mae' and config['versions']['maskedlab'] == ml.__version__
    assert config['config']['strategy'] == {'strategy': repr(strategy)} and parse(repr(strategy)) == strategy
    assert {p.name for p in tmp_path.iterdir()} == {'config.json', 'model.safetensors'}


def test_every_recipe_there_and_back(tmp_path):
    for name in ml.list_recipes():
        torch.manual_seed(0)
        r = ml.create_recipe(name).eval()
        again = ml.load_pretrained(r.save_pretrained(tmp_path / name))
        assert type(again) is type(r)
        a, b = r.state_dict(), again.state_dict()
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_half_the_space(tmp_path):
    r = make()
    r.save_pretrained(tmp_path / 'a')
    r.save_pretrained(tmp_path / 'b', dtype=torch.float16)
    size = [(tmp_path / n / 'model.safetensors').stat().st_size for n in 'ab']
    assert size[1] < .6 * size[0]
    again = ml.load_pretrained(tmp_path / 'b')
    assert {p.dtype for p in again.state_dict().values()} == {torch.float32}
    assert_close(again.head.weight, r.head.weight, rtol=1e-3, atol=1e-4)


def test_an_interrupted_save_leaves_the_old_one(tmp_path, batch, monkeypatch):
    old = make()
    old.save_pretrained(tmp_path)
    calls = []
    replace = os.replace
    def full_disk(a, b):
        calls.append(b)
        if len(calls) > 1: raise OSError('no space left')
        replace(a, b)
    monkeypatch.setattr(os, 'replace', lambda a, b: (_ for _ in ()).throw(OSError('no space left')))
    with pytest.raises(OSError):
        make(depth=3).save_pretrained(tmp_path)
    same(old, ml.load_pretrained(tmp_path), batch)
    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(OSError):
        make(depth=3).save_pretrained(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match='two different saves'):
        ml.load_pretrained(tmp_path)     # new weights, old arguments
    assert {p.name for p in tmp_path.iterdir()} == {'config.json', 'model.safetensors'}


def test_what_a_layout_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match='square'):
        make(image=(16, 40)).save_pretrained(tmp_path, layout='transformers')
    with pytest.raises(ValueError, match='at random'):
        make(strategy=Block(.5)).save_pretrained(tmp_path, layout='transformers')
    with pytest.raises(ValueError, match='original, transformers'):
        make().save_pretrained(tmp_path, layout='keras')
    with pytest.raises(ValueError, match='strategy='):
        make(strategy=lambda u: u.all()).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='is a file'):
        make().save_pretrained(tmp_path / 'file')


def test_a_recipe_from_outside_needs_the_callers_word(tmp_path, batch):
    file = tmp_path / 'mine.py'
    file.write_text(f"from maskedlab.recipes.image.mae import MAE\nopen({str(tmp_path / 'ran')!r}, "
                    "'a').close()\nclass Mine(MAE):\n"
                    "    def __init__(self, extra=1, **more):\n        super().__init__(**more)\n        "
                    "self.extra = extra\n")
    which = f'{file}:Mine'
    r = ml.create_recipe(which, extra=2, **SMALL).eval()
    r.save_pretrained(tmp_path / 'saved')
    (tmp_path / 'ran').unlink()
    with pytest.raises(ValueError, match='recipe='):
        ml.load_pretrained(tmp_path / 'saved')
    assert not (tmp_path / 'ran').exists()                          # a checkpoint does not choose code to run
    again = ml.load_pretrained(tmp_path / 'saved', recipe=which)
    assert again.extra == 2
    same(r, again, batch)
    with pytest.raises(TypeError):
        ml.load_pretrained(tmp_path / 'saved', recipe=dict)


def test_shipped_weights(tmp_path, batch, monkeypatch):
    r = make()
    r.save_pretrained(tmp_path / 'mae-micro', dtype=torch.float16)
    monkeypatch.setattr(table, 'SHIPPED', tmp_path)
    for which in ('mae', MAE):
        again = ml.create_recipe(which, pretrained=True)
        assert_close(again.head.weight, r.head.weight, rtol=1e-3, atol=1e-4)
    assert ml.create_recipe('mae', pretrained=True, size='micro', norm_pix=False).norm_pix is False
    with pytest.raises(ValueError, match="size='micro'"):
        ml.create_recipe('mae', pretrained=True, size='base')
    with pytest.raises(ValueError, match='ships no weights'):
        ml.create_recipe('simmim', pretrained=True)


# All formats

MADE = {   # a recipe that its formats can hold, and what their files do not say
    'mae': (SMALL, HEADS), 'simmim': ({}, {}), 'beit': (dict(tokenizer=None, words=12), {}),
    'cae': (dict(tokenizer=None, words=12), dict(heads=4)), 'bert_mlm': (dict(position='learned'), {}),
    'croco': ({}, dict(heads=4, decoder_heads=4)),
    'hard_patches_mining': (SMALL, HEADS),
    'electra': (dict(position='learned'), {}), 'point_mae': ({}, dict(heads=4, decoder_heads=4)),
    'spark': ({}, {}), 'videomae': ({}, {}), 'wav2vec2': ({}, {}),
    ('spark', 'original convnext'): (dict(encoder='convnext_atto', decoder_dim=32),
                                     dict(encoder='convnext_atto')),
    'point_bert': (dict(tokenizer=PointDVAE(edges=(64,) * 4, width=32, words=32)), dict(heads=4))}
LACKS = {('spark', 'original convnext'): ('encoder.net.head',), ('spark', 'timm'): ('densify', 'decoder')}
ALL = [(name, f) for name in RECIPES for f in formats_of(name)]


def test_every_recipe_with_formats_is_tried():
    assert {name for name, f in ALL} == {k for k in MADE if isinstance(k, str)}
    assert all(f.recipe == name for name, f in ALL)


@pytest.mark.parametrize('name, form', ALL, ids=lambda x: getattr(x, 'name', x))
def test_random_tensors_there_and_back(tmp_path, name, form):
    "Every tensor that a format holds comes back, from names that fit this format alone."
    arguments, unsaid = MADE.get((name, form.name), MADE[name])
    r = ml.create_recipe(name, **arguments)
    gen = g()
    with torch.no_grad():
        own = r.state_dict()
        for p in own.values():
            p.copy_(torch.randn(p.shape, generator=gen))
    theirs = form.names.theirs(own, r)
    back = form.names.ours(theirs)
    assert set(back) <= set(own) and all(torch.equal(back[k], own[k]) for k in back)
    again = form.names.theirs({**own, **back}, r)
    assert set(again) == set(theirs) and all(torch.equal(again[k], theirs[k]) for k in theirs)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = ml.load_pretrained(r.save_pretrained(tmp_path, layout=form.name), **unsaid).state_dict()
    config, state = read_checkpoint(tmp_path)
    assert find_format(config, state) is form
    assert all(torch.equal(loaded[k], own[k]) for k in back)
    left = [k for k in own if k not in back and not k.startswith(LACKS.get((name, form.name), ()))]
    assert not left or name == 'electra' and not any(k.startswith(('encoder.word', 'generator.word'))
                                                     for k in left)


def test_two_formats_that_fit_are_an_error_that_names_both(tmp_path):
    table = {'embeddings.word_embeddings.weight': torch.ones(4, 4)}           # BERT's or ELECTRA's?
    write_files(tmp_path, {'model.safetensors': table})
    with pytest.raises(ValueError, match=r'bert_mlm \(transformers\) and electra \(transformers\)') as e:
        ml.load_pretrained(tmp_path)
    assert len(str(e.value)) <= 200
    with pytest.raises(ValueError, match='config.json'):
        ml.load_pretrained(tmp_path, recipe='bert_mlm')                       # no longer in doubt


def test_a_recipe_from_outside_brings_its_own_format(tmp_path, batch):
    class Mine(MAE):
        formats = (Format('mine', 'mae', ('x.head.weight',), Names(('x.{rest}', '{rest}')),
                          lambda config, state, given: (dict(SMALL, image=32), ()),
                          lambda recipe, weights: {'mine.pth': {'net': 0, 'model': weights}}),)
    r = make(Mine, **SMALL)
    folder = r.save_pretrained(tmp_path, layout='mine')
    assert all(k.startswith('x.') for k in torch.load(folder / 'mine.pth')['model'])
    same(r, ml.load_pretrained(folder, recipe=Mine), batch)
    with pytest.raises(ValueError, match='no recipe here'):
        ml.load_pretrained(folder)
    with pytest.raises(ValueError, match='maskedlab, timm, mine'):
        r.save_pretrained(tmp_path, layout='other')


# What a training script puts around weights

WRAPPED = {
    'plain': lambda s: s,
    'model': lambda s: {'model': s},
    'state_dict': lambda s: {'state_dict': s, 'epoch': 7},
    'base_model': lambda s: {'base_model': s},
    'two deep': lambda s: {'state_dict': {'model': s}},
    'data parallel': lambda s: {'model': {f'module.{k}': v for k, v in s.items()}},
    'compiled': lambda s: {f'_orig_mod.{k}': v for k, v in s.items()},
    'compiled within': lambda s: {k.replace('blocks.', 'blocks._orig_mod.'): v for k, v in s.items()},
    'compiled and parallel': lambda s: {f'module._orig_mod.{k}': v for k, v in s.items()},
    'base_model in front': lambda s: {f'base_model.{k}': v for k, v in s.items()},
    'model in front': lambda s: {'state_dict': {f'model.{k}': v for k, v in s.items()}},
    'average alone': lambda s: {'model_ema': s},
    'averaged': lambda s: {'n_averaged': torch.tensor(3), **{f'module.{k}': v for k, v in s.items()}},
    'average beside it': lambda s: {'model_ema': {k: 0 * v for k, v in s.items()}, 'model': s},
    'optimiser beside it': lambda s: {'model': s,
                                      'optimizer': torch.optim.AdamW(make().parameters()).state_dict(),
                                      'scaler': {'scale': 2.}, 'best': np.float64(.5), 'epoch': np.int64(3)},
    'settings beside it': lambda s: {'model': s, 'args': argparse.Namespace(norm_pix_loss=True)}}


@pytest.mark.parametrize('how', WRAPPED)
def test_wrappings_are_taken_off(tmp_path, batch, how):
    state = original()
    torch.save(WRAPPED[how](state), tmp_path / 'mae_full.pth')
    r = ml.load_pretrained(tmp_path / 'mae_full.pth', **HEADS)
    agrees(r, batch, *reference(state, r.cut.colours(batch['image']), torch.rand(3, 16, generator=g(2)), 4, 2,
                                True))


def test_wrappings_of_a_safetensors_file(tmp_path):
    write_files(tmp_path, {'model.safetensors': {f'module.{k}': v for k, v in original().items()}})
    r = ml.load_pretrained(tmp_path, norm_pix=True, **HEADS)
    assert torch.equal(r.head.weight, original()['decoder_pred.weight'])


def test_settings_of_yacs_are_read_without_yacs(tmp_path, monkeypatch):
    "As the code of SimMIM's authors saves them: a tree of CfgNodes, dictionaries with attributes."
    class CfgNode(dict):
        def __init__(self, **more):
            super().__init__(more)
            self.__dict__['__immutable__'] = True
    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    package, module = types.ModuleType('yacs'), types.ModuleType('yacs.config')
    package.config, module.CfgNode = module, CfgNode
    r = make(SimMIM, image=32, token=4, cell=8, dim=32, depth=2, heads=4)
    folder = r.save_pretrained(tmp_path, layout='original')
    held = torch.load(folder / 'simmim.pth', weights_only=True)
    with monkeypatch.context() as m:
        m.setitem(sys.modules, 'yacs', package)
        m.setitem(sys.modules, 'yacs.config', module)
        config = CfgNode(DATA=CfgNode(MASK_PATCH_SIZE=8, MASK_RATIO=.5), MODEL=CfgNode(TYPE='vit'))
        torch.save({**held, 'config': config, 'epoch': 3}, folder / 'simmim.pth')
    assert 'yacs' not in sys.modules
    again = ml.load_pretrained(folder)
    assert again.cut.size == 8 and again.strategy == Random(.5, law='ceil hidden')
    assert 'yacs' not in sys.modules and all(torch.equal(again.state_dict()[k], v) for k,
                                             v in r.state_dict().items())


# Folders of older versions of the kit

@pytest.mark.parametrize('name', OLDER)
def test_older_folders_load_with_one_note(tmp_path, name):
    r = ml.create_recipe(name).eval()
    state = r.state_dict()
    def old(k):
        return next((a + k.removeprefix(b) for a, b in OLDER[name] if k.startswith(b)), k)
    before = {old(k): v for k, v in state.items()}
    assert len(before) == len(state) and not set(before) >= set(state)
    about = json.loads((save(r, tmp_path) / 'config.json').read_text())
    write_files(tmp_path, {'model.safetensors': before, 'config.json': about},
                {'maskedlab': json.dumps(about)})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        again = ml.load_pretrained(tmp_path)
    notes = [w for w in said if 'older version' in str(w.message)]
    assert len(notes) == 1 and notes[0].filename == __file__ and len(str(notes[0].message)) <= 200
    assert all(torch.equal(again.state_dict()[k], v) for k, v in state.items())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ml.load_pretrained(again.save_pretrained(tmp_path))
    del before[next(k for k in before if k.startswith(OLDER[name][0][0]))]
    write_files(tmp_path, {'model.safetensors': before, 'config.json': about},
                {'maskedlab': json.dumps(about)})
    with pytest.raises(ValueError, match='missing'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ml.load_pretrained(tmp_path)


# SimMIM

def test_simmims_published_layout(tmp_path, batch):
    r = make(SimMIM, image=32, token=4, cell=8, dim=32, depth=2, heads=4)
    torch.nn.init.normal_(r.encoder.rel_pos_bias.table)
    folder = r.save_pretrained(tmp_path, layout='original')
    saved = torch.load(folder / 'simmim.pth', weights_only=True)['model']
    table = 'encoder.rel_pos_bias.relative_position_bias_table'
    assert {'encoder.mask_token', 'encoder.patch_embed.proj.weight', table, 'decoder.0.bias'} <= set(saved)
    assert saved['encoder.mask_token'].shape == (1, 1,
                                                 32) and saved['decoder.0.weight'].shape == (48, 32, 1, 1)
    saved['encoder.rel_pos_bias.relative_position_index'] = torch.zeros(65, 65).long()
    torch.save({'model': saved}, folder / 'simmim.pth')
    same(r, ml.load_pretrained(folder, cell=8), batch)


# Bad files: one sentence, and nothing runs

class Payload:
    def __init__(self, path):
        self.path = str(path)
    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def hostile(d, protocol=2):
    (d / 'x.pth').write_bytes(pickle.dumps(Payload(d / 'ran'), protocol=protocol))
def hostile_new(d):
    hostile(d, 4)
def hostile_zip(d):
    torch.save({'model': {'w': torch.ones(1)}, 'args': Payload(d / 'ran')}, d / 'x.pth')
def hostile_bin(d):
    torch.save({'w': Payload(d / 'ran')}, d / 'pytorch_model.bin')
def truncated(d):
    cut(make().save_pretrained(d) / 'model.safetensors')
def truncated_pickle(d):
    cut(make().save_pretrained(d, layout='original') / 'mae_full.pth')
def empty(d):
    pass
def empty_file(d):
    (d / 'x.pth').write_bytes(b'')
def no_tensors(d):
    torch.save({'model': {'epoch': 3}}, d / 'x.pth')
def several(d):
    [torch.save({'w': torch.ones(1)}, d / f'{i}.pth') for i in range(2)]
def no_json(d):
    (make().save_pretrained(d, layout='transformers') / 'config.json').write_text('{')
def only_config(d):
    (d / 'config.json').write_text('{"model_type": "bert"}')
def other_model(d):
    write_files(d, {'model.safetensors': {'w': torch.ones(1)}, 'config.json': {'model_type': 'bert'}})
def unknown_keys(d):
    torch.save({'state': torch.ones(1)}, d / 'x.pth')
def unknown_recipe(d):
    ours(d, recipe='bert')
def no_recipe(d):
    ours(d, recipe='os:system', config={'command': f'touch {d}/ran'})
def hostile_strategy(d):
    ours(d, config=dict(SMALL, strategy={'strategy': f"__import__('os').system('touch {d}/ran')"}))
def wrong_argument(d):
    ours(d, config=dict(SMALL, colour='red'))
def of_another_recipe(d):
    ours(d, recipe='simmim', config=dict(image=32, token=4, cell=8, dim=36, depth=2))


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])


def ours(d, **more):
    config = {'recipe': 'mae', 'config': SMALL, **more}
    write_files(d, {'model.safetensors': make().state_dict(), 'config.json': config},
                {'maskedlab': json.dumps(config)})


@pytest.mark.parametrize('bad', [
    hostile, hostile_new, hostile_zip, hostile_bin, truncated, truncated_pickle, empty, empty_file,
    no_tensors, several, no_json,
    only_config, other_model, unknown_keys, unknown_recipe,
    no_recipe, hostile_strategy, wrong_argument, of_another_recipe], ids=lambda f: f.__name__)
def test_bad_checkpoints_say_so_in_one_sentence(tmp_path, bad):
    bad(tmp_path)
    with warnings.catch_warnings(), pytest.raises((ValueError, FileNotFoundError)) as e:
        warnings.simplefilter('ignore')
        ml.load_pretrained(tmp_path)
    assert not (tmp_path / 'ran').exists()
    assert len(str(e.value)) <= 200 and '\n' not in str(e.value)


def test_missing_paths(tmp_path):
    for path in (tmp_path / 'nowhere', tmp_path / 'no.safetensors', 'x' * 200):
        with pytest.raises(FileNotFoundError) as e:
            ml.load_pretrained(path)
        assert len(str(e.value)) <= 200
