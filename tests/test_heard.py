"""What one hears of a sample: never what is hidden, and never louder than the recording."""
import numpy as np
import pytest
import torch

from maskedlab.show.explorer.doors import answer
from maskedlab.show.explorer.page import Page

NAMES = ('wav2vec2', 'w2v_bert', 'ask2mask')


@pytest.fixture(scope='module', params=NAMES)
def core(request):
    return Page(request.param)


def samples(core, name):
    reply, data = answer(core, dict(kind='hear', name=name, state=vars(core.state)))
    assert reply['kind'] == 'heard' and reply['rate'] == 8000, reply
    return np.frombuffer(data[0], np.int16).astype(np.int64)


def hidden_samples(core, n):
    mask = core.show(core.state).mask
    return mask.numpy()[np.arange(n) * len(mask) // n]


def test_the_original_is_the_recording_and_nothing_is_louder(core):
    wave = core.menus.batch(core.state)['wave'][0].numpy()
    original = samples(core, 'original')
    assert abs(original / 32767 - wave).max() < 1 / 32767
    for name in core.menus.view().sounds:
        assert len(samples(core, name)) == len(wave)
        assert abs(samples(core, name)).max() <= abs(original).max()


def test_holes_are_silent_and_the_rest_is_as_it_was(core):
    original, seen = samples(core, 'original'), samples(core, 'seen')
    hidden = hidden_samples(core, len(original))
    assert hidden.mean() > .3 and not seen[hidden].any()
    near = np.convolve(hidden, np.ones(65), 'same') > 0
    assert (seen[~near] == original[~near]).all() and (~near).any()


def test_what_cannot_be_heard_is_a_sentence(core):
    reply, _ = answer(core, dict(kind='hear', name='colour', state=vars(core.state)))
    assert reply['kind'] == 'trouble' and 'original' in reply['words']
    pictures = Page('mae')
    reply, _ = answer(pictures, dict(kind='hear', name='original', state=vars(pictures.state)))
    assert reply['kind'] == 'trouble' and len(reply['words']) < 200
    assert answer(pictures, dict(kind='draw', state=vars(pictures.state)))[0]['kind'] == 'drawn'


def test_listening_leaves_no_trace(core):
    before = core.show(core.state)
    for name in core.menus.view().sounds:
        assert np.array_equal(samples(core, name), samples(core, name))
    assert torch.equal(core.show(core.state).pictures['seen'], before.pictures['seen'])
