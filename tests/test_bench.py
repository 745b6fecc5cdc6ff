"""The benches: each table rehearsed at a size that costs seconds."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskedlab.cli import main

pytestmark = pytest.mark.skipif(not (Path(__file__).resolve().parents[1] / 'bench').is_dir(),
                                reason='no checkout')


def test_no_gpu_is_said_in_one_sentence(capsys):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert main(['bench', 'gpu']) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith('maskedlab: ') and 'GPU' in said and '\n' not in said


def test_few_rounds_are_not_saved(capsys):
    assert main(['bench', 'drop', '--rounds', '3', '--save']) == 2
    assert '--rounds 3' in capsys.readouterr().err


def test_installed_package_says_where_benches_are(monkeypatch, capsys, tmp_path):
    import maskedlab.cli
    monkeypatch.setattr(maskedlab.cli, '__file__', str(tmp_path / 'maskedlab' / 'cli.py'))
    assert main(['bench', 'drop']) == 2
    assert 'checkout' in capsys.readouterr().err


def test_step_and_sweep_in_small():
    from bench import step, sweep
    from bench.peers import OURS, Shape
    shape = Shape('test', 32, 2, 4, 16, 1, 4, 2)
    t = step.table(shape, 2, runs=0)
    assert t.rows[0][0] == OURS and t.markdown().count('| ') > 20
    ratios = sweep.table(shape, 2)
    assert [r[0] for r in ratios.rows] == ['0', '0.25', '0.5', '0.75', '0.9']
    work = list(ratios.numbers['operations'].values())
    assert work == sorted(work, reverse=True)


@pytest.mark.skipif(importlib.util.find_spec('transformers') is None, reason='transformers is not installed')
def test_peers_are_the_same_network():
    """Equal shapes: the others count the same operations; the kit, which embeds and predicts fewer patches,
    no more."""
    from bench.peers import OURS, PEERS, Shape, counted
    shape = Shape('test', 64, 2, 4, 32, 1, 4, 2)
    work = {k: counted(k, shape) for k, p in PEERS.items() if not p.missing}
    ours = work.pop(OURS)
    assert ours <= min(work.values()) and max(work.values()) < 1.1 * min(work.values()), (ours, work)


@pytest.mark.skipif(importlib.util.find_spec('transformers') is None, reason='transformers is not installed')
def test_text_in_small(monkeypatch):
    from bench import text
    monkeypatch.setattr(text, 'ROWS', 4)
    t = text.step_table(3000, 2, dim=64, depth=1)
    assert [r[0].strip() for r in t.rows][:2] == [text.THEIRS, text.OURS] and len(t.rows) == 5
    assert len(text.masks_table(2, ten=1).rows) == 5


def test_targets_stand_side_by_side(tmp_path, monkeypatch):
    "A row for each method, between untrained and raw input; what was found once is not computed again."
    import argparse

    from bench import targets
    from maskedlab.instruments import compare as c
    monkeypatch.setattr(targets, 'RESULTS', tmp_path)
    monkeypatch.setattr(targets, 'BUDGET', c.Budget(steps=1, batch=8, labels=(20,), few=20, tune=1, query=2))
    monkeypatch.setattr(c, 'peak_memory', lambda *a: 10 ** 6)
    labelled = c.labelled
    few = lambda batch: {k: v[::20] if torch.is_tensor(v) else v for k, v in batch.items()}
    monkeypatch.setattr(c, 'labelled', lambda *a: (labelled(*a)[0], few(labelled(*a)[1])))
    assert {'mae', 'simmim'} <= set(targets.entrants()) and 'bert_mlm' not in targets.entrants()
    a = argparse.Namespace(names=['mae', 'simmim'], jobs=1, seeds=2, rounds=1, save=True)
    table, = targets.tables(a)
    assert [r[0] for r in table.rows] == ['raw input', 'untrained', 'mae', 'simmim']
    assert table.rows[2][-4:] == ['1.00', '1.00', '1.00',
                                 '1'] and all(len(r) == len(table.columns) for r in table.rows)
    monkeypatch.setattr(c, 'one', lambda *a: 1 / 0)
    again, = targets.tables(a)
    assert again.rows == table.rows


def test_the_explorer_in_small():
    "A row for each kind of data; what a method does not have is an empty cell."
    from bench import explorer
    names = ['mae', 'bert_mlm', 'electra', 'point_mae']
    t = explorer.table(2, names, browser=False)
    assert [r[0] for r in t.rows] == names and t.columns[1:] == [*explorer.STAGES, 'repaint', '95th of it']
    assert all(cell for r in t.rows for cell in r[1:6]) and not any(r[-1] or r[-2] for r in t.rows)
    assert {r[0]: bool(r[6]) for r in t.rows} == {'mae': True, 'bert_mlm': True, 'electra': False,
                                                  'point_mae': True}


def test_the_explorer_is_repainted_in_a_browser():
    "In a process of its own: the browser tests may hold a browser in this one."
    pytest.importorskip('playwright.sync_api')
    code = ("from bench.explorer import repainted; t = repainted(['bert_mlm']);"
            " print({k: len(v) for k, v in t.items()})")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1], timeout=200)
    # {}: no browser is installed
    assert done.stdout.strip() in ("{'bert_mlm': 30}", '{}'), done.stderr[-2000:]


def test_the_help_of_compare_says_its_budget(capsys):
    from maskedlab.instruments.compare import Budget
    with pytest.raises(SystemExit):
        main(['compare', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    assert f'default: {Budget().steps}' in said and f'default: {Budget().tune}' in said


def test_a_dear_step_is_explained():
    import json

    from bench import targets
    from bench.tables import RESULTS
    text = targets.dear({'costs': {'mae': {'over': [1., .9, 1.1]}, 'selfie': {'over': [3., 2., 4.]},
                                   'other': {'over': [1.4, 1., 2.]}}})
    assert 'mae' not in text and 'selfie is over 1.3: its convnet' in text
    assert 'other is over 1.3: nobody' in text
    kept = json.loads((RESULTS / 'targets.json').read_text('utf-8'))
    over = [name for name, c in kept['numbers']['costs'].items() if c['over'][0] > 1.3]
    assert 'nobody' not in kept['about'] and all(f'{name} is over' in kept['about'] for name in over)


def test_what_the_tests_cost(tmp_path, capsys):
    "Files against their budgets, and a method's share: its notebooks, its own tests, its cases elsewhere."
    import json

    from bench import tests
    from bench.__main__ import main
    file = lambda seconds, budget, **cases: dict(seconds=seconds, processor=seconds, budget=budget, load=.5,
                                                 passed=1, failed=0, cases={k: v for k, v in cases.items()})
    contract = file(30., 60, **{'a[mae]': 2., 'a[point_mae]': 5., 'a[simmim-ragged]': 3., 'b': 7.})
    found = {'tests/test_mae.py': file(9., 8, **{'x[mae]': 1.}), 'nbs/recipes/image/mae.ipynb': file(4., 10),
             'tests/test_contract.py': contract,
             # two methods that are named by hand, as examples of what is tested
             'tests/test_device.py': file(5., 20, **{'test_a_step_never_waits_for_the_device[mae]': 5.})}
    found['tests/test_contract.py']['used'] = {'a[point_mae]': 4.}
    (tmp_path / 'times.json').write_text(json.dumps({'seconds': 40., 'cores': 2, 'files': found}))
    times = tests.read(tmp_path / 'times.json')
    assert tests.own(times)['mae'] == {'notebooks': 4., 'tests': 9., 'cases': 2.}
    assert tests.own(times)['simmim']['cases'] == 3.
    assert [tests.own(times, clock)['point_mae']['cases'] for clock in ('processor', 'seconds')] == [4., 5.]
    table = tests.files(times)
    assert table.numbers['over'] == ['tests/test_mae.py'] and table.numbers['seconds'][
        'tests/test_contract.py'] == 30
    assert 'mae' == tests.methods(times).rows[0][0] and '1 of' in tests.methods(times).about
    main(['tests', '--times', str(tmp_path / 'times.json')])
    said = capsys.readouterr().out
    assert '`maskedlab bench tests`' in said and str(tmp_path) not in said, 'a path of one machine'
    with pytest.raises(ValueError, match='holds no times'):
        tests.read(tmp_path / 'none.json')
