"""The same numbers in every precision: float64 and float32 agree, halves within their own error, and nothing
on a device needs 64 bits.
"""
import copy

import pytest
import torch
from given import all_of

import maskedlab as ml
from maskedlab.parts.transformer import attend

NAMES = ml.list_recipes()
pytestmark = pytest.mark.usefixtures('samples')


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def in_type(batch, dtype):
    return {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}


def made(name):
    "A recipe that computes what it likes of all its parts, a batch, and a mask of uneven counts."
    torch.manual_seed(0)
    r = ml.create_recipe(name, size='micro').eval()
    b = ml.sample(r.card.modality.split()[0], n=3)
    u = r.units(b)
    share = torch.tensor([.3, .5, .8]).view(-1, *[1] * (u.valid.ndim - 1))
    return r, b, (torch.rand(u.valid.shape, generator=gen()) < share) & u.free


@pytest.mark.parametrize('name', NAMES)
def test_float64_and_float32_agree_where_counts_are_uneven(name):
    r, b, m = made(name)
    wide, b64 = copy.deepcopy(r).double(), in_type(b, torch.float64)
    a, c = r(b, mask=m, generator=gen()), wide(b64, mask=m, generator=gen())
    assert c.loss.dtype == all_of(c.pred).dtype == torch.float64
    for k, term in a.terms.items():
        assert float(term) == pytest.approx(float(c.terms[k]), rel=1e-4, abs=1e-5), k
    assert torch.allclose(all_of(a.pred).double(), all_of(c.pred), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.allclose(r.features(b).double(), wide.features(b64), atol=1e-4, rtol=1e-4)
    grads = [torch.autograd.grad(o.loss, [p for p in net.parameters() if p.requires_grad], allow_unused=True)
             for o, net in ((a, r), (c, wide))]
    for p, q in zip(*grads, strict=True):
        assert (p is None) == (q is None)
        assert p is None or float((p.double() - q).abs().max()) <= 1e-4 * max(float(q.abs().max()), 1.)


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_stays_within_its_own_error(name):
    "A hundredth of the loss: eight bits, over a few layers."
    r, b, m = made(name)
    with torch.no_grad():
        want = r(b, mask=m, generator=gen()).loss
        with torch.autocast('cpu', torch.bfloat16):
            got = r(b, mask=m, generator=gen()).loss
    assert got.dtype == torch.float32 and float(got) == pytest.approx(float(want), rel=.01)


@pytest.mark.parametrize('name', NAMES)
def test_a_network_of_half_the_bits_runs(name):
    r, b, m = made(name)
    with torch.no_grad():
        want = r(b, mask=m, generator=gen()).loss
        got = r.bfloat16()(in_type(b, torch.bfloat16), mask=m, generator=gen()).loss
    assert float(got) == pytest.approx(float(want), rel=.05)




# what is common to all keys says nothing, however large

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_large_common_part_of_a_bias_costs_no_digits(dtype):
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=gen()).to(dtype)
    bias = torch.randn(1, 2, 5, 5, generator=gen())
    want = attend(q, k, v, bias)
    assert torch.allclose(attend(q, k, v, bias + 1000).float(), want.float(), atol=.02)
    blind = bias.masked_fill(torch.eye(5).bool() | (torch.arange(5) > 2), -torch.inf)
    blind[:, :, 4] = -torch.inf
    out = attend(q, k, v, blind + 1000)
    assert torch.isfinite(out).all() and (out[:, 4] == 0).all()


def test_a_bias_table_far_from_zero_gives_the_same_attention_in_halves():
    r = ml.create_recipe('simmim', size='micro').eval()
    torch.nn.init.normal_(r.encoder.rel_pos_bias.table)
    b, seen = ml.sample('image', n=2), []
    for shift in (0, 512):
        with torch.no_grad():
            r.encoder.rel_pos_bias.table += shift
            with torch.autocast('cpu', torch.bfloat16):
                seen.append(r.features(b).float())
    assert torch.allclose(*seen, atol=.02)
