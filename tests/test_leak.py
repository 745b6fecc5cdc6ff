"""The leak check: silent on every recipe of the kit, loud on faults that are planted on purpose."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maskedlab as ml
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import Units, mean, rows, spread
from maskedlab.contract.recipe import Out, Recipe, draw
from maskedlab.recipes.image.mae import MAE

MICRO = dict(MAE.sizes['micro'], dim=32, depth=1, heads=2, decoder_dim=32, decoder_depth=1, decoder_heads=2)


@pytest.fixture(scope='module')
def pictures():
    return dict(image=torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.mark.quick
@pytest.mark.parametrize('name', ml.list_recipes())
def test_every_recipe_is_tight(name):
    batch = ml.sample(ml.card(name).modality.split()[0], n=4, split='test')
    report = ml.leak_check(name, batch)
    assert report.ok, report
    if any('nothing is secret' in n for n in report.notes):
        return      # it takes away what it has seen, by its own choice
    assert report.changes['units'] == 0 and report.changes.get('gradient', 0.) == 0
    assert report.control > 1e-3
    assert report.where is not None and report.where.nan_to_num().max() <= (1e-5 if report.rounding else 0)


@pytest.mark.parametrize('name', ml.list_recipes())
def test_training_mode_and_weights_survive_the_check(name):
    r = ml.create_recipe(name).train()
    before = {k: v.clone() for k, v in r.state_dict().items()}
    state = torch.get_rng_state()
    ml.leak_check(r, ml.sample(r.card.modality.split()[0], n=2))
    assert r.training and all(torch.equal(v, before[k]) for k, v in r.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class WholePictureCentred(MAE):          # the mean is taken before anything is hidden
    def encode(self, u, mask, watch=None):
        return super().encode(u.but(x=u.x - u.x.mean((1, 2, 3), keepdim=True)), mask, watch)


class CentredInUnits(MAE):               # the same, in the making of the units: only data space shows it
    def units(self, batch):
        u = super().units(batch)
        return u.but(x=u.x - u.x.mean((1, 2, 3), keepdim=True) + .5)


class MaskIgnored(MAE):                  # the mask is drawn, scored, and never applied
    def encode(self, u, mask, watch=None):
        return super().encode(u, u.none(), watch)
    def decode(self, h, mask, watch=None):
        return super().decode(h, torch.zeros_like(mask), watch)


class OtherMask(MAE):                    # the encoder hides other patches than the loss looks at
    def encode(self, u, mask, watch=None):
        return super().encode(u, mask.roll(1, 2), watch)
    def decode(self, h, mask, watch=None):
        return super().decode(h, mask.roll(1, 2), watch)


class GlobalNoise(MAE):                  # samples from torch's global generator
    def encode(self, u, mask, watch=None):
        return super().encode(u.but(x=u.x + .1 * torch.randn_like(u.x)), mask, watch)


class Remembers(MAE):                    # forward moves a running mean
    def __init__(self, **kw):
        super().__init__(**kw)
        self.register_buffer('running', torch.zeros(()))
    def encode(self, u, mask, watch=None):
        self.running += u.x.mean()
        return super().encode(u, mask, watch)


class Deaf(MAE):                         # ignores its input: passes any leak check that has no control
    def encode(self, u, mask, watch=None):
        return super().encode(u.but(x=torch.zeros_like(u.x)), mask, watch)


class OverlappingConv(Recipe):     # the mask is applied after a convolution that reaches over into neighbours
    strategy = Random(.5)

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv1d(1, 8, 3, padding=1), nn.Linear(8, 1)

    def units(self, batch):
        return Units('sequence', batch['wave'].shape[1:], x=batch['wave'], put=lambda b, x: {**b, 'wave': x})

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        x = self.stem(u.x[:, None]).mT.masked_fill(mask[..., None], 0)
        y = self.head(F.avg_pool1d(x.mT, 3, 1, 1).mT)[..., 0]
        pred, target = rows(y, mask), rows(u.x, mask)
        e = (pred - target).pow(2)
        return Out({'square': mean(e)}, mask, pred, target, spread(e, mask), u)


@pytest.mark.parametrize('fault, words', [
    (WholePictureCentred, 'units, data, gradient'), (CentredInUnits, 'data'),
    (MaskIgnored, 'units, data, gradient'), (OtherMask, 'units'),
    (GlobalNoise, 'global'), (Remembers, 'state: running'), (Deaf, 'void')])
def test_planted_faults(fault, words, pictures):
    torch.manual_seed(0)
    report = ml.leak_check(fault(**MICRO), pictures)
    assert not report.ok and words in repr(report), report


def test_mask_after_an_overlapping_convolution():
    torch.manual_seed(0)
    report = ml.leak_check(OverlappingConv(), dict(wave=torch.randn(4, 40)))
    assert not report.ok and 'gradient' in repr(report)
    assert report.where.nan_to_num().gt(0).any()           # the picture shows where


def test_centring_in_units_is_seen_in_data_space_alone(pictures):
    torch.manual_seed(0)
    report = ml.leak_check(CentredInUnits(**MICRO), pictures)
    assert report.changes['units'] == 0 < report.changes['data']


class Causal(Recipe):            # predicts i from everything before i, hidden or not: an autoregressive order
    strategy = Random(.5)
    tell = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def units(self, batch):
        return Units('sequence', batch['wave'].shape[1:], x=batch['wave'])

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        y = F.pad(u.x.cumsum(1)[:, :-1], (1, 0)) * self.scale
        pred, target = rows(y, u.valid), rows(u.x, u.valid)
        e = (pred - target).pow(2)
        order = torch.arange(u.shape[0]).expand_as(mask) if self.tell else None
        return Out({'next': mean(e)}, mask, pred, target, spread(e, u.valid), u, order=order)


def test_an_order_must_be_told():
    wave = dict(wave=torch.randn(4, 20))
    assert ml.leak_check(Causal(), wave).ok
    untold = Causal()
    untold.tell = False
    assert not ml.leak_check(untold, wave).ok


class Readable(Causal):                  # BERT's 10 %: chosen, scored, and left readable
    tell = True

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        kept = mask & (torch.arange(u.shape[0]) % 2 == 0)
        seen = u.x.masked_fill(mask & ~kept, 0)
        y = (seen.sum(1, keepdim=True) + seen) * self.scale
        pred, target = rows(y, mask), rows(u.x, mask)
        e = (pred - target).pow(2)
        return Out({'square': mean(e)}, mask, pred, target, spread(e, mask), u, kept=kept if self.tell
                   else None)


def test_what_is_kept_must_be_told():
    wave = dict(wave=torch.randn(4, 20))
    assert ml.leak_check(Readable(), wave).ok
    untold = Readable()
    untold.tell = False
    assert not ml.leak_check(untold, wave).ok


class HidesNothing(Recipe):
    def units(self, batch):
        return Units('sequence', batch['wave'].shape[1:], x=batch['wave'])
    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        return Out({'zero': torch.zeros(())})


def test_a_system_that_hides_nothing_says_so():
    report = ml.leak_check(HidesNothing(), dict(wave=torch.randn(2, 5)))
    assert report.ok and 'hides nothing' in repr(report)


def test_bad_input(pictures):
    with pytest.raises(ValueError, match='batch of at least 2, got 1'):
        ml.leak_check('mae', dict(image=pictures['image'][:1]))
    same = ml.leak_check('mae', dict(image=pictures['image'][:1].expand(3, -1, -1, -1).clone()))
    assert not same.ok and 'same content' in repr(same)


@pytest.mark.parametrize('name', ml.list_recipes())
def test_painted_masks(name):
    batch = ml.sample(ml.card(name).modality.split()[0], n=3)
    u = ml.create_recipe(name).units(batch)
    mask = u.none().flatten(1)          # one unit, a few, every third: counts differ
    mask[0, 1] = mask[1, 1:5] = mask[2, 1::3] = True
    assert ml.leak_check(name, batch, mask=mask.view(u.free.shape) & u.free).ok
