"""Exercises under mutation: each right answer, changed by one small mistake, is refused; written in other
numbers, it is accepted. Over all exercises, with the few exceptions by name.
"""
import warnings

import numpy as np
import pytest
import torch

from maskedlab.course.exercises import TUTORIALS, exercises, judge, solved

ALL = [e for t in TUTORIALS for e in exercises(t).values()]
CODE = [e for e in ALL if e.code]
tensors = torch.is_tensor


def each(change):
    """A change of a tensor or number, for a list of tensors of each."""
    return lambda y: [change(v) for v in y] if isinstance(y, list) else change(y)


def rolled(axis):
    return each(lambda y: y.roll(1, axis) if tensors(y) and y.ndim > axis else None)


def boolean(y):
    return tensors(y) and y.dtype == torch.bool


# What an answer may be turned into by mistake; None: this mistake cannot be made with this kind of answer.
MUTATIONS = {
    'as float': each(lambda y: y.float() if tensors(y) and not y.is_floating_point() else None),
    'as whole numbers': each(lambda y: y.long() if tensors(y) and y.ndim and y.dtype != torch.int64
                             else None),
    'as bool': each(lambda y: None if boolean(y) else y.bool() if tensors(y) else bool(y)),
    'as complex': each(lambda y: None if boolean(y) else torch.as_tensor(y).to(torch.complex64)),
    'as text': lambda y: str(y),
    'as a dict': lambda y: {'answer': y},
    'abs': each(lambda y: None if boolean(y) else abs(y)),
    'sign': each(lambda y: ~y if boolean(y) else -y),
    'one more': each(lambda y: None if boolean(y) else y + 1),
    'a fiftieth more': each(lambda y: None if boolean(y) or tensors(y) and not y.is_floating_point()
                             else y * 1.02),
    'rolled along axis 0': rolled(0),
    'rolled along axis 1': rolled(1),
    'rolled along axis 2': rolled(2),
    'one row less': each(lambda y: y[:-1] if tensors(y) and y.ndim else None),
    'an axis more': each(lambda y: y[None] if tensors(y) and y.ndim else None),
    'not a number': each(lambda y: y * float('nan') if not boolean(y) else None),
}

# Changed like this, the answer is as right as before: it is never negative, or any order will do, or it is a
# draw. The test asks that these are accepted, so none of them is here by mistake.
POSITIVE = ('see_it/visible', 'see_it/error', 'see_it/mean', 'true/count', 'build_it/join', 'build_it/loss',
            'five/seams', 'words/hide', 'words/draw', 'points/farthest', 'points/chamfer', 'points/on_view',
            'targets/floor', 'targets/relations', 'teachers/pull', 'teachers/nearest', 'teachers/perplexity',
            'learned/from_when', 'where/alone', 'inside/field', 'inside/chance', 'time/balanced',
            'sounds/contrast', 'sounds/alike')
HARMLESS = {(name, 'abs') for name in POSITIVE} | {
    ('true/sampler', 'rolled along axis 0'), ('build_it/mask', 'rolled along axis 0'),
    ('build_it/mask', 'rolled along axis 1'), ('words/draw', 'rolled along axis 0'),
    ('points/neighbours', 'rolled along axis 1'),        # the points of a group have no order
    *(('where/two', f'rolled along axis {axis}') for axis in range(3)),          # any two that share little
    *(('where/mine', f'rolled along axis {axis}') for axis in range(3)),         # any strategy
    *((f'time/{name}', f'rolled along axis {axis}') for name in ('tube', 'mine') for axis in range(3)),
}

FORMS = {
    'NumPy': each(lambda y: y.detach().numpy() if tensors(y) else np.float64(y)),
    'a list': lambda y: [v.tolist() for v in y] if isinstance(y, list) else (
        y.tolist() if tensors(y) and y.ndim else [float(y)]),
    'a tuple of rows': lambda y: tuple(y) if isinstance(y, list) or tensors(y) and y.ndim else (float(y),),
    'smaller or larger numbers': each(lambda y: y if boolean(y) else y.int() if tensors(y) and
                                      y.dtype == torch.int64 else torch.as_tensor(y).double()),
    'without axes': each(lambda y: y if tensors(y) and y.ndim else np.array(float(y))),
    'not contiguous': each(lambda y: torch.stack([y, y], -1)[..., 0] if tensors(y) else y),
    'float32 of NumPy': each(lambda y: np.float32(y) if not tensors(y) or not y.ndim else y),
}
# a gradient goes through a tensor only, and NumPy numbers of 32 bits do not tell 1e-6 apart
LOSES_IT = {('teachers/pull', form) for form in FORMS if form not in ('smaller or larger numbers',
                                                                    'not contiguous')}


def changed(e, change):
    """The solution with its answer changed, and whether the change could be made."""
    f, possible = e.run(e.solution), []

    def answer(*a):
        y = change(f(*a))
        if y is None or isinstance(y, list) and any(v is None for v in y):
            possible.append(False)
            return f(*a)
        possible.append(True)
        return y
    return judge(e, answer), all(possible)


@pytest.mark.parametrize('e', CODE, ids=lambda e: e.name)
def test_a_right_answer_with_one_mistake_in_it_is_refused(e):
    for name, change in MUTATIONS.items():
        verdict, possible = changed(e, change)
        if not possible: continue
        wanted = 'yes' if (e.name, name) in HARMLESS else 'hint'
        assert verdict.kind == wanted, (name, verdict)
        assert len(verdict.text) < 260 and 'Traceback' not in verdict.text


@pytest.mark.parametrize('e', CODE, ids=lambda e: e.name)
def test_a_right_answer_that_changes_what_it_was_given_is_refused(e):
    f = e.run(e.solution)
    places = set()

    def spoilt(i):
        def answer(*a):
            y = f(*a)
            for part in a[i] if isinstance(a[i], list) else [a[i]]:
                if tensors(part):
                    places.add(i)
                    with torch.no_grad():
                        part.logical_not_() if part.dtype == torch.bool else part.add_(1)
            return y
        return answer

    for i in range(f.__code__.co_argcount):
        verdict = judge(e, spoilt(i))
        assert verdict.kind == ('hint' if i in places else 'yes'), (i, verdict)
        assert i not in places or 'changed the values of' in verdict.text


@pytest.mark.parametrize('e', CODE, ids=lambda e: e.name)
def test_a_right_answer_is_right_in_any_numbers(e):
    for form, change in FORMS.items():
        verdict, _ = changed(e, change)
        wanted = 'hint' if (e.name, form) in LOSES_IT else 'yes'
        assert verdict.kind == wanted, (form, verdict)


def test_a_teacher_that_moves_in_place_is_refused_and_a_diagnosis_may_be_of_numpy():
    e = exercises('teachers')['teachers/follow']

    def follow(teacher, student, momentum):
        for slow, fast in zip(teacher, student):
            slow.lerp_(fast, 1 - momentum)
        return teacher
    assert 'changed the values of teacher' in judge(e, follow).text
    patients = exercises('five')['five/patients']
    right = patients.run(patients.solution)
    for form in (np.int64, torch.tensor, float, lambda v: [v], np.array):
        assert judge(patients, {k: form(v) for k, v in right.items()}).kind == 'yes'
    for wrong in (str, lambda v: v + 1, lambda v: v > 0, lambda v: v * 1j):
        assert judge(patients, {k: wrong(v) for k, v in right.items()}).kind == 'hint'


def test_a_lesson_goes_on_with_one_form_of_the_answer():
    ids, fake, mask = torch.tensor([[5, 6]]), torch.tensor([[5, 7]]), torch.tensor([[True, True]])
    replaced = solved('words/replaced', lambda ids, fake, mask: (ids != fake).numpy(), None)
    assert torch.equal(replaced(ids, fake, mask), torch.tensor([[False, True]]))
    assert solved('words/replaced', lambda ids, fake, mask: (ids != fake).float(), None) is None
    perplexity = exercises('teachers')['teachers/perplexity']
    loose = solved('teachers/perplexity', lambda ids: np.array(perplexity.run(perplexity.solution)(ids)),
                   None)
    assert f'{loose(torch.arange(4)):.1f}' == '4.0'


@pytest.mark.parametrize('e', CODE, ids=lambda e: e.name)
def test_an_imaginary_part_is_not_dropped(e):
    """Neither by a judge, which would warn, nor in an answer: as numbers of torch and of NumPy."""
    torch.set_warn_always(True)
    try:
        for change in (each(lambda y: torch.as_tensor(y).to(torch.complex64) * (1 + 1j)),
                       each(lambda y: np.asarray(y.detach() if tensors(y) else y) + 1j)):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter('always')
                verdict, _ = changed(e, change)
            assert verdict.kind == 'hint', verdict
            assert not any('imaginary' in str(w.message) for w in told)
    finally:
        torch.set_warn_always(False)
