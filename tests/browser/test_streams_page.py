"""The explorer's page of two streams in a real browser: clip and sound in one page, each painted and hidden
by itself."""
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pixels, settled, stage

from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
SEES, HEARS = 'What the network sees', 'What the network sees (sound)'
CUBES, STEPS, BANDS = 64, 8, 4          # of `micro`: cubes of the clip, patches of the sound


def masks(core):
    "What is hidden of clip and sound."
    mask = core.show(core.state).mask
    return mask[:CUBES], mask[CUBES:].view(STEPS, BANDS)


def same_as_computed(page, core, frame=0):
    "Clips show this frame of what the package draws, spectra all of it."
    titles, streams = core.menus.view().titles, core.menus.view().parts
    for name, drawing in core.show(core.state).pictures.items():
        shown, want = pixels(page, titles[name]), drawing.numpy()
        if streams[name] == 'video':
            r, c = divmod(frame, 3)
            want = want[32 * r:32 * r + 32, 32 * c:32 * c + 32]
        equal = shown.shape == want.shape and np.array_equal(shown[shown[..., 3] > 0], want[want[..., 3] > 0])
        assert equal, name


def press(page, title, button):
    figure = page.locator('.mlx-figure', has=page.locator(f'h3:text-is("{title}")'))
    settled(page, partial(figure.get_by_role('button', name=button, exact=True).click))


def test_both_streams_are_shown_painted_and_hidden_each_by_itself(bare):
    core = Page('hicmae')
    page = bare(core, height=1500)
    same_as_computed(page, core)
    page.locator('.mlx-frame').fill('5')
    same_as_computed(page, core, 5)
    clip, sound = masks(core)
    returned = core.show(core.state).pictures['returned']

    press(page, HEARS, 'Hide all')                  # what does the picture give of the sound?
    now = masks(core)
    assert torch.equal(now[0], clip) and now[1].all()
    assert not torch.equal(core.show(core.state).pictures['returned'], returned)
    assert (pixels(page, HEARS)[..., 3] == 0).all()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'streams.png'))
    plays = page.locator('[data-plays="sound-returned"]')
    page.get_by_role('button', name='The sound that it returns').click()
    plays.wait_for(state='attached')
    press(page, HEARS, 'Show all')
    bars = page.locator('.mlx-bars').inner_text()
    assert not masks(core)[1].any() and 'sound: network\n–' in bars
    press(page, SEES, 'Hide all')
    now = masks(core)
    assert now[0].all() and not now[1].any()
    press(page, SEES, 'Reset')
    assert all(torch.equal(a, b) for a, b in zip(masks(core), (clip, sound)))
    assert page.errors == []


def test_a_stroke_over_the_sound_hides_the_patches_under_it(bare):
    core = Page('hicmae', mask=torch.zeros(CUBES + STEPS * BANDS, dtype=torch.bool))
    page = bare(core, height=1500)
    box = stage(page, HEARS).bounding_box()
    at = lambda step, band: (box['x'] + (step + .5) * box['width'] / STEPS,
                             box['y'] + (BANDS - band - .5) * box['height'] / BANDS)

    def stroke():                                   # low tones are below, time goes to the right
        page.mouse.move(*at(2, 0))
        page.mouse.down()
        page.mouse.move(*at(5, 0))
        page.mouse.up()

    settled(page, stroke)
    want = torch.zeros(STEPS, BANDS, dtype=torch.bool)
    want[2:6, 0] = True
    clip, sound = masks(core)
    assert torch.equal(sound, want) and not clip.any()
    same_as_computed(page, core)
    sees = stage(page, HEARS)
    sees.focus()
    page.keyboard.press('Home')
    page.keyboard.press('ArrowDown')                # from the highest band of the first step, one down
    settled(page, partial(page.keyboard.press, 'Space'))
    found = (masks(core)[1] & ~want).nonzero().tolist()
    assert len(found) == 1 and not masks(core)[0].any() and page.errors == []


@pytest.mark.parametrize('field, stream', [('a.ratio', 0), ('b.ratio', 1)])
def test_each_stream_has_its_ratio(bare, field, stream):
    core = Page('hicmae')
    page = bare(core)
    before = masks(core)
    slider = page.locator(f'[data-field="{field}"]')
    assert slider.is_visible()
    settled(page, partial(slider.fill, '0.25'))
    now = masks(core)
    assert now[stream].float().mean() == .25 and now[1 - stream].sum() == before[1 - stream].sum()
    assert 'sound' in page.locator('.mlx-fields').inner_text() and page.errors == []
