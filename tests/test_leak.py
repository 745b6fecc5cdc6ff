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


# ------------------------------------------------------- what the check looks at, and says that it did

def test_the_verdict_says_what_was_looked_at_and_what_was_not(pictures):
    report = ml.leak_check(MAE(**MICRO), pictures, seed=3, rounds=4)
    said = repr(report)
    assert report.ok and report.looked[0] == 'units, data, gradient, training'
    assert '4 masks, of seeds 3 to 6, at progress 1, 0, 0.5, 0.25' in said and 'drawn anew' in said
    assert 'not looked at: other masks, mixed precision' in said
    causal = ml.leak_check(Causal(), dict(wave=torch.randn(4, 20)))
    assert any('places of the order' in line for line in causal.looked)
    assert any(line.startswith('data (') for line in causal.unseen)
    words = ml.leak_check('bert_mlm', ml.sample('text', n=2), rounds=1)
    for what in ('gradient', 'grouped'):
        assert any(what in line for line in words.unseen)


def test_where_nothing_is_visible_no_control_is_possible(pictures):
    report = ml.leak_check(MAE(**MICRO), pictures, mask=Random(1.))
    assert report.ok and 'no control possible' in repr(report) and report.control == 0


@pytest.mark.parametrize('share', [1., .85, .5])
def test_released_electra_is_judged_as_the_default(share):
    b = ml.sample('text', n=3)
    r = ml.create_recipe('electra', mask_share=share)
    report = ml.leak_check(r, b)
    assert report.ok and report.changes['units'] == 0 and report.control > 1e-3
    out = r(b, generator=torch.Generator().manual_seed(0))
    assert bool(out.kept.any()) == (share < 1) and not (out.kept & ~out.mask).any()


def test_what_electra_leaves_readable_must_be_told():
    class Untold(type(ml.create_recipe('electra'))):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.kept = None
            return out
    torch.manual_seed(0)
    # so that every readable piece tells on itself
    assert not ml.leak_check(Untold(**Untold.sizes['micro'], mask_share=0.), ml.sample('text', n=3)).ok


def test_training_mode_is_named_and_declared(pictures):
    class Normed(MAE):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.batch, see = nn.BatchNorm2d(MICRO['image'] // MICRO['patch']), self.encoder.see
            self.encoder.see = lambda x, visible=None, generator=None: see(self.batch(x), visible)
    report = ml.leak_check(Normed(**MICRO), pictures)
    assert report.faults == ['in training mode predictions of hidden units depend on hidden content, as '
                             'through the batch statistics of a BatchNorm']
    assert report.changes['units'] == 0 < report.changes['training']

    class Declared(Normed):
        declared = ('in training the BatchNorm reads all of the batch',)
    r = Declared(**MICRO).train()
    before = {k: v.clone() for k, v in r.state_dict().items()}
    assert ml.leak_check(r, pictures).ok and r.training
    assert all(torch.equal(v, before[k]) for k, v in r.state_dict().items())


def test_a_batch_of_pytorch_geometric():
    geometric = pytest.importorskip('torch_geometric.data')
    points = ml.sample('points', n=3)['points']
    batch = geometric.Batch.from_data_list([geometric.Data(pos=p) for p in points])
    for name in ('point_mae', 'point_bert'):
        report = ml.leak_check(name, batch, rounds=2)
        assert report.ok and report.changes['data'] == 0 and report.control > 0, report


@pytest.mark.parametrize('rounds', [0, -1, 2.5, True])
def test_rounds(rounds, pictures):
    with pytest.raises((ValueError, TypeError), match='whole number'):
        ml.leak_check('mae', pictures, rounds=rounds)


def test_float64_leaves_the_recipe_as_it_was(pictures):
    "The parameters are the same tensors, with the same numbers, also where float64 was asked."
    class Rounding(MAE):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.pred = out.pred + 9 * (out.target.sum() - out.target.double().sum().to(out.pred))
            return out
    torch.manual_seed(0)
    r = Rounding(**MICRO)
    held = {n: (p, p.data_ptr(), p.dtype) for n, p in r.named_parameters()}
    report = ml.leak_check(r, pictures)
    assert report.ok and report.where.nan_to_num().max() > 0 and report.changes['units'] <= 1e-11, report
    assert all((p, p.data_ptr(), p.dtype) == held[n] for n, p in r.named_parameters())
