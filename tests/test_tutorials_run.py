"""The tutorials, run: solved, each exercise says yes; with a wrong result planted in it, a tutorial fails.

Each run is a fork of this process, which has imported torch already; where there is no fork it is a kernel.
As a learner runs them, unsolved and in a kernel, they are a stage of `lab.py test`.
"""
import json
import multiprocessing
import os
import sys

import nbformat
import pytest
import torch
from test_tutorials import CALL, ROOT, asked, lesson

from maskedlab.course.exercises import TUTORIALS, exercises

# What is planted, and behind which cells: those that hold these words.
FIRST = "'google.colab' in sys.modules"
PLANTED = {
    'see_it': (FIRST, """
import torch
from maskedlab.recipes.image.mae import MAE
def noise(self, batch, out, statistics='true'):
    g = torch.Generator().manual_seed(0)
    from maskedlab.contract.units import place
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
    'words': (FIRST, """
from maskedlab.parts.text import TiedHead
whole = TiedHead.forward
TiedHead.forward = lambda self, *a: whole(self, *a).roll(1, -1)     # says the next piece of the list
"""),
    'points': (FIRST, """
from maskedlab.parts.groups import GroupFiller
whole = GroupFiller.forward
# each answer at another centre
GroupFiller.forward = lambda self, *a, **k: whole(self, *a, **k).roll(1, 1)
"""),
    'targets': ('asked_of(photo)', """
# a teacher that says something new each time
net.features = lambda batch, pool=True: torch.randn(len(batch['image']), 64, 128)
"""),
    'teachers': ('def train(target', """
whole = train
# the gradient is stopped, whatever was asked for
def train(target, pull=pull, **more): return whole(target, **more)
"""),
}


def shell(nb, said):
    """In the fork: run the cells, send what they printed and the name of the exception that ended them."""
    from execnb.shell import CaptureShell
    from fastcore.nbio import dict2nb
    os.environ |= {'MASKEDLAB_BUDGET': 'test', 'OMP_NUM_THREADS': '1', 'IN_TEST': '1'}
    torch.set_num_threads(1)        # those of OpenMP do not survive a fork
    os.chdir(ROOT)
    nb, shell = dict2nb(nb), CaptureShell()
    try:
        shell.run_all(nb, exc_stop=True)
        error = ''
    except BaseException as e:
        error = type(e).__name__
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.get('outputs') or []]
    said.send((error, [''.join(o.get('text') or '') for o in outputs]))
    said.close()


def kernel(nb):
    """The same in a kernel of its own."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    nb = nbformat.from_dict(nb)
    try:
        where = {'metadata': {'path': str(ROOT)}}
        NotebookClient(nb, timeout=300, kernel_name='python3', resources=where).execute()
        error = ''
    except CellExecutionError as e:
        error = e.ename
    return error, [o.get('text', '') for c in nb.cells for o in c.get('outputs', [])]


def run(tutorial, change):
    """A tutorial with its code cells changed: the exception that ended it, or '', and what its cells said."""
    nb = json.loads(json.dumps(lesson(tutorial)))
    for cell in nb['cells']:
        if cell['cell_type'] == 'code':
            cell['source'] = change(cell['source'])
    if sys.platform != 'linux':
        return kernel(nb)
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=shell, args=(nb, there))
    process.start()
    there.close()
    try:
        assert here.poll(300), f'{tutorial} did not end'
        return here.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_with_the_solutions_each_exercise_says_yes(tutorial):
    known = exercises(tutorial)

    def solve(source):
        solved = (f"{known[name].solution}\ncheck('{name}', {answer})\n"
                  for name, answer in CALL.findall(source))
        return ''.join(solved) or source

    error, said = run(tutorial, solve)
    lines = [line for text in said for line in text.splitlines()]
    verdicts = [line for line in lines if line.startswith(('yes: ', 'hint: ', 'not yet: '))]
    assert not error and verdicts == [f'yes: {known[name].praise}' for name in asked(lesson(tutorial))]


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_a_planted_wrong_result_makes_the_tutorial_fail(tutorial):
    words, wrong = PLANTED[tutorial]
    assert any(words in c.source for c in lesson(tutorial).cells)
    error, _ = run(tutorial, lambda source: source + wrong if words in source else source)
    assert error == 'AssertionError'
