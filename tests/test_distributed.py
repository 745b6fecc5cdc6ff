"""Two processes with half a batch each train what one process trains with the whole batch: every recipe, with
ragged texts and masks."""
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from test_parts import CASES as RECIPES
from test_parts import first_step, made

import maskedlab as ml
from maskedlab.masks.schedules import Uniform
from maskedlab.masks.strategies import Random
from maskedlab.recipes.image.mae import MAE
from maskedlab.recipes.image.simmim import SimMIM
from maskedlab.targets.transport import sinkhorn

ROOT = Path(__file__).parents[1]
TINY = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2,
            norm_pix=False)
CASES = {
    'equal counts': lambda: SimMIM(image=16, token=4, cell=4, dim=16, depth=1, heads=2, drop_path=0.),
    'key biases': lambda: MAE(**TINY),
    'ragged counts': lambda: MAE(**TINY, strategy=Random(Uniform(.1, .9)))}
BALANCED = lambda: ('balanced codes', made('sigma', rounds=10))
SCORES, PARTED = torch.linspace(-1, 1, 40 * 5).mul(99).sin().view(40, 5), [13, 27]


def train(folder: Path, case: str) -> ml.Trainer:
    "Twenty steps; keeps the gradients of the first, and the samples and masks that this process had."
    torch.manual_seed(0)
    t = ml.Trainer(CASES[case](), 'image', steps=20, batch=8, lr=1e-3, seed=3, precision='no', show=False)
    seen, clip, forward = [], t.learner.clip, t.recipe.forward

    def first(*a):
        norm = clip(*a)
        if t.step == 0 and t.rank == 0:
            save_file({k: p.grad.clone() for k, p in t.recipe.named_parameters() if p.grad is not None},
                      folder / f'{case} gradients')
        return norm

    def look(batch, *a, **k):
        out = forward(batch, *a, **k)
        seen.append({'image': batch['image'].sum((1, 2, 3)).tolist(),
                     'mask': out.mask.flatten(1).int().tolist()})
        return out

    t.learner.clip, t.recipe.forward = first, look
    history = t.fit(background=False)
    if t.rank == 0:
        save_file({k: v.clone() for k, v in t.recipe.state_dict().items()}, folder / f'{case} weights')
    (folder / f'{case} {t.rank}.json').write_text(
        json.dumps(dict(world=t.world, seen=seen, loss=[h['loss'] for h in history])))
    return t


def step(folder: Path, name: str, recipe=None, **words) -> ml.Trainer:
    "One step of a recipe; keeps its gradients, its buffers (queues among them) and its losses."
    losses, gradients, t = first_step(made(name) if recipe is None else recipe, **words)
    if t.rank == 0:
        save_file(gradients, folder / f'{name} step')
        save_file({k: v.clone() for k, v in t.recipe.named_buffers() if v.is_floating_point()},
                  folder / f'{name} buffers')
        (folder / f'{name} losses.json').write_text(json.dumps(losses))
    return t


if __name__ == '__main__':      # under torchrun
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    for c in CASES:
        last = train(Path(sys.argv[1]), c)
    for name, words in RECIPES:
        step(Path(sys.argv[1]), name, accumulate=2, **words)
    step(Path(sys.argv[1]), *BALANCED())
    save_file({'codes': sinkhorn(SCORES.split(PARTED)[last.rank])}, Path(sys.argv[1]) / f'codes {last.rank}')
    last.processes.accelerator.end_training()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    one, two = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    if torch.cuda.is_available():
        env['MASKEDLAB_DEVICE'] = 'cpu'
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node',
                           '2', __file__, str(two)],
                          env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for c in CASES:
        train(one, c)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name, words in RECIPES:
            step(one, name, **words)
        step(one, *BALANCED())
    torch.set_num_threads(threads)
    return one, two


def largest(a: Path, b: Path, but: str = '') -> float:
    "The largest difference of any number; `but` leaves tensors of that ending out."
    x, y = load_file(a), load_file(b)
    assert x.keys() == y.keys()
    return max(((x[k] - y[k]).abs().max().item() for k in x if not (but and k.endswith(but))), default=0.)


def test_there_were_two_with_samples_of_their_own(runs):
    one, two = runs
    whole = json.loads((one / 'equal counts 0.json').read_text())
    halves = [json.loads((two / f'equal counts {k}.json').read_text()) for k in (0, 1)]
    assert whole['world'] == 1 and [h['world'] for h in halves] == [2, 2]
    for all_, a, b in zip(whole['seen'], *(h['seen'] for h in halves), strict=True):
        assert set(a['image']).isdisjoint(b['image'])
        assert a['image'] + b['image'] == all_['image']         # together they had the whole batch
        assert a['mask'] + b['mask'] == all_['mask']            # with the same places hidden


def test_transport_is_balanced_over_all_processes(runs):
    "Though they have different numbers of rows."
    halves = [load_file(runs[1] / f'codes {k}')['codes'] for k in (0, 1)]
    assert [len(h) for h in halves] == PARTED
    assert (torch.cat(halves) - sinkhorn(SCORES)).abs().max() < 1e-6
    assert (halves[0] - sinkhorn(SCORES[:13])).abs().max() > .01      # balanced alone it is another plan


def test_equal_counts(runs):
    one, two = runs
    gradient, weights = (largest(one / f'equal counts {k}', two / f'equal counts {k}')
                         for k in ('gradients', 'weights'))
    print(f'\nequal counts: gradients of step 1 differ by {gradient:.1e}, weights after 20 steps by '
          f'{weights:.1e}')
    assert gradient < 1e-6 and weights < 1e-4
    a, b = (json.loads((f / 'equal counts 0.json').read_text())['loss'] for f in runs)
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-5


def test_biases_of_keys_are_noise(runs):
    """A bias of the keys changes no attention: its gradient is rounding alone, and Adam makes steps of full
    length of that."""
    one, two = runs
    gradient, biases = (largest(one / f'key biases {k}', two / f'key biases {k}')
                        for k in ('gradients', 'weights'))
    others = largest(one / 'key biases weights', two / 'key biases weights', but='qkv.bias')
    print(f'\nkey biases: gradients of step 1 differ by {gradient:.1e}, weights by {others:.1e}, biases of '
          f'keys by {biases:.1e}')
    assert gradient < 1e-6 and others < 1e-5 and biases < .05


def test_ragged_counts(runs):
    "Each process divides by what the whole batch hides, not by what it hides itself."
    one, two = runs
    a, b = (json.loads((f / 'ragged counts 0.json').read_text()) for f in runs)
    assert a['seen'][0]['mask'][:4] == b['seen'][0]['mask']
    gradient, weights = (largest(one / f'ragged counts {k}', two / f'ragged counts {k}', but=but)
                         for k, but in (('gradients', ''), ('weights', 'qkv.bias')))
    print(f'\nragged counts: gradients of step 1 differ by {gradient:.1e}, weights after 20 steps by '
          f'{weights:.1e}')
    assert gradient < 1e-6 and weights < 1e-4
    assert max(abs(x - y) for x, y in zip(a['loss'], b['loss'], strict=True)) < 1e-5


@pytest.mark.parametrize('name', [*(name for name, _ in RECIPES), BALANCED()[0]])
def test_two_processes_of_two_rounds_have_the_gradient_of_one_batch(runs, name):
    one, two = runs
    size = max(v.abs().max() for v in load_file(one / f'{name} step').values())
    assert largest(one / f'{name} step', two / f'{name} step') < 1e-5 * max(size, 1)
    assert largest(one / f'{name} buffers', two / f'{name} buffers') < 1e-5
    a, b = (json.loads((f / f'{name} losses.json').read_text()) for f in runs)
    assert b == pytest.approx(a, rel=1e-5)
