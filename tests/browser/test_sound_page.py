"""The explorer's page of sound in a real browser: what is played, and when."""
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import in_time, settled

from maskedlab.show.explorer.page import Page

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
EAR = '''() => {
    window.heard = [];
    const root = document.querySelector('.mlx');
    root.addEventListener('maskedlab:playing', ({ detail: { name, buffer } }) =>
        window.heard.push([name, buffer.sampleRate, [...buffer.getChannelData(0)]])); }'''


def listening(bare, name, **options):
    page = bare(Page(name, **options))
    page.evaluate(EAR)
    return page


def played(page, n=1):
    page.wait_for_function('(n) => window.heard.length >= n', arg=n)
    name, rate, samples = page.evaluate('window.heard.at(-1)')
    return name, rate, np.array(samples)


@pytest.mark.parametrize('name', ['wav2vec2', 'w2v_bert', 'ask2mask'])
def test_a_key_and_a_button_play_what_python_made(bare, name):
    page = listening(bare, name)
    core = Page(name)
    buttons = page.locator('.mlx-sounds button')
    assert buttons.count() == len(core.menus.view().sounds)
    page.locator('h2').click()                          # the page has the focus, no picture has it
    for i, sound in enumerate(core.menus.view().sounds):
        if i % 2:
            buttons.nth(i).click()
        else:
            page.keyboard.press(str(i + 1))
        told, rate, samples = played(page, i + 1)
        wave, own = core.heard(core.state, sound)
        assert (told, rate, len(samples)) == (sound, own, len(wave))
        assert abs(samples - wave.numpy()).max() < 2 / 32768
    page.wait_for_function("!document.querySelector('.mlx').dataset.plays")         # it ends by itself
    assert page.errors == []


def test_nothing_sounds_before_a_click_or_a_key(browser, bare):
    page = bare(Page('wav2vec2'))
    made = '''() => { const real = window.AudioContext; window.made = 0;
        window.AudioContext = class extends real { constructor() { super(); window.made++; } }; }'''
    page.evaluate(made)
    settled(page, lambda: page.locator('.mlx-another').click())
    settled(page, lambda: page.locator('.mlx-thumbs button').nth(2).click())
    assert page.evaluate('window.made') == 0
    page.locator('[data-sound=seen]').click()
    page.wait_for_function('window.made === 1')
    assert page.errors == []


def test_it_stops_when_asked_again_and_at_another_recording(bare):
    page = listening(bare, 'wav2vec2')
    page.evaluate("""() => { const real = AudioContext.prototype.createBufferSource;
        AudioContext.prototype.createBufferSource = function () {       // one that does not end by itself
            const source = real.call(this); source.loop = true; return source; }; }""")
    plays = lambda: page.evaluate("document.querySelector('.mlx').dataset.plays ?? ''")
    for stop in (lambda: page.locator('[data-sound=original]').click(),
                 lambda: page.locator('.mlx-thumbs button').nth(1).click()):
        before = page.evaluate('window.heard.length')
        page.locator('[data-sound=original]').click()
        played(page, before + 1)
        assert plays() == 'original'
        stop()
        assert plays() == ''
    assert page.errors == []


def test_a_number_that_is_typed_plays_nothing(bare):
    page = listening(bare, 'wav2vec2')
    settled(page, lambda: page.locator('.mlx-seed').fill('12'))
    page.locator('.mlx-seed').press('1')
    page.wait_for_timeout(300)
    assert page.evaluate('window.heard.length') == 0 and page.errors == []


def test_from_the_slider_to_the_repainted_sound(bare):
    page = bare(Page('wav2vec2'))
    times = page.evaluate('''async () => {
        const slider = document.querySelector("[data-field=prob]"), times = [];
        const root = document.querySelector(".mlx");
        for (let i = 0; i < 23; i++) {
            const frame = (r) => () => requestAnimationFrame(r);
            const painted = (r) => root.addEventListener("maskedlab:painted", frame(r), { once: true });
            const done = new Promise(painted), start = performance.now();
            slider.value = String(.2 + .02 * i);
            slider.dispatchEvent(new Event("input"));
            await done;
            times.push(performance.now() - start);
        }
        return times.slice(3); }''')
    in_time('a recording', times, 100)
