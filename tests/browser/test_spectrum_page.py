"""Frequencies as units: the explorer's page for spectra, in a real browser."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_time, pixels, ready, settled, stage

from maskedlab.masks.disc import Disc, paired
from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
SEES = 'What the network sees'


def equal(page, core):
    """Every drawing on the page is what the package computes; a browser keeps no colour where a picture is
    see-through."""
    for name, drawing in core.show(core.state).pictures.items():
        want, got = drawing.numpy(), pixels(page, core.menus.view().titles[name])
        assert np.array_equal(got[..., 3], want[..., 3]) and np.array_equal(got[want[..., 3] > 0],
                                                                            want[want[..., 3] > 0]), name


def at(page, row, column, side=64):
    box = stage(page, SEES).bounding_box()
    return box['x'] + (column + .5) * box['width'] / side, box['y'] + (row + .5) * box['height'] / side


def test_the_page_shows_what_the_package_computes(bare):
    core = Page('mfm', strategy=Disc(5, p=1))
    page = bare(core)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'spectrum.png'))
    assert '4027 of 4096 frequencies hidden' in page.locator('.mlx-status').inner_text()
    equal(page, core)
    for value in ('1', '3', '20', '45'):
        settled(page, lambda v=value: page.locator('[data-field=radius]').fill(v))
        assert core.state.fields['radius'] == float(value)
        equal(page, core)
    # the slider ends where the spectrum does; a number that is written is answered in a sentence
    assert page.locator('[data-field=radius]').get_attribute('max') == '45'
    page.locator('[data-number=radius]').fill('60')
    page.wait_for_function("document.querySelector('.mlx-alert').textContent.includes('choose a smaller "
                           "radius')")
    settled(page, lambda: page.locator('[data-field=radius]').fill('8'))
    assert page.errors == []


def test_painting_takes_twins_along_and_is_seen_at_once(bare):
    core = Page('mfm', mask=torch.zeros(64, 64, dtype=torch.bool))
    page = bare(core)
    whole = pixels(page, SEES).copy()
    assert (whole[..., 3] == 255).all()
    page.mouse.move(*at(page, 20, 10))
    page.mouse.down()
    page.mouse.move(*at(page, 20, 30))                   # one jump: the bins between are painted too
    now = pixels(page, SEES)                             # before any answer can have come
    page.mouse.up()
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20, 10:31] = True
    assert np.array_equal(now[..., 3] == 0, paired(mask).numpy())
    page.wait_for_function("document.querySelector('.mlx-status').textContent.startsWith('42 of 4096')")
    ready(page)
    assert torch.equal(core.show(core.state).mask, paired(mask)) and len(core.state.painted) == 42
    equal(page, core)
    page.mouse.move(*at(page, 44, 34))                   # a twin: showing it shows what was painted
    page.mouse.down()
    page.mouse.move(*at(page, 44, 54))
    assert np.array_equal(pixels(page, SEES), whole)     # the colours are there again, too
    page.mouse.up()
    page.wait_for_function("document.querySelector('.mlx-status').textContent.startsWith('0 of 4096')")
    ready(page)
    page.get_by_role('button', name='Brush of 7 by 7').click()
    settled(page, lambda: page.mouse.click(*at(page, 32, 32)))
    assert core.show(core.state).hidden == 49 and 'Slow waves are hidden' in page.locator(
        '.mlx-status').inner_text()
    page.locator('.mlx').screenshot(path=str(PICTURES / 'spectrum_painted.png'))
    assert page.errors == []


def test_keyboard_alone(bare):
    core = Page('mfm', strategy=Disc(5, p=0))
    page = bare(core)
    before = core.show(core.state).mask
    for _ in range(60):
        page.keyboard.press('Tab')
        if page.evaluate(f"(document.activeElement.getAttribute('aria-label') || '').startsWith('{SEES}')"):
            break
    page.keyboard.press('ArrowRight')
    settled(page, lambda: page.keyboard.press('Space'))
    assert core.show(core.state).mask[0, [1, 63]].all() and int(
        (core.show(core.state).mask != before).sum()) == 2
    page.keyboard.press('ArrowDown')
    assert 'Frequency -31 down, -31 to the right' in page.locator('.mlx-hear').inner_text()
    settled(page, lambda: page.keyboard.press('r'))
    assert core.state.painted is None
    assert page.errors == []


def test_from_pictures_to_spectra_and_back(bare):
    core = Page('mae')
    page = bare(core)
    settled(page, lambda: page.locator('.mlx-method').select_option('mfm'))
    assert stage(page, SEES).is_visible() and not page.locator('.mlx-is-attention').count()
    assert core.show(core.state).total == 4096 and 'frequencies hidden' in page.locator(
        '.mlx-status').inner_text()
    settled(page, lambda: page.locator('.mlx-method').select_option('mae'))
    assert stage(page, 'Attention').is_visible() and '48 of 64 patches' in page.locator(
        '.mlx-status').inner_text()
    assert page.errors == []


TIMES = '''async ([n, act]) => {
    const root = document.querySelector(".mlx"), times = [];
    for (let i = 0; i < n; i++) {
        const frame = (r) => () => requestAnimationFrame(r);
        const done = new Promise((r) => root.addEventListener("maskedlab:painted", frame(r), { once: true }));
        const start = performance.now();
        window[act](i);
        await done;
        times.push(performance.now() - start);
    }
    return times.slice(3); }'''


@pytest.mark.timed
def test_thirty_changes_within_the_bar(bare):
    # nearly all is hidden: the longest list that a page sends
    page = bare(Page('mfm', strategy=Disc(5, p=1)))
    page.evaluate('''() => {
        const slider = document.querySelector("[data-field=radius]");
        const seen = document.querySelector(".mlx-paint .mlx-stage");
        window.slide = (i) => { slider.value = String(2 + i); slider.dispatchEvent(new Event("input")); };
        seen.setPointerCapture = () => {};
        window.dab = (i) => {
            const box = seen.getBoundingClientRect();
            const here = { clientX: box.left + box.width * (i + 1.5) / 64,
                           clientY: box.top + box.height * .07, pointerId: 1 };
            for (const name of ["pointerdown", "pointerup"])
                seen.dispatchEvent(new PointerEvent(name, here));
        }; }''')
    for what in ('slide', 'dab'):
        times = page.evaluate(TIMES, [33, what])
        ready(page)
        assert page.errors == []
        in_time(f'spectrum, {what}', times, 100)


@pytest.mark.parametrize('width, dark', [(1240, True), (420, False)])
def test_dark_and_narrow(bare, width, dark):
    page = bare(Page('mfm', strategy=Disc(5, p=0)), width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    cut = page.evaluate('''[...document.querySelectorAll('.mlx button, .mlx h3, .mlx p, .mlx label')]
        .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)''')
    assert cut == []
    page.locator('.mlx').screenshot(path=str(PICTURES / f"spectrum_{width}{'_dark' if dark else ''}.png"))
