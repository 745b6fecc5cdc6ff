"""The explorer in JupyterLab: speed, coalescing, painting, keys, files, and a quiet console."""
import io
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_lab, pixels, ready, settled, stage

import maskedlab as ml

PICTURES = Path(os.environ.get('LAB_PICTURES', 'runs/browser'))
CELL = "import maskedlab as ml\nex = ml.Explorer('mae')\nex"
MEDIAN, P95 = 100, 200      # milliseconds from slider to repaint

# Move the slider and wait until the answer to that very value has been painted and the browser has drawn two
# frames.
MOVE = '''async (value) => {
    const root = document.querySelector('.mlx'), slider = root.querySelector('[data-field=ratio]');
    const painted = new Promise((done) => {
        const hear = (e) => {
            if (Math.abs(e.detail.state.fields.ratio - value) > 1e-9) return;
            root.removeEventListener('maskedlab:painted', hear);
            done();
        };
        root.addEventListener('maskedlab:painted', hear);
    });
    const start = performance.now();
    slider.value = String(value);
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    await painted;
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return performance.now() - start;
}'''


@pytest.fixture(scope='module')
def page(browser, jupyter):
    page = in_lab(browser, jupyter, CELL, 'explorer')
    yield page
    page.context.close()


@cache
def recipe():
    "The small network that the page shows too."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return ml.create_recipe('mae', pretrained=True).eval()
        except ValueError:
            return ml.create_recipe('mae').eval()


def want(ratio, seed=0):
    "Original, seen, returned as the package computes them for a ratio, uint8 `[H, W, 4]`."
    r = recipe()
    b = {'image': ml.sample('image', n=8, split='test')['image'][:1]}
    with torch.no_grad():
        out = r(b, mask=ml.masks.Random(ratio=ratio), generator=torch.Generator().manual_seed(seed))
    rgb = lambda x: (x['image'][0] * 255).round().byte().permute(1, 2, 0).numpy()
    return rgb(b), rgb(r.fill(b, out)), out


@pytest.mark.timed
def test_slider_to_repaint(page):
    page.evaluate(MOVE, .5)
    values = [round(x, 2) for x in np.tile(np.arange(.05, 1, .05), 2)[:30]]
    saw = []
    for _ in range(3):                  # two cores may be shared with others: the best of three rounds counts
        times = []
        for value in values:
            times.append(page.evaluate(MOVE, value))
            original, filled, out = want(value)
            got = pixels(page, 'What it returns')
            # batch of one, one thread: rounding at most
            assert np.abs(got[..., :3].astype(int) - filled).max() <= 1, value
            assert np.array_equal(pixels(page, 'Original')[..., :3], original)
            hidden = out.mask[0].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
            assert np.array_equal(pixels(page, 'What the network sees')[..., 3] == 0, hidden), value
            page.wait_for_timeout(30)
        saw.append((float(np.median(times)), float(np.percentile(times, 95))))
        print(f'slider to repaint: median {saw[-1][0]:.0f} ms, 95th percentile {saw[-1][1]:.0f} ms')
        if saw[-1][0] <= MEDIAN and saw[-1][1] <= P95: break
        page.wait_for_timeout(2000)
    quick = saw[-1][0] <= MEDIAN and saw[-1][1] <= P95
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, 'getloadavg') else 0
    if not quick and load > 2.5:
        pytest.skip(f'others keep this machine busy (load {load:.1f} a core), so times mean nothing: {saw}')
    assert quick, saw


def test_a_burst_coalesces_and_the_newest_wins(page):
    ready(page)
    seqs, last, sent = page.evaluate('''async () => {
        const root = document.querySelector('.mlx'), slider = root.querySelector('[data-field=ratio]');
        const seqs = [], ratios = [];
        const hear = (e) => { seqs.push(e.detail.seq); ratios.push(e.detail.state.fields.ratio); };
        root.addEventListener('maskedlab:painted', hear);
        for (let i = 1; i <= 20; i++) {
            slider.value = String(i * .05);
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise((done) => setTimeout(done, 4));
        }
        const end = performance.now() + 8000;
        const pause = () => new Promise((done) => setTimeout(done, 20));
        while (ratios.at(-1) !== 1 && performance.now() < end) await pause();
        await new Promise((done) => setTimeout(done, 300));
        root.removeEventListener('maskedlab:painted', hear);
        return [seqs, ratios.at(-1), ratios.length]; }''')
    assert last == 1 and seqs == sorted(set(seqs)) and sent < 20
    assert (pixels(page, 'What the network sees')[..., 3] == 0).all()


def test_paint_with_the_mouse(page):
    ready(page)
    settled(page, lambda: page.get_by_role('button', name='Show all').click())
    sees = stage(page, 'What the network sees')
    sees.scroll_into_view_if_needed()
    box = sees.bounding_box()
    at = lambda r, c: (box['x'] + (c + .5) * box['width'] / 8, box['y'] + (r + .5) * box['height'] / 8)
    page.mouse.move(*at(1, 1))
    page.mouse.down()
    page.mouse.move(*at(4, 4), steps=4)
    alpha = pixels(page, 'What the network sees')[..., 3].reshape(8, 8, 8, 8)[:, 0, :, 0]
    assert [(i, i) in {tuple(x) for x in np.argwhere(alpha == 0).tolist()} for i in range(1, 5)] == [True] * 4
    page.mouse.up()
    page.wait_for_function("document.querySelector('.mlx-status').textContent.startsWith('4 of 64')")
    assert 'Painted(hidden=(9, 18, 27, 36)' in page.locator('.mlx-code').input_value()


def test_keys_alone(page):
    ready(page)
    stage(page, 'What the network sees').focus()
    cells = page.locator('.jp-Notebook .jp-Cell').count()
    # back to the strategy; JupyterLab's own key r stays silent
    settled(page, lambda: page.keyboard.press('r'))
    assert 'Random' in page.locator('.mlx-code').input_value()
    for key in ('Home', 'ArrowDown', 'ArrowRight'):
        page.keyboard.press(key)
    settled(page, lambda: page.keyboard.press('Space'))
    assert 'Painted' in page.locator('.mlx-code').input_value()
    page.keyboard.press('Tab')
    while page.evaluate("document.activeElement.textContent") != 'Reset':
        page.keyboard.press('Tab')
    settled(page, lambda: page.keyboard.press('Space'))
    assert 'Random' in page.locator('.mlx-code').input_value()
    assert page.locator('.jp-Notebook .jp-Cell').count() == cells and page.locator(
        '.jp-Notebook .jp-CodeCell').count() > 0


def test_trouble_is_told_and_the_page_goes_on(page, tmp_path):
    ready(page)
    page.locator('[data-number=ratio]').fill('1.2')
    page.wait_for_function("document.querySelector('.mlx-alert').textContent.includes('1.2')")
    settled(page, lambda: page.locator('[data-number=ratio]').fill('0.75'))
    bad = tmp_path / 'notes.png'
    bad.write_text('no pixels')
    page.locator('.mlx-file').set_input_files(str(bad))
    page.wait_for_function("document.querySelector('.mlx-alert').textContent.includes('notes.png')")
    from PIL import Image
    good = tmp_path / 'mine.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1500, 2400, 3), np.uint8)).save(good)   # 11 MB
    settled(page, lambda: page.locator('.mlx-file').set_input_files(str(good)), 60_000)
    assert "ml.load_image('mine.png'" in page.locator('.mlx-code').input_value()
    assert not page.locator('.mlx-alert').is_visible()
    settled(page, lambda: page.locator('.mlx-set').select_option('Held-out photographs'))


def test_attention_copy_and_save(page, tmp_path):
    ready(page)
    box = stage(page, 'Original').bounding_box()
    settled(page, lambda: page.mouse.click(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2))
    settled(page, lambda: page.get_by_label('Part of the network').select_option('decoder'))
    assert (pixels(page, 'Attention')[..., 3] == 255).all()
    page.locator('.mlx-copy').click()
    page.wait_for_function("document.querySelector('.mlx-copy').textContent === 'Copied'")
    line = page.locator('.mlx-code').input_value()
    assert page.evaluate('navigator.clipboard.readText()') == line
    scope = {}
    exec(line.replace('; ', '; shown = '), scope)
    got = scope['shown'].page.show(scope['shown'].page.state).pictures['returned'].numpy()
    assert np.abs(got.astype(int) - pixels(page, 'What it returns')).max() <= 1
    with page.expect_download() as download:
        page.locator('.mlx-save').click()
    download.value.save_as(tmp_path / 'saved.png')
    from PIL import Image
    with Image.open(io.BytesIO((tmp_path / 'saved.png').read_bytes())) as im:
        assert im.width > 800
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(PICTURES / 'jupyterlab.png'))


def test_two_views_of_one_explorer(browser, jupyter):
    page = in_lab(browser, jupyter, "import maskedlab as ml\nex = "
                                    "ml.Explorer('simmim')\ndisplay(ex)\ndisplay(ex)", 'two')
    page.wait_for_function("""() => {
        const all = [...document.querySelectorAll('.mlx')];
        return all.length === 2 && all.every((r) => r.dataset.rested); }""")
    first, second = page.locator('.mlx').nth(0), page.locator('.mlx').nth(1)
    before = second.get_attribute('data-painted')
    first.locator('[data-field=ratio]').fill('0.2')
    page.wait_for_function("document.querySelector('.mlx-status').textContent.startsWith('4 of 16')")
    assert second.get_attribute('data-painted') == before
    assert [e for e in page.errors if ours(e)] == []
    page.context.close()


# JupyterLab's own complaints
OTHERS = ('favicon', 'status of 404', 'ERR_INTERNET_DISCONNECTED', 'ERR_NAME_NOT_RESOLVED')


def ours(error):
    return not any(known in error for known in OTHERS)


def test_the_console_is_quiet(page):
    assert [e for e in page.errors if ours(e)] == [], json.dumps(page.errors, indent=1)
