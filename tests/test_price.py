"""What a method may cost, and that the counting is right."""
import ast
from pathlib import Path
from statistics import median

import pytest

pytest.importorskip('bench', reason='no checkout')
from bench.price import LIMITS, MEDIAN, code_lines, named, prices, table_of  # noqa: E402

PRICES = prices()


@pytest.mark.parametrize('p', PRICES, ids=lambda p: p.name)
@pytest.mark.parametrize('kind', LIMITS)
def test_a_recipe_keeps_to_its_price(p, kind):
    assert getattr(p, kind) <= LIMITS[kind], p


def test_half_of_the_classes_are_short():
    assert median(p.lines for p in PRICES) <= MEDIAN, {p.name: p.lines for p in PRICES}


SOURCE = '''
class Thing(Recipe):
    """Text
    of two lines."""
    card, sizes = CARD, {
        'micro': 3}

    # a remark
    def forward(self, x,    # a parameter
                y=2):
        "One line."
        from a import b
        return [x,

                y]
'''


def test_code_is_counted_and_nothing_else():
    node = ast.parse(SOURCE).body[0]
    assert len(code_lines(SOURCE, node)) == 5 and len(code_lines(SOURCE, node.body[-1])) == 4


def test_code_that_names_a_method():
    source = '"""A word on mae and \'mae\'."""\nT = {"mae": 1, "maes": 2}\n'
    source += 'from ..recipes.image.mae import MAE\n# mae\nx = mae\ndef f(recipe="mae"): add(default="mae")\n'
    assert named(source, 'mae', 'maskedlab.recipes.image.mae') == [2, 3]


def test_another_tree_is_read_and_not_run(tmp_path):
    from maskedlab.contract.catalogue import RECIPES
    assert table_of(Path(__file__).parents[1]) == {name: row.path for name, row in RECIPES.items()}
    with pytest.raises(ValueError, match='checkout'):
        table_of(tmp_path)
