"""On a GPU: the numbers of the CPU, bf16, compiled blocks, data that are held there, and a run that goes on
where it was stopped."""

import json

import pytest
import torch

import maskedlab as ml
from maskedlab.masks.strategies import Random
from maskedlab.contract.recipe import evaluating

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
TINY = dict(
    image=32,
    patch=8,
    dim=64,
    depth=2,
    heads=4,
    decoder_dim=32,
    decoder_depth=1,
    decoder_heads=2,
    norm_pix=False,
)


def to(batch, device):
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


@pytest.fixture(autouse=True)
def exact():
    "Products in full float32, so that the CPU's numbers are a fair measure."
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope='module', params=ml.list_recipes())
def case(request):
    torch.manual_seed(0)
    r = ml.create_recipe(request.param)
    return r, ml.sample(r.card.modality.split()[0], n=4)


def test_same_numbers_as_on_the_cpu(case):
    "Same weights, batch and mask: the terms agree, and so do the gradients."
    r, batch = case
    g = lambda seed=0: torch.Generator().manual_seed(seed)
    mask = r.cpu()(batch, generator=g()).mask
    with evaluating(r):
        a, b = (r(batch, mask=mask, generator=g(s)).loss.detach() for s in (0, 1))
    if not torch.equal(a, b):
        pytest.skip('it draws more than its mask, and a GPU draws other numbers')
    seen = {}
    for device in 'cpu', 'cuda':
        r.to(device).zero_grad()
        with evaluating(r):
            out = r(to(batch, device), mask=None if mask is None else mask.to(device), generator=g())
        out.loss.backward()
        assert out.loss.device.type == device and (out.mask is None or out.mask.device.type == device)
        seen[device] = (
            {k: float(v.detach()) for k, v in out.terms.items()},
            torch.cat([p.grad.flatten().cpu() for p in r.parameters() if p.grad is not None]),
        )
    r.cpu()
    for k, v in seen['cpu'][0].items():
        assert seen['cuda'][0][k] == pytest.approx(v, rel=2e-3, abs=1e-4), k
    a, b = seen['cpu'][1], seen['cuda'][1]
    assert float((a - b).norm() / a.norm()) < 0.02


def test_draws_and_bf16(case):
    "Its own mask is drawn there, the same one twice; under bf16 the loss is close and the gradient finite."
    r, batch = case
    r, there = r.to('cuda'), to(batch, 'cuda')
    g = lambda: torch.Generator().manual_seed(1)
    with evaluating(r):
        plain, again = r(there, generator=g()), r(there, generator=g())
        with torch.autocast('cuda', torch.bfloat16):
            half = r(there, generator=g())
    half.loss.float().backward()
    assert plain.mask is None or torch.equal(plain.mask, again.mask)
    assert float(half.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=0.1)
    assert all(p.grad.isfinite().all() for p in r.parameters() if p.grad is not None)
    r.cpu()


@pytest.mark.parametrize('name', ml.list_recipes())
def test_training_goes_down(name):
    "A hundred steps in bf16 with the data held on the GPU."
    t = ml.Trainer(name, steps=100, batch=32, seed=0, precision='bf16', show=False)
    history = t.fit(background=False)
    losses = [h['loss'] for h in history]
    assert t.device.type == 'cuda' and t.precision == torch.bfloat16
    assert sum(losses[-10:]) < sum(losses[:10])


def test_compiled_and_plain_agree():
    runs = {}
    for compiled in False, True:
        torch.manual_seed(0)
        t = ml.Trainer(
            ml.create_recipe('mae', **TINY, strategy=Random(0.75)),
            'image',
            steps=20,
            batch=32,
            seed=1,
            precision='no',
            compile=compiled,
            image=32,
            show=False,
        )
        runs[compiled] = [h['loss'] for h in t.fit(background=False)]
    assert max(abs(a - b) for a, b in zip(runs[False], runs[True])) < 5e-3


def test_stopped_and_resumed(tmp_path):
    "Forty steps at a stretch, and twenty and twenty."

    def run(folder, stop=None, resume=False):
        torch.manual_seed(0)
        t = ml.Trainer(
            ml.create_recipe('mae', **TINY),
            'image',
            steps=40,
            batch=16,
            seed=2,
            precision='no',
            image=32,
            out=folder,
            resume=resume,
            save_every=10,
            log_every=1,
            show=False,
            watch=None if stop is None else lambda step, losses: step >= stop,
        )
        t.fit(background=False)
        return {k: v.cpu() for k, v in t.recipe.state_dict().items()}

    whole = run(tmp_path / 'whole')
    run(tmp_path / 'parts', stop=19)
    parts = run(tmp_path / 'parts', resume=True)
    far = max(float((whole[k] - parts[k]).abs().max()) for k in whole)
    print(f'\nstopped and resumed on {torch.cuda.get_device_name()}: weights differ by {far:.1e} at most')
    assert far < 1e-3
    steps = [
        json.loads(line)['step'] for line in (tmp_path / 'parts' / 'metrics.jsonl').read_text().splitlines()
    ]
    assert sorted(steps) == steps and len(set(steps)) == len(steps)


@pytest.mark.parametrize('name', ml.list_recipes())
def test_a_run_is_watched(name):
    "Forwards on the GPU, drawings on the CPU."
    pytest.importorskip('ipywidgets')
    from maskedlab.show.training import LiveView

    t = ml.Trainer(name, steps=2, batch=4, seed=0, show=False)
    t.view = LiveView(t, every=0, picture_every=0)
    t.fit(background=False)
    t.view.close()
    assert t.view.trouble is None and len(t.view.picture.value) > 500
