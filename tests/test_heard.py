"""What one hears of a sample: never what is hidden, and never louder than the recording."""
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from maskedlab.show.explorer.doors import answer
from maskedlab.show.explorer.page import Page
from maskedlab.show.views.waves import picked

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


def scenes(core):
    "A scene, and one of the same mask whose hidden samples are noise."
    s = core.show(core.state).scene
    x = s.batch['wave'].clone()
    hidden = torch.from_numpy(hidden_samples(core, x.shape[1]))
    x[0, hidden] = torch.randn(int(hidden.sum()), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return s, replace(s, batch={**s.batch, 'wave': x})


def test_lines_and_holes_tell_nothing_of_what_is_hidden(core):
    v, (s, other) = core.menus.view(), scenes(core)
    assert torch.equal(v.line(s), v.line(other))
    (a, _), (b, _) = v.hear('seen', s), v.hear('seen', other)
    assert torch.equal(a, b) and not torch.equal(v.hear('original', s)[0], v.hear('original', other)[0])


def test_the_answer_is_made_of_the_recording_where_the_network_picked_it(core):
    v, s = core.menus.view(), core.show(core.state).scene
    x, L = s.batch['wave'][0], s.units.count
    rows, where = picked(s.out.choices, s.out.extra['others']), s.mask[0].nonzero()[:, 0]
    heard, right = v.hear('returned', s)[0], rows == torch.arange(len(rows))
    assert int(right.sum()) == int((s.out.choices.argmax(1) == 0).sum()) and 0 < right.float().mean() < 1
    middle = lambda frame: int((frame + .5) * len(x) / L)
    for here, there in zip(where.tolist(), where[rows].tolist(), strict=True):
        begin = middle(here) - 20
        far = round((there - here) * len(x) / L)
        assert torch.equal(heard[begin:begin + 40], x[begin + far:begin + far + 40])


def test_every_frame_has_its_words(core):
    v, s = core.menus.view(), core.show(core.state).scene
    ids = v.words(s)
    assert ids.shape == (s.units.count, s.recipe.quantiser.groups) and (ids >= 0).all()
    assert torch.equal(ids[s.mask[0]], s.out.words)             # as the forward under its mask has them
    assert str(ids[3, 0].item()) in v.says(s, 3)


def test_what_is_said_is_told_where_it_is_known(core):
    staged = lambda label: core.menus.view().staged(core.show(replace(core.state, set=label)).scene)['labels']
    digits, = staged('Held-out digits')
    words, phones = staged('A computed voice')
    assert len(digits) == 3 and 3 <= len(phones) > len(words)
    for row in (digits, words, phones):
        assert all(0 <= a < b <= 1 for a, b, _ in row) and all(p[1] <= q[0] for p, q in pairwise(row))


def test_where_nothing_is_on_view_there_is_no_line(core):
    n = core.show(core.state).total
    state = vars(replace(core.state, painted=list(range(n))))
    reply, _ = answer(core, dict(kind='hear', name='line', state=state))
    assert reply['kind'] == 'trouble' and 'show more frames' in reply['words']
    for name in ('original', 'seen', 'returned'):
        assert answer(core, dict(kind='hear', name=name, state=state))[0]['kind'] == 'heard'


TONE = .3 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)


def file_of(x, kind='WAV'):
    data = io.BytesIO()
    pytest.importorskip('soundfile').write(data, x, 16000, format=kind)
    return data.getvalue()


@pytest.mark.parametrize('name, make, says', [
    ('broken.wav', lambda: b'RIFF and no more' * 9, 'no sound file'), ('empty.mp3', lambda: b'', 'empty'),
    ('silent.wav', lambda: file_of(np.zeros(16000)), 'silent'),
    ('late.wav', lambda: file_of(np.r_[np.zeros(40000), TONE]), 'silent in its first 2 seconds'),
    ('opposite.wav', lambda: file_of(np.stack([TONE, -TONE], 1)), 'cancel each other'),
    ('short.wav', lambda: file_of(TONE[:160]), '80 samples')])
def test_a_recording_that_cannot_be_used_is_one_sentence(name, make, says):
    core = Page('wav2vec2')
    file = dict(kind='file', recipe=core.state.recipe, name=name)
    reply, _ = answer(core, file, [make()])
    assert reply['kind'] == 'trouble' and says in reply['words'] and len(reply['words']) <= 200
    assert name not in core.menus.sets(core.state.recipe)
    assert answer(core, dict(kind='draw', state=vars(core.state)))[0]['kind'] == 'drawn'


@pytest.mark.parametrize('kind', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_a_recording_in_stereo_is_drawn_and_heard(core, kind):
    name = f'mine.{kind.lower()}'
    file = dict(kind='file', recipe=core.state.recipe, name=name)
    assert answer(core, file, [file_of(np.stack([TONE, TONE / 2], 1), kind)])[0]['kind'] == 'filed'
    state = vars(replace(core.state, set=name, painted=None))
    assert answer(core, dict(kind='draw', state=state))[0]['staged']['labels'] == []
    for sound in core.menus.view().sounds:
        assert answer(core, dict(kind='hear', name=sound, state=state))[0]['kind'] == 'heard'
