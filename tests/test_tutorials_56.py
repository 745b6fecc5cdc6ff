"""Tutorials on words and points: solved they say yes, a wrong result makes them fail, clouds are drawn (the rest: test_tutorials.py)."""
import sys

import pytest
import torch
from nbclient.exceptions import CellExecutionError
from test_tutorials import CALL, FIRST, asked, edited, lesson, run

from maskedlab.course.exercises import exercises

# What is planted, and behind which cells: those that hold these words.
PLANTED = {
    'points': (FIRST, """
from maskedlab.recipes.point_mae import PointMAE
whole = PointMAE.decode
PointMAE.decode = lambda self, *a, **k: whole(self, *a, **k).roll(1, 1)          # each answer at another centre
"""),
}


@pytest.mark.parametrize('tutorial', PLANTED)
def test_with_the_solutions_each_exercise_says_yes(tutorial):
    known = exercises(tutorial)

    def solve(i, source):
        return ''.join(f"{known[name].solution}\ncheck('{name}', {answer})\n" for name, answer in CALL.findall(source)) or source
    said = run(edited(tutorial, solve))
    verdicts = [t for t in said if t.startswith(('yes: ', 'hint: ', 'not yet: '))]
    assert verdicts == [f'yes: {known[name].praise}' for name in asked(lesson(tutorial))]


@pytest.mark.parametrize('tutorial', PLANTED)
def test_a_planted_wrong_result_makes_the_tutorial_fail(tutorial):
    words, wrong = PLANTED[tutorial]
    assert any(words in c.source for c in lesson(tutorial).cells)
    with pytest.raises(CellExecutionError, match='AssertionError'):
        run(edited(tutorial, lambda i, source: source + wrong if words in source else source))


def test_a_cloud_turns_and_is_a_strip_of_pictures_without_plotly(monkeypatch):
    from maskedlab.course.pictures import Strip
    from maskedlab.course.points import turn
    x = torch.rand(20, 3) - .5
    figure = turn({'seen': [x[:5]], 'returned': [x[:5], x[5:]]})
    assert [t.visible for t in figure.data] == [True, False, False] and len(figure.layout.updatemenus[0].buttons) == 2
    monkeypatch.setitem(sys.modules, 'plotly.graph_objects', None)
    still = turn({'seen': [x[:5]], 'returned': [x[:5], x[5:]]})
    assert isinstance(still, Strip) and list(still.rows) == ['seen', 'returned']
