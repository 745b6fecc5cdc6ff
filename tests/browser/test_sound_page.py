"""The explorer's page of sound in a real browser: what is played, and when."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_time, pixels, repaints, settled, stage

from maskedlab.data.recordings import load_wave
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


def test_a_line_goes_through_the_pictures_while_it_plays(bare):
    page = listening(bare, 'wav2vec2')
    shown = """() => new Promise((done) => {
        const root = document.querySelector('.mlx'), seen = [];
        const look = () => {
            const stage = document.querySelector('.mlx-is-returned .mlx-stage');
            if (root.dataset.plays) seen.push([Number(root.style.getPropertyValue('--mlx-at')),
                parseFloat(getComputedStyle(stage, '::after').left) / stage.clientWidth]);
            if (root.dataset.plays || !seen.length) requestAnimationFrame(look); else done(seen); };
        look();
        document.querySelector('[data-sound=original]').click(); })"""
    said, lies = np.array(page.evaluate(shown)).T
    assert (np.diff(said) >= 0).all() and said[0] < .5 and abs(said - lies).max() < .02
    after = "getComputedStyle(document.querySelector('.mlx-stage'), '::after').content"
    assert page.evaluate(after) == 'none' and page.errors == []


def test_what_is_said_stands_under_the_picture_where_it_was_said(bare):
    core = Page('wav2vec2', set='A computed voice')
    page = bare(core)
    words, phones = core.menus.view().staged(core.show(core.state).scene)['labels']
    box = stage(page, 'Original').bounding_box()
    rows = page.locator('.mlx-is-original .mlx-labels div')
    assert rows.count() == 2 and page.locator('.mlx-is-error .mlx-labels').count() == 0
    for row, labels in zip((rows.nth(0), rows.nth(1)), (words, phones), strict=True):
        assert row.locator('span').all_inner_texts() == [text for _, _, text in labels]
        for span, (begin, end, _) in zip(row.locator('span').all(), labels, strict=True):
            at = span.bounding_box()
            assert abs(at['x'] - box['x'] - begin * box['width']) < 2
            assert abs(at['width'] - (end - begin) * box['width']) < 2
    settled(page, lambda: page.locator('.mlx-set').select_option('Held-out digits'))
    assert rows.count() == 1 and page.errors == []


def test_a_stroke_hides_frames_over_spectrum_and_wave(bare):
    core = Page('wav2vec2', mask=torch.zeros(49, dtype=torch.bool))
    page = bare(core)
    box = stage(page, 'What the network sees').bounding_box()
    at = lambda frame: (box['x'] + (frame + .5) * box['width'] / 49, box['y'] + box['height'] / 2)

    def stroke():
        page.mouse.move(*at(10))
        page.mouse.down()
        page.mouse.move(*at(19))
        page.mouse.up()

    settled(page, stroke)
    mask = core.show(core.state).mask
    assert mask.nonzero()[:, 0].tolist() == list(range(10, 20))
    gone = pixels(page, 'What the network sees')[..., 3] == 0
    columns = mask.numpy()[np.arange(192) * 49 // 192]
    assert gone.shape == (64, 192) and (gone == columns).all() and page.errors == []


def test_one_s_own_voice_is_recorded_and_heard(bare):
    core = Page('wav2vec2')
    page = bare(core)
    page.evaluate(EAR)
    assert 'to nobody else' in page.locator('.mlx-side .mlx-own').inner_text()
    settled(page, lambda: page.locator('.mlx-voice').click())
    assert core.state.set == page.locator('.mlx-set').input_value() == 'my voice.wav'
    wave = core.menus.batch(core.state)['wave'][0]
    assert 8000 <= len(wave) <= 16000 and wave.abs().max() > .05       # the beeps of the browser's own device
    page.locator('[data-sound=original]').click()
    assert abs(played(page)[2] - wave.numpy()).max() < 2 / 32768
    with page.expect_download() as saved:
        page.locator('.mlx-side .mlx-own a').click()
    assert saved.value.suggested_filename == 'my voice.wav' and page.errors == []
    own = load_wave(saved.value.path(), rate=8000, seconds=2.)['wave'][0]
    assert torch.equal(own, wave)                       # so the page's line of code finds the same


@pytest.mark.parametrize('named, says', [('NotAllowedError', 'did not allow'),
                                         ('NotFoundError', 'No microphone')])
def test_without_a_microphone_one_sentence_says_so(bare, named, says):
    page = bare(Page('wav2vec2'))
    page.evaluate("""(name) => { navigator.mediaDevices.getUserMedia = async () => {
        throw new DOMException('no', name); }; }""", named)
    page.locator('.mlx-voice').click()
    page.wait_for_function("!document.querySelector('.mlx-alert').hidden")
    assert says in page.locator('.mlx-alert').inner_text() and page.locator('.mlx-voice').is_enabled()
    settled(page, lambda: page.locator('.mlx-another').click())         # and the page goes on
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    for method in ('mae', 'wav2vec2'):
        settled(page, lambda method=method: page.locator('.mlx-method').select_option(method))
    assert page.locator('.mlx-voice').count() == 0
    assert 'no microphone' in page.locator('.mlx-side .mlx-own').inner_text() and page.errors == []


def test_a_broken_recording_is_a_sentence_and_a_good_one_is_shown(bare, tmp_path):
    soundfile = pytest.importorskip('soundfile')
    core = Page('wav2vec2')
    page = bare(core)
    (tmp_path / 'broken.wav').write_bytes(b'RIFF and no more')
    page.locator('.mlx-file').set_input_files(str(tmp_path / 'broken.wav'))
    page.wait_for_function("!document.querySelector('.mlx-alert').hidden")
    assert 'broken.wav is no sound file' in page.locator('.mlx-alert').inner_text()
    soundfile.write(tmp_path / 'mine.flac', np.random.default_rng(0).uniform(-.2, .2, (20000, 2)), 16000)
    settled(page, lambda: page.locator('.mlx-file').set_input_files(str(tmp_path / 'mine.flac')))
    assert core.state.set == 'mine.flac' and page.locator('.mlx-alert').is_hidden()
    assert 'load_wave' in page.locator('.mlx-code').input_value() and page.errors == []
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator('.mlx').screenshot(path=str(PICTURES / 'sound.png'))


def test_from_the_slider_to_the_repainted_sound(bare):
    page = bare(Page('wav2vec2'))
    in_time('a recording', repaints(page, .2, .015, 'prob'), 100)
