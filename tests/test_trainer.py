"""The trainer from outside: what it takes, what it leaves behind, how it ends, and one sentence for each
thing that goes wrong."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.masks.block import Block
from maskedlab.recipes.image.mae import MAE
from maskedlab.show.views.table import VIEWS
from maskedlab.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
TINY = dict(
    image=16,
    patch=4,
    dim=16,
    depth=1,
    heads=2,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    norm_pix=False,
)


pytestmark = pytest.mark.usefixtures('one_thread')


def make(recipe=None, data=None, **more) -> ml.Trainer:
    torch.manual_seed(0)
    return ml.Trainer(
        recipe or MAE(**TINY), data, **{**dict(steps=6, batch=8, seed=0, show=False, precision='no'), **more}
    )


def run(recipe=None, data=None, **more) -> list[float]:
    return [h['loss'] for h in make(recipe, data, **more).fit(background=False)]


def sentence(kind, function, *parts: str) -> str:
    with pytest.raises(kind) as e:
        function()
    text = str(e.value)
    assert len(text) <= 200 and '\n' not in text and all(p in text for p in parts), text
    return text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'pictures').mkdir()
    for i in range(10):
        x = (torch.rand(20 + i, 24, 3, generator=torch.Generator().manual_seed(i)) * 255).byte().numpy()
        Image.fromarray(x).save(tmp_path / 'pictures' / f'{i}.png')
    return tmp_path / 'pictures'


# ---------------------------------------------------------------- what it takes


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_importing_stays_light_and_a_live_view_comes_to_a_notebook_alone():
    """Who asks for the trainer in a kernel gets the view that adds itself; elsewhere nothing of it is
    imported; and it imports nothing dear itself. A fresh Python is asked once, in three forks."""
    code = """
import os, sys, maskedlab as ml, maskedlab.train.watch as watch
views = lambda: print([v.__name__ for v in watch.VIEWERS], 'maskedlab.show.training' in sys.modules)
def plain():
    ml.Trainer
    views()
def kernel():
    watch.in_kernel = lambda: True
    ml.Trainer
    views()
def light():
    import maskedlab.train.trainer, maskedlab.show.training
    dear = ('accelerate', 'rich', 'ipywidgets', 'plotly', 'IPython', 'anywidget', 'tensorboard')
    print([m for m in dear if m in sys.modules])
for how in (light, plain, kernel):
    if not os.fork():
        how()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    light, plain, *kernel = done.stdout.splitlines()
    assert light == '[]' and plain == '[] False', done.stderr
    if importlib.util.find_spec('ipywidgets'):
        assert kernel == ["['LiveView'] True"], done.stderr


@pytest.mark.quick
def test_it_learns():
    losses = run(
        ml.create_recipe('mae', image=32, patch=8, dim=32, depth=2, heads=2, decoder_dim=32, decoder_depth=1),
        steps=60,
        lr=3e-3,
    )
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_recipes_and_data_of_all_kinds(folder, tmp_path):
    (tmp_path / 'mine.py').write_text(
        f'from maskedlab.recipes.image.mae import MAE\nclass Mine(MAE): sizes = {{"micro": {TINY!r}}}\n'
    )
    mine = f'{tmp_path}/mine.py:Mine'
    assert run(mine) == run(mine)
    assert run(mine, folder) == run(mine, str(folder)) != run(mine)
    assert len(run(MAE(**TINY, channels=1), 'digits')) == 6
    batch = ml.sample('image', n=16, size=16)
    assert len(run(None, batch)) == len(run(None, [{'image': x} for x in batch['image']])) == 6
    assert len(run(None, (batch for _ in range(4)), steps=9)) == 4  # a stream that ends early
    torch.manual_seed(0)
    blocks = MAE(**TINY, strategy=Block(ratio=0.4))
    assert run(None, mask='Block(ratio=.4)') == run(blocks) != run()
    assert make(None, folder, steps=None, epochs=2.5, batch=5).steps == 5
    assert make(lr_base=1e-3, batch=64).lr == pytest.approx(2.5e-4)


def test_workers_change_nothing(folder):
    assert run(None, folder, workers=1) == run(None, folder)


def test_rates_groups_and_betas():
    t = make(steps=100, warmup=10, weight_decay=0.1, lr=1e-3)
    assert [g['weight_decay'] for g in t.learner.optimiser.param_groups] == [0.1, 0] and t.plan.betas == (
        0.9,
        0.95,
    )
    rates = [h['lr'] for h in t.fit(background=False)]
    assert (
        rates[0] == pytest.approx(5e-5)
        and max(rates) <= 1e-3
        and rates.index(max(rates)) in (9, 10)
        and 0 < rates[-1] < 1e-6
    )


def test_clip_is_heeded():
    t = make(clip=1e-3)
    norms = []
    step = t.learner.optimiser.step
    t.learner.optimiser.step = lambda: (
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in t.recipe.parameters()]).item()),
        step(),
    )
    history = t.fit(background=False)
    assert all(h['gradient'] > 2e-3 for h in history) and max(norms) < 1.01e-3


def test_the_recipes_own_clip_is_the_default():
    "BEiT's is 3; inf means none, and a recipe that names none has none."
    own = lambda **more: make(recipe='beit', **more).plan.clip
    assert own() == 3 and own(clip=1.0) == 1 and own(clip=float('inf')) is None and make().plan.clip is None


def test_bf16_stays_close():
    plain = run()
    assert plain != run(precision='bf16') and all(
        abs(a - b) < 0.02 * a for a, b in zip(plain, run(precision='bf16'))
    )


def test_compiling_takes_the_repeated_blocks_and_renames_nothing():
    from maskedlab.train.step import compile_blocks

    r = MAE(**{**TINY, 'depth': 3})
    names = list(r.state_dict())
    assert compile_blocks(r) == 4 and list(r.state_dict()) == names


def test_the_readers_own_random_numbers_are_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(2).tolist()
    t = make()
    torch.manual_seed(7)
    t.fit(background=False)
    assert torch.rand(2).tolist() == expected


@pytest.mark.skipif(importlib.util.find_spec('ipywidgets') is None, reason='ipywidgets is not installed')
@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name', [n for n in ml.list_recipes() if ml.card(n).modality in VIEWS])
def test_watching_changes_nothing(name):
    """Samples drawn after each step, for each recipe: the weights are bit-equal, and there is something to
    see."""
    from maskedlab.show.training import LiveView

    def weights(watched):
        torch.manual_seed(0)
        t = make(name, steps=2, batch=4, accumulate=2)
        if watched:
            t.view = LiveView(t, every=0, picture_every=0)
        t.fit(background=False)
        if watched:
            assert t.view.trouble is None and len(t.view.picture.value) > 500 and t.view.bar.value == 2
            t.view.close()
            assert t.view.button.description == 'Done'
        return t.recipe.state_dict()

    alone, seen = weights(False), weights(True)
    assert all(torch.equal(v, seen[k]) for k, v in alone.items())


# ---------------------------------------------------------------- what it leaves behind


def test_metrics_and_checkpoints(tmp_path):
    t = make(out=tmp_path, steps=10, save_every=2, keep=2, ema=0.9)
    t.fit(background=False)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [r['step'] for r in rows] == list(range(10))
    assert rows[0].keys() == {'step', 'loss', 'pixels', 'lr', 'gradient', 'samples_per_second', 'waiting'}
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
        'LATEST',
        'step-000000008',
        'step-000000010',
    ]
    c = load_checkpoint(tmp_path / 'checkpoints')
    assert {'torch', 'numpy'} <= {
        k.partition('.')[2] for k in c.tensors['generators']
    } and '0.python' in c.state['generators']
    assert c.state['metrics_bytes'] == (tmp_path / 'metrics.jsonl').stat().st_size
    assert not list(tmp_path.rglob('*.pt')) + list(tmp_path.rglob('*.pkl'))
    again = ml.Trainer.resume(tmp_path, show=False)
    assert again.step == 10 and again.fit(background=False) == t.history and type(again.recipe) is MAE


def test_more_steps_than_planned(tmp_path):
    make(out=tmp_path, steps=4).fit(background=False)
    t = ml.Trainer.resume(tmp_path, steps=8, show=False)
    assert t.step == 4 and [h['step'] for h in t.fit(background=False)] == list(range(8))
    assert ml.Trainer.resume(tmp_path, show=False).steps == 8


# ---------------------------------------------------------------- how it ends

CHILD = '''
import sys, torch
torch.set_num_threads(1)
import maskedlab as ml
from maskedlab.recipes.image.mae import MAE
t = ml.Trainer(MAE(**TINY), steps=100_000, batch=8, seed=0, out=sys.argv[1], save_every=100_000, show=False)
t.watch = lambda step, losses: print(step, flush=True)
try: t.fit()
except KeyboardInterrupt: print('interrupted at', t.step, flush=True)
'''.replace('TINY', repr(TINY))


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_ctrl_c_ends_between_two_steps_with_a_checkpoint(tmp_path):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    # a shell has it ignored for what runs in the background, and a child would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    p = subprocess.Popen(
        [sys.executable, '-c', CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    )
    signal.signal(signal.SIGINT, before)
    assert p.stdout is not None
    while int(p.stdout.readline()) < 5:
        pass
    p.send_signal(signal.SIGINT)
    last = p.communicate(timeout=60)[0].splitlines()[-1]
    assert p.returncode == 0 and last.startswith('interrupted at')
    assert load_checkpoint(tmp_path / 'checkpoints').step == int(last.split()[-1])


def test_background_stop_wait_and_a_second_fit():
    t = make(steps=100_000)
    assert t.fit(background=True) is t and t.running
    sentence(ValueError, make().fit, 'a run is on', 'stop()')
    sentence(ValueError, t.fit, 'a run is on')
    while t.step < 3:
        time.sleep(0.01)
    t.stop()
    assert 3 <= len(t.wait(60)) < 100_000 and not t.running
    step = t.step
    t.watch = lambda s, _: s == step + 1
    assert len(t.fit(background=True).wait(60)) == step + 2  # it goes on


def test_an_error_in_the_background_comes_back():
    t = make(lr=1e9, steps=300)
    t.fit(background=True)
    sentence(ValueError, lambda: t.wait(60), 'became')
    assert len(run()) == 6  # the way is free again


# ---------------------------------------------------------------- what goes wrong


def test_nan_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    t = make(out=tmp_path, steps=10, save_every=2)
    forward = t.recipe.forward

    def broken(batch, **k):
        out = forward(batch, **k)
        if t.step == 5:
            out.terms['pixels'] = out.terms['pixels'] * torch.nan
        return out

    t.recipe.forward = broken
    sentence(ValueError, lambda: t.fit(background=False), 'nan at step 5', 'lr=', 'step 4 is saved')
    c = load_checkpoint(tmp_path / 'checkpoints')
    assert c.step == 4 and all(v.isfinite().all() for v in c.tensors['model'].values())


def test_lost_and_broken_data(tmp_path, folder):
    t = make(None, ml.images(folder, memory=0, progress=False), out=tmp_path / 'run', steps=40, save_every=2)

    def lose(step, losses):
        if step == 5:
            folder.rename(tmp_path / 'elsewhere')

    t.watch = lose
    sentence(FileNotFoundError, lambda: t.fit(background=False), 'step 6', 'step 6 is saved')
    sentence(FileNotFoundError, lambda: make(None, folder), 'pictures')
    (tmp_path / 'elsewhere').rename(folder)
    t = make(
        None,
        ml.images(folder, memory=0, progress=False),
        out=tmp_path / 'run',
        steps=40,
        save_every=2,
        resume=True,
    )
    t.watch = lambda step, _: step == 7
    assert t.step == 6 and len(t.fit(background=False)) == 8
    (folder / '3.png').write_bytes((folder / '3.png').read_bytes()[:60])
    losses = []         # a neighbour stands in for the broken one, whoever reads
    for workers in (0, 1):
        t = make(None, ml.images(folder, memory=0, progress=False, check=False), workers=workers)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            losses.append(t.fit(background=False))
        assert workers or any('3.png' in str(w.message) for w in said)
    assert losses[0] == losses[1]


def test_another_recipe_or_another_run(tmp_path):
    make(out=tmp_path).fit(background=False)
    sentence(ValueError, lambda: make(out=tmp_path), 'resume=True')
    sentence(
        ValueError,
        lambda: make(ml.create_recipe('simmim', image=32, cell=16), out=tmp_path, resume=True),
        'simmim',
    )
    wider = lambda **more: make(MAE(**{**TINY, 'dim': 32}), out=tmp_path, resume=True, **more)
    sentence(ValueError, wider, 'recipe.dim=16, here it is 32')
    sentence(ValueError, lambda: wider(change=True), 'does not fit MAE')
    for k, v in dict(batch=4, seed=1, ema=0.9).items():
        sentence(ValueError, lambda k=k, v=v: make(out=tmp_path, resume=True, **{k: v}), k)
    sentence(FileNotFoundError, lambda: ml.Trainer.resume(tmp_path / 'nothing'), 'run.json')


@pytest.mark.parametrize(
    'options, part',
    [
        (dict(batch=0), 'batch=0'),
        (dict(batch=9, accumulate=2), 'batch=9'),
        (dict(steps=2, epochs=2), 'epochs'),
        (dict(lr=-1), 'lr=-1'),
        (dict(lr=1, lr_base=1), 'lr_base=1'),
        (dict(precision='half'), "'half'"),
        (dict(ema=1.0), 'ema=1.0'),
        (dict(mask='Blok(ratio=.4)'), 'Blok'),
        (dict(data='digts'), 'digts'),
        (dict(workers=-1), 'workers=-1'),
        (dict(keep=0), 'keep=0'),
        (dict(clip=0), 'clip=0'),
        (dict(tensorboard=True), 'out='),
    ],
)
def test_bad_options(options, part):
    data = options.pop('data', None)
    sentence((ValueError, FileNotFoundError), lambda: make(None, data, **options).fit(background=False), part)


def test_an_option_of_another_kind():
    sentence(TypeError, lambda: make(steps=1.5), 'steps=1.5')


def test_tensorboard_is_a_switch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    sentence(ValueError, make(out=tmp_path, tensorboard=True).fit, 'pip install tensorboard')
    written = []

    class Board:
        def __init__(self, folder, purge_step):
            written.append(purge_step)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append('closed')

    import types

    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', types.SimpleNamespace(SummaryWriter=Board))
    make(out=tmp_path / 'b', tensorboard=True).fit(background=False)
    assert (
        written[0] == 0
        and ('loss', 0) in written
        and ('lr', 5) in written
        and written[-1] == 'closed'
        and len(written) == 2 + 6 * 4
    )


def test_tensorboard_reads_back_what_was_trained(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = make(out=tmp_path, tensorboard=True, steps=4).fit(background=False)
    assert len(list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))) == 1
    rows = ml.Trainer.resume(tmp_path, steps=6, show=False).fit(background=False)  # goes on in a second file
    assert len(list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))) == 2
    board = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert set(board.Tags()['scalars']) == rows[0].keys() - {'step'} and rows[:4] == first
    for name in board.Tags()['scalars']:
        seen = board.Scalars(name)
        assert [s.step for s in seen] == list(range(6)) and [s.value for s in seen] == pytest.approx(
            [r[name] for r in rows], rel=1e-6
        )


class Viewed:
    "A view that knows whether it was shown and closed."
    def __init__(self, trainer):
        self.seen, self.trainer = [], trainer

    def show(self):
        self.seen.append('shown')

    def update(self):
        self.seen.append(self.trainer.step)

    def close(self):
        self.seen.append('closed')


@pytest.fixture
def kernel(monkeypatch):
    "As in the kernel of a notebook that can show a run."
    monkeypatch.setattr('maskedlab.train.trainer.in_kernel', lambda: True)
    monkeypatch.setattr('maskedlab.train.watch.VIEWERS', [Viewed])


def test_in_a_notebook_a_run_is_shown_and_waited_for(kernel):
    t = make(steps=3, show=True, log_every=1)
    history = t.fit()
    assert len(history) == 3 and not t.running and t.waited
    assert t.view.seen == ['shown', 1, 2, 3, 'closed']
    assert [h['step'] for h in history] == [0, 1, 2] and '\n' not in repr(make(steps=9).fit())
    assert repr(make(steps=9).fit()).startswith('9 steps, loss ')
    t = make(steps=100_000, show=True, log_every=1)
    assert t.fit(background=True) is t and t.running and not t.waited
    t.stop()
    assert len(t.wait(60)) < 100_000 and t.view.seen[-1] == 'closed'


def test_who_reads_a_recipe_that_is_being_trained_is_told():
    t, b = make(steps=100_000), ml.sample('image', n=2, size=16)
    t.recipe(b)
    t.fit(background=True)
    try:
        for ask in (lambda: t.recipe(b), lambda: t.recipe.features(b)):
            with pytest.warns(UserWarning, match='mae is being trained in the background.*wait'):
                ask()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            t.recipe.units(b)               # of the data alone
            ml.create_recipe(MAE, **TINY)(b)
    finally:
        t.stop()
        t.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t.recipe(b)


def test_a_log_without_a_terminal_has_lines(capfd):
    make(steps=40, show=True, log_every=1).fit()
    lines = capfd.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 12 and lines[-1].startswith('step 40 of 40 · mae loss ')
    assert all(line.isprintable() for line in lines)


def test_weights_load_at_every_checkpoint_of_a_run(tmp_path):
    b = ml.sample('image', n=2, size=16)
    seen = {}
    t = make(steps=3, out=tmp_path, save_every=1, keep=3, ema=.9)
    t.watch = lambda step, _: seen.update({step + 1: None})
    t.fit()
    folders = sorted((tmp_path / 'checkpoints').glob('step-*'))
    assert [int(f.name[5:]) for f in folders] == [1, 2, 3]
    found = [ml.create_recipe(f) for f in folders]
    assert all(type(r) is MAE and r.config['norm_pix'] is False for r in found)
    assert torch.equal(found[-1].features(b), t.recipe.eval().features(b))
    assert not torch.equal(found[0].features(b), found[1].features(b))
    assert torch.equal(ml.create_recipe(tmp_path).features(b), found[-1].features(b))
