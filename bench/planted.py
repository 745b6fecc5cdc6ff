"""Faults planted on purpose, and right samplers and recipes: what the instruments are measured on."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import maskedlab as ml
from maskedlab.contract.recipe import Out, Recipe, draw
from maskedlab.contract.units import Units, layout, mean, rows, spread
from maskedlab.instruments.count_law import count_law
from maskedlab.instruments.coverage import coverage_map
from maskedlab.instruments.leak import leak_check
from maskedlab.masks.ball import Ball
from maskedlab.masks.block import Block
from maskedlab.masks.patterns import Checkerboard, Grid, Tube
from maskedlab.masks.schedules import Coin, Cosine, Linear, Normal, Uniform
from maskedlab.masks.span import Span
from maskedlab.masks.strategies import Random, first_k, rand
from maskedlab.masks.words import Bernoulli, Slots, Tokens, WordSpans

L = 12          # units of a wave


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------- recipes, smaller than micro

class Wave(Recipe):
    "Hidden numbers of a wave, by a linear map of the visible ones."
    strategy = Random(.5)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(L, L)

    def units(self, batch: dict) -> Units:
        return Units('sequence', (L,), x=batch['wave'], put=lambda b, x: {**b, 'wave': x})

    def see(self, x: Tensor, mask: Tensor, progress: float, g: Any) -> Tensor:
        return x.masked_fill(mask, 0)

    def predict(self, seen: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(seen)

    def scored(self, u: Units, mask: Tensor) -> Tensor:
        return mask

    def more(self, mask: Tensor) -> dict[str, Any]:
        return {}

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator, progress=progress)
        y = self.predict(self.see(u.x, mask, progress, generator), u.x, mask)
        which = self.scored(u, mask)
        pred, target = rows(y, which), rows(u.x, which).to(y)
        e = (pred - target).pow(2)
        return Out({'square': mean(e)}, mask, pred, target, spread(e, which), u, **self.more(mask))


class Ids(Wave):
    "The same over whole numbers, embedded; 0 stands for what is hidden."
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.head = nn.Linear(4, 1)

    def predict(self, seen: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(self.head(self.table(seen)).squeeze(-1))


class Whole(Wave):
    "All is scored, as ELECTRA does."
    def scored(self, u: Units, mask: Tensor) -> Tensor:
        return u.valid


class Ordered(Whole):
    "An autoregressive order: what comes before may be read."
    ahead = 0           # how many units too far, at which place
    at: int | None = None

    def units(self, batch: dict) -> Units:
        return Units('sequence', (L,), x=batch['wave'])     # twelve places are dear: no data space

    def predict(self, seen: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        y = F.pad(x.cumsum(1)[:, :-1], (1, 0)) * self.net.weight[0, 0]
        if self.at is None: return y
        leak = torch.zeros_like(y)
        leak[:, self.at] = x[:, min(self.at + self.ahead, L - 1)]
        return y + leak

    def more(self, mask: Tensor) -> dict[str, Any]:
        return dict(order=torch.arange(L).expand_as(mask))


def wave(seed: int) -> dict:
    return dict(wave=torch.randn(4, L, generator=seeded(seed)))


def ids(seed: int) -> dict:
    return dict(wave=torch.randint(1, 50, (4, L), generator=seeded(seed)))


def of(base: type[Wave], **methods: Any) -> type[Wave]:
    "A recipe with some methods exchanged."
    return type(base.__name__, (base,), methods)


def seen(change: Callable[..., Tensor], base: type[Wave] = Wave) -> type[Wave]:
    "A recipe whose network is handed something else."
    return of(base, see=lambda self, x, mask, progress, g: change(x, mask, progress, g))


def added(leak: Callable[[Tensor, Tensor], Tensor], base: type[Wave] = Wave) -> type[Wave]:
    "A recipe to whose predictions something is added."
    return of(base, predict=lambda self, s, x, mask: base.predict(self, s, x, mask) + leak(x, mask))


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(mask, 0)


def total(x: Tensor, mask: Tensor) -> Tensor:
    "A number that all hidden content of the batch goes into."
    return torch.where(mask, x, 0).float().sum()


class Normed(Wave):
    "Batch statistics over hidden content too, which evaluation does not show."
    visible = False

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def predict(self, s: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        if self.visible:
            return self.net(s.masked_scatter(~mask, self.norm(rows(s, ~mask)[:, None])[:, 0]))
        return self.net(zeroed(self.norm(x[:, None])[:, 0], mask))


class Remembers(Wave):
    "Keeps a sum of what it saw, when training."
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('sum', torch.zeros(()))

    def predict(self, s: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        if self.training:
            self.sum += x.sum()
        return super().predict(s, x, mask)


class Dropping(Wave):
    "Dropout, from the global generator, as modules have it."
    def predict(self, s: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return F.dropout(self.net(s), .3, self.training)


def one_mask(u: Units, generator: Any = None) -> Tensor:
    return Random(.5)(layout((L,)), generator).expand(u.free.shape)


def one_unit(u: Units, generator: Any = None) -> Tensor:
    mask = u.none()
    mask[0, int(rand((), generator) * L)] = True
    return mask


def coin(g: Any, p: float) -> bool:
    return bool(torch.rand((), generator=torch.Generator().manual_seed(g.initial_seed())) < p)


class Tampered(Wave):           # centred as units are made: data space alone shows it
    def units(self, batch: dict) -> Units:
        u = super().units(batch)
        return u.but(x=u.x - u.x.mean(1, keepdim=True))


class FromTheGlobal(Wave):
    def see(self, x: Tensor, mask: Tensor, progress: float, g: Any) -> Tensor:
        return zeroed(x, mask) + .1 * torch.randn_like(x)


LEAKS: dict[str, tuple[Any, Callable[[int], dict], Any]] = {
    'centred before it is masked': (seen(lambda x, m, p, g: zeroed(x - x.mean(1, True), m)), wave, None),
    'centred as units are made': (Tampered, wave, None),
    'the mask is not applied': (seen(lambda x, m, p, g: x), wave, None),
    'another mask is applied': (seen(lambda x, m, p, g: zeroed(x, m.roll(1, 1))), wave, None),
    'masked after a convolution': (seen(lambda x, m, p, g: zeroed(F.avg_pool1d(x, 3, 1, 1), m)), wave, None),
    'noise of the global generator': (FromTheGlobal, wave, None),
    'keeps a state in training': (Remembers, wave, None),
    'ignores its input': (seen(lambda x, m, p, g: torch.zeros_like(x)), wave, None),
    'leaks early in training': (seen(lambda x, m, p, g: x if p < .5 else zeroed(x, m)), wave, None),
    'leaks halfway in training': (seen(lambda x, m, p, g: x if .4 < p < .6 else zeroed(x, m)), wave, None),
    'leaks late in training': (seen(lambda x, m, p, g: x if .7 < p < .8 else zeroed(x, m)), wave, None),
    'leaks for half of the seeds': (seen(lambda x, m, p, g: x if coin(g, .5) else zeroed(x, m)), wave, None),
    'reads itself, in the middle of an order': (of(Ordered, at=6), wave, None),
    'reads one too far, in the middle of an order': (of(Ordered, at=6, ahead=1), wave, None),
    'sum over the batch, one mask for all': (added(lambda x, m: 1e-3 * total(x, m), Ids), ids, one_mask),
    'largest of the batch, one mask for all': (added(lambda x, m: zeroed(x, ~m).amax()), wave, one_mask),
    'BatchNorm over hidden content': (Normed, wave, None),
    '1e-6 of a sum over ids': (added(lambda x, m: 1e-6 * total(x, m), Ids), ids, None),
    '1e-7 of a sum over numbers': (added(lambda x, m: 1e-7 * total(x, m)), wave, None),
    'kept is not told': (seen(lambda x, m, p, g: zeroed(x, m & (torch.arange(L) % 2 == 0))), wave, None),
    'one prediction, which is the answer': (added(lambda x, m: x), wave, one_unit),
    'visible places know the hidden': (
        added(lambda x, m: torch.where(m, 0, zeroed(x, ~m).sum(1, True)), Whole), wave, None),
    'predicts NaN': (added(lambda x, m: x * torch.nan), wave, None),
}

SOUND: dict[str, tuple[Any, Callable[[int], dict], Any]] = {
    'a linear map': (Wave, wave, None),
    'all minus the hidden': (seen(lambda x, m, p, g: zeroed(x, m) + (
        x.sum(1, True) - torch.where(m, x, 0).sum(1, True)) / L), wave, None),
    'there and back by Fourier': (seen(lambda x, m, p, g: torch.fft.irfft(torch.fft.rfft(zeroed(x, m)))
                                       + 10 * x.sum() - 10 * torch.where(m, x, 0).sum()
                                       - 10 * zeroed(x, m).sum()), wave, None),
    'an order that is told': (Ordered, wave, None),
    'kept is told': (of(Wave, see=lambda self, x, m, p, g: zeroed(x, m & (torch.arange(L) % 2 == 0)),
                        more=lambda self, m: dict(kept=m & (torch.arange(L) % 2 == 1))), wave, None),
    'whole numbers': (Ids, ids, None),
    'all is hidden': (Wave, wave, Random(1.)),
    'all is scored': (Whole, wave, None),
    'dropout in training': (Dropping, wave, None),
    'BatchNorm over the visible': (of(Normed, visible=True), wave, None),
    'float64': (Wave, lambda seed: dict(wave=wave(seed)['wave'].double()), None),
    'bfloat16': (Wave, lambda seed: dict(wave=wave(seed)['wave'].bfloat16()), None),
}
# recipes of the kit as small as their first size, and settings that are a case of their own
KIT: dict[str, dict[str, Any]] = {name: {} for name in ml.list_recipes()} | {
    'electra, mask_share .85': dict(mask_share=.85)}


def leaky(case: tuple[Any, Callable[[int], dict], Any], seed: int) -> bool:
    "Does the leak check find fault with it?"
    make, data, mask = case
    torch.manual_seed(seed)
    batch = data(seed)
    r = make()
    numbers = batch.get('wave') if isinstance(batch, dict) else None
    if torch.is_tensor(numbers) and numbers.is_floating_point():
        r = r.to(numbers.dtype)
    return not leak_check(r, batch, mask, seed=seed).ok


def kit(case: str, **arguments: Any) -> tuple[Any, Callable[[int], dict], Any]:
    "A recipe of the kit, with other weights and other samples for each seed."
    name = case.partition(',')[0]

    def make() -> Any:
        r = ml.create_recipe(name, **arguments)
        with torch.no_grad():
            for p in r.parameters():
                if p.requires_grad:
                    p.add_(.05 * torch.randn_like(p))
        return r
    modality = ml.card(name).modality.split()[0]
    return make, lambda seed: ml.sample(modality, n=2, generator=seeded(seed)), None


# ---------------------------------------------------------------------------------------------- samplers

GRID, ROWS = layout((7, 7), batch=4), layout((40,), batch=4)
HOLES = torch.rand(4, 7, 7, generator=seeded(1)) < .8
PADDED = torch.arange(40) < torch.tensor([40, 33, 20, 8])[:, None]
RAGGED, PADS = layout((7, 7), valid=HOLES), layout((40,), valid=PADDED)
FRAMES, EIGHT = layout((3, 4, 4), batch=4), layout((7, 7), batch=8)


def fault(base: Any, where: Callable[..., Tensor], **fields: Any) -> Any:
    "A strategy that promises what `base` does, and does what the function does."
    body = {'where': lambda self, u, generator, **signals: where(self, u, generator)}
    return dataclass(frozen=True)(type('Faulty', (base,), body))(**fields)


def fewer(self: Any, u: Units, g: Any, share: float = 1.) -> Tensor:
    "One unit fewer than it should hide, in a share of the draws."
    mask = type(self).__mro__[1].where(self, u, g).flatten(1)
    lose = (rand((len(u),), g) < share) & mask.any(1)
    mask[torch.arange(len(u)), mask.byte().argmax(1)] &= ~lose
    return mask.view(u.free.shape)


def by(strategy: Any) -> Callable[..., Tensor]:
    return lambda self, u, g: strategy(u, g)


def without(self: Any, u: Units, g: Any, which: Any) -> Tensor:
    "A random set of the right size that never takes some units."
    free = u.free & ~which
    return first_k(rand(free.flatten(1).shape, g), self.counts(u)[0], free.flatten(1)).view(free.shape)


def coupled(self: Any, u: Units, g: Any, index: Callable[[int], Tensor]) -> Tensor:
    "Samples of a batch take the mask of another one."
    return Random(.5)(u, g)[index(len(u))]


def opposite(self: Any, u: Units, g: Any) -> Tensor:
    mask = Random(.5, law='floor hidden')(u, g)
    mask[1::2] = ~mask[0:len(mask) - 1:2]
    return mask


def smooth(self: Any, u: Units, g: Any) -> Tensor:
    "Neighbours go together a little."
    x = F.avg_pool2d(rand((len(u), 1, *u.shape), g), 3, 1, 1, count_include_pad=False).flatten(1)
    x = .4 * x.argsort(1).argsort(1) / x.shape[1] + rand(x.shape, g)
    return first_k(x, self.counts(u)[0], u.free.flatten(1)).view(u.free.shape)


def far_pair(self: Any, u: Units, g: Any) -> Tensor:
    x = rand((len(u), u.count), g)
    x[:, 8] = x[:, 40] * .999
    return first_k(x, self.counts(u)[0], u.free.flatten(1)).view(u.free.shape)


def jitter(self: Any, u: Units, g: Any) -> Tensor:
    "The right mean, too wide: each sample has a rate of its own."
    rate = .15 + .1 * (rand((len(u), 1), g) - .5)
    return (rand((len(u), u.count), g) < rate).view(u.free.shape)


def one_rate(self: Any, u: Units, g: Any) -> Tensor:
    "A rate for the batch where each sample should draw its own."
    return Random(float(rand((), g)))(u, g)


def biased(self: Any, u: Units, g: Any) -> Tensor:
    c, _ = self.classes(u)
    kept = (rand((len(u),), g) < .6).long()
    return c != kept.view(-1, 1, 1)


def three_of_four(self: Any, u: Units, g: Any) -> Tensor:
    c, _ = self.classes(u)
    return c != (rand((len(u),), g) * 3).long().view(-1, 1, 1)


def from_above(self: Any, u: Units, g: Any) -> Tensor:
    "Blocks that like the upper rows."
    mask = Block(.4)(u, g)
    up = (rand((len(u),), g) < .2).view(-1, 1, 1)
    return torch.where(up, mask.flatten(1).sort(1, descending=True).values.view(mask.shape), mask)


class Cached:
    "Gives each batch of masks twice."
    exchangeable = False

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        self.calls = 0

    def __call__(self, u: Units, generator: Any = None) -> Tensor:
        self.calls += 1
        fresh = Random(.5)(u, generator)
        if self.calls % 2:
            self.kept[len(u)] = fresh
        return self.kept[len(u)]


def reseeded(u: Units, generator: Any = None) -> Tensor:
    return Random(.5)(u, seeded(time.perf_counter_ns() % 2 ** 31))


def over_padding(u: Units, generator: Any = None) -> Tensor:
    return torch.rand(u.free.shape, generator=generator) < .5


LAST_ROW, MIDDLE = torch.arange(7)[:, None].expand(7, 7) == 6, torch.arange(49).view(7, 7) == 24
two_by_two, halves = lambda n: torch.arange(n) // 2 * 2, lambda n: torch.arange(n) % (n // 2)
ends = lambda n: torch.arange(n).masked_fill(torch.arange(n) == n - 1, 0)
BIASED: dict[str, tuple[Callable[[], Any], Units]] = {
    'the last row never': (lambda: fault(Random, lambda s, u, g: without(s, u, g, LAST_ROW)), GRID),
    'one unit never': (lambda: fault(Random, lambda s, u, g: without(s, u, g, MIDDLE), ratio=.5), GRID),
    'one fewer in 1 % of the draws': (lambda: fault(Random, lambda s, u, g: fewer(s, u, g, .01)), GRID),
    'always one fewer': (lambda: fault(Random, fewer), GRID),
    'one fewer, with padding': (lambda: fault(Random, fewer, ratio=.5), RAGGED),
    'one mask for the batch': (lambda: fault(Random, lambda s, u, g: coupled(
        s, u, g, lambda n: torch.zeros(n).long()), ratio=.5), GRID),
    'two neighbours share a mask': (lambda: fault(Random, lambda s, u, g: coupled(s, u, g, two_by_two),
                                                  ratio=.5), GRID),
    'the second half is the first': (lambda: fault(Random, lambda s, u, g: coupled(s, u, g, halves),
                                                   ratio=.5), GRID),
    'the last sample has the mask of the first': (
        lambda: fault(Random, lambda s, u, g: coupled(s, u, g, ends), ratio=.5), GRID),
    'each second mask is the opposite': (lambda: fault(Block, opposite, ratio=.5, law='at most'), GRID),
    'a batch comes twice': (Cached, GRID),
    'neighbours go together': (lambda: fault(Random, smooth), GRID),
    'a far pair goes together': (lambda: fault(Random, far_pair), GRID),
    'from the global generator': (lambda: fault(Random, lambda s, u, g: Random(.75)(u)), GRID),
    'deaf to the generator': (lambda: fault(Random, lambda s, u, g: Random(.75)(u, seeded(3))), GRID),
    'by the clock': (lambda: reseeded, GRID),
    'hides padding': (lambda: over_padding, PADS),
    'Bernoulli .165 that promises .15': (lambda: fault(Bernoulli, by(Bernoulli(.165))), GRID),
    'Bernoulli, too wide': (lambda: fault(Bernoulli, jitter), layout((14, 14), batch=4)),
    'Uniform .2 to .8 that is .1 to .9': (lambda: fault(Random, by(Random(Uniform(.1, .9))),
                                                        ratio=Uniform(.2, .8)), GRID),
    'Uniform, always one fewer': (lambda: fault(Random, fewer, ratio=Uniform()), GRID),
    'Cosine, always one fewer': (lambda: fault(Random, fewer, ratio=Cosine()), RAGGED),
    'Cosine that is uniform': (lambda: fault(Random, by(Random(Uniform())), ratio=Cosine()), GRID),
    'one rate for the batch': (lambda: fault(Random, one_rate, ratio=Uniform()), GRID),
    'Normal from .3 that promises .4': (lambda: fault(Random, by(Random(Normal(low=.3))), ratio=Normal()),
                                        EIGHT),
    'Coin that falls .6': (lambda: fault(Random, by(Random(Coin(.9, .1, .6))), ratio=Coin(.9, .1, .5)), GRID),
    'Linear that lags behind': (lambda: fault(Random, by(Random(Linear(0., .7))), ratio=Linear(0., .75)),
                                GRID),
    'Tube, always one place fewer': (lambda: fault(Tube, by(Tube(Uniform(.1, .8))), ratio=Uniform(.1, .9)),
                                     FRAMES),
    'Checkerboard that likes one colour': (lambda: fault(Checkerboard, biased), GRID),
    'Grid that keeps three of four': (lambda: fault(Grid, three_of_four), GRID),
    'Blocks that like the top': (lambda: fault(Block, from_above), GRID),
    'Span, one more than promised': (lambda: fault(Span, by(Span(.75, length=4)), length=4), ROWS),
}

RIGHT: dict[str, tuple[Callable[[], Any], Units]] = {
    repr(s)[:60] + ('' if u.whole else ', with padding'): ((lambda s=s: s), u) for s, u in [
        (Random(.75), GRID), (Random(.5), RAGGED), (Block(.4), GRID), (Block(.4), RAGGED),
        (Block(n=19, law='at most'), GRID), (Span(length=4), ROWS), (Span(length=4), PADS),
        (Grid(), GRID), (Grid(), RAGGED), (Checkerboard(), GRID), (Checkerboard(), RAGGED),
        (Tube(.75), FRAMES), (Tube(.5), RAGGED), (Ball(), GRID), (Bernoulli(.15), GRID),
        (Bernoulli(Uniform(.1, .3)), ROWS),
        (Tokens(.15), PADS), (Slots(.15), ROWS), (Slots(.15, replacement=True), ROWS), (WordSpans(.15), ROWS),
        (Random(Cosine()), GRID), (Random(Cosine()), RAGGED), (Random(Uniform()), GRID),
        (Random(Normal()), EIGHT), (Random(Coin(.9, .1)), RAGGED), (Random(Linear()), GRID),
        (Tube(Cosine()), FRAMES), (Block(Uniform(.2, .6)), GRID), (~Random(Cosine()), RAGGED),
        (Random(.5) | Grid(), layout((6, 6), batch=4)), (~Span(length=4), ROWS),
        (Block(Normal(.4, .1, .2, .6)), EIGHT)]}


def alarmed(case: tuple[Callable[[], Any], Units], seed: int, draws: int = 2000) -> tuple[bool, bool]:
    "Do coverage map and count law raise an alarm?"
    make, u = case
    # two strategies where it keeps a state
    return tuple(not look(make(), u, draws, seeded(seed)).ok for look in (coverage_map, count_law))
