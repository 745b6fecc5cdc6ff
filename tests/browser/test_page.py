"""The explorer's page in a real browser, its messages answered by Python directly."""
import io
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pixels, ready, settled, stage

import maskedlab as ml
from maskedlab.show.explorer.menus import State
from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))


def state(core):
    return core.state


def equal(page, core):
    "Every picture on the page is what the package computes for the state that the page is in."
    d = core.show(core.state)
    for name, picture in {**d.pictures, **core.slower(core.state)[0]}.items():
        assert np.array_equal(pixels(page, core.menus.view().titles[name]), picture.numpy()), name


@pytest.mark.quick
def test_picture_of_the_page(bare):
    page = bare(Page('mae'))
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'explorer.png'))
    assert (PICTURES / 'explorer.png').stat().st_size > 30_000
    assert '48 of 64 patches hidden' in page.locator('.mlx-status').inner_text()
    assert page.errors == []


def test_slider_shows_what_the_package_computes(bare):
    core = Page('mae')
    page = bare(core)
    slider = page.locator('[data-field=ratio]')
    for value in ('0.3', '0.9', '0', '1'):
        settled(page, partial(slider.fill, value))
        assert state(core).fields['ratio'] == float(value)
        equal(page, core)
    assert page.errors == []


def test_an_error_is_shown_where_the_loss_looks(bare):
    over = """(title) => {
        const named = (f) => f.querySelector('h3').textContent === title;
        const c = [...document.querySelectorAll('.mlx-figure')].find(named).querySelector('.mlx-over');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return d.filter((_, i) => i % 4 === 3 && d[i]).length; }"""
    # the one is asked for what is hidden, the other for what is not
    for name, covered in (('mae', True), ('maskalign', False)):
        core = Page(name)
        page = bare(core)
        error = pixels(page, 'Error')[..., 3] == 255
        cells = core.show(core.state).mask.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        assert (error == (cells if covered else ~cells)).all()
        assert bool(page.evaluate(over, 'Error')) == covered, 'paper lies over what the loss sees'
        assert page.errors == []


def test_painting_by_mouse_is_seen_at_once(bare):
    core = Page('mae', mask=torch.zeros(8, 8, dtype=torch.bool))
    page = bare(core)
    sees = stage(page, 'What the network sees')
    box = sees.bounding_box()
    at = lambda r, c: (box['x'] + (c + .5) * box['width'] / 8, box['y'] + (r + .5) * box['height'] / 8)
    assert (pixels(page, 'What the network sees')[..., 3] == 255).all()
    page.mouse.move(*at(2, 1))
    page.mouse.down()
    page.mouse.move(*at(2, 5))                   # one jump: the cells between are painted too
    now = pixels(page, 'What the network sees')  # before any answer can have come
    assert (now[16:24, 8:48, 3] == 0).all()
    page.mouse.up()
    page.wait_for_function("document.querySelector('.mlx-status').textContent.startsWith('5 of 64')")
    ready(page)
    assert state(core).painted == [2 * 8 + c for c in range(1, 6)]
    page.get_by_role('button', name='Brush of 2 by 2').click()
    settled(page, lambda: page.mouse.click(*at(6, 6)))
    assert {54, 55, 62, 63} <= set(state(core).painted)
    equal(page, core)
    assert page.errors == []


def test_keyboard_alone_paints_hides_and_resets(bare):
    core = Page('mae', seed=2)
    page = bare(core)
    before = core.show(core.state).mask.flatten()

    def tab_to(condition, most=80):
        for _ in range(most):
            page.keyboard.press('Tab')
            if page.evaluate(f'() => {{ const e = document.activeElement; return {condition}; }}'): return
        raise AssertionError(f'Tab never came to {condition}')

    tab_to("(e.getAttribute('aria-label') || '').startsWith('What the network sees')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid'
    for key in ('ArrowRight', 'ArrowDown', 'ArrowDown'):
        page.keyboard.press(key)
    settled(page, lambda: page.keyboard.press('Space'))
    cell = 2 * 8 + 1
    assert (cell in state(core).painted) is not bool(before[cell])
    settled(page, lambda: page.keyboard.press('Space'))
    assert (cell in state(core).painted) is bool(before[cell])
    assert 'Row 3, column 2' in page.locator('.mlx-hear').inner_text() or 'patches hidden' in page.locator(
        '.mlx-hear').inner_text()
    tab_to("e.textContent === 'Hide all'")
    settled(page, lambda: page.keyboard.press('Space'))
    assert len(state(core).painted) == 64
    tab_to("e.classList.contains('mlx-reset')")
    settled(page, lambda: page.keyboard.press('Space'))
    assert state(core).painted is None
    assert page.errors == []


def test_attention_of_seen_and_hidden_patches(bare):
    core = Page('mae')
    page = bare(core)
    mask = core.show(core.state).mask.flatten()
    hidden, seen = int(mask.nonzero()[0]), int((~mask).nonzero()[0])
    picture = stage(page, 'Original')

    def click(i):
        box = picture.bounding_box()
        page.mouse.click(box['x'] + (i % 8 + .5) * box['width'] / 8,
                         box['y'] + (i // 8 + .5) * box['height'] / 8)

    settled(page, lambda: click(seen))
    assert np.array_equal(pixels(page, 'Attention'), core.show(core.state).pictures['attention'].numpy())
    assert page.get_by_label('Layer').locator('option').count() == 5 and page.get_by_label('Head').locator(
        'option').count() == 5
    first = pixels(page, 'Attention').copy()
    settled(page, lambda: page.get_by_label('Layer').select_option('3'))
    assert not np.array_equal(first, pixels(page, 'Attention'))
    settled(page, lambda: click(hidden))                # the decoder has it: shown at once, and said
    assert 'this is the decoder' in page.locator('.mlx-is-attention .mlx-caption').inner_text()
    assert page.get_by_label('Part of the network').input_value() == 'decoder'
    assert (pixels(page, 'Attention')[..., 3] == 255).all()
    assert page.errors == []


def test_bad_value_is_a_sentence_and_the_page_goes_on(bare):
    core = Page('mae')
    page = bare(core)
    number = page.locator('[data-number=ratio]')
    number.fill('1.2')
    page.wait_for_selector('.mlx-alert:visible')
    words = page.locator('.mlx-alert').inner_text()
    assert '1.2' in words and 'from 0 to 1' in words and len(words) <= 200
    settled(page, lambda: number.fill('0.5'))
    assert not page.locator('.mlx-alert').is_visible()
    assert '32 of 64' in page.locator('.mlx-status').inner_text()
    assert page.errors == []


def test_own_files_good_and_bad(bare, tmp_path):
    from PIL import Image
    good, bad, cut = tmp_path / 'mine.png', tmp_path / 'notes.png', tmp_path / 'cut.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (900, 1400, 3), np.uint8)
    Image.fromarray(noise).save(good)            # 3.8 MB: travels in several parts
    bad.write_bytes(b'dear diary')
    data = io.BytesIO()
    Image.fromarray(noise).save(data, 'JPEG')
    cut.write_bytes(data.getvalue()[:20_000])
    core = Page('mae')
    page = bare(core)
    for path in (bad, cut):
        page.locator('.mlx-file').set_input_files(str(path))
        page.wait_for_function("(n) => document.querySelector('.mlx-alert').textContent.includes(n)",
                               arg=path.name)
        assert len(page.locator('.mlx-alert').inner_text()) <= 200
    settled(page, lambda: page.locator('.mlx-file').set_input_files(str(good)))
    assert state(core).set == 'mine.png'
    want = ml.load_image(good, size=64)['image'][0].mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(page, 'Original')[..., :3], want)
    assert not page.locator('.mlx-alert').is_visible()
    assert page.errors == []


def test_copy_and_save(bare, tmp_path):
    from PIL import Image
    core = Page('simmim', seed=4, index=2)
    page = bare(core)
    settled(page, lambda: page.locator('[data-field=ratio]').fill('0.45'))
    line = page.locator('.mlx-code').input_value()
    scope = {}
    exec(line.replace('; ', '; shown = '), scope)
    again, want = scope['shown'].page, core.show(core.state)
    for name, picture in again.show(again.state).pictures.items():
        assert torch.equal(picture, want.pictures[name]), name
    page.locator('.mlx-copy').click()
    page.wait_for_function("document.querySelector('.mlx-copy').textContent !== 'Copy as code'")
    with page.expect_download() as download:
        page.locator('.mlx-save').click()
    download.value.save_as(tmp_path / 'saved.png')
    with Image.open(tmp_path / 'saved.png') as im:
        assert im.width > 800 and im.format == 'PNG'
    assert page.errors == []


def test_other_method_other_set_other_strategy(bare):
    core = Page('mae')
    page = bare(core)
    settled(page, lambda: page.locator('.mlx-method').select_option('simmim'))
    assert '10 of 16 patches hidden' in page.locator('.mlx-status').inner_text()
    settled(page, lambda: page.get_by_label('Pictures').locator('button').nth(3).click())
    settled(page, lambda: page.locator('.mlx-strategy').select_option('block'))
    assert 'Block' in page.locator('.mlx-code').input_value()
    settled(page, lambda: page.get_by_role('button', name='predicted only').click())
    alpha = pixels(page, 'What it returns')[..., 3]
    assert np.array_equal(alpha == 255, pixels(page, 'What the network sees')[..., 3] == 0)
    equal(page, core)
    assert page.errors == []


def test_normalised_targets_offer_both_statistics(bare):
    r = ml.create_recipe('mae', norm_pix=True)
    core = Page(r)
    page = bare(core)
    assert page.locator('text=Brightness from').is_visible()
    first = pixels(page, 'What it returns').copy()
    settled(page, lambda: page.get_by_role('button', name='visible', exact=True).click())
    assert state(core).statistics == 'visible' and not np.array_equal(first, pixels(page, 'What it returns'))
    equal(page, core)


def test_method_without_fill_and_attention_says_so(bare):
    from maskedlab.recipes.image.mae import MAE

    class Silent(MAE):
        fill = None
        attention = None

    page = bare(Page(Silent))
    assert 'does not predict' in stage(page, 'What it returns').inner_text()
    assert 'no attention' in stage(page, 'Attention').inner_text()
    assert page.errors == []


@pytest.mark.parametrize('how', [dict(dark=True), dict(theme='false'), dict(dark=True, theme='true')])
def test_themes(bare, how):
    page = bare(Page('mae'), **how)
    paper = page.evaluate("getComputedStyle(document.querySelector('.mlx')).backgroundColor")
    light = how.get('theme') == 'true'
    assert paper == ('rgb(255, 255, 255)' if light else 'rgb(20, 23, 27)')
    PICTURES.mkdir(parents=True, exist_ok=True)
    if not light:
        page.locator('.mlx').screenshot(
            path=str(PICTURES / f"dark_{'system' if how.get('dark') else 'lab'}.png"))


def test_narrow_page_keeps_everything_inside(bare):
    for width in (1240, 860, 420):
        page = bare(Page('mae'), width=width)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        cut = page.evaluate('''[...document.querySelectorAll('.mlx button, .mlx h3, .mlx p, .mlx label')]
            .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)''')
        assert cut == []
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.locator('.mlx').screenshot(path=str(PICTURES / f'width_{width}.png'))


def test_line_keeps_one_in_flight_one_waiting_and_order(bare):
    page = bare(Page('mae'))
    sent, kept, fresh = page.evaluate('''() => {
        const sent = [], line = new Line((m) => sent.push([m.seq, m.x]));
        for (let x = 0; x < 20; x++) line.newest({ x });
        line.queue({ x: "file" });
        const kept = sent.length;
        line.answered(1); line.answered(2); const newest = line.answered(3), older = line.answered(2);
        line.close();
        return [sent, kept, [newest, older]]; }''')
    assert kept == 1 and sent == [[1, 0], [2, 'file'], [3, 19]]
    assert fresh == [True, False]


def test_silence_is_told_and_does_not_block(bare):
    page = bare(Page('mae'))
    told, sent = page.evaluate('''async () => {
        const sent = []; let told = 0;
        const line = new Line((m) => sent.push(m.x), { late: () => { told++; }, patience: 50 });
        line.newest({ x: 1 });
        await new Promise((r) => setTimeout(r, 120));
        line.newest({ x: 2 });
        line.close();
        return [told, sent]; }''')
    assert told == 1 and sent == [1, 2]


def test_state_is_plain():
    core = Page('mae')
    assert State(**{**core.state.__dict__}) == replace(core.state)
