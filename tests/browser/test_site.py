"""The site in a real browser: opened from a folder, with the network cut off."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
# `site` is a module of Python's own
spec = importlib.util.spec_from_file_location('make_site', ROOT / 'tools' / 'site.py')
make_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_site)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The site as it comes from stored outputs; running the tutorials is their own test."""
    out = tmp_path_factory.mktemp('site')
    assert make_site.build(out, run_tutorials=False) < 30e6
    return out


@pytest.fixture
def visit(browser):
    """Open a page from the folder; whatever it asks of the network is refused and noted."""
    contexts = []

    def go(path, **options):
        context = browser.new_context(viewport={'width': 1000, 'height': 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.errors = [], []
        refuse = lambda route: (page.asked.append(route.request.url), route.abort())
        context.route(re.compile('^https?:'), refuse)
        page.on('console', lambda m: page.errors.append(m.text) if m.type == 'error' else None)
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.goto(path.as_uri())
        return page

    yield go
    for c in contexts:
        c.close()


def canvas(page, name):
    """What a canvas shows, as text."""
    return page.evaluate('(id) => document.getElementById(id).toDataURL()', name)


def shown(page, what):
    page.wait_for_function('(what) => document.body.dataset.shown === what', arg=what, timeout=20_000)


def test_the_ratio_moves_without_a_kernel_by_keyboard_alone(folder, visit):
    page = visit(folder / 'frames.html')
    shown(page, '0 0 7')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.id') == 'ratio'
    before, original = canvas(page, 'returned'), canvas(page, 'original')
    counts = []
    for k in (6, 5, 4, 3, 2, 1, 0):
        page.keyboard.press('ArrowLeft')
        shown(page, f'0 0 {k}')
        counts.append(int(re.match(r'\d+', page.locator('#said').inner_text())[0]))
    assert counts == [45, 38, 32, 26, 19, 13, 6]  # of 64 patches, at .7 to .1
    assert canvas(page, 'returned') != before and canvas(page, 'original') == original
    assert page.locator('#ratio').get_attribute('aria-valuetext') == '0.1'
    assert '6 of 64' in page.locator('#seen').get_attribute('aria-label')
    page.keyboard.press('Tab')
    page.keyboard.press('ArrowDown')  # another photograph
    shown(page, '1 0 0')
    assert canvas(page, 'original') != original
    page.keyboard.press('Tab')
    page.keyboard.press('Space')  # another mask
    shown(page, '1 1 0')
    assert page.asked == [] and page.errors == []


def test_frames_are_what_the_package_computes(folder, visit):
    import torch

    import maskedlab as ml

    page = visit(folder / 'frames.html')
    shown(page, '0 0 7')
    stored = page.locator('#data').inner_text(timeout=5000)
    frames = json.loads(stored or page.evaluate('document.getElementById("data").textContent'))
    first = next(f for f in frames['frames'] if f['picture'] == 0 and f['mask'] == 0)
    assert [f[0] for f in first['facts']] == [round(r * 64) for r in frames['ratios']]
    seen = page.evaluate(
        """() => { const c = document.getElementById('seen');
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return [...d].filter((_, i) => i % 4 < 3); }"""
    )
    image = ml.sample('image', n=4, split='test')['image'][0]
    byte = (image * 255).round().permute(1, 2, 0).flatten()
    seen = torch.tensor(seen, dtype=torch.float)
    grey = (seen.view(-1, 3) == 128).all(1)
    assert abs(grey.float().mean() - 51 / 64) < 0.01
    assert torch.equal(seen.view(-1, 3)[~grey], byte.view(-1, 3)[~grey])


def test_the_index_shows_no_markdown(folder):
    body = (folder / 'index.html').read_text(encoding='utf-8')
    body = re.sub(r'<(code|pre)>.*?</\1>', '', body, flags=re.S)          # where it is code
    lists = body[body.index('<h2 id="tutorials">'):]
    assert '`' not in lists and not re.search(r'\]\(|\*\*|^#', lists, re.M)


def test_every_page_stands_alone(folder):
    pages = list(folder.rglob('*.html'))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding='utf-8')
        assert not re.findall(r'(?:src|data)="(?:https?:)?//[^"]*"', text), page
        assert not re.findall(r'<link[^>]*href="(?:https?:)?//', text), page
        # a sentence may name a directive as code; a cell may not show one
        assert not re.search(r'(?<!<code>)#\| *(default_exp|export)', text), page
        for href in re.findall(r'(?:href|src)="([^"#:<>]+)[^":]*"', text):
            target = (page.parent / href).resolve()
            assert target.is_file(), f'{page.relative_to(folder)} links to {href}'
            assert folder.resolve() in target.parents, f'{page} leaves the site: {href}'


@pytest.mark.parametrize('name', ['index.html', 'tutorials/01_see_it.html', 'nbs/masks/01_strategies.html'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_pages_open_without_network(folder, visit, name, scheme):
    page = visit(folder / name, color_scheme=scheme)
    assert page.locator('h1').first.is_visible()
    assert page.asked == [] and page.errors == []
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')  # nothing sticks out
    broken = page.evaluate("[...document.images].filter((i) => !i.complete || !i.naturalWidth || "
                           "!i.hasAttribute('alt')).map((i) => i.src)")
    assert broken == []


def test_outputs_that_need_a_kernel_are_replaced(folder, visit):
    """A curve comes from its stored numbers, the explorer is a page of frames, a question its words."""
    widget = {make_site.WIDGET: {'model_id': 'x', 'version_major': 2, 'version_minor': 0}}
    figure = {'data': [{'type': 'scatter', 'x': [1, 2], 'y': [3, 4]}],
              'layout': {'title': {'text': 'Two </script> points'}}}
    new = nbformat.v4
    show = lambda data, **meta: new.new_output('display_data', data={'text/plain': 'in words', **data},
                                               metadata=meta)
    still = lambda inside: {'text/html': f'<style>b {{}}</style><div class="ml-stored">{inside}</div>'}
    answer = {make_site.MARK: True}
    cells = [
        new.new_markdown_cell('# Outputs\n\n[![Badge](https://example.org/badge.svg)](https://example.org)'),
        new.new_code_cell('#| hide\nsecret = 1'),
        new.new_code_cell('one = 1', outputs=[show({make_site.FIGURE: figure})]),
        *(new.new_code_cell(f"ml.Explorer('{name}')", outputs=[show(still('its picture')), show(widget)])
          for name in make_site.STORED),
        new.new_code_cell('three = 3', outputs=[show(still('a question')), show(widget)]),
        new.new_code_cell('reveal(three)', metadata={'jupyter': {'source_hidden': True}},
                          outputs=[show({'text/html': '<b>the truth</b>'}, **answer),
                                   show({'text/markdown': 'and *why*'}, **answer)]),
    ]
    from plotly.offline import get_plotlyjs

    (folder / 'extra').mkdir()
    (folder / 'plotly.min.js').write_text(get_plotlyjs(), encoding='utf-8')
    file = folder / 'extra' / 'outputs.html'
    file.write_text(make_site.page(new.new_notebook(cells=cells), 'Outputs', 1), encoding='utf-8')
    page = visit(file)
    page.wait_for_selector('.figure .main-svg', timeout=20_000)
    assert 'Two' in page.locator('.figure').inner_text()
    # each explorer is a page of stored pictures of its own recipe
    frames = [f.get_attribute('src') for f in page.locator('iframe').all()]
    assert frames == [f'../{make_site.frames_of(name)}' for name in make_site.STORED]
    for name in make_site.STORED:
        inside = page.frame_locator(f'iframe[src="../{make_site.frames_of(name)}"]')
        inside.locator('#said').wait_for(timeout=20_000)
    said = page.frame_locator('iframe[src="../frames_point_mae.html"]')
    assert 'groups hidden' in said.locator('#said').inner_text()
    before = said.locator('#sheet').get_attribute('src')
    said.locator('#ratio').focus()
    page.keyboard.press('ArrowLeft')
    assert said.locator('#sheet').get_attribute('src') != before
    text = page.locator('main').inner_text()
    assert 'a question' in text
    assert not any(words in text for words in ('secret', 'in words', 'its picture'))
    # an answer is folded with its reasons, and so is the code that holds it
    assert 'the truth' not in text and 'and why' not in text and 'reveal(three)' not in text
    for summary in page.locator('main summary').all():
        summary.click()
    text = page.locator('main').inner_text()
    assert 'the truth' in text and 'and why' in text and 'reveal(three)' in text
    assert page.asked == [] and page.errors == []


def test_the_reference_has_every_public_name_and_finds_it(folder, visit):
    page = visit(folder / 'reference.html')
    count = page.locator('section.name').count()
    assert page.get_by_role('status').inner_text() == f'{count} of {count} names' and count > 500
    page.get_by_label('Search').fill('leak_check')
    found = page.locator('section.name:visible')
    assert 1 <= found.count() < 20
    first = page.locator('[id="maskedlab.instruments.leak.leak_check"]')
    assert first.is_visible()
    page.get_by_label('Search').fill('span prob overlap wav2vec')      # words of fields, docs and definitions
    assert page.locator('[id="maskedlab.masks.span.Span"]').is_visible()
    page.get_by_label('Search').fill('no-such-thing')
    assert page.locator('section.name:visible').count() == 0 and not page.errors and not page.asked
    import maskedlab as ml
    held = (folder / 'reference.html').read_text('utf-8')
    for name in ('create_recipe', 'Trainer', 'probe', 'finetune', 'coverage_map', 'sample', 'Explorer'):
        thing = getattr(ml, name)
        assert f'id="{thing.__module__}.{name}"' in held, name
    links = set(re.findall(r'href="(nbs/[^"]+)"', held))
    assert links and all((folder / link).is_file() for link in links)
