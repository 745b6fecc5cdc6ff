"""The explorer's page of clips in a real browser: one clock, strokes through time, a copy beside the
network."""
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_time, pixels, ready, repaints, settled, stage

from maskedlab.masks import Frames
from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
SIDE, STEPS, CELLS = 32, 8, 4           # of `micro`: pixels of a frame, time steps, cubes of a side


def of_frame(sheet, i):
    "One frame of a sheet of sixteen."
    r, c = divmod(i, 4)
    return sheet[r * SIDE:(r + 1) * SIDE, c * SIDE:(c + 1) * SIDE]


def in_step(page, core, i):
    "Every panel has frame i on view, as the package draws it."
    d = core.show(core.state)
    for name, sheet in d.pictures.items():
        shown = pixels(page, core.menus.view().titles[name])
        assert shown.shape == (SIDE, SIDE, 4)
        same = np.array_equal(shown, of_frame(sheet.numpy(), i))        # apart, or pytest spells out both
        assert same, (name, i)


def frame_of(page):
    return int(page.locator('.mlx-frame').input_value())


def test_all_panels_show_the_same_frame(bare):
    core = Page('videomae')
    page = bare(core)
    in_step(page, core, 0)
    page.locator('.mlx-on').click()
    page.locator('.mlx-on').click()
    in_step(page, core, 2)
    page.locator('.mlx-back').click()
    in_step(page, core, 1)
    page.locator('.mlx-frame').fill('13')
    in_step(page, core, 13)
    page.locator('.mlx-on').click(click_count=3)
    assert frame_of(page) == 0                          # behind the last comes the first
    assert 'frame 1 of 16' in page.locator('.mlx-clock').inner_text()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'film.png'))
    assert page.errors == []


def test_it_plays_pauses_and_knows_speeds(bare):
    page = bare(Page('videomae'))
    play = page.locator('.mlx-play')
    assert play.inner_text() == 'Play' and frame_of(page) == 0      # nothing moves before one asks
    play.click()
    page.wait_for_function("document.querySelector('.mlx-frame').value > 2")
    assert play.inner_text() == 'Pause'
    play.click()
    held = frame_of(page)
    page.wait_for_timeout(400)
    assert frame_of(page) == held and play.inner_text() == 'Play'
    turns = '''async (speed) => {
        const select = document.querySelector('.mlx-speed'), slider = document.querySelector('.mlx-frame');
        select.value = speed; select.dispatchEvent(new Event('change'));
        const real = window.setInterval, asked = [];
        window.setInterval = (f, ms) => { asked.push(ms); return real(f, ms); };
        document.querySelector('.mlx-play').click();
        document.querySelector('.mlx-play').click();
        window.setInterval = real;
        return asked[0]; }'''
    slow, fast = page.evaluate(turns, '0.25'), page.evaluate(turns, '2')
    assert slow == pytest.approx(8 * fast) and page.errors == []


@pytest.mark.parametrize('tube', [True, False])
def test_a_stroke_is_a_tube_or_a_moment(bare, tube):
    core = Page('videomae', mask=torch.zeros(STEPS, CELLS, CELLS, dtype=torch.bool))
    page = bare(core)
    page.locator(f'[data-tube={str(tube).lower()}]').click()
    page.locator('.mlx-frame').fill('6')                        # of step 3, counted from 0
    box = stage(page, 'What the network sees').bounding_box()
    cell = box['width'] / CELLS
    at = lambda r, c: (box['x'] + (c + .5) * cell, box['y'] + (r + .5) * cell)

    def stroke():
        page.mouse.move(*at(1, 0))
        page.mouse.down()
        page.mouse.move(*at(1, 2))
        page.mouse.up()

    settled(page, stroke)
    want = torch.zeros(STEPS, CELLS, CELLS, dtype=torch.bool)
    want[:, 1, :3] = tube
    want[3, 1, :3] = True
    assert torch.equal(core.show(core.state).mask, want)
    for i in (6, 0, 15):
        page.locator('.mlx-frame').fill(str(i))
        in_step(page, core, i)
    assert page.errors == []


def test_a_stroke_is_seen_before_any_answer_in_every_frame(bare):
    core = Page('videomae', mask=torch.zeros(STEPS, CELLS, CELLS, dtype=torch.bool))
    page = bare(core)
    page.evaluate("void (window.ask = () => new Promise(() => {}))")       # Python is silent
    box = stage(page, 'What the network sees').bounding_box()
    page.mouse.move(box['x'] + 5, box['y'] + 5)
    page.mouse.down()
    page.mouse.up()
    for i in (0, 9):
        page.locator('.mlx-frame').fill(str(i))
        now = pixels(page, 'What the network sees')
        assert (now[:8, :8, 3] == 0).all() and (now[8:, :, 3] == 255).all()
    page.mouse.down()
    page.mouse.up()                                                 # and shown again, from the original
    same = np.array_equal(pixels(page, 'What the network sees'), pixels(page, 'Original'))
    assert same


def test_a_cube_looks_at_all_times_and_keys_walk_through_them(bare):
    core = Page('videomae')
    page = bare(core)
    visible = int((~core.show(core.state).mask).flatten().nonzero()[0])     # as it is in all steps
    page.locator('.mlx-frame').fill('4')
    box = stage(page, 'Original').bounding_box()
    r, c = divmod(visible, CELLS)
    at = dict(x=(c + .5) * box['width'] / CELLS, y=(r + .5) * box['height'] / CELLS)
    settled(page, partial(stage(page, 'Original').click, position=at))
    assert core.state.look == 2 * CELLS ** 2 + visible
    for i in (4, 11):
        page.locator('.mlx-frame').fill(str(i))
        in_step(page, core, i)
    assert 'step 3' in page.locator('.mlx-is-attention').inner_text()
    sees = stage(page, 'What the network sees')
    sees.focus()
    page.keyboard.press('.')
    assert frame_of(page) == 12
    page.keyboard.press(',')
    assert frame_of(page) == 11
    page.keyboard.press('p')
    assert page.locator('.mlx-play').inner_text() == 'Pause'
    page.keyboard.press('p')
    assert page.locator('.mlx-play').inner_text() == 'Play' and page.errors == []


def test_a_copy_from_the_nearest_time_stands_beside_the_network(bare):
    core = Page('videomae', strategy=Frames(.5))
    page = bare(core)
    d = core.show(core.state)
    copy, mean = d.scores['a copy from the nearest time'], d.scores['the mean of the visible']
    bars = page.locator('.mlx-bars').inner_text()
    assert copy > mean + 3 and f'{copy:.1f}' in bars and f"{d.scores['network']:.1f}" in bars
    assert f'{copy:.1f} dB' in page.locator('.mlx-is-copy').inner_text()
    assert page.errors == []


def test_codes_of_a_clip_beside_each_other_and_a_count_that_stands_still(bare):
    core = Page('sigma')
    page = bare(core)
    d, titles = core.show(core.state), core.menus.view().titles
    for i in (0, 9):
        page.locator('.mlx-frame').fill(str(i))
        for name in ('told', 'named'):
            same = np.array_equal(pixels(page, titles[name]), of_frame(d.pictures[name].numpy(), i))
            assert same, (name, i)
        same = np.array_equal(pixels(page, titles['use'])[..., 3], d.pictures['use'][0].numpy()[..., 3])
        assert same, i
    assert 'of 48 prototypes' in page.locator('.mlx-is-told').inner_text()
    status = page.locator('.mlx-status').inner_text()
    assert 'Prototypes in use: ' in status and 'Deviation: ' in status and 'by chance 2.0' in status
    hidden = int(d.mask.flatten().nonzero()[0])
    page.locator('.mlx-frame').fill('0')
    box = stage(page, 'Original').bounding_box()
    r, c = divmod(hidden, CELLS)
    at = dict(x=(c + .5) * box['width'] / CELLS, y=(r + .5) * box['height'] / CELLS)
    settled(page, partial(stage(page, 'Original').click, position=at))
    assert 'Asked for prototype' in page.locator('.mlx-is-attention').inner_text()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'codes_of_a_clip.png'))
    assert page.errors == []


def test_other_kinds_have_no_clock_and_it_stops_when_one_leaves(bare):
    page = bare(Page('videomae'))
    page.locator('.mlx-play').click()
    settled(page, partial(page.locator('.mlx-method').select_option, 'mae'))
    assert page.locator('.mlx-clock').count() == 0 and page.locator('.mlx-reach').count() == 0
    settled(page, partial(page.locator('.mlx-method').select_option, 'videomae'))
    ready(page)
    assert page.locator('.mlx-play').inner_text() == 'Play' and page.errors == []


def test_from_the_slider_to_the_repainted_clip(bare):
    page = bare(Page('videomae'))
    in_time('a clip of 16 frames', repaints(page, .1, .02), 300)
