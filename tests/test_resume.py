"""A run that is killed again and again ends with the weights of the unbroken one, to the last bit."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.kills import nursery, trial
from maskedlab.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
STEPS, SAVE_EVERY = 60, 5

# The recipe has a dropout layer (global generator), BatchNorm statistics and, in `after_step`, a teacher and
# a draw from the global
# generators. Twelve photographs in batches of eight: every second checkpoint lies inside an epoch.
RECIPE = '''
import random, numpy, torch
from maskedlab.recipes.image.mae import MAE

class Nosy(MAE):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.norm, self.drop = torch.nn.BatchNorm1d(16), torch.nn.Dropout(.2)
        self.register_buffer('teacher', torch.zeros(16))
        self.encoder.norm.register_forward_hook(lambda norm, given, h: self.drop(self.norm(h.mT).mT))

    def after_step(self, out, progress):
        jitter = torch.rand(16) * random.random() * numpy.random.rand()
        self.teacher.mul_(.9).add_(self.encoder.norm.bias.detach() + jitter, alpha=.1)
'''

# What the test needs to know and to do is done from outside: the product has no hook for it. A child begins
# with generators of its own, as a new Python does.
CHILD = '''
import os, random, signal, sys, time
import numpy, torch
torch.set_num_threads(1)
random.seed()
numpy.random.seed()
from maskedlab.train import checkpoint
from maskedlab.train.trainer import Trainer
folder, recipe, die_in_save, die_at_call, workers = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

def step_taken(step, losses):
    print(step, flush=True)
    time.sleep(.004)

tiny = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2,
            norm_pix=False)
from maskedlab.contract.create import recipe_class
torch.manual_seed(3)
t = Trainer(recipe_class(recipe)(**tiny), 'image', steps=STEPS, batch=8, accumulate=2, ema=.99, lr=3e-3,
            clip=1., seed=5, precision='no', out=folder, resume=True, save_every=SAVE_EVERY, keep=2,
            show=False, workers=workers, watch=step_taken)

saves, calls = 0, 0
def dying(real):
    def call(*a, **k):
        global calls
        if saves == die_in_save:
            if calls == die_at_call: os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
        return real(*a, **k)
    return call
def counting(real):
    def call(*a, **k):
        global saves
        saves += 1
        return real(*a, **k)
    return call
if die_in_save:
    from maskedlab.train import folder as room
    room.save_checkpoint = counting(room.save_checkpoint)
    for f in ('fsync', 'rename', 'replace'): setattr(os, f, dying(getattr(os, f)))
print('begin', t.step, flush=True)
t.fit(background=False)
'''.replace('STEPS', str(STEPS)).replace('SAVE_EVERY', str(SAVE_EVERY))


# A process that has imported what is dear. For each line of words it has a child, which is CHILD; the answers
# are the child's number and, at its end, what it ended with.
NURSERY = '''
import json, os, signal, sys
import maskedlab.train.trainer, maskedlab.recipes.image.mae, maskedlab.data.samples
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if not pid:
        to = os.open(asked['out'], os.O_WRONLY)
        os.dup2(to, 1)
        os.close(to)
        sys.argv = asked['words']
        try:
            exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'), dict(__name__='__main__'))
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


class Life:
    "A child of a nursery, which has one at a time: a run, or a part of one."

    def __init__(self, nursery: subprocess.Popen, out: Path, words: list[str]):
        os.mkfifo(out)
        self.nursery = nursery
        nursery.stdin.write(json.dumps(dict(words=words, out=str(out))) + '\n')
        nursery.stdin.flush()
        self.pid = int(nursery.stdout.readline())
        self.said = open(out)

    def wait(self) -> int:
        "What it ended with; a negative number is a signal."
        code = int(self.nursery.stdout.readline())
        self.said.close()
        return code


def start(nursery: subprocess.Popen, folder: Path, child: Path, die_in_save: int = 0, die_at_call: int = 0,
          workers: int = 0) -> Life:
    words = [child, folder, f'{child.parent / "nosy.py"}:Nosy', die_in_save, die_at_call, workers]
    return Life(nursery, child.parent / f'said-{time.monotonic_ns()}', list(map(str, words)))


def rows(folder: Path) -> list[dict]:
    speed = ('samples_per_second', 'waiting')
    return [{k: v for k, v in json.loads(line).items() if k not in speed}
            for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_at_drawn_moments_and_inside_the_write(tmp_path):
    seed = int(os.environ.get('KILL_SEED', random.SystemRandom().randrange(10 ** 6)))
    print(f'\nKILL_SEED={seed}')
    r = random.Random(seed)
    child = tmp_path / 'child.py'
    child.write_text(CHILD)
    (tmp_path / 'nosy.py').write_text(RECIPE)
    broken = tmp_path / 'broken'
    # four moments at a step or shortly after it, and two in the middle of writing a checkpoint
    ends = [('step', s) for s in sorted(r.sample(range(2, STEPS - 2), 4))]
    for _ in range(2):
        ends.insert(r.randrange(4), ('write', r.randrange(0, 11)))
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    with subprocess.Popen([sys.executable, '-c', NURSERY], **pipes) as nursery:
        assert start(nursery, tmp_path / 'unbroken', child).wait() == 0
        for what, number in ends:
            p = start(nursery, broken, child, *((1, number) if what == 'write' else ()),
                      workers=r.randrange(2) if what == 'step' else 0)
            for line in p.said:
                if what == 'step' and line.strip().isdigit() and int(line) >= number:
                    time.sleep(r.random() * .01)
                    os.kill(p.pid, signal.SIGKILL)
                    break
            assert p.wait() == -signal.SIGKILL, (what, number)
            found = load_checkpoint(broken / 'checkpoints')
            print(f'killed in {what} {number}: last checkpoint', found and found.step,
                  [p.name for p in (broken / 'checkpoints').glob('*')])
        assert start(nursery, broken, child).wait() == 0
    a, b = (load_checkpoint(f / 'checkpoints') for f in (tmp_path / 'unbroken', broken))
    assert a is not None and b is not None and a.step == b.step == STEPS
    assert rows(tmp_path / 'unbroken') == rows(broken)
    for name in ('model', 'average', 'optimiser'):
        assert a.tensors[name].keys() == b.tensors[name].keys()
        for k, v in a.tensors[name].items():
            assert v.equal(b.tensors[name][k]), f'{name} {k} differs; KILL_SEED={seed}'
    assert a.tensors['model']['teacher'].abs().sum() > 0


@pytest.mark.parametrize('at', ['write_bytes', 'fsync'])
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, at):
    from maskedlab.recipes.image.mae import MAE
    from maskedlab.train.trainer import Trainer
    tiny = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
    t = Trainer(MAE(**tiny), steps=8, batch=4, seed=0, out=tmp_path, save_every=2, show=False,
                watch=lambda step, _: step == 3)
    t.fit(background=False)
    def full(*a):
        raise OSError(28, 'No space left on device')
    t.watch = None
    with monkeypatch.context() as m:
        m.setattr(*((Path, at) if at == 'write_bytes' else (os, at)), full)
        with pytest.raises(OSError) as e:
            t.fit(background=False)
    assert 'the disk is full' in str(e.value) and len(str(e.value)) <= 200 and '\n' not in str(e.value)
    found = load_checkpoint(tmp_path / 'checkpoints')
    assert found is not None and found.step == 4
    again = Trainer.resume(tmp_path, show=False)
    assert again.step == 4 and len(again.fit(background=False)) == 8


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_final_files_of_killed_runs_are_those_of_the_unbroken_one(tmp_path):
    "The small version of `maskedlab bench kills`."
    seed = int(os.environ.get('KILL_SEED', random.SystemRandom().randrange(10 ** 6)))
    print(f'\nKILL_SEED={seed}')
    # clouds: at its end a run over pictures is held beside inpainting, which takes ten times as long
    words = 'point_mae --size micro --batch 4 --ema .9 --steps 3 --save-every 1 --keep 2'
    with nursery() as at:
        found = trial(at, words.split(), 2, seed, tmp_path)
    assert found['kills'] == 2 and found['ends'] and not found['different'], found
