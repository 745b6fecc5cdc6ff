"""What a step asks of a device, counted without one: fake tensors that live on a GPU raise where the host
would have to wait; a backward, which asks for a real one, is read operation by operation on the CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

import maskedlab as ml
from maskedlab.contract import recipe as contract
from maskedlab.contract.units import known, rest, rows, spread
from given import g, plain


def step_without_a_device(name, batch, monkeypatch, **arguments):
    """A forward in training mode on a GPU that is not there (a backward would ask for a real one)."""
    r = ml.create_recipe(name, **arguments).train()
    r(
        batch, generator=torch.Generator().manual_seed(0)
    ).loss.backward()  # looks at its first batch, as a run does
    # the generator's own draw is a number of the CPU, which costs a device nothing
    monkeypatch.setattr(contract, 'child', lambda generator=None, device='cpu': torch.Generator())
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = lambda t: torch.empty(t.shape, dtype=t.dtype, device='cuda')
        for m in r.modules():
            m._parameters = {
                k: p if p is None else torch.nn.Parameter(there(p)) for k, p in m._parameters.items()
            }
            m._buffers = {k: b if b is None else there(b) for k, b in m._buffers.items()}
        out = r({k: there(v) for k, v in batch.items()}, generator=torch.Generator())
    assert out.loss.device.type == 'cuda' and out.loss.requires_grad


@pytest.mark.parametrize('name', ['mae', 'simmim'])
def test_a_step_never_waits_for_the_device(name, monkeypatch):
    step_without_a_device(name, {'image': torch.rand(4, 3, 64, 64)}, monkeypatch)


def test_a_step_that_waits_is_found(monkeypatch):
    """The control: a mask whose count nobody knows has to be counted."""
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        step_without_a_device(
            'mae',
            {'image': torch.rand(4, 3, 64, 64)},
            monkeypatch,
            strategy=ml.masks.Random(ml.masks.Uniform(0.2, 0.8)),
        )


class Waits(TorchDispatchMode):
    """Operations whose result's size or value the host would have to fetch from a device."""

    NAMES = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', '_unique2', 'unique_dim')

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix('aten::')
        places = args[1] if name in ('index', 'index_put', 'index_put_') else ()
        if name in self.NAMES or any(p is not None and p.dtype == torch.bool for p in places):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', ['mae', 'simmim', 'cae', 'maskalign', 'selfie', 'point_mae'])
def test_a_backward_and_the_clip_never_wait(name):
    r = ml.create_recipe(name).train()
    loss = r(plain(r), generator=g()).loss
    with Waits() as waits:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(r.parameters(), 1.)
    assert waits.found == [] and any(p.grad is not None for p in r.parameters())


def test_a_backward_through_rows_of_a_mask_is_found():
    """The control."""
    x = torch.rand(5, 3, requires_grad=True)
    loss = x[torch.tensor([True, False, True, True, False])].sum()
    with Waits() as waits:
        loss.backward()
    assert waits.found == ['index_put']


@pytest.mark.parametrize('name', ['mae', 'simmim', 'bert_mlm', 'point_mae'])
def test_blocks_compile_without_a_break(name):
    r = ml.create_recipe(name).eval()
    block = r.encoder.blocks[0]
    x = torch.rand(2, 7, r.encoder.dim)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend='eager')  # raises at a break
    assert torch.allclose(compiled(x), block(x), atol=1e-5)


def test_rows_by_index_are_those_of_the_mask():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 30, generator=g).argsort(1).lt(11)
    x, quick = torch.rand(5, 30, 3, generator=g), known(mask.clone(), 11)
    assert torch.equal(rows(x, quick), x[mask]) and torch.equal(rows(x, rest(quick)), x[~mask])
    assert torch.equal(spread(x[mask][:, 0], quick)[mask], x[mask][:, 0])
