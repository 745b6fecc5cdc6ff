"""Strategies and corruptions on a device that has no numbers of 64 bits, as Apple's GPUs have none."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import maskedlab as ml
from maskedlab.corruptions.replace import mask_keep_random
from maskedlab.masks import (
    Coin, Cosine, Disc, Guided, HalfCosine, Linear, Normal, Random, Span, Stepwise, Uniform
)
from maskedlab.masks.strategies import count, list_strategies

PLACE = 'meta'  # the name under which torch lets a stranger's device live


class There(torch.Tensor):
    """A tensor on the device that is played here; what it holds lies on the CPU."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(f'{held.dtype} on a device that has no numbers of 64 bits')
        t = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=PLACE)
        t.held = held
        return t

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return play(func, args, kwargs or {})


def play(func, args, kwargs):
    """Run on the CPU; the result is there where an argument was, or where it was asked for."""
    there = any(isinstance(a, There) for a in tree_leaves((args, kwargs)))
    if kwargs.get('device') is not None:
        there = torch.device(kwargs['device']).type == PLACE
        kwargs = {**kwargs, 'device': torch.device('cpu')}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
    out = func(*args, **kwargs)
    return tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) else x, out) if there else out


class Device(TorchDispatchMode):
    """Inside, there is such a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return play(func, args, kwargs or {})


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def units(shape, device):
    x = torch.arange(1.0 * torch.Size((2, *shape)).numel()).view(2, *shape, 1).to(device)
    return ml.Units('grid', shape, x=x)


def test_the_device_that_is_played_refuses_64_bits():
    with Device():
        there = torch.rand(3).to(PLACE)
        assert (there + 1).device.type == PLACE and not there.is_cpu and there.cpu().double().is_cpu
        for wide in (lambda: there.double(), lambda: torch.zeros(3, dtype=torch.float64, device=PLACE)):
            with pytest.raises(TypeError, match='64 bits'):
                wide()


RATES = [Uniform(), Cosine(), Linear(0.1, 0.5), Normal(), Coin(Uniform(), 0.5)]
RATES += [HalfCosine(), Stepwise(Uniform())]
MADE = [*(cls() for name, cls in list_strategies().items() if name != 'disc'), Disc(2), Guided('score')]
MADE += [Random() | Random(0.1), ~Random(0.3), *map(Random, RATES), *(Guided('score', r) for r in RATES)]
MADE += [Guided('score', 0.5, lottery=False, share=r) for r in (0.0, 0.3, *RATES)]
MADE += [list_strategies()[name](Uniform()) for name in 'span tokens bernoulli block tube ball slots'.split()]


@pytest.mark.parametrize('strategy', MADE, ids=repr)
def test_masks_of_a_device_without_64_bits_are_those_of_the_cpu(strategy):
    drawn = 0
    for shape in ((6, 6), (24,), (2, 4, 4)):
        here, score = units(shape, 'cpu'), torch.ones(2, *shape)
        try:
            mask = strategy(here, generator=g(), progress=0.5, score=score)
        except ValueError:
            continue  # not made for this shape
        with Device():
            there = units(shape, PLACE)
            got = strategy(there, generator=g(), progress=0.5, score=score.to(PLACE))
            assert got.device.type == PLACE
            assert torch.equal(got.cpu(), mask) or isinstance(strategy, Span)  # which looks less on a device
            low, high = strategy.counts(there)
            for view in got.unbind(1) if strategy.views > 1 else (got,):
                k = view.flatten(1).sum(1)
                assert bool((low <= k).all()) and bool((k <= high).all())
            p = strategy.chance(there)
            assert p is None or p.is_cpu
        drawn += 1
    assert drawn


def test_counts_and_fates_of_pieces():
    ids = torch.randint(5, 90, (3, 20), generator=g())
    mask = torch.rand(3, 20, generator=g(1)) < 0.5
    for fate in ('token', 'run'):
        right = mask_keep_random(ids, mask, 4, 90, fate=fate, generator=g(2))
        with Device():
            got = mask_keep_random(ids.to(PLACE), mask.to(PLACE), 4, 90, fate=fate, generator=g(2))
            assert all(torch.equal(a.cpu(), b) for a, b in zip(got, right))
    with Device():
        k = count('floor hidden', torch.tensor([0.3], dtype=torch.float64), torch.tensor([196]).to(PLACE))
        assert k.device.type == PLACE and int(k) == 58
