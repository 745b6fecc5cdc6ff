"""The tutorials, run: solved, each exercise says yes; with a wrong result planted in it, a tutorial fails.

Each run is a fork of this process, which has imported torch already; and behind the cell where a wrong result
is planted, another fork goes on with it, so that what comes before, such as a training, is run once. Where
there is no fork both are kernels.
As a learner runs them, unsolved and in a kernel, they are a stage of `lab.py test`.
"""
import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import signal
import sys
import threading

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
    'build_it': ('looks, losses, start', """
looks = {n: x.flip(0) for n, x in looks.items()}           # each answer to another picture
"""),
    'five': ('def paste(', """
right = visible_mean(truth, hidden) + .2                   # no answer of the network
"""),
    'words': ("'Each share at 0'", """
# what two trainings came to, exchanged
found['as BERT'], found['none stays'] = found['none stays'], found['as BERT']
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
    'teachers': ("runs['itself, stopped'] = ", """
runs['itself'] = runs['itself, stopped']                   # the gradient is stopped, whatever was asked for
"""),
    'learned': ('behind, score, nets = ', """
behind[20] = behind[budgets[-1]]                           # looked at only when all was over
"""),
    'inside': ('class OneLook(', """
whole = OneLook.forward                                    # looks at the view of another pair
OneLook.forward = lambda self, here, *there: whole(self, here, *(x.roll(1, 0) for x in there))
"""),
    'where': ('times_asked = ', """
difficulty = -difficulty                                   # the map upside down
"""),
    'time': ("'backwards': by_two.flip", """
beside_copy['backwards'] = beside_copy['as it was']        # the film was not turned round
"""),
    'sounds': ("arms = {'without'", """
arms = {'without': arms['with'], 'with': arms['without']}  # exchanged
"""),
}


def shell(nb, said, words, wrong):
    """In the fork: run the cells, send what they printed and the name of the exception that ended them.

    Behind each cell with these words something wrong is run in a fork of its own, which goes on from there.
    """
    from execnb.shell import CaptureShell
    from fastcore.nbio import dict2nb
    os.setsid()                     # to be ended with its own fork
    os.environ |= {'MASKEDLAB_BUDGET': 'test', 'OMP_NUM_THREADS': '1', 'IN_TEST': '1'}
    torch.set_num_threads(1)        # those of OpenMP do not survive a fork
    os.chdir(ROOT)
    nb, shell, planted = dict2nb(nb), CaptureShell(), False
    try:
        for cell in nb.cells:
            shell.cell(cell)
            if shell.exc: break
            if cell.cell_type == 'code' and words in cell.source:
                if planted:
                    shell.run(wrong)
                elif other := os.fork():
                    os.waitpid(other, 0)
                else:
                    planted, shell.loop = True, asyncio.new_event_loop()    # that of the shell is a thread
                    threading.Thread(target=shell.loop.run_forever, daemon=True).start()
                    shell.run(wrong)
        error = type(shell.exc).__name__ if shell.exc else ''
    except BaseException as e:
        error = type(e).__name__
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.get('outputs') or []]
    said.send((planted, error, [''.join(o.get('text') or '') for o in outputs]))
    said.close()
    if planted:
        os._exit(0)


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


@functools.cache
def run(tutorial):
    """A solved tutorial, with nothing planted (False) and with something wrong (True): of each the exception
    that ended it, or '', and what its cells said."""
    nb, known = json.loads(json.dumps(lesson(tutorial))), exercises(tutorial)
    words, wrong = PLANTED[tutorial]
    code = [cell for cell in nb['cells'] if cell['cell_type'] == 'code']
    for cell in code:
        solved = (f"{known[name].solution}\ncheck('{name}', {answer})\n"
                  for name, answer in CALL.findall(cell['source']))
        cell['source'] = ''.join(solved) or cell['source']
    if sys.platform != 'linux':
        found = {False: kernel(nb)}
        for cell in code:
            cell['source'] += wrong if words in cell['source'] else ''
        return found | {True: kernel(nb)}
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=shell, args=(nb, there, words, wrong))
    process.start()
    there.close()
    found = {}
    try:
        while False not in found:
            assert here.poll(300), f'{tutorial} did not end'
            planted, *found[planted] = here.recv()
        return found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_with_the_solutions_each_exercise_says_yes(tutorial):
    error, said = run(tutorial)[False]
    lines = [line for text in said for line in text.splitlines()]
    verdicts = [line for line in lines if line.startswith(('yes: ', 'hint: ', 'not yet: '))]
    known = exercises(tutorial)
    assert not error and verdicts == [f'yes: {known[name].praise}' for name in asked(lesson(tutorial))]


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_a_planted_wrong_result_makes_the_tutorial_fail(tutorial):
    error, _ = run(tutorial)[True]
    assert error == 'AssertionError'
