"""The box for a caption in a real browser: other words hide other cubes."""
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from conftest import pixels, settled

from maskedlab.data.video import caption_ids, read_captions
from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))


def mask_for(core, words):
    "What the recipe itself hides for these words."
    r, whole = core.menus.recipe('text_guided_video_mae').eval(), core.menus.whole(core.state)
    with torch.no_grad():
        return r({**whole, 'caption': caption_ids([[words]])}).mask[0]


def seen_hidden(page, core):
    "The hidden cells of the frame on view, as the page cut them out."
    now = pixels(page, core.menus.view().titles['seen'])[..., 3]
    return torch.from_numpy(now[4::8, 4::8] == 0)


def test_a_caption_is_chosen_or_written_and_the_mask_moves(bare):
    core = Page('text_guided_video_mae', index=3)
    page = bare(core)
    known = read_captions(core.menus.whole(core.state))[0]
    box = page.locator('.mlx-sayings')
    assert box.locator('option').all_inner_texts() == known and box.input_value() == known[0]
    masks = {known[0]: core.show(core.state).mask}
    settled(page, partial(box.select_option, known[1]))
    masks[known[1]] = core.show(core.state).mask
    mine = 'a shirt in front of the lake'
    page.locator('.mlx-said .mlx-write').fill(mine)
    settled(page, page.locator('.mlx-said .mlx-use').click)
    masks[mine] = core.show(core.state).mask
    assert box.input_value() == mine and core.state.said == mine
    for words, mask in masks.items():
        assert torch.equal(mask, mask_for(core, words)), words
    assert not torch.equal(masks[known[0]], masks[known[1]])
    assert torch.equal(seen_hidden(page, core), masks[mine][0])
    like = core.show(core.state).pictures['like'].numpy()[:32, :32]
    same = np.array_equal(pixels(page, 'Like the caption'), like)
    assert same and mine in page.locator('.mlx-is-like').inner_text()
    assert f'said={mine!r}' in page.locator('.mlx-code').input_value()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'caption.png'))
    assert page.errors == []


def test_a_caption_without_words_is_a_sentence_and_another_clip_has_its_own(bare):
    core = Page('text_guided_video_mae')
    page = bare(core)
    page.locator('.mlx-said .mlx-write').fill(' ... ')
    page.locator('.mlx-said .mlx-use').click()
    page.wait_for_selector('.mlx-alert:not([hidden])')
    assert 'no words' in page.locator('.mlx-alert').inner_text()
    settled(page, page.locator('.mlx-thumbs button').nth(4).click)
    assert core.state.said is None and page.locator('.mlx-alert').is_hidden()
    known = read_captions(core.menus.whole(core.state))[0]
    assert page.locator('.mlx-sayings option').all_inner_texts() == known
    settled(page, partial(page.locator('.mlx-method').select_option, 'videomae'))
    assert page.locator('.mlx-said').is_hidden() and page.errors == []
