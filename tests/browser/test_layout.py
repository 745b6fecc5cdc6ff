"""Every width from 900 to 1,900 pixels and every zoom to 200 %: nothing is cut or covered, tops are level,
and the slider and a result lie in the first screen. `python tools/screens.py` takes pictures of all
methods."""
import sys

import pytest
from conftest import ROOT, open_page

from maskedlab.show.explorer.page import Page

sys.path.insert(0, str(ROOT / 'tools'))
from screens import AMISS  # noqa: E402

# as wide as the window in JupyterLab leaves it, too: about 60 % of it
WIDTHS = (1900, 1600, 1400, 1280, 1130, 1024, 950, 900, 840, 760, 700, 620, 560, 450)


@pytest.mark.parametrize('name', ['mae', 'beit', 'maskalign', 'mfm', 'bert_mlm', 'point_mae'])
def test_nothing_is_cut_at_any_width(browser, tmp_path, name):
    page = open_page(browser, Page(name), tmp_path / 'page.html', width=WIDTHS[0])
    try:
        for width in WIDTHS:
            page.set_viewport_size(dict(width=width, height=900))
            page.wait_for_timeout(60)
            assert page.evaluate(AMISS, True) == [], width
        assert page.errors == []
    finally:
        page.context.close()


@pytest.mark.parametrize('name', ['mae', 'beit', 'bert_mlm', 'point_mae'])
def test_slider_and_result_are_in_the_first_screen_at_every_zoom(browser, tmp_path, name):
    page = open_page(browser, Page(name), tmp_path / 'page.html', width=1400)
    try:
        for width, height in ((1400, 900), (1024, 768)):
            for zoom in (1, 1.25, 1.5, 2):
                page.set_viewport_size(dict(width=round(width / zoom), height=round(height / zoom)))
                page.wait_for_timeout(60)
                assert page.evaluate(AMISS, True) == [], (width, zoom)
    finally:
        page.context.close()


def test_the_slider_stays_beside_the_results_in_one_column(browser, tmp_path):
    page = open_page(browser, Page('mae'), tmp_path / 'page.html', width=700, height=450)
    try:
        for far in (200, 500, 900):
            page.evaluate('(y) => window.scrollTo(0, y)', far)
            page.wait_for_timeout(60)
            box = page.locator('[data-field=ratio]').bounding_box()
            assert 0 <= box['y'] <= 120, far
    finally:
        page.context.close()


def test_the_instrument_itself_finds_what_is_amiss(browser, tmp_path):
    page = open_page(browser, Page('mae'), tmp_path / 'page.html', width=1280)
    try:
        for css, words in (('.mlx .mlx-is-error { margin-left: -60px; }', 'lies over'),
                           ('.mlx-figure { display: block; } .mlx-is-seen h3 { height: 60px; }', 'tops'),
                           ('.mlx-main { width: 3000px; }', 'wider'),
                           ('.mlx .mlx-status { padding-bottom: 2000px; }', 'below the first screen')):
            tag = page.add_style_tag(content=css)
            page.wait_for_timeout(60)
            assert any(words in found for found in page.evaluate(AMISS, True)), words
            tag.evaluate('(e) => e.remove()')
            page.wait_for_timeout(60)
        assert page.evaluate(AMISS, True) == []
    finally:
        page.context.close()
