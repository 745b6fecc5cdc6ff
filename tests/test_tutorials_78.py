"""Tutorials on targets: solved they say yes, and a wrong result makes them fail (the rest: test_tutorials.py)."""
import pytest
from test_tutorials import FIRST, fails_with, says_yes_to_its_solutions

# What is planted, and behind which cells: those that hold these words.
PLANTED = {
    'targets': (FIRST, """
net.features = lambda batch, pool=True: torch.randn(len(batch['image']), 64, 128)         # a teacher that says something new each time
"""),
    'teachers': ('def train(target', """
whole = train
def train(target, pull=pull, **more): return whole(target, **more)          # the gradient is stopped, whatever was asked for
"""),
}


@pytest.mark.parametrize('tutorial', PLANTED)
def test_with_the_solutions_each_exercise_says_yes(tutorial):
    says_yes_to_its_solutions(tutorial)


@pytest.mark.parametrize('tutorial', PLANTED)
def test_a_planted_wrong_result_makes_the_tutorial_fail(tutorial):
    fails_with(tutorial, *PLANTED[tutorial])
