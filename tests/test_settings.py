"""Settings: who wins, which file counts, and what is said about a typing slip."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskedlab import settings as module
from maskedlab.settings import (
    SETTINGS,
    budget,
    device,
    find_ini,
    generator,
    setting,
    settings,
    settings_rows,
    under_test,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """An environment in which nothing is set, in an empty folder."""
    for name in list(os.environ):
        if name.startswith('MASKEDLAB_') or name == 'IN_TEST':
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ini(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'settings.ini').write_text(text, encoding='utf-8')


def test_defaults_without_any_file(monkeypatch):
    monkeypatch.setattr(module, 'find_ini', lambda: None)  # whatever may lie above the temporary folder
    assert {k: a.source for k, a in settings().items()} == dict.fromkeys(SETTINGS, 'default')
    assert (setting('device'), setting('seed'), setting('budget'),
            setting('precision')) == ('auto', 42, 'full', 'auto')
    assert setting('cache') == Path.home() / '.cache' / 'maskedlab'


def test_the_file_of_the_project_states_the_defaults():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    assert dict(parser['maskedlab']) == {k: s.default for k, s in SETTINGS.items()}


def test_file_then_environment(clean, monkeypatch):
    ini(clean, '[maskedlab]\nseed = 7\nbudget = test\n')
    assert settings()['seed'] == (7, str(clean / 'settings.ini'))
    monkeypatch.setenv('MASKEDLAB_SEED', '8')
    assert settings()['seed'] == (8, 'MASKEDLAB_SEED')
    assert under_test() and budget(1000, 20) == 20
    monkeypatch.setenv('MASKEDLAB_BUDGET', 'full')
    assert not under_test() and budget(1000, 20) == 1000


def test_the_nearest_file_with_our_section(clean, monkeypatch):
    ini(clean, '[maskedlab]\nseed = 1')
    ini(clean / 'a', '[maskedlab]\nseed = 2')
    ini(clean / 'a' / 'b', '[DEFAULT]\nlib_name = another\nseed = 3')
    (clean / 'a' / 'b' / 'c' / 'settings.ini').mkdir(parents=True)  # a folder of that name
    monkeypatch.chdir(clean / 'a' / 'b' / 'c')
    assert setting('seed') == 2
    assert find_ini(clean) == clean / 'settings.ini'


def test_a_file_of_somebody_else_may_be_anything(clean):
    (clean / 'settings.ini').write_bytes(b'\xff\xfe\x00 not text')
    assert setting('seed') == 42
    ini(clean, 'no section at all')
    assert setting('seed') == 42
    ini(clean, '# about [maskedlab]\n[other]\nx = 1\n')
    assert setting('seed') == 42


def test_files_are_read_when_asked(clean):
    for seed in 3, 4:
        ini(clean, f'[maskedlab]\nseed = {seed}')
        assert setting('seed') == seed


@pytest.mark.parametrize(
    'text, part',
    [
        ('sede = 7', "'sede'"),
        ('seed = 1.5', "'1.5'"),
        ('seed = -1', "'-1'"),
        ('seed =', "''"),
        ('device = gpu', "'gpu'"),
        ('device = cuda:', "'cuda:'"),
        ('cache =', "''"),
        ('budget = small', "'small'"),
        ('precision = float64', "'float64'"),
        ('seed', 'line 2'),
        ('seed = ' + '9' * 300, '999'),
        ('x' * 300 + ' = 1', 'xxx'),
    ],
)
@pytest.mark.parametrize('deep', [False, True])
def test_one_clear_sentence_for_a_bad_file(clean, monkeypatch, text, part, deep):
    folder = clean / ('d' * 100) / ('e' * 100) if deep else clean
    ini(folder, '[maskedlab]\n' + text)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError) as e:
        settings()
    said = str(e.value)
    assert part in said and 'settings.ini' in said and len(said) <= 200 and '\n' not in said


@pytest.mark.parametrize(
    'name, value', [('MASKEDLAB_SEED', 'seven'), ('MASKEDLAB_SEDE', '7'), ('MASKEDLAB_DEVICE', 'cuda:x'),
                    ('MASKEDLAB_' + 'X' * 300, '1')]
)
def test_one_clear_sentence_for_a_bad_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as e:
        settings()
    assert len(str(e.value)) <= 200 and name[-20:] in str(e.value)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'device'"):
        setting('devise')
    with pytest.raises(ValueError):
        setting(3)


def test_nbdev_test_means_the_test_budget(clean, monkeypatch):
    ini(clean, '[maskedlab]\nbudget = full')
    monkeypatch.setenv('IN_TEST', '1')
    assert under_test()
    monkeypatch.setenv('MASKEDLAB_BUDGET', 'full')
    assert not under_test()


def test_device(monkeypatch):
    import torch

    assert device().type in ('cpu', 'cuda')
    monkeypatch.setenv('MASKEDLAB_DEVICE', 'cpu')
    assert device() == torch.device('cpu')
    for name in 'cuda:99', 'xpu:99', 'mps:99':
        monkeypatch.setenv('MASKEDLAB_DEVICE', name)
        with pytest.raises(ValueError, match=name):
            device()


def test_generator_starts_at_the_seed(monkeypatch):
    import torch

    first = torch.rand(4, generator=generator())
    assert torch.equal(first, torch.rand(4, generator=generator()))
    monkeypatch.setenv('MASKEDLAB_SEED', '7')
    assert not torch.equal(first, torch.rand(4, generator=generator()))


def test_rows_are_what_the_command_prints():
    assert [r[0] for r in settings_rows()] == list(SETTINGS)
    assert all(isinstance(c, str) and c for r in settings_rows() for c in r)


def test_nothing_is_read_at_import(clean):
    ini(clean, '[maskedlab]\nsede = 7')
    done = subprocess.run(
        [sys.executable, '-c', 'import sys, maskedlab.settings; print("torch" in sys.modules)'],
        capture_output=True,
        text=True,
        cwd=clean,
        env={**os.environ, 'PYTHONPATH': str(Path(module.__file__).parents[1])},
    )
    assert done.stdout.strip() == 'False', done.stderr
