"""What recipes stand on: tokenizers and teachers are frozen, found again, found out when they are others,
never random in training."""

import math
import warnings

import pytest
import torch
from given import g
import torch.nn.functional as F
from torch import nn

import maskedlab as ml
from maskedlab.contract.saved import write_files
from maskedlab.recipes.image.beit import BEiT
from maskedlab.recipes.image.cae import CAE
from maskedlab.recipes.image.seitpp import SeiTPP
from maskedlab.stages.shelf import (
    cache_folder,
    find_stage,
    find_teacher,
    find_tokenizer,
    made_from,
    stage,
    stage_class,
)
from maskedlab.stages.token_adapt import TokenAdapt
from maskedlab.train.trainer import fit
from maskedlab.train.make_stage import train_stage


class Codes(nn.Module):
    "A tokenizer whose words depend on the mode, if one lets it: a batch norm, and a table that could learn."

    channels = 3

    def __init__(self, words=12, stride=4):
        super().__init__()
        self.words, self.stride, self.norm = words, stride, nn.BatchNorm2d(1)
        self.codebook = nn.Parameter(torch.randn(words, 6, generator=torch.Generator().manual_seed(0)))

    def ids(self, image):
        grey = (
            F.avg_pool2d(self.norm(image.mean(1, keepdim=True)), self.stride)[:, 0] + 0 * self.codebook.sum()
        )
        return ((grey - 0.4) * 5 * self.words).long().clamp(0, self.words - 1)

    def decode(self, ids):
        return (
            (ids[:, None] / self.words)
            .repeat_interleave(self.stride, 2)
            .repeat_interleave(self.stride, 3)
            .expand(-1, 3, -1, -1)
        )


ENCODER = dict(image=32, patch=8, dim=32, depth=2, heads=4)
MAKE = {
    'beit': lambda **more: BEiT(**ENCODER, drop_path=0.0, **{'tokenizer': Codes(), **more}),
    'cae': lambda **more: CAE(
        **ENCODER, regressor_depth=1, decoder_depth=1, drop_path=0.0, **{'tokenizer': Codes(), **more}
    ),
    'seitpp': lambda **more: SeiTPP(
        **ENCODER,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=4,
        code=8,
        **{'tokenizer': Codes(), 'adapt': None, **more},
    ),
    'token_adapt': lambda **more: TokenAdapt(dim=32, heads=2, **{'tokenizer': Codes(), **more}),
}


@pytest.fixture
def batch():
    return dict(image=torch.rand(4, 3, 32, 32, generator=g(1)))


@pytest.mark.parametrize('name', MAKE)
def test_a_tokenizer_given_as_a_module_is_frozen(name, batch):
    torch.manual_seed(0)
    r = MAKE[name]()
    words = r.tokenizer.ids(batch['image'])
    before = {k: v.clone() for k, v in r.tokenizer.net.state_dict().items()}
    fit(r, iter([batch] * 3), 3, lr=0.1, seed=0)
    r.train()(batch, generator=g()).loss.backward()
    assert torch.equal(r.tokenizer.ids(batch['image']), words)
    assert all(torch.equal(v, before[k]) for k, v in r.tokenizer.net.state_dict().items())
    assert all(p.grad is None for p in r.tokenizer.net.parameters())
    assert not any('tokenizer' in k for k in r.state_dict()) and not any(
        'tokenizer' in n for n, _ in r.named_parameters()
    )


@pytest.mark.parametrize('name', ['beit', 'cae', 'seitpp'])
def test_weights_know_the_size_of_their_dictionary(name, tmp_path):
    r = MAKE[name]()
    tokenizer, r.config['tokenizer'] = r.config['tokenizer'], None
    folder = r.save_pretrained(tmp_path / name)
    assert ml.load_pretrained(folder, tokenizer=tokenizer).config['words'] == 12
    with pytest.raises(ValueError, match='20 words, the recipe.s head 12'):
        ml.load_pretrained(folder, tokenizer=Codes(20))


@pytest.mark.parametrize('name', ['beit', 'cae', 'seitpp'])
def test_a_tokenizer_of_other_colours_is_named(name):
    with pytest.raises(ValueError, match='reads pictures of 3 channels') as said:
        MAKE[name](channels=1)
    assert len(str(said.value)) <= 200


def test_token_adapt_belongs_to_its_tokenizer():
    fine = 'token_adapt/fine/image/0'
    assert SeiTPP(**SeiTPP.sizes['micro']).adapt.tokenizer.key == 'image_dvae/fine/image/0'
    with pytest.raises(ValueError, match='the same numbers are other words'):
        SeiTPP(
            **{**SeiTPP.sizes['micro'], 'patch': 16, 'tokenizer': 'image_dvae/micro/image/0', 'adapt': fine}
        )


# found again, and found out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MASKEDLAB_CACHE', str(tmp_path))
    return tmp_path


def test_another_seed_configuration_or_data_is_another_stage(cache, monkeypatch):
    key, cls = 'image_dvae/digits/digits/7', stage_class('image_dvae')
    folder = train_stage(key, steps=2, batch=4)
    assert find_stage(key) == folder == train_stage(key, steps=2, batch=4)
    made = (folder / 'stage.json').stat().st_mtime_ns
    assert find_stage('image_dvae/digits/digits/8') is None
    with monkeypatch.context() as m:
        m.setattr(cls, 'sizes', {**cls.sizes, 'digits': dict(cls.sizes['digits'], words=16)})
        assert find_stage(key) is None
    with monkeypatch.context() as m:
        m.setattr('maskedlab.stages.shelf.fingerprint', lambda modality: 'other data')
        assert find_stage(key) is None
        with pytest.warns(UserWarning, match='other arguments, data or stages'):
            stage(key)
        assert train_stage(key, steps=2, batch=4) == folder == find_stage(key)
    assert (folder / 'stage.json').stat().st_mtime_ns != made and find_stage(
        key
    ) is None  # what is there now is of the other data


def test_a_stage_on_another_stage_is_another_one(cache, monkeypatch):
    key, below = 'token_adapt/finedigits/digits/7', stage_class('image_dvae')
    stage_class('token_adapt')(**stage_class('token_adapt').sizes['finedigits']).save_pretrained(
        cache_folder(key)
    )
    write_files(cache_folder(key), {'stage.json': {'key': key, 'from': made_from(key)}})
    assert find_stage(key) == cache_folder(key)
    monkeypatch.setattr(
        below, 'sizes', {**below.sizes, 'finedigits': dict(below.sizes['finedigits'], weight=0.5)}
    )
    assert find_stage('image_dvae/finedigits/digits/0') is None and find_stage(key) is None


@pytest.mark.parametrize(
    'make, what',
    [
        (lambda: BEiT(**{**BEiT.sizes['micro'], 'tokenizer': 'image_dvae/micro/image/9'}), 'image_dvae'),
        (lambda: ml.create_recipe('maskalign', size='tiny'), 'vit_teacher'),
    ],
)
def test_nothing_is_learned_from_an_untrained_stage(make, what, cache):
    with pytest.warns(UserWarning, match='python -m maskedlab.train.make_stage'):
        r = make()
    assert r.eval()(ml.sample('image', n=1), generator=g()).loss.isfinite()  # it can be looked at
    with pytest.raises(ValueError, match=f'first run python -m maskedlab.train.make_stage {what}') as said:
        ml.Trainer(r, steps=1, show=False)
    assert len(str(said.value)) <= 200


def test_stages_and_modules_come_back_frozen():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = find_teacher('vit_teacher/micro/image/0')
    assert t.missing == '' and not any(p.requires_grad for p in t.net.parameters())
    assert find_tokenizer(None) is None
    codes = Codes()
    frozen = find_tokenizer(codes)
    assert find_tokenizer(frozen) is frozen and not frozen.net.training
    assert codes.training and codes.codebook.requires_grad           # what was handed over stays as it was


# what the shipped weights have learned


@pytest.mark.parametrize('name', ['beit', 'cae'])
def test_shipped_weights_have_left_the_floor(name):
    """Always naming the commonest word, and guessing by how common words are, are beaten on photographs that
    it was not trained on."""
    r, b = (
        ml.create_recipe(name, pretrained=True).eval(),
        ml.sample('image', n=200, split='test', generator=g(5)),
    )
    with torch.no_grad():
        out = r(b, generator=g())
    share = torch.bincount(out.target).double() / len(out.target)
    named = float((out.pred.argmax(-1) == out.target).float().mean())
    assert named > 1.2 * float(share.max())
    guess = -float((share[share > 0] * share[share > 0].log()).sum())
    assert float(F.cross_entropy(out.pred, out.target)) < guess < math.log(r.head.out_features)
