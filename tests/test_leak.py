"""The leak check is loud on faults that are planted on purpose. It is silent on recipes: test_contract.py."""
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


def seeing(change):
    "MAE whose encoder is handed something else: change(see, x, visible)."
    class Tampered(MAE):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            see = self.encoder.see
            self.encoder.see = lambda x, visible=None, generator=None: change(see, x, visible)
    return Tampered


# the mean is taken before anything is hidden
WholePictureCentred = seeing(lambda see, x, visible: see(x - x.mean((1, 2, 3), keepdim=True), visible))


class CentredInUnits(MAE):               # the same, in the making of the units: only data space shows it
    def units(self, batch):
        u = super().units(batch)
        return u.but(x=u.x - u.x.mean((1, 2, 3), keepdim=True) + .5)


def ignoring(mask):
    "MAE whose networks get another mask than the one that was drawn and is scored."
    class Other(MAE):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            see, decode = self.encoder.see, self.decoder.forward
            self.encoder.see = lambda x, visible=None, generator=None: see(x, mask(visible))
            self.decoder.forward = lambda h, visible, **more: decode(h, mask(visible), **more)
    return Other


MaskIgnored = ignoring(torch.ones_like)                            # drawn, scored, and never applied
OtherMask = ignoring(lambda visible: visible.roll(1, 2))           # others are hidden than the loss looks at
# samples from torch's global generator
GlobalNoise = seeing(lambda see, x, visible: see(x + .1 * torch.randn_like(x), visible))
# ignores its input: passes any leak check that has no control
Deaf = seeing(lambda see, x, visible: see(torch.zeros_like(x), visible))


class Remembers(MAE):                    # forward moves a running mean
    def __init__(self, **kw):
        super().__init__(**kw)
        self.register_buffer('running', torch.zeros(()))

    def forward(self, batch, *args, **kw):
        self.running += batch['image'].mean()
        return super().forward(batch, *args, **kw)


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


def test_rows_that_are_missing_are_told(pictures):
    class Short(MAE):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.pred = out.pred[1:]
            return out
    with pytest.raises(ValueError, match='give pred and target a row for each unit'):
        ml.leak_check(Short(**MICRO), pictures)
