"""The sheet of a class: some exercises are solved, some wrong, one notebook is broken, and none is run."""
import csv
import json
from pathlib import Path

import nbformat
import pytest

from maskedlab.cli import main
from maskedlab.course.exercises import Verdict, exercises, judge
from maskedlab.course.grade import grade

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(exercises('see_it'))


def handed_in(path, verdicts):
    "The first tutorial as a learner would hand it in, with these verdicts below its checks."
    book = nbformat.read(ROOT / 'tutorials' / '01_see_it.ipynb', 4)
    for cell in book.cells:
        name = next((n for n in NAMES if f"check('{n}'" in cell.source), None)
        if name in verdicts:
            v = verdicts[name]
            cell.outputs = [nbformat.v4.new_output(
                'display_data', {'text/plain': repr(v), 'text/html': v._repr_html_()})]
    nbformat.write(book, path)


@pytest.fixture
def folder(tmp_path):
    right = {n: judge(exercises('see_it')[n], exercises('see_it')[n].run(exercises('see_it')[n].solution))
             for n in NAMES}
    (tmp_path / 'class' / 'row 2').mkdir(parents=True)
    handed_in(tmp_path / 'class' / 'ann.ipynb', right)
    some = {NAMES[0]: right[NAMES[0]], NAMES[1]: Verdict('hint', 'Not yet one number for each.'),
            NAMES[2]: judge(exercises('see_it')[NAMES[2]], ...)}
    handed_in(tmp_path / 'class' / 'row 2' / 'ben.ipynb', some)
    handed_in(tmp_path / 'class' / '=cmd.ipynb', {})
    (tmp_path / 'class' / 'broken.ipynb').write_text('{"cells": [')
    (tmp_path / 'class' / 'notes.txt').write_text('no notebook')
    return tmp_path / 'class'


def test_a_class_is_read(folder, capsys):
    out = folder.parent / 'answers.csv'
    assert main(['grade', str(folder), '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert f'{len(NAMES)} of {len(NAMES)} solved' in said and f'1 of {len(NAMES)} solved, 2 tried' in said
    assert 'broken.ipynb' in said and 'is no whole notebook' in said
    rows = {r['notebook']: r for r in csv.DictReader(out.open())}
    assert set(rows) == {'ann.ipynb', 'row 2/ben.ipynb', "'=cmd.ipynb", 'broken.ipynb'}
    assert [rows['ann.ipynb'][n] for n in NAMES] == ['yes'] * len(NAMES)
    ben = rows['row 2/ben.ipynb']
    assert [ben[n] for n in NAMES[:4]] == ['yes', 'hint', 'not yet', '']
    assert (ben['solved'], ben['tried'], ben['exercises']) == ('1', '2', str(len(NAMES)))
    assert rows["'=cmd.ipynb"]['solved'] == '0' and rows['broken.ipynb']['trouble']


def test_nothing_of_a_notebook_is_run(tmp_path):
    mark = tmp_path / 'ran'
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        f"open({str(mark)!r}, 'w').close()\ncheck('see_it/visible', 1)")])
    nbformat.write(book, tmp_path / 'evil.ipynb')
    assert grade(tmp_path).sheets[0].verdicts == {'see_it/visible': ''}
    assert not mark.exists()


@pytest.mark.parametrize('text', ['[]', '{"cells": 3}', '[' * 100_000, '{"cells": [1]}', '', '{}'])
def test_what_is_no_notebook_is_a_line_of_the_sheet(tmp_path, text):
    (tmp_path / 'a.ipynb').write_text(text)
    assert grade(tmp_path).sheets[0].trouble == 'is no whole notebook'


def test_thirty_notebooks_are_read_in_a_moment(folder):
    whole = json.loads((folder / 'ann.ipynb').read_text())
    for i in range(30):
        (folder / f'{i:02}.ipynb').write_text(json.dumps(whole))
    assert sum(s.solved == len(NAMES) for s in grade(folder).sheets) == 31


def test_an_empty_or_missing_folder(tmp_path, capsys):
    for place, says in ((tmp_path, 'holds no notebook'), (tmp_path / 'none', 'was not found')):
        assert main(['grade', str(place)]) != 0
        assert says in capsys.readouterr().err
