"""The view of a run in a window of 1400 x 900: the curve stands beside the samples, without scrolling."""
import os
from pathlib import Path

import pytest
from conftest import in_lab

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
CELL = '''import torch; torch.set_num_threads(1)
import maskedlab as ml
t = ml.Trainer({recipe!r}, steps=100_000, batch=16, seed=0)
t.fit(background=True)
print('the cell is through')'''


@pytest.mark.parametrize('recipe', ['mae', 'bert_mlm'])
def test_the_curve_is_in_the_first_screen(browser, jupyter, recipe):
    cell, window = CELL.format(recipe=recipe), dict(width=1400, height=900)
    page = in_lab(browser, jupyter, cell, f'curve-{recipe}', explorer=False, viewport=window)
    try:
        page.wait_for_function("() => /step [1-9]/.test(document.body.innerText)", timeout=120_000)
        page.wait_for_selector('.widget-html-content svg polyline[points*=" "]', timeout=60_000)
        page.wait_for_function("() => [...document.querySelectorAll('.widget-image')]"
                               ".some((i) => i.naturalWidth > 100)", timeout=60_000)
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f'run-{recipe}.png')
        for part in ('.widget-html-content svg', 'button.jupyter-button'):
            box = page.locator(part).first.bounding_box()
            assert box['y'] > 0 and box['y'] + box['height'] <= 900 and box['x'] + box['width'] <= 1400, part
        samples = page.locator('.widget-image').first.bounding_box()
        assert 0 < samples['y'] < 450, 'the samples begin in the upper half'
        page.locator('button.jupyter-button', has_text='Stop').click()
        page.wait_for_function("() => /stopped; fit/.test(document.body.innerText)", timeout=30_000)
    finally:
        page.context.close()
