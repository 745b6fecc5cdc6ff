"""Clouds that turn: the explorer's page for points, in a real browser."""
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import in_time, ready, repaints, settled, stage

from maskedlab.targets.sets import chamfer
from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))


def ink(page, title):
    return stage(page, title).locator('canvas').evaluate("(c) => c.toDataURL()")


def spot(page, core, title, unit):
    "Where on the page a group's foremost point lies, as the page itself projects it."
    from maskedlab.show.views.clouds import project
    d = core.show(core.state).pictures['original']
    owner = d['unit'].tolist()
    at, depth = project(d['points'] - d['frame'][:3])
    box = stage(page, title).bounding_box()
    i = max((i for i in range(len(owner)) if owner[i] == unit), key=lambda i: float(depth[i]))
    reach = min(box['width'], box['height']) * .46 * float(d['frame'][3])
    return box['x'] + box['width'] / 2 + float(at[i, 0]) * reach, box['y'] + box['height'] / 2 + float(
        at[i, 1]) * reach


def foremost(core):
    "The group of the point that is nearest to the eye."
    from maskedlab.show.views.clouds import owner_of, project
    x = core.menus.batch(core.state)['points'][0]
    return int(owner_of(x, core.menus.units(core.state))[project(x)[1].argmax()])


def test_click_hides_a_group_and_the_answer_is_the_package_s(bare):
    core = Page('point_mae')
    page = bare(core)
    unit, before = foremost(core), core.show(core.state).mask.clone()
    settled(page, lambda: page.mouse.click(*spot(page, core, 'What the network sees', unit)))
    after = core.show(core.state)
    assert after.mask[unit] != before[unit] and int((after.mask != before).sum()) == 1
    r, b = core.menus.recipe('point_mae').eval(), core.menus.batch(core.state)
    with torch.no_grad():
        out = r(b, mask=after.mask[None], generator=torch.Generator().manual_seed(0))
    want = 1000 * float(chamfer(out.pred, out.target).mean())
    assert float(page.locator('.mlx-network b').inner_text()) == pytest.approx(want, abs=.06)
    assert f'{int(after.mask.sum())} of 32 groups hidden' in page.locator('.mlx-status').inner_text()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'points.png'))
    assert page.errors == []


def test_turning_turns_all_and_asks_nothing(bare):
    core = Page('point_mae')
    page = bare(core)
    titles = ('Original', 'What the network sees', 'What it returns', 'Error')
    first, painted = [ink(page, t) for t in titles], page.locator('.mlx').get_attribute('data-painted')
    box = stage(page, 'What it returns').bounding_box()
    page.mouse.move(box['x'] + 60, box['y'] + 100)
    page.mouse.down()
    page.mouse.move(box['x'] + 140, box['y'] + 120, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    assert all(ink(page, t) != old for t, old in zip(titles, first, strict=True))
    assert page.locator('.mlx').get_attribute('data-painted') == painted
    assert page.errors == []


def test_keyboard_alone(bare):
    core = Page('point_mae')
    page = bare(core)
    before = core.show(core.state).mask
    for _ in range(60):
        page.keyboard.press('Tab')
        if page.evaluate("(document.activeElement.getAttribute('aria-label') || '').startsWith('What the "
                         "network sees')"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid'
    still = ink(page, 'What the network sees')
    page.keyboard.press('Shift+ArrowLeft')
    page.wait_for_timeout(150)
    assert ink(page, 'What the network sees') != still                 # turned
    page.keyboard.press('+')
    page.keyboard.press('ArrowLeft')
    settled(page, lambda: page.keyboard.press('Space'))
    assert int((core.show(core.state).mask != before).sum()) == 1
    settled(page, lambda: page.keyboard.press('Space'))
    assert torch.equal(core.show(core.state).mask, before)
    assert 'Group' in page.locator('.mlx-hear').inner_text() or 'hidden' in page.locator(
        '.mlx-hear').inner_text()
    settled(page, lambda: page.keyboard.press('r'))
    assert core.state.painted is None
    assert page.errors == []


def test_attention_and_predicted_only(bare):
    core = Page('point_mae')
    page = bare(core)
    settled(page, lambda: page.mouse.click(*spot(page, core, 'Original', foremost(core))))
    assert core.state.look == foremost(core)
    settled(page, lambda: page.get_by_label('Part of the network').select_option('decoder'))
    assert 'brightest where it looks most' in page.locator('.mlx-is-attention').inner_text()
    old = ink(page, 'What it returns')
    settled(page, lambda: page.get_by_role('button', name='predicted only').click())
    assert ink(page, 'What it returns') != old
    assert page.errors == []


def test_own_clouds_good_and_bad(bare, tmp_path):
    core = Page('point_mae')
    page = bare(core)
    few, none, good = tmp_path / 'few.xyz', tmp_path / 'notes.ply', tmp_path / 'ball.xyz'
    few.write_text('\n'.join(f'{i} 0 0' for i in range(5)))
    none.write_text('dear diary')
    turn = [(math.acos(1 - 2 * (i + .5) / 600), i * 2.399963) for i in range(600)]
    good.write_text('\n'.join(f'{math.cos(b) * math.sin(a):.5f} {math.sin(b) * math.sin(a):.5f} '
                              f'{math.cos(a):.5f}' for a, b in turn))
    for path, words in ((few, '5 points'), (none, 'notes.ply')):
        page.locator('.mlx-file').set_input_files(str(path))
        page.wait_for_function("(w) => document.querySelector('.mlx-alert').textContent.includes(w)",
                               arg=words)
        assert len(page.locator('.mlx-alert').inner_text()) <= 200
    settled(page, lambda: page.locator('.mlx-file').set_input_files(str(good)))
    assert core.state.set == 'ball.xyz' and not page.locator('.mlx-alert').is_visible()
    assert "ml.load_points('ball.xyz')" in page.locator('.mlx-code').input_value()
    settled(page, lambda: page.get_by_role('button', name='Hide all').click())
    assert 'Everything is hidden' in page.locator('.mlx-status').inner_text()
    settled(page, lambda: page.get_by_role('button', name='Show all').click())
    assert 'Nothing is hidden' in page.locator('.mlx-status').inner_text()
    assert page.errors == []


@pytest.mark.timed
def test_thirty_changes_within_the_bar(bare):
    page = bare(Page('point_mae'))
    times = repaints(page, 0.3, 0.015)
    ready(page)
    in_time('points', times, 300)


def test_save_and_code(bare, tmp_path):
    from PIL import Image
    core = Page('point_bert', seed=2, index=1)
    page = bare(core)
    scope = {}
    exec(page.locator('.mlx-code').input_value().replace('; ', '; shown = '), scope)
    again, want = scope['shown'].page, core.show(core.state)
    for name, d in again.show(again.state).pictures.items():
        assert all(torch.equal(d[k], want.pictures[name][k]) for k in d), name
    with page.expect_download() as download:
        page.locator('.mlx-save').click()
    download.value.save_as(tmp_path / 'saved.png')
    with Image.open(tmp_path / 'saved.png') as im:
        assert im.width > 800 and im.format == 'PNG'
    assert page.errors == []


def test_dark_and_narrow(bare):
    for width, dark in ((1240, True), (420, False)):
        page = bare(Page('point_mae'), width=width, dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        cut = page.evaluate('''[...document.querySelectorAll('.mlx button, .mlx h3, .mlx p, .mlx label')]
            .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)''')
        assert cut == []
        page.locator('.mlx').screenshot(path=str(PICTURES / f"points_{width}{'_dark' if dark else ''}.png"))
