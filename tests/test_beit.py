"""BEiT: the invariants of the method (Bao et al. 2022), on a network small enough for seconds; and its
tokenizer."""

import json
import math
import os
import warnings

import pytest
import torch
from given import g
from torch import nn
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.data.samples import sample
from maskedlab.masks.block import Block
from maskedlab.contract.units import layout
from maskedlab.parts.discrete import check_tokenizer
from maskedlab.parts.positions import RelativeBias
from maskedlab.recipes.image.beit import BEiT
from maskedlab.stages.image_dvae import ImageDVAE
from maskedlab.stages.shelf import cache_folder, find_stage, stage
from maskedlab.train.make_stage import train_stage


class Codes(nn.Module):
    """A tokenizer whose words depend on the mode, if one lets it: a batch norm, and the nearest of some grey
    values."""

    def __init__(self, words=12, stride=4):
        super().__init__()
        self.words, self.stride, self.norm, self.scale = (
            words,
            stride,
            nn.BatchNorm2d(1),
            nn.Parameter(torch.ones(())),
        )

    def ids(self, image):
        grey = (
            nn.functional.avg_pool2d(self.norm(image.mean(1, keepdim=True)), self.stride)[:, 0] * self.scale
        )
        return ((grey - 0.4) * 5 * self.words).long().clamp(0, self.words - 1)

    def decode(self, ids):
        return (
            (ids[:, None] / self.words)
            .repeat_interleave(self.stride, 2)
            .repeat_interleave(self.stride, 3)
            .expand(-1, 3, -1, -1)
        )


SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, drop_path=0.0)


def make(**more):
    torch.manual_seed(0)
    r = BEiT(**{**SMALL, 'tokenizer': Codes(), **more}).eval()
    with torch.no_grad():  # at the start the bias table is zero, which would hide a mistake
        for p in r.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return r


@pytest.fixture(scope='module')
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


# 1. and 2.: the released generator of masks


def test_blocks_hide_at_most_n_and_are_reproducible():
    u = layout((14, 14), 400)
    mask = Block(n=75, law='at most')(u, generator=g())
    counts = mask.flatten(1).sum(1)
    assert counts.max() == 75 and counts.min() < 75
    assert torch.equal(mask, Block(n=75, law='at most')(u, generator=g()))


def test_statistics_of_the_released_generator():
    mask = BEiT.__init__.__defaults__[-1](layout((14, 14), 4000), generator=g())
    counts = mask.flatten(1).sum(1).float()
    assert 74.2 < counts.mean() < 74.8
    assert 0.64 < (counts == 75).float().mean() < 0.71
    often = mask.float().mean(0)
    assert often[7, 7] > 10 * often[0, 0]


# 3. and 4.: what is read, what is scored


def test_hidden_patches_of_the_copy_that_is_read_change_no_logits(batch):
    r, mask = make(), Block(0.4)(layout((4, 4), 3), generator=g())
    other = batch['image'].clone()
    other[mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(other)] = 0.123
    u, v = r.units(batch), r.units(dict(image=other))
    a, b = (r.head(r.encode(w, mask)) for w in (u, v))
    assert torch.equal(a, b)
    c = r.head(r.encode(r.units(dict(image=batch['image'].flip(3))), mask))
    assert not torch.allclose(a, c)
    assert torch.equal(r.logits(batch, mask)[mask], r(batch, mask).pred)


def test_one_term_a_hidden_patch_of_the_batch(batch):
    r = make()
    mask = torch.zeros(3, 4, 4).bool()
    mask[0, :2], mask[1, 0, 0] = True, True  # 8, 1 and 0 patches: ragged
    out = r(batch, mask)
    assert len(out.pred) == len(out.target) == 9 and torch.equal(out.scored, mask)
    assert_close(out.loss, nn.functional.cross_entropy(out.pred, out.target))
    with torch.no_grad():
        for p in r.head.parameters():
            p.zero_()
    assert_close(r(batch, mask).loss.detach(), torch.tensor(math.log(12)))


# 5. and 6.: the tokenizer


def test_the_tokenizer_is_frozen(batch):
    r = make().train()
    before = {k: v.clone() for k, v in r.tokenizer.net.state_dict().items()}
    ids = r.words.ids(r.units(batch))
    optimiser = torch.optim.SGD(r.parameters(), 1.0)
    r(batch, generator=g()).loss.backward()
    optimiser.step()
    assert all(p.grad is None for p in r.tokenizer.net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in r.tokenizer.net.state_dict().items())
    assert torch.equal(r.eval().words.ids(r.units(batch)), ids)
    assert not any('tokenizer' in k for k in r.state_dict())


def test_both_copies_are_of_one_crop(batch):
    r, read = make(), []
    t = r.tokenizer.net
    t.ids = lambda image: (read.append(image), torch.zeros(len(image), 4, 4).long())[1]
    r(batch, generator=g())
    assert read[0].shape == (3, 3, 16, 16)  # 4 x 4 words of 4 pixels
    half = nn.functional.interpolate(batch['image'], (16, 16), mode='area')
    assert (read[0] - half).abs().mean() < 0.1 < (read[0] - half.flip(3)).abs().mean()


# 7.: the table


def test_one_table_for_all_blocks_by_offset():
    r = make()
    tables = [n for n, p in r.named_parameters() if 'bias' in n and p.shape[-1] == 4 and len(p) == 7 * 7 + 3]
    assert tables == ['encoder.rel_pos_bias.table']
    bias = RelativeBias((4, 4), 1)
    with torch.no_grad():
        bias.table.copy_(torch.arange(52.0)[:, None])
    rows = bias((4, 4))[0, 0].detach()
    seen = {}
    for a in range(16):
        for b in range(16):
            seen.setdefault((a // 4 - b // 4, a % 4 - b % 4), set()).add(float(rows[1 + a, 1 + b]))
    assert (
        len(seen) == 49 and all(len(v) == 1 for v in seen.values()) and len(set.union(*seen.values())) == 49
    )
    assert {float(v) for v in (*rows[0, 1:], *rows[1:, 0], rows[0, 0])} == {49.0, 50.0, 51.0}


# 8.: nothing hidden


def test_nothing_hidden_is_a_loss_of_zero(batch):
    r = make()
    out = r(batch, mask=torch.zeros(3, 4, 4).bool())
    assert out.loss == 0 and len(out.pred) == 0
    out.loss.backward()
    assert torch.equal(r.fill(batch, out)['image'], batch['image'])


def test_fill_paints_words_into_hidden_patches_only(batch):
    r = make()
    out = r(batch, generator=g())
    image = r.fill(batch, out)['image']
    hidden = out.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(image)
    assert torch.equal(image[~hidden], batch['image'][~hidden]) and not torch.equal(
        image[hidden], batch['image'][hidden]
    )
    weights, q, k = r.attention(batch, out.mask)
    assert weights.shape == (2, 3, 4, 17, 17) and q[0, 0] == -1 and q.shape == k.shape == (3, 17)
    assert r.features(batch).shape == (3, 32) and r.features(batch, pool=False).shape == (3, 16, 32)


# Bad input


def test_words_and_tokenizers_that_do_not_fit(batch):
    with pytest.raises(ValueError, match='12 words, the recipe\'s head 64'):
        make(words=64)
    with pytest.raises(ValueError, match='needs words='):
        make(tokenizer=None)
    with pytest.raises(TypeError, match='a tokenizer has ids'):
        make(tokenizer=nn.Linear(2, 2))
    with pytest.raises(ValueError, match='names no stage'):
        make(tokenizer='nothing')
    bare = make(tokenizer=None, words=12)
    assert bare.logits(batch).shape == (3, 4, 4, 12)
    with pytest.raises(ValueError, match='has no tokenizer'):
        bare(batch)


def test_a_checkpoint_finds_another_tokenizer_out(tmp_path):
    make(tokenizer=None, words=12).save_pretrained(tmp_path)
    assert ml.load_pretrained(tmp_path, tokenizer=Codes(12)).head.out_features == 12
    with pytest.raises(ValueError, match='20 words'):
        ml.load_pretrained(tmp_path, tokenizer=Codes(20))


# Other layouts

V5 = [
    ('beit.encoder.relative_position_bias', 'beit.shared_position_bias'),
    ('beit.encoder.layer', 'beit.layers'),
    ('attention.attention.query', 'attention.q_proj'),
    ('attention.attention.key', 'attention.k_proj'),
    ('attention.attention.value', 'attention.v_proj'),
    ('attention.output.dense', 'attention.o_proj'),
    ('intermediate.dense', 'mlp.fc1'),
    ('output.dense', 'mlp.fc2'),
]


@pytest.mark.parametrize('scale', [0.1, 0.0])
def test_transformers_opens_ours_and_we_open_theirs(tmp_path, batch, scale):
    transformers = pytest.importorskip('transformers')
    config = transformers.BeitConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=20,
        use_mask_token=True,
        layer_scale_init_value=scale,
        use_shared_relative_position_bias=True,
    )
    theirs = transformers.BeitForMaskedImageModeling(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / 'theirs')
    (tmp_path / 'theirs' / 'preprocessor_config.json').write_text(
        json.dumps(dict(image_mean=[0.5] * 3, image_std=[0.5] * 3))
    )
    r = ml.load_pretrained(tmp_path / 'theirs')
    assert isinstance(r, BEiT) and r.head.out_features == 20
    mask = Block(0.4)(layout((4, 4), 3), generator=g())
    with torch.no_grad():
        logits = theirs(2 * batch['image'] - 1, bool_masked_pos=mask.flatten(1)).logits
        assert_close(r.logits(batch, mask).flatten(1, 2), logits, atol=1e-4, rtol=1e-4)
        again, info = transformers.BeitForMaskedImageModeling.from_pretrained(
            r.save_pretrained(tmp_path / 'ours', layout='transformers'), output_loading_info=True
        )
        assert not info['missing_keys'] and not info['unexpected_keys']
        assert_close(
            again.eval()(2 * batch['image'] - 1, bool_masked_pos=mask.flatten(1)).logits,
            logits,
            atol=1e-4,
            rtol=1e-4,
        )


def test_names_of_version_5_and_of_the_original_code(tmp_path, batch):
    from safetensors.torch import load_file, save_file

    r = make(tokenizer=None, words=12)
    folder = r.save_pretrained(tmp_path / 'v4', layout='transformers')
    state = load_file(folder / 'model.safetensors')
    assert {'beit.encoder.layer.0.attention.attention.key.weight', 'layernorm.bias', 'lm_head.weight'} <= set(
        state
    )
    assert 'beit.encoder.layer.0.attention.attention.key.bias' not in state
    renamed = {}
    for k, v in state.items():
        for a, b in V5:
            k = k.replace(a, b)
        renamed[k] = v
    save_file(renamed, folder / 'model.safetensors')
    original = r.save_pretrained(tmp_path / 'old', layout='original') / 'beit.pth'
    held = torch.load(original, weights_only=True)['model']
    assert held['mask_token'].shape == (1, 1, 32) and 'blocks.1.attn.q_bias' in held
    held['rel_pos_bias.relative_position_index'] = torch.zeros(17, 17).long()
    torch.save({'model': held}, original)
    with pytest.raises(ValueError, match='by which colours'):
        ml.load_pretrained(original)
    again = ml.load_pretrained(original, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for other in (ml.load_pretrained(folder), again):
        assert_close(other.logits(batch), r.logits(batch))
    del held['lm_head.weight'], held['rel_pos_bias.relative_position_bias_table']
    torch.save({'model': held | {'lm_head.weight': torch.ones(12, 32)}}, original)
    with pytest.raises(ValueError, match='fine-tuned'):
        ml.load_pretrained(original, mean=(0.5,) * 3, std=(0.5,) * 3)


# The tokenizer that the kit trains


def test_the_tokenizers_doors():
    t = ImageDVAE(**ImageDVAE.sizes['micro']).eval()
    image = sample('image', n=2)['image']
    ids = t.ids(image)
    assert (
        ids.shape == (2, 8, 8) and ids.dtype == torch.int64 and 0 <= ids.min() and ids.max() < t.words == 256
    )
    back = t.decode(ids)
    assert back.shape == image.shape and 0 <= back.min() and back.max() <= 1 and t.stride == 8
    assert t.in_use(ids) == len(ids.unique()) / 256
    assert torch.equal(t.train().ids(image), ids)
    assert [
        tuple(ImageDVAE(**ImageDVAE.sizes[s]).ids(torch.rand(1, 1, 28, 28)).shape)
        for s in ('digits', 'finedigits')
    ] == [(1, 7, 7), (1, 14, 14)]


def test_a_dead_codebook_is_told():
    t = ImageDVAE(**ImageDVAE.sizes['digits'])
    t.recent[:4] = 5.0
    with pytest.warns(UserWarning, match='dead codebook; train it longer'):
        check_tokenizer(t)
    assert t.alive() == 4 / 64
    t.recent[:] = 5.0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert check_tokenizer(t, 64) == 64


def test_a_stage_is_trained_again_when_its_configuration_changes(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, 'MASKEDLAB_CACHE', str(tmp_path))
    key = 'image_dvae/digits/digits/7'
    folder = train_stage(key, steps=2, batch=8)
    assert folder == cache_folder(key) == find_stage(key)
    before = (folder / 'model.safetensors').read_bytes()
    assert (
        train_stage(key, steps=3, batch=8) == folder and (folder / 'model.safetensors').read_bytes() == before
    )  # it is there
    monkeypatch.setitem(ImageDVAE.sizes, 'digits', dict(ImageDVAE.sizes['digits'], words=16))
    assert find_stage(key) is None
    with pytest.warns(UserWarning, match='other arguments'):
        assert stage(key).words == 16
    train_stage(key, steps=2, batch=8)
    assert find_stage(key) == folder and stage(key).words == 16 and stage(key).alive() > 0
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
