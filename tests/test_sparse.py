"""Sparse convolution by context, beside a reference that has no hidden places at all."""
import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch import nn
from torch.testing import assert_close

from maskedlab.contract.units import repeat_to
from maskedlab.parts.sparse import Sparse

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {'max': {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d},
        'mean': {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}}
MASKS = {1: [[1, 0, 1], [0, 1, 0]], 2: [[[1, 0], [1, 1]], [[0, 1], [0, 0]]],
         3: [[[[1, 0], [0, 1]], [[1, 1], [0, 0]]], [[[0, 0], [0, 0]], [[1, 0], [0, 0]]]]}


def visible(axes):
    return torch.tensor(MASKS[axes]).bool()


def picture(axes, channels=4, unit=4):
    "Numbers everywhere; hidden ones too, so that nothing is 0 by itself."
    shape = [n * unit for n in visible(axes).shape[1:]]
    return torch.randn(2, channels, *shape, generator=g()) + .5


# ---------------------------------------- the reference: a dict of visible places, each with its vector

def taken(x, seen):
    "Place to vector, of the visible places alone."
    at = repeat_to(seen, x.shape[2:]).nonzero().tolist()
    return {tuple(p): x[(p[0], slice(None), *p[1:])] for p in at}


def laid(places, like):
    "As a map, 0 where there is nothing."
    out = torch.zeros_like(like)
    for p, v in places.items():
        out[(p[0], slice(None), *p[1:])] = v
    return out


def around(places, p, layer):
    "The places in the window of an output place that are there, and where in the window they are."
    both = lambda v: v if isinstance(v, tuple) else (v,) * (len(p) - 1)
    size, step, pad, gap = map(both, (layer.kernel_size, layer.stride, layer.padding,
                                      getattr(layer, 'dilation', 1)))
    for offset in itertools.product(*map(range, size)):
        at = (p[0], *(q * s - d + o * e for q, s, d, o, e in zip(p[1:], step, pad, offset, gap)))
        if at in places:
            yield offset, places[at]


def conv_of(layer, places, out):
    G, weight = layer.groups, layer.weight
    W = weight.view(G, -1, *weight.shape[1:])

    def one(p):
        y = torch.zeros(len(weight)) if layer.bias is None else layer.bias
        for o, v in around(places, p, layer):
            y = y + torch.einsum('goc,gc->go', W[(..., *o)], v.view(G, -1)).flatten()
        return y
    return {p: one(p) for p in out}


def pool_of(layer, places, out):
    n = layer.kernel_size
    found = {p: torch.stack([v for _, v in around(places, p, layer)]) for p in out}
    if 'Max' in type(layer).__name__: return {p: v.amax(0) for p, v in found.items()}
    cells = torch.tensor(n).prod() if isinstance(n, tuple) else n ** (len(next(iter(out))) - 1)
    return {p: v.sum(0) / cells for p, v in found.items()}


def norm_of(layer, places):
    x = torch.stack([*places.values()])
    y = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias
    return dict(zip(places, y))


def out_places(x, seen, stride):
    return taken(x[(..., *[slice(None, None, stride)] * (x.ndim - 2))], seen)


# ---------------------------------------- layer by layer

LAYERS = [dict(kernel_size=3, padding=1), dict(kernel_size=1), dict(kernel_size=3, padding=1, stride=2),
          dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=3, padding=1, groups=4),
          dict(kernel_size=2, stride=2, bias=False), dict(kernel_size=5, padding=2, groups=2)]


@pytest.mark.parametrize('axes', [1, 2, 3])
@pytest.mark.parametrize('how', LAYERS, ids=lambda h: ' '.join(f'{k}={v}' for k, v in h.items()))
def test_a_convolution_is_that_of_the_visible_places(axes, how):
    torch.manual_seed(0)
    unit = 2 if axes == 3 else 4
    x, seen, layer = picture(axes, unit=unit), visible(axes), CONV[axes](4, 8, **how)
    with torch.no_grad(), Sparse(seen):
        y = layer(x)
    want = conv_of(layer, taken(x, seen), out_places(x, seen, how.get('stride', 1)))
    assert_close(y, laid(want, y), rtol=1e-5, atol=1e-5)
    assert (y[~repeat_to(seen, y.shape[2:])[:, None].expand_as(y)] == 0).all()


@pytest.mark.parametrize('axes', [1, 2, 3])
@pytest.mark.parametrize('kind', POOL)
def test_pooling_is_that_of_the_visible_places(axes, kind):
    x, seen = picture(axes) - 3, visible(axes)       # below 0: a hidden 0 would be the largest
    for layer in (POOL[kind][axes](3, 2, 1), POOL[kind][axes](2, 2)):
        with Sparse(seen):
            y = layer(x)
        assert_close(y, laid(pool_of(layer, taken(x, seen), out_places(x, seen, 2)), y))


@pytest.mark.parametrize('axes', [1, 2, 3])
def test_batch_norm_counts_visible_places_only(axes):
    x, seen, layer = picture(axes), visible(axes), stir(NORM[axes](4), .5).train()
    places = taken(x, seen)
    with Sparse(seen):
        y = layer(x)
    assert_close(y, laid(norm_of(layer, places), y), rtol=1e-5, atol=1e-5)
    rows = torch.stack([*places.values()])
    assert_close(layer.running_mean, .1 * rows.mean(0))
    assert_close(layer.running_var, .9 + .1 * rows.var(0))
    layer.eval()
    with Sparse(seen):
        again = layer(x)
    assert_close(again, layer(x) * repeat_to(seen, x.shape[2:])[:, None])


def test_more_hidden_area_changes_no_statistic():
    x, seen, layer = picture(2), visible(2), nn.BatchNorm2d(4)
    with Sparse(seen):
        y = layer(x)
    with Sparse(F.pad(seen, (0, 2, 0, 3))):
        wide = layer(F.pad(x, (0, 8, 0, 12), value=7.))
    assert_close(wide[..., :8, :8], y)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_group_norm_counts_visible_places_only(groups):
    x, seen, layer = picture(2), visible(2), stir(nn.GroupNorm(groups, 4), .5)
    with Sparse(seen):
        y = layer(x)
    for i in range(2):
        rows = torch.stack([v for p, v in taken(x, seen).items() if p[0] == i]).mT[None]    # `[1, C, n]`
        at = repeat_to(seen, (8, 8))[i]
        assert_close(y[i][:, at], layer(rows)[0], rtol=1e-5, atol=1e-5)
        assert (y[i][:, ~at] == 0).all()


@pytest.mark.parametrize('layer', [nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 4)],
                         ids=lambda m: type(m).__name__)
def test_what_is_done_to_the_channels_of_each_place_leaves_holes(layer):
    x, seen, layer = picture(2).permute(0, 2, 3, 1), repeat_to(visible(2), (8, 8)), stir(layer, .5)
    with Sparse(visible(2)):
        y, row = layer(x), layer(x[:, 0, 0])
    assert (y[~seen] == 0).all() and torch.equal(y[seen], layer(x)[seen])
    assert torch.equal(row, layer(x[:, 0, 0]))                  # a vector for each sample is no map


def test_means_and_norms_over_places():
    x, seen = picture(2), visible(2)
    rows = [torch.stack([v for p, v in taken(x, seen).items() if p[0] == i]) for i in range(2)]
    last = x.permute(0, 2, 3, 1)
    with Sparse(seen):
        means = [x.mean((2, 3)), x.mean((-2, -1), keepdim=True).flatten(1), last.mean((1, 2)),
                 F.adaptive_avg_pool2d(x, 1).flatten(1)]
        large = [x.amax((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)]
        norms = [x.norm(p=2, dim=(2, 3)), last.norm(p=2, dim=(1, 2)), torch.linalg.vector_norm(x, dim=(2, 3))]
        channels = x.mean(1)
    for found, want in ((means, [r.mean(0) for r in rows]), (large, [r.amax(0) for r in rows]),
                        (norms, [r.norm(dim=0) for r in rows])):
        for y in found:
            assert_close(y, torch.stack(want))
    assert_close(channels, x.mean(1))
    with Sparse(torch.zeros(2, 2, 2).bool()):        # nothing at all to take the mean of
        assert (x.mean((2, 3)) == 0).all() and (x.amax((2, 3)) == 0).all()


# ---------------------------------------- a small network, in one piece

class Small(nn.Module):
    "Stem, pooling, a depthwise and a dilated layer, a squeeze, a residual: with biases everywhere."
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.pool, self.deep = nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.far, self.gate = nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 8)

    def forward(self, x):
        x = self.pool(self.norm(self.stem(x)).sigmoid())         # .5 of what is 0
        x = x + self.far(self.deep(x).sigmoid())
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        return self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def reference(self, x, seen):
        out = out_places(x, seen, 2)
        p = norm_of(self.norm, conv_of(self.stem, taken(x, seen), out))
        p = pool_of(self.pool, {k: v.sigmoid() for k, v in p.items()}, out)
        far = conv_of(self.far, {k: v.sigmoid() for k, v in conv_of(self.deep, p, out).items()}, out)
        p = {k: v + far[k] for k, v in p.items()}
        middle = {i: torch.stack([v for k, v in p.items() if k[0] == i]).mean(0) for i in {k[0] for k in p}}
        gate = self.gate.weight[:, :, 0, 0]
        return {k: self.last(v * (gate @ middle[k[0]] + self.gate.bias)) for k, v in p.items()}


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    return stir(Small(), .3).train()


def test_a_network_is_that_of_the_visible_places_and_so_is_its_gradient(small):
    seen, x = visible(2), picture(2)
    hole = ~repeat_to(seen, x.shape[2:])[:, None].expand_as(x)
    found = []
    for which in ('context', 'reference'):
        small.zero_grad()
        given = x.clone().requires_grad_()
        if which == 'context':
            with Sparse(seen):
                y = small(given)
        else:
            like = torch.zeros(2, 8, 4, 4)
            y = laid(small.reference(given.masked_fill(hole, torch.nan), seen), like)
        y.square().sum().backward()
        found.append([y.detach(), given.grad.masked_fill(hole, 0.)] + [p.grad for p in small.parameters()])
        if which == 'context':
            assert (given.grad[hole] == 0).all() and (given.grad[~hole] != 0).any()
    for a, b in zip(*found):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_outside_it_is_the_network_that_it_was(small):
    x, names = picture(2), {k: v.shape for k, v in small.state_dict().items()}
    small.eval()
    before = small(x)
    with Sparse(visible(2)):
        inside = small(x)
    assert torch.equal(small(x), before) and not torch.equal(inside, before)
    assert {k: v.shape for k, v in small.state_dict().items()} == names
    assert not [m for m in small.modules() if m._forward_hooks or m._forward_pre_hooks]
    with Sparse(torch.ones(2, 2, 2).bool()):
        whole = small(x)
    assert_close(whole, before)
    small.train()


# ---------------------------------------- who holds the mask

def test_the_inner_context_takes_the_place_of_the_outer_one():
    x, layer = picture(2), nn.Conv2d(4, 2, 3, padding=1)
    a, b = visible(2), torch.tensor(MASKS[2]).bool().flip(-1)

    def alone(seen):
        with Sparse(seen):
            return layer(x)
    want_a, want_b = alone(a), alone(b)
    with Sparse(a):
        with Sparse(b), pytest.raises(ZeroDivisionError):
            first = layer(x)
            raise ZeroDivisionError
        with Sparse(b):
            second = layer(x)
        outer = layer(x)
    assert torch.equal(first, want_b) and torch.equal(second, want_b) and torch.equal(outer, want_a)
    assert not torch.equal(want_a, want_b) and (layer(x) != 0).all()


def test_threads_have_masks_of_their_own():
    x, layer, seen = picture(2), nn.Conv2d(4, 2, 3, padding=1), visible(2)
    masks = [seen, seen.flip(-1), seen.flip(-2), None]
    want, got, turn = [], [None] * 4, threading.Barrier(4, timeout=20)
    for m in masks:
        with Sparse(m) if m is not None else torch.no_grad():
            want.append(layer(x))

    def run(i):
        with Sparse(masks[i]) if masks[i] is not None else torch.no_grad():
            turn.wait()                     # all are inside now
            got[i] = layer(x)
            turn.wait()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want))


# ---------------------------------------- what cannot be sparse

class Attends(nn.Module):
    def forward(self, x):
        q = x.flatten(2).mT
        return F.scaled_dot_product_attention(q, q, q)


REFUSED = {
    'attention': (Attends(), 'flatten to a row of places'),
    'matmul': (lambda x: x @ x, 'matmul'),
    'interpolate': (lambda x: F.interpolate(x, scale_factor=2), 'interpolate'),
    'roll': (lambda x: x.roll(1, 2), 'roll'), 'instance norm': (nn.InstanceNorm2d(4), 'instance_norm'),
    'softmax': (lambda x: x.softmax(-1), 'softmax'),
    'a row of the mean': (lambda x: x.mean(2), 'part of the places'),
    'norm of all': (nn.LayerNorm((4, 8, 8)), 'layer_norm'),
    'pooled to 2 x 2': (nn.AdaptiveAvgPool2d(2), 'adaptive_avg_pool2d'),
    'odd': (nn.Conv2d(4, 2, 3), '6 x 6 places does not divide into the 2 x 2'),
    'coarse': (nn.Conv2d(4, 2, 4, 4), '2 x 2 places does not divide'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_one_sentence(name):
    does, word = REFUSED[name]
    x, seen = picture(2), repeat_to(visible(2), (4, 4))
    if name != 'coarse':
        seen = visible(2)
    with Sparse(seen), pytest.raises(ValueError, match=word) as told:
        does(x)
    assert len(str(told.value)) <= 200
    does(x)                                                     # and outside nobody minds


@pytest.mark.parametrize('what', [None, torch.zeros(2, 2), torch.zeros(2).bool(), 3])
def test_a_mask_is_bool_with_a_sample_each(what):
    with pytest.raises(TypeError, match='bool tensor'):
        Sparse(what)


def test_another_number_of_samples():
    with Sparse(visible(2)), pytest.raises(ValueError, match='2 samples, and a map of 3'):
        nn.Conv2d(4, 2, 3, padding=1)(torch.rand(3, 4, 8, 8))
