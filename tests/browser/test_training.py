"""A run in JupyterLab: watched, stopped by a click and by the kernel's interrupt, beside the explorer."""
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import in_lab, ready
from test_jupyterlab import MOVE

from maskedlab.train.checkpoint import load_checkpoint

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
LIMIT = 300     # milliseconds from slider to repaint while a run is on

# small networks on two cores: some ten steps a second, a thousand times more of them than the test waits for
CELL = '''import torch; torch.set_num_threads(1)
import maskedlab as ml
t = ml.Trainer({recipe!r}, steps=100_000, batch=16, seed=0, out={out!r}, save_every=100_000)
t.fit(background=True)
print('the cell is through')'''


def numbers(page):
    return page.locator('.widget-html-content', has_text='step').first.inner_text()


@pytest.fixture
def training(browser, jupyter, tmp_path):
    pages = []
    def begin(name, recipe='mae', more=''):
        cell = CELL.format(recipe=recipe, out=str(tmp_path / name)) + more
        page = in_lab(browser, jupyter, cell, name, explorer=bool(more))
        pages.append(page)
        page.wait_for_function("() => /step [1-9]/.test(document.body.innerText)", timeout=120_000)
        return page, tmp_path / name / 'checkpoints'
    yield begin
    for p in pages:
        p.context.close()


def run_cell(page, text):
    "Type into the last cell and run it."
    page.locator('.jp-Notebook .jp-CodeCell .cm-content').last.click()
    page.keyboard.insert_text(text)
    page.keyboard.press('Shift+Enter')


# one of each view: what a recipe shows of itself is tested without a browser
@pytest.mark.parametrize('recipe', ['bert_mlm', 'point_mae'])
def test_the_stop_button_in_mid_run(training, recipe):
    page, checkpoints = training(f'stop-{recipe}', recipe)
    assert 'the cell is through' in page.locator('.jp-Notebook').inner_text()       # fit() returned at once
    page.wait_for_function("() => [...document.querySelectorAll('.widget-image')]"
                           ".some((i) => i.naturalWidth > 100)", timeout=60_000)
    page.wait_for_selector('.widget-html-content svg polyline[points*=" "]', state='attached', timeout=60_000)
    early = numbers(page)
    # it moves
    page.wait_for_function("(early) => !document.body.innerText.includes(early)", arg=early, timeout=60_000)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f'training-{recipe}.png')
    run_cell(page, 't.fit()')           # a second one says that one is on
    page.wait_for_function("() => document.body.innerText.includes('a run is on')", timeout=30_000)
    assert load_checkpoint(checkpoints) is None
    page.locator('button.jupyter-button', has_text='Stop').click()
    page.wait_for_function("() => /stopped; fit\\(\\) goes on from step \\d+/.test(document.body.innerText)",
                           timeout=30_000)
    found = load_checkpoint(checkpoints)
    assert found is not None and 0 < found.step < 100_000 and f'from step {found.step}' in numbers(page)


def test_the_kernels_interrupt(training):
    page, checkpoints = training('interrupt')
    run_cell(page, "h = t.wait(); print('waited for', len(h))")
    page.wait_for_timeout(500)
    page.evaluate("document.activeElement.blur()")
    page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    page.wait_for_function("() => /waited for \\d+/.test(document.body.innerText)", timeout=30_000)
    assert load_checkpoint(checkpoints) is not None
    run_cell(page, "t.fit(background=True); print('again')")    # and once more, with the kernel idle
    page.wait_for_function("() => [...document.querySelectorAll('.jupyter-button')]"
                           ".filter((b) => b.innerText.includes('Stop')).length > 1",
                           timeout=30_000)
    page.wait_for_timeout(1000)
    page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    run_cell(page, "h = t.wait(60); print('ended', t.running)")
    page.wait_for_function("() => /ended False/.test(document.body.innerText)", timeout=60_000)


@pytest.mark.timed
def test_the_explorer_stays_quick_while_a_run_is_on(training):
    # drawing clouds takes the longest: what holds beside that run holds beside one of pictures
    page, _ = training('explore', 'point_mae', more="\nml.Explorer('mae')")
    ready(page)
    page.evaluate(MOVE, .5)
    saw = []
    for _ in range(3):                  # two cores may be shared with others: the best of three rounds counts
        times = []
        for value in [round(float(x), 2) for x in np.arange(.1, .9, .1)]:
            times.append(page.evaluate(MOVE, value))
            ready(page)         # the slow baseline too: it takes the processor that the next picture needs
        saw.append(float(np.median(times)))
        print(f'slider to repaint while a run is on: median {saw[-1]:.0f} ms, worst {max(times):.0f} ms')
        if saw[-1] <= LIMIT: break
    assert saw[-1] <= LIMIT, saw
    assert 'stopped' not in numbers(page)
