"""Words as chips: the explorer's page for texts, in a real browser."""
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import in_time, ready, repaints, settled, stage

import maskedlab as ml
from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))


def chips(page, title):
    "Unit, text and classes of every chip of a drawing."
    return stage(page, title).locator('.mlx-chip').evaluate_all(
        '''(all) => all.map((c) => [Number(c.dataset.unit),
        c.querySelector(".mlx-piece").textContent,
        [...c.classList].find((n) => n.startsWith("mlx-r-")).slice(6)])''')


def equal(page, core):
    "Every chip on the page is what the package computes for the state that the page is in."
    d = core.show(core.state)
    for name, drawing in d.pictures.items():
        assert chips(page, core.menus.view().titles[name]) == [[c['unit'], c['text'], c['role']]
                                                       for c in drawing['chips']], name


def chip(page, title, unit):
    return stage(page, title).locator(f'.mlx-chip[data-unit="{unit}"]')


def test_click_hides_and_what_is_shown_is_what_the_package_computes(bare):
    core = Page('bert_mlm')
    page = bare(core)
    equal(page, core)
    free = core.menus.units(core.state).free[0]
    unit = next(i for i in free.nonzero()[:, 0].tolist() if not core.show(core.state).mask[i])
    settled(page, lambda: chip(page, 'What the network sees', unit).click())
    assert unit in core.state.painted and core.show(core.state).mask[unit]
    equal(page, core)
    guesses = page.locator(f'.mlx-guess[data-guess="{unit}"] > span > span').all_inner_texts()
    drawn = core.show(core.state).pictures['returned']['chips']
    assert guesses == [text for text, _ in next(c for c in drawn if c['unit'] == unit)['guesses']]
    r, b = core.menus.recipe('bert_mlm').eval(), core.menus.batch(core.state)
    with torch.no_grad():
        out = r(b, mask=core.show(core.state).mask[None], generator=torch.Generator().manual_seed(0))
    row = out.pred[out.mask[0].nonzero()[:, 0].tolist().index(unit)]
    assert ml.data.text.tokenizer().id_to_token(int(row.argmax())).removeprefix('##') == guesses[0]
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'text.png'))
    assert page.errors == []


def test_a_click_is_seen_at_once_and_a_drag_hides_several(bare):
    core = Page('bert_mlm')
    core.state = core.state.__class__(**{**core.state.__dict__, 'painted': []})
    page = bare(core)
    units = core.menus.units(core.state).free[0].nonzero()[:, 0].tolist()[:4]
    first, last = (chip(page, 'What the network sees', u).bounding_box() for u in (units[0], units[-1]))
    page.mouse.move(first['x'] + 4, first['y'] + 8)
    page.mouse.down()
    # at once: the network is asked when the drag ends
    now = {u: role for u, _, role in chips(page, 'What the network sees')}
    assert now[units[0]] == 'hidden'
    page.mouse.move(last['x'] + 4, last['y'] + 8, steps=2)
    page.mouse.up()
    page.wait_for_function(f"document.querySelector('.mlx-status').textContent.startsWith('{len(units)} of')")
    ready(page)
    assert core.state.painted == list(range(units[0], units[-1] + 1))
    equal(page, core)


def test_keyboard_alone(bare):
    core = Page('bert_mlm')
    page = bare(core)
    before = core.show(core.state).mask

    def tab_to(condition, most=60):
        for _ in range(most):
            page.keyboard.press('Tab')
            if page.evaluate(f'() => {{ const e = document.activeElement; return {condition}; }}'): return
        raise AssertionError(condition)

    tab_to("(e.getAttribute('aria-label') || '').startsWith('What the network sees')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid'
    for _ in range(3):
        page.keyboard.press('ArrowRight')
    settled(page, lambda: page.keyboard.press('Space'))
    assert (3 in core.state.painted) is not bool(before[3])
    settled(page, lambda: page.keyboard.press('Space'))
    assert (3 in core.state.painted) is bool(before[3])
    page.keyboard.press('ArrowDown')
    settled(page, lambda: page.keyboard.press('Space'))
    changed = {u for u in range(len(before)) if (u in core.state.painted) != bool(before[u])}
    assert len(changed) == 1 and changed.pop() > 3                       # the next line
    settled(page, lambda: page.keyboard.press('r'))
    assert core.state.painted is None
    assert page.errors == []


def test_attention_has_arcs(bare):
    core = Page('bert_mlm')
    page = bare(core)
    settled(page, lambda: chip(page, 'Original', 4).click())
    assert core.state.look == 4 and len(chips(page, 'Attention')) == len(chips(page, 'Original'))
    arcs = stage(page, 'Attention').locator('.mlx-arcs')
    drawn = "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
    assert arcs.evaluate(drawn)
    assert page.get_by_label('Layer').locator('option').count() == 4
    assert page.errors == []


def test_verdicts_of_electra(bare):
    core = Page('electra', seed=1)
    page = bare(core)
    equal(page, core)
    d = core.show(core.state)
    swapped = {c['unit'] for c in d.pictures['seen']['chips'] if c['role'] == 'swapped'}
    b = core.menus.batch(core.state)
    assert swapped == set((d.out.seen['ids'] != b['ids'])[0].nonzero()[:, 0].tolist())
    odds = dict(zip(d.out.scored[0].nonzero()[:, 0].tolist(), d.out.pred.sigmoid().tolist(), strict=True))
    notes = stage(page, 'What it returns').locator('.mlx-chip small').all_inner_texts()
    assert notes == [f'{100 * odds[c["unit"]]:.0f} %' for c in d.pictures['returned']['chips']]
    assert 'replaced pieces the network finds' in page.locator('.mlx-status').inner_text()
    page.locator('.mlx').screenshot(path=str(PICTURES / 'electra.png'))
    assert page.errors == []


def test_own_text_good_and_bad(bare):
    core = Page('bert_mlm')
    page = bare(core)
    page.locator('.mlx-use').click()
    page.wait_for_function("document.querySelector('.mlx-alert').textContent.includes('write or paste')")
    words = 'The cat sat on the mat and looked at the moon.'
    page.locator('.mlx-write').fill(words)
    settled(page, lambda: page.locator('.mlx-use').click())
    assert not page.locator('.mlx-alert').is_visible()
    assert ''.join(t for _, t, role in chips(page, 'Original')
                   if role != 'special') == words.lower().replace(' ', '')
    equal(page, core)
    settled(page, lambda: page.locator('[data-field=ratio]').fill('0.4'))
    scope = {}
    exec(page.locator('.mlx-code').input_value().replace('; ', '; shown = '), scope)
    again = scope['shown'].page
    assert again.show(again.state).pictures == core.show(core.state).pictures
    settled(page, lambda: page.get_by_label('Texts').locator('button').first.click())
    assert page.errors == []


@pytest.mark.timed
def test_thirty_changes_within_the_bar(bare):
    core = Page('bert_mlm')
    page = bare(core)
    times = repaints(page, 0.1, 0.01)
    ready(page)
    equal(page, core)
    in_time('text', times, 200)         # the aim is 100 on two free cores; a busy machine is given room here


def test_narrow_and_dark(bare):
    for width, dark in ((1240, True), (420, False)):
        page = bare(Page('bert_mlm'), width=width, dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        cut = page.evaluate('''[...document.querySelectorAll(
            '.mlx button, .mlx h3, .mlx p, .mlx label, .mlx-chip')]
            .filter((e) => e.offsetParent && !e.closest('.mlx-thumbs') && e.scrollWidth > e.clientWidth + 1)
            .map((e) => e.textContent)''')
        assert cut == []
        page.locator('.mlx').screenshot(path=str(PICTURES / f"text_{width}{'_dark' if dark else ''}.png"))


def test_another_kind_of_data_on_the_same_page(bare):
    core = Page('bert_mlm')
    page = bare(core)
    for name, kind in (('mae', 'picture'), ('point_mae', 'cloud'), ('electra', 'chips')):
        settled(page, partial(page.locator('.mlx-method').select_option, name))
        assert page.locator(f'.mlx-at-{kind}').count() == 1 and core.state.recipe == name
    assert page.errors == []
