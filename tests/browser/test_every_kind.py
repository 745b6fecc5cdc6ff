"""Every kind of view opens in a real browser: what the page builds, it builds for views that return nothing,
too."""
import numpy as np
import pytest
from conftest import pixels

import maskedlab as ml
from maskedlab.show.explorer.page import Page
from maskedlab.show.views.table import FINER, VIEWS, has_view, view_of

BY_KIND = {type(view_of(ml.create_recipe(name, size='micro'))).__name__: name
           for name in reversed(ml.list_recipes()) if has_view(ml.create_recipe(name, size='micro'))}
TURNED = {'CloudView', 'TextView'}          # drawn by the page itself, from points and words


def test_each_view_is_that_of_a_recipe():
    assert {type(v).__name__ for v in [*VIEWS.values(), *(v for views in FINER.values() for v in views)]} - {
        'WaveView', *BY_KIND} == set()


@pytest.mark.parametrize('kind', sorted(BY_KIND))
def test_the_page_opens_and_shows_what_the_package_computes(kind, bare):
    core = Page(BY_KIND[kind])
    page = bare(core)
    assert page.errors == []
    titles = core.menus.view().titles
    heads = page.locator('figure h3').all_inner_texts()
    assert sorted(h for h in heads if h != 'How close?') == sorted(titles.values())
    if kind not in TURNED and core.menus.view().stage != 'film':        # a clip shows one frame of its sheet
        want = core.show(core.state).pictures['original'].numpy()
        assert np.array_equal(pixels(page, titles['original'])[..., 3], want[..., 3])
