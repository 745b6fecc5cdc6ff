"""Tutorials on words and points: solved they say yes, a wrong result makes them fail, clouds are drawn (the rest: test_tutorials.py)."""
import sys

import pytest
import torch
from test_tutorials import FIRST, fails_with, says_yes_to_its_solutions

# What is planted, and behind which cells: those that hold these words.
PLANTED = {
    'words': (FIRST, """
from maskedlab.parts.text import TiedHead
whole = TiedHead.forward
TiedHead.forward = lambda self, *a: whole(self, *a).roll(1, -1)                   # says the next piece of the list
"""),
    'points': (FIRST, """
from maskedlab.recipes.points.point_mae import PointMAE
whole = PointMAE.decode
PointMAE.decode = lambda self, *a, **k: whole(self, *a, **k).roll(1, 1)          # each answer at another centre
"""),
}


@pytest.mark.parametrize('tutorial', PLANTED)
def test_with_the_solutions_each_exercise_says_yes(tutorial):
    says_yes_to_its_solutions(tutorial)


@pytest.mark.parametrize('tutorial', PLANTED)
def test_a_planted_wrong_result_makes_the_tutorial_fail(tutorial):
    fails_with(tutorial, *PLANTED[tutorial])


def test_a_cloud_turns_and_is_a_strip_of_pictures_without_plotly(monkeypatch):
    from maskedlab.course.pictures import Strip
    from maskedlab.course.points import turn
    x = torch.rand(20, 3) - .5
    figure = turn({'seen': [x[:5]], 'returned': [x[:5], x[5:]]})
    assert [t.visible for t in figure.data] == [True, False, False] and len(figure.layout.updatemenus[0].buttons) == 2
    monkeypatch.setitem(sys.modules, 'plotly.graph_objects', None)
    still = turn({'seen': [x[:5]], 'returned': [x[:5], x[5:]]})
    assert isinstance(still, Strip) and list(still.rows) == ['seen', 'returned']
