"""How a run ends: by a signal, a full disk, a lost log, a folder that cannot be flushed; and what may be
other when it goes on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from given import own_tokenizer

import maskedlab as ml
from maskedlab import cli
from maskedlab.contract import disk
from maskedlab.recipes.image.mae import MAE
from maskedlab.train import background
from maskedlab.train.checkpoint import checkpoints, load_checkpoint

ROOT = Path(__file__).parents[1]
TINY = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
DATA = dict(image=torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def make(out, **more):
    words = dict(steps=8, batch=4, seed=0, save_every=3, show=False, precision='no')
    torch.manual_seed(0)
    return ml.Trainer(MAE(**TINY), more.pop('data', DATA), out=out, **{**words, **more})


def sentence(kind, function, *parts):
    """One sentence that names the value and the remedy."""
    with pytest.raises(kind) as e:
        function()
    text = str(e.value)
    assert len(text) <= 200 and '\n' not in text and all(p in text for p in parts), text


def at_step(step, what):
    return lambda n, losses: what() and None if n == step else None


# -------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def usual():
    """Signals as a program finds them: a shell has them ignored for what runs in the background."""
    plain = {signal.SIGINT: signal.default_int_handler}
    numbers = [getattr(signal, n) for n in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, n)]
    before = {n: signal.signal(n, plain.get(n, signal.SIG_DFL)) for n in numbers}
    yield
    for n, handler in before.items():
        signal.signal(n, handler)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP', 'SIGINT'])
def test_a_signal_ends_between_two_steps_with_a_checkpoint_and_one_sentence(name, tmp_path, capfd, usual):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    t = make(tmp_path, watch=at_step(4, lambda: os.kill(os.getpid(), number)))
    kind = KeyboardInterrupt if name == 'SIGINT' else SystemExit
    with pytest.raises(kind) as e:
        t.fit(background=False)
    if kind is SystemExit:
        assert e.value.code == 128 + number
    said = [line for line in capfd.readouterr().err.splitlines() if 'stopped' in line]
    assert len(said) == 1 and 'step 5 of 8; step 5 is saved, and resume goes on there' in said[0]
    assert load_checkpoint(tmp_path / 'checkpoints').step == 5 and signal.getsignal(number) is before
    whole = make(None).fit(background=False)
    assert make(tmp_path, resume=True).fit(background=False) == whole


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    "As under nohup."
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        t = make(tmp_path, watch=at_step(4, lambda: os.kill(os.getpid(), signal.SIGHUP)))
        assert len(t.fit(background=False)) == 8
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_of_ones_own_is_called_after_the_checkpoint(tmp_path):
    found = []
    before = signal.signal(signal.SIGTERM, lambda *_: found.append(load_checkpoint(tmp_path / 'checkpoints')))
    try:
        t = make(tmp_path, watch=at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert len(t.fit(background=False)) == 5 and found[0].step == 5
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_end_of_the_process_ends_a_run_in_the_background_first(tmp_path, capfd):
    "What Python calls at its end, and what a kernel that is shut down or a server that gets SIGTERM does."
    t = make(tmp_path, steps=10**6, save_every=10**6)
    t.fit(background=True)
    while t.step < 3:
        time.sleep(0.001)
    background.finish_running()
    assert not t.running and load_checkpoint(tmp_path / 'checkpoints').step == t.step
    assert f'step {t.step} is saved' in capfd.readouterr().err


ENDING = '''
import os, sys, time
import torch
torch.set_num_threads(1)
sys.path[:0] = [ROOT, TESTS]
import test_ends, maskedlab.recipes.image.mae
lives = []
for how in ('last line', 'SIGTERM', 'group'):
    pid = os.fork()
    if pid:
        if how != 'last line':
            while not os.path.exists(f'{sys.argv[1]}/{how}/begun'): time.sleep(.01)
            (os.kill if how == 'SIGTERM' else os.killpg)(pid, 15)
        _, status = os.waitpid(pid, 0)
        lives.append(os.waitstatus_to_exitcode(status))
        continue
    os.setpgid(0, 0)
    def begun(step, losses):
        if step == 2: open(f'{sys.argv[1]}/{how}/begun', 'w').close()
    t = test_ends.make(f'{sys.argv[1]}/{how}', steps=10**6, save_every=10**6, watch=begun,
                       workers=int(how == 'group'))
    t.fit(background=how != 'group')
    while how == 'SIGTERM': time.sleep(.01)
    while t.step < 2: time.sleep(.01)
    break
else:
    print(lives)
'''.replace('ROOT', repr(str(ROOT))).replace('TESTS', repr(str(ROOT / 'tests')))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_processes_that_end_leave_a_checkpoint(tmp_path):
    "A script whose last line begins a run, one that gets SIGTERM, and one whose whole group gets it."
    done = subprocess.run(
        [sys.executable, '-c', ENDING, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == '[0, 143, 143]', done.stdout + done.stderr
    for how in ('last line', 'SIGTERM', 'group'):
        assert load_checkpoint(tmp_path / how / 'checkpoints').step >= 2, how
    assert done.stderr.count('is saved, and resume goes on there') == 3 and 'Traceback' not in done.stderr


def test_a_notebook_that_ends_in_fit_leaves_a_checkpoint(tmp_path, capfd):
    "As nbconvert runs it: after the last cell the kernel is shut down."
    client, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    cell = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import test_ends, time
t = test_ends.make({str(tmp_path)!r}, steps=10**6, save_every=10**6)
t.fit(background=True)
while t.step < 2: time.sleep(.01)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    client.NotebookClient(notebook, kernel_name='python3', timeout=300).execute()
    assert load_checkpoint(tmp_path / 'checkpoints').step >= 2
    assert 'is saved, and resume goes on there' in capfd.readouterr().err


# ---------------------------------------------------------------------------------- disks, logs and readers


@pytest.mark.parametrize('number', [errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_is_used_with_a_warning(number, tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if os.path.isdir(f'/proc/self/fd/{handle}'):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.warns(UserWarning, match='cannot flush'):
        make(tmp_path).fit(background=False)
    assert load_checkpoint(tmp_path / 'checkpoints').step == 8
    with pytest.warns(UserWarning, match='cannot flush'):
        MAE(**TINY).save_pretrained(tmp_path / 'weights')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full_or_broken_is_an_error(number, tmp_path, monkeypatch):
    make(tmp_path, watch=lambda n, _: n == 3).fit(background=False)
    t = make(tmp_path, resume=True)
    monkeypatch.setattr(disk.os, 'fsync', lambda handle: (_ for _ in ()).throw(OSError(number, 'x')))
    sentence(OSError, lambda: t.fit(background=False), str(tmp_path)[-20:])
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / 'checkpoints').step == 4
    assert make(tmp_path, resume=True).fit(background=False) == make(None).fit(background=False)


def test_a_log_that_cannot_be_written_stops_nothing_and_is_whole_in_the_end(tmp_path):
    t = make(tmp_path)
    real = t.folder.file._file

    class Full:
        "A disk that takes half a row at steps 2 to 4."

        def __init__(self, file):
            self.file = file

        def write(self, data):
            if 2 <= t.step - 1 <= 4:
                self.file.write(data[:20])
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    t.folder.file._file = lambda: Full(real())
    with pytest.warns(UserWarning, match='the disk is full') as said:
        history = t.fit(background=False)
    assert len(said) == 1
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [r['step'] for r in rows] == list(range(8))
    assert [r['loss'] for r in rows] == [h['loss'] for h in history]


@pytest.mark.parametrize('damage', ['missing', 'cut', 'nonsense', 'longer'])
def test_a_damaged_log_does_not_stop_a_whole_checkpoint(damage, tmp_path):
    make(tmp_path, watch=lambda n, _: n == 4).fit(background=False)
    log = tmp_path / 'metrics.jsonl'
    data = log.read_bytes()
    if damage == 'missing':
        log.unlink()
    else:
        damaged = dict(cut=data[:250], nonsense=b'\xff\0{[' + data[4:], longer=data + b'{"step": 9')
        log.write_bytes(damaged[damage])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        t = make(tmp_path, resume=True)
        t.fit(background=False)
    assert bool(said) == (damage != 'longer') and all('rows' in str(w.message) for w in said)
    for k, v in make_whole().state_dict().items():
        assert v.equal(t.recipe.state_dict()[k]), k
    lines = log.read_bytes().splitlines()
    assert b'\0' not in log.read_bytes().replace(b'\xff\0{[', b'') and json.loads(lines[-1])['step'] == 7


def make_whole():
    t = make(None)
    t.fit(background=False)
    return t.recipe


def test_a_log_that_is_taken_away_in_mid_run(tmp_path):
    with pytest.warns(UserWarning, match='was taken away'):
        make(tmp_path, watch=at_step(4, (tmp_path / 'metrics.jsonl').unlink)).fit(background=False)
    assert [json.loads(r)['step'] for r in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == [5, 6, 7]


def test_a_folder_that_is_taken_away_in_mid_run_comes_back_whole(tmp_path):
    out = tmp_path / 'run'
    with pytest.warns(UserWarning, match='was taken away'):
        make(out, watch=at_step(4, lambda: shutil.rmtree(out))).fit(background=False)
    assert ml.Trainer.resume(out, data=DATA, show=False).step == 8


def test_nobody_watches_any_more_and_the_run_goes_on(tmp_path, monkeypatch):
    class Closed:
        isatty = staticmethod(lambda: False)
        encoding = 'utf-8'

        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

        flush = write

    monkeypatch.setattr(sys, 'stderr', Closed())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert len(make(tmp_path, show=True).fit(background=False)) == 8
    assert load_checkpoint(tmp_path / 'checkpoints').step == 8


def test_data_that_end_leave_a_checkpoint_of_all_that_was_learned(tmp_path):
    t = make(tmp_path, save_every=100)
    source = t.source.batch

    def batch(positions):
        if positions.start >= 20:
            raise OSError('the share is gone')
        return source(positions)

    t.source.batch = batch
    sentence(ValueError, lambda: t.fit(background=False), 'step 5', 'the share is gone; step 5 is saved')
    again = make(tmp_path, resume=True, save_every=100)
    assert again.fit(background=False) == make(None).fit(background=False)


# ------------------------------------------------------------------------------- one owner, no litter


def test_a_second_run_is_turned_away_and_the_first_goes_on(tmp_path):
    asked = []
    code = 'import sys, maskedlab.contract.disk as d; d.locked(d.Path(sys.argv[1])).__enter__()'
    words = [sys.executable, '-c', code, str(tmp_path)]

    def ask():
        asked.append(subprocess.run(words, capture_output=True, text=True, cwd=ROOT))

    assert len(make(tmp_path, watch=at_step(4, ask)).fit(background=False)) == 8
    assert asked[0].returncode and 'another process is writing into' in asked[0].stderr


def test_a_run_that_went_on_elsewhere_is_not_gone_on_with(tmp_path):
    make(tmp_path, watch=lambda n, _: n == 3).fit(background=False)
    one, two = (make(tmp_path, resume=True) for _ in range(2))
    assert len(one.fit(background=False)) == 8
    sentence(ValueError, lambda: two.fit(background=False), 'went on elsewhere')
    assert load_checkpoint(tmp_path / 'checkpoints').step == 8


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_in_half(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    real = shutil.rmtree
    deleted = []

    def rmtree(path, **more):
        deleted.append(path)
        next(p for p in path.iterdir() if p.name == 'model.safetensors').unlink()
        raise Killed

    t = make(tmp_path, save_every=1, keep=2)
    monkeypatch.setattr(disk.shutil, 'rmtree', rmtree)
    with pytest.raises(Killed):
        t.fit(background=False)
    monkeypatch.setattr(disk.shutil, 'rmtree', real)
    assert deleted and all((p / 'model.safetensors').exists() for p in checkpoints(tmp_path / 'checkpoints'))
    assert any(disk.is_litter(p) for p in (tmp_path / 'checkpoints').iterdir())
    make(tmp_path, resume=True, save_every=1, keep=2).fit(background=False)
    assert not [p for p in tmp_path.rglob('*') if disk.is_litter(p)]


def test_a_kill_before_the_oldest_checkpoint_goes_leaves_none_too_many(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill_at_the_last(path):
        if [p.name[-1] for p in checkpoints(tmp_path / 'checkpoints')][-1:] == ['8']:
            raise Killed
        disk.remove(path)

    with monkeypatch.context() as m:
        m.setattr('maskedlab.train.checkpoint.remove', kill_at_the_last)
        with pytest.raises(Killed):
            make(tmp_path, save_every=1, keep=2).fit(background=False)
    assert len(checkpoints(tmp_path / 'checkpoints')) == 3
    make(tmp_path, resume=True, save_every=1, keep=2).fit(background=False)
    assert [p.name[-1] for p in checkpoints(tmp_path / 'checkpoints')] == ['7', '8']


def test_a_kill_in_the_final_save_leaves_no_weights_without_provenance(tmp_path, monkeypatch, capsys):
    run = tmp_path / 'run'
    words = ['train', 'mae', '--size', 'micro', '--steps', '2', '--batch', '2', '--out', str(run)]
    monkeypatch.setattr('maskedlab.instruments.held_out.held_out', lambda *a, **k: {})

    class Killed(BaseException):
        pass

    def kill_at_provenance(path):
        if 'provenance' in path.name:
            raise Killed

    with monkeypatch.context() as m:
        m.setattr(disk, 'delete', lambda path: None)  # a process that was killed tidies nothing up
        m.setattr('maskedlab.contract.saved.delete', lambda path: None)
        m.setattr('maskedlab.contract.saved.sync', kill_at_provenance)
        with pytest.raises(Killed):
            cli.main(words)
    assert not (run / 'model.safetensors').exists() and any(map(disk.is_litter, run.iterdir()))
    assert cli.main([*words, '--resume']) == 0
    assert not any(map(disk.is_litter, run.iterdir()))
    assert {'model.safetensors', 'config.json', 'provenance.json'} <= {p.name for p in run.iterdir()}


def test_what_a_killed_save_left_is_swept_a_day_later(tmp_path):
    "Not before: two processes may save into one folder at once."
    for name, age in (('young', 60), ('old', 2 * disk.DAY)):
        left = disk.aside_of(tmp_path / name)
        left.write_text('half')
        os.utime(left, (time.time() - age,) * 2)
    MAE(**TINY).save_pretrained(tmp_path)
    left = [p for p in tmp_path.iterdir() if disk.is_litter(p)]
    assert left == [disk.aside_of(tmp_path / 'young')]


def test_overwrite_forgets_at_the_first_step_and_not_before(tmp_path):
    make(tmp_path).fit(background=False)
    again = make(tmp_path, overwrite=True, seed=1)
    assert load_checkpoint(tmp_path / 'checkpoints').step == 8
    again.steps, again.watch = 8, lambda n, _: n == 1
    again.fit(background=False)
    assert load_checkpoint(tmp_path / 'checkpoints').step == 2
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2


def test_a_failed_start_does_not_block_its_correction(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('maskedlab.instruments.held_out.held_out', lambda *a, **k: {})
    out = tmp_path / 'run'
    words = ['train', 'mae', '--size', 'micro', '--batch', '2', '--steps', '1', '--out', str(out)]
    assert cli.main([*words, '--lr', '1e30', '--clip', 'inf', '--steps', '9', '--save-every', '9']) == 2
    assert (out / 'run.json').exists() and 'became' in capsys.readouterr().err
    assert cli.main(words) == 0
    assert cli.main(words) == 2 and 'is not empty' in capsys.readouterr().err
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('')
    assert cli.main([*words[:-1], str(tmp_path / 'mine')]) == 2


# ------------------------------------------------------------------------------- going on with something else

CHANGES = dict(lr=0.01, mask='Random(ratio=0.5)', accumulate=2, clip=0.5, warmup=3, weight_decay=0.3, seed=1,
               augment=False, batch=2, data=dict(image=DATA['image'].flip(0)))  # fmt: skip


@pytest.mark.parametrize('name', CHANGES)
def test_a_changed_setting_is_named_and_refused_but_for_who_means_it(name, tmp_path):
    first = dict(data='image') if name == 'augment' else {}
    make(tmp_path, **first, watch=lambda n, _: n == 4).fit(background=False)
    change = {name: CHANGES[name]}
    called = dict(mask='recipe.strategy', data='content').get(name, name)
    sentence(ValueError, lambda: make(tmp_path, **{**first, **change}, resume=True), f'{called}=', '--change')
    with pytest.warns(UserWarning, match=f'{called}='):
        t = make(tmp_path, **{**first, **change}, resume=True, change=True)
    t.fit(background=False)
    assert called in t.folder.changed[0] and t.folder.changed[0]['step'] == 5
    assert called in load_checkpoint(tmp_path / 'checkpoints').state['changed'][0]


def test_another_argument_of_the_recipe_is_a_change(tmp_path):
    make(tmp_path, watch=lambda n, _: n == 4).fit(background=False)
    words = dict(recipe=MAE(**TINY, norm_pix=False), data=DATA, show=False)
    other = lambda **more: ml.Trainer.resume(tmp_path, **words, **more)
    sentence(ValueError, other, 'recipe.norm_pix=True, here it is False')
    assert other(change=True).recipe.config['norm_pix'] is False
    by_class = ml.Trainer.resume(tmp_path, recipe=MAE, data=DATA, show=False)
    assert by_class.recipe.config['dim'] == 16


def test_other_pictures_in_as_many_files(tmp_path):
    from PIL import Image

    for folder, shade in (('a', 0), ('b', 90), ('moved', 0)):
        (tmp_path / folder).mkdir()
        for i in range(8):
            Image.new('RGB', (16, 16), (shade + i, 9, 9)).save(tmp_path / folder / f'{i}.png')
    make(tmp_path / 'run', data=tmp_path / 'a', watch=lambda n, _: n == 4).fit(background=False)
    sentence(ValueError, lambda: make(tmp_path / 'run', data=tmp_path / 'b', resume=True), 'content=')
    with pytest.warns(UserWarning, match='data='):
        assert make(tmp_path / 'run', data=tmp_path / 'moved', resume=True).step == 5


def test_more_steps_are_said_and_done(tmp_path):
    make(tmp_path).fit(background=False)
    with pytest.warns(UserWarning, match='steps=8, here it is 10'):
        assert len(make(tmp_path, steps=10, resume=True).fit(background=False)) == 10


# ------------------------------------------------------------------------------- what can be opened


def test_a_run_and_its_checkpoints_open_as_anything_else(tmp_path):
    t = make(tmp_path, ema=0.9)
    t.fit(background=False)
    last = tmp_path / 'checkpoints' / 'step-000000008'
    for path in (tmp_path, last, last / 'model.safetensors'):
        for r in (ml.load_pretrained(path), ml.create_recipe(path) if path.is_dir() else None):
            if r is not None:
                assert all(v.equal(r.state_dict()[k]) for k, v in t.recipe.state_dict().items())
                assert not r.training and r.strategy == t.recipe.strategy
    older = ml.load_pretrained(tmp_path / 'checkpoints' / 'step-000000003')
    assert not older.state_dict()['encoder.norm.bias'].equal(t.recipe.state_dict()['encoder.norm.bias'])
    average = ml.load_pretrained(last / 'average.safetensors').state_dict()
    assert all(v.equal(average[k]) for k, v in t.averaged().state_dict().items())
    assert ml.card(tmp_path).title == ml.card('mae').title
    data = bytearray((last / 'model.safetensors').read_bytes())
    data[-3] ^= 64
    (last / 'model.safetensors').write_bytes(data)
    sentence(ValueError, lambda: ml.load_pretrained(tmp_path), 'is not what was written')


def test_of_a_run_that_went_on_the_newer_weights_are_opened(tmp_path):
    from maskedlab.contract.saved import save

    t = make(tmp_path)
    t.fit(background=False)
    save(t.recipe, tmp_path, step=t.step)
    final = t.recipe.state_dict()['encoder.norm.bias'].clone()
    assert ml.load_pretrained(tmp_path).state_dict()['encoder.norm.bias'].equal(final)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        more = make(tmp_path, steps=12, resume=True, watch=lambda n, _: n == 9)
    more.fit(background=False)
    newer = ml.load_pretrained(tmp_path).state_dict()['encoder.norm.bias']
    assert newer.equal(more.recipe.state_dict()['encoder.norm.bias']) and not newer.equal(final)


def test_new_files_have_the_users_rights(tmp_path):
    MAE(**TINY).save_pretrained(tmp_path)
    (tmp_path / 'plain').write_text('')
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_run_keeps_the_tokenizer_that_its_texts_are_cut_by(tmp_path):
    """Resumed or opened, a run of words cuts texts as it did, and no other data are suspected."""
    said = 'still waters run deep and the river runs on to the sea '
    own = own_tokenizer([said] * 9)
    (tmp_path / 'texts').mkdir()
    for i in range(4):
        (tmp_path / 'texts' / f'{i}.txt').write_text(said * 6)
    r = ml.create_recipe('bert_mlm', dim=16, depth=1, heads=2)
    r.tokenizer = own
    run = tmp_path / 'run'
    t = ml.Trainer(r, tmp_path / 'texts', steps=4, batch=2, seed=0, out=run, save_every=2, show=False,
                   watch=lambda n, _: n == 2)
    t.fit(background=False)
    again = ml.Trainer.resume(run, show=False)
    opened = [ml.create_recipe(str(p)) for p in (run, *(run / 'checkpoints').glob('step-*'))]
    for recipe in (again.recipe, *opened):
        assert recipe.tokenizer.get_vocab() == own.get_vocab()
    assert again.fit(background=False)[-1]['step'] == 3
