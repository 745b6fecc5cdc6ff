"""Planted faults are found, and nothing that is right is: `maskedlab bench instruments`, in small."""
from __future__ import annotations

from pathlib import Path

import pytest

if not (Path(__file__).resolve().parents[1] / 'bench').is_dir():
    pytest.skip('no checkout', allow_module_level=True)

from bench import instruments  # noqa: E402
from bench.planted import BIASED, KIT, LEAKS, RIGHT, SOUND, alarmed, leaky  # noqa: E402


def test_there_are_enough_cases():
    assert len(LEAKS) + len(BIASED) >= 40 and len(SOUND) + len(RIGHT) >= 40 and len(KIT) >= 13


@pytest.mark.parametrize('name', LEAKS)
def test_leaks_are_found(name):
    assert leaky(LEAKS[name], 1000)


@pytest.mark.parametrize('name', SOUND)
def test_sound_recipes_raise_no_alarm(name):
    assert not leaky(SOUND[name], 1000)


@pytest.mark.parametrize('name', BIASED)
def test_biased_samplers_are_found(name):
    assert any(alarmed(BIASED[name], 1000))


@pytest.mark.parametrize('name', RIGHT)
def test_right_samplers_raise_no_alarm(name):
    assert not any(alarmed(RIGHT[name], 1000))


def test_the_table(monkeypatch):
    "A row for each case, and the sums in words."
    for group in ('LEAKS', 'SOUND', 'BIASED', 'RIGHT'):
        few = dict(list(getattr(instruments, group).items())[:2])
        monkeypatch.setattr(instruments, group, few)
    groups = {'fault in a recipe': instruments.LEAKS, 'fault in a sampler': instruments.BIASED,
              'right recipe': instruments.SOUND, 'right sampler': instruments.RIGHT}
    monkeypatch.setattr(instruments, 'GROUPS', groups)
    t = instruments.table(instruments.measured(2, only=tuple(groups)))
    assert [r[3] for r in t.rows] == ['2 of 2'] * 4 + ['0 of 2'] * 4
    assert '4 faults' in t.about and 'in 8 of 8 runs' in t.about and 'raised 0 alarms in 8 runs' in t.about
