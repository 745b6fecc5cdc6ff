"""The course: its exercises and its notebooks. That the tutorials run as they are, unsolved, is a stage of `lab.py test` of its own."""
import base64
import json
import os
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from maskedlab.course.exercises import TUTORIALS, check, exercises, judge

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'tutorials').glob('*.ipynb'))
READ = {p.stem: nbformat.read(p, 4) for p in NOTEBOOKS}
ALL = [e for t in TUTORIALS for e in exercises(t).values()]
CALL = re.compile(r"^check\('([\w/]+)', (\w+)\)", re.M)


def asked(nb):
    """Names of the exercises that a notebook asks for, in order."""
    return [name for cell in nb.cells if cell.cell_type == 'code' for name, _ in CALL.findall(cell.source)]


def lesson(tutorial):
    """The notebook that asks for a tutorial's exercises."""
    found = [stem for stem, nb in READ.items() if any(name.startswith(f'{tutorial}/') for name in asked(nb))]
    assert len(found) == 1, f'{tutorial} should be asked for in one notebook, not in {found}'
    return READ[found[0]]


# ------------------------------------------------------------------------------------------------------------------ exercises

@pytest.mark.parametrize('e', ALL, ids=lambda e: e.name)
def test_the_solution_is_accepted_and_each_wrong_answer_meets_its_own_hint(e):
    assert judge(e, e.run(e.solution)).kind == 'yes'
    assert len(e.wrong) >= 3
    hints = []
    for source, words in e.wrong:
        verdict = judge(e, e.run(source))
        assert verdict.kind == 'hint' and words in verdict.text, (source, verdict)
        assert 'Traceback' not in verdict.text and len(verdict.text) < 260
        hints.append(verdict.text)
    assert len(set(hints)) == len(hints)


@pytest.mark.parametrize('e', ALL, ids=lambda e: e.name)
def test_an_unsolved_exercise_says_not_yet_and_an_exception_is_one_sentence(e, capsys):
    def to_do(*a, **k):
        raise NotImplementedError
    def broken(*a, **k):
        return {}['key']
    code = callable(e.run(e.solution))      # an answer may be a word or a number too
    for empty in (None, ..., *((lambda *a, **k: None, lambda *a, **k: ..., to_do) if code else ())):
        check(e.name, empty)
        assert capsys.readouterr().out.startswith('not yet: ')
    if not code: return
    check(e.name, broken)
    said = capsys.readouterr().out
    assert said.startswith('hint: Your code stopped') and 'KeyError' in said and said.count('\n') == 1
    for nonsense in (7, 'text', [1, 2]):
        check(e.name, nonsense)
        assert capsys.readouterr().out.startswith('hint: ')


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_each_exercise_stands_in_its_tutorial_with_hint_and_solution_folded(tutorial):
    nb = lesson(tutorial)
    known = exercises(tutorial)
    assert sorted(asked(nb)) == sorted(known) and len(known) >= 3
    for i, cell in enumerate(nb.cells):
        for name, answer in CALL.findall(cell.source) if cell.cell_type == 'code' else []:
            assert answer == known[name].answer
            folded = nb.cells[i + 1].source
            assert '<details><summary>Hint</summary>' in folded
            solution = re.search(r'<details><summary>Solution</summary>\n\n```python\n(.*?)```\n\n</details>', folded, re.S)
            assert solution and solution[1] == known[name].solution, f'the folded solution of {name} differs'


# ------------------------------------------------------------------------------------------------------------------ notebooks

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_tutorial_is_committed_clean_and_small(path):
    text = path.read_text(encoding='utf-8')
    nb = json.loads(text)
    assert len(text.encode()) <= 200_000
    assert 'widgets' not in nb['metadata'] and 'vnd.plotly' not in text and 'widget-state' not in text
    for cell in nb['cells']:
        assert not cell.get('outputs') and cell.get('execution_count') is None
        for data in cell.get('attachments', {}).values():
            assert all(len(base64.b64decode(v)) <= 60_000 for v in data.values())
        for name in re.findall(r'\(attachment:([^)]+)\)', ''.join(cell['source'])):
            assert name in cell['attachments']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_tutorial_opens_in_colab_and_says_what_it_takes(path):
    home = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']['Repository']
    cells = READ[path.stem].cells
    assert f'colab.research.google.com/github/{home.removeprefix("https://github.com/")}/blob/main/tutorials/{path.name}' in cells[0].source
    assert re.search(r'about \d+ (minutes|seconds)', cells[0].source)
    first = next(c.source for c in cells if c.cell_type == 'code')
    assert f"%pip install -q \"maskedlab[colab] @ git+{home}\"" in first and "'google.colab' in sys.modules" in first
    assert '## Common mistakes' in '\n'.join(c.source for c in cells)


# ------------------------------------------------------------------------------------------------------------------ running them

def run(nb):
    """Execute a notebook on the test budget; all that its cells said."""
    before = {k: os.environ.get(k) for k in ('MASKEDLAB_BUDGET', 'OMP_NUM_THREADS')}
    os.environ |= {'MASKEDLAB_BUDGET': 'test', 'OMP_NUM_THREADS': '1'}
    try:
        NotebookClient(nb, timeout=120, kernel_name='python3', resources={'metadata': {'path': str(ROOT)}}).execute()
    finally:
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})
    return [o.get('text') or o.get('data', {}).get('text/plain', '') for c in nb.cells if c.cell_type == 'code' for o in c.outputs]


def edited(tutorial, change):
    """A copy of a tutorial, its code cells changed."""
    nb = nbformat.from_dict(json.loads(json.dumps(lesson(tutorial))))
    for i, cell in enumerate(c for c in nb.cells if c.cell_type == 'code'):
        cell.source = change(i, cell.source)
    return nb


# What is planted, and behind which cells: those that hold these words.
FIRST = "'google.colab' in sys.modules"
PLANTED = {
    'see_it': (FIRST, """
import torch
from maskedlab.recipes.image.mae import MAE
from maskedlab.contract.units import place
def noise(self, batch, out, statistics='true'):
    g = torch.Generator().manual_seed(0)
    return out.units.put(batch, place(out.units.x, out.mask, torch.rand(out.pred.shape, generator=g)))
MAE.fill = noise
"""),
    'true': (FIRST, """
mask = ~mask
"""),
    'build_it': ('def paint(', """
whole = paint
def paint(*a, **k): return whole(*a, **k).flip(0)          # each answer to another picture
"""),
    'five': ('def paste(', """
right = visible_mean(truth, hidden) + .2                   # no answer of the network
"""),
}


def says_yes_to_its_solutions(tutorial):
    """With the solutions in their places, each exercise says yes, in the order of the page."""
    known = exercises(tutorial)

    def solve(i, source):
        return ''.join(f"{known[name].solution}\ncheck('{name}', {answer})\n" for name, answer in CALL.findall(source)) or source
    said = run(edited(tutorial, solve))
    verdicts = [t for t in said if t.startswith(('yes: ', 'hint: ', 'not yet: '))]
    assert verdicts == [f'yes: {known[name].praise}' for name in asked(lesson(tutorial))]


def fails_with(tutorial, words, wrong):
    """A wrong result behind the cells that hold some words makes the tutorial fail."""
    assert any(words in c.source for c in lesson(tutorial).cells)
    with pytest.raises(CellExecutionError, match='AssertionError'):
        run(edited(tutorial, lambda i, source: source + wrong if words in source else source))


@pytest.mark.parametrize('tutorial', PLANTED)
def test_with_the_solutions_each_exercise_says_yes(tutorial):
    says_yes_to_its_solutions(tutorial)


@pytest.mark.parametrize('tutorial', PLANTED)
def test_a_planted_wrong_result_makes_the_tutorial_fail(tutorial):
    fails_with(tutorial, *PLANTED[tutorial])
