"""Sound: what is shipped, the computed voice, other rates, the reader's own files, log-mel spectra."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.data import sound
from maskedlab.data.recordings import Heard, Recordings, load_wave, read_piece, recordings
from maskedlab.data.sound import PHONES, SPOKEN, formants, resample, sound_credits, waves, waves_of
from maskedlab.parts.mel import LogMel
from maskedlab.train.feed import source_of


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- what is shipped


def test_no_recording_is_on_both_sides_and_all_are_credited():
    rows = sound_credits()['recordings']
    assert len({(d, s, k) for _, d, s, k, _ in rows}) == len(rows) == 600
    train, test = (waves(None, split=s) for s in ('train', 'test'))
    assert train['label'].bincount().tolist() == [48] * 10 and test['speaker'].bincount().tolist() == [20] * 6
    heard = {x.numpy().tobytes() for x in train['wave']}
    assert len(heard) == 480 and not any(x.numpy().tobytes() in heard for x in test['wave'])
    text = (sound._FILES / 'CREDITS-sound.md').read_text(encoding='utf-8')
    assert 'CC BY-SA 4.0' in text and all(name in text for name in sound_credits()['speakers'])


def test_a_clip_says_what_it_is():
    b = ml.sample('wave', 6, seconds=0.3)
    assert b['real'].all() and (b['rate'] == 8000).all() and b['wave'].shape == (6, 2400)
    assert (b['phones'][b['words'] >= 0] == -1).all()  # nobody knows them of a recording
    assert not b['wave'][~b['wave_valid']].any() and b['words'].shape == b['phones'].shape == (6, 30)
    made = ml.sample('wave', 6, source='formants')
    assert not made['real'].any() and (made['phones'][made['words'] >= 0] > 0).all()
    assert made['label'].tolist() == b['label'].tolist()


def test_without_its_file_a_voice_is_computed_and_says_so(monkeypatch):
    monkeypatch.setattr(sound, 'wave_source', lambda: 'formants')
    with pytest.warns(UserWarning, match='computed voice'):
        b = ml.sample('wave', 4)
    assert not b['real'].any() and b['wave'].abs().amax(1).min() > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert not torch.equal(ml.sample('wave', 4, split='test')['wave'], b['wave'])
    with pytest.raises(FileNotFoundError, match='formants'):
        waves(1, source='spoken')


def test_labels_by_frame_tell_where_a_sound_is():
    """Voiceless sounds have little below 1 kHz, vowels nearly all of it: in frames that are labelled so."""
    b = waves(30, source='formants')
    frames = b['wave'].unfold(1, 80, 80)
    spectra = torch.fft.rfft(frames * torch.hann_window(80), dim=-1).abs() ** 2
    low = spectra[..., :11].sum(-1) / spectra.sum(-1).clamp_min(1e-9)
    at = lambda *names: torch.isin(b['phones'], torch.tensor([PHONES.index(n) for n in names]))
    assert low[at('s')].median() < 0.05 and low[at('iy', 'uw', 'ao', 'ah')].median() > 0.9


@pytest.mark.parametrize('source', ['spoken', 'formants'])
def test_strings_are_of_one_voice_and_do_not_depend_on_their_batch(source):
    table = torch.rand(4, SPOKEN, generator=gen(1))
    whole = waves_of(table, words=2, seconds=1.5, source=source)
    for i in range(4):
        one = waves_of(table[i : i + 1], words=2, seconds=1.5, source=source)
        assert all(torch.equal(one[k][0], whole[k][i]) for k in one)
    b = waves_of(table, source=source)
    assert b['wave_valid'].all()  # a clip without a number of words is full


def test_a_voice_is_the_same_for_the_same_seed():
    a, b, c = (formants('s ih k s', 120, 1.0, 1.0, s)[0] for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and np.abs(a).max() == 1


# ---- another rate


@pytest.mark.parametrize('rate, to', [(22050, 8000), (8000, 16000), (9127, 8000)])
def test_resampling_is_that_of_scipy(rate, to):
    signal = pytest.importorskip('scipy.signal')
    t = np.arange(rate) / rate
    x = sum(np.sin(2 * np.pi * f * t + f) for f in (100, 433, 1500, 2900)).astype(np.float32)
    g = math.gcd(rate, to)
    theirs = signal.resample_poly(x, to // g, rate // g, window=('kaiser', 8.0))
    ours = resample(torch.from_numpy(x), rate, to).numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs)[300:-300].max() < 0.02
    exact = sum(np.sin(2 * np.pi * f * np.arange(to) / to + f) for f in (100, 433, 1500, 2900))
    assert np.abs(ours - exact)[300:-300].max() < 2e-3


def test_tones_that_do_not_fit_are_gone():
    tone = torch.sin(2 * math.pi * 5000 * torch.arange(44100) / 44100)
    assert resample(tone, 44100, 8000)[300:-300].abs().max() < 1e-3


# ---- the reader's own

soundfile = pytest.importorskip('soundfile')


@pytest.fixture
def folder(tmp_path):
    x = waves(6, seconds=0.5)['wave']
    for i, end in enumerate(('wav', 'flac', 'ogg', 'mp3')):
        (tmp_path / ('a' if i % 2 else 'b')).mkdir(exist_ok=True)
        soundfile.write(tmp_path / ('a' if i % 2 else 'b') / f'{i}.{end}', x[i].numpy(), 8000)
    return tmp_path


@pytest.mark.filterwarnings('error')
def test_a_folder_of_four_formats(folder):
    mine = recordings(folder, rate=16000, seconds=0.25, crop=False)
    assert len(mine) == 4 and mine.classes == ['a', 'b']
    want = resample(waves(6, seconds=0.5)['wave'], 8000, 16000)
    for i in range(4):
        item, number = mine[i], int(mine.names[i].split('/')[-1].split('\\')[-1][0])
        assert item['wave'].shape == (4000,) and item['rate'] == 16000 and item['wave_valid'].all()
        assert torch.corrcoef(torch.stack([item['wave'], want[number, :4000]]))[0, 1] > 0.95
    source = source_of(str(folder), 0, modality='wave', reading=dict(rate=8000))
    a, b = source.batch(range(3)), source.batch(range(1, 3))  # a run that goes on hears the same
    assert a['wave'].shape == (3, 8000) and torch.equal(a['wave'][1:], b['wave'])


def test_nothing_is_decoded_that_is_not_asked_for(tmp_path, monkeypatch):
    soundfile.write(tmp_path / 'long.flac', np.tile(waves(1)['wave'][0].numpy(), 90), 8000)
    read, most = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, 'read', lambda f, n=-1, **k: most.append(n) or read(f, n, **k))
    mine = recordings(tmp_path, seconds=0.5)
    pieces = [mine[0]['wave'] for _ in range(5)]
    assert set(most) == {4000} and len({p.numpy().tobytes() for p in pieces}) > 1


def broken(tmp_path, what):
    path = tmp_path / f'{what}.wav'
    x = waves(1)['wave'][0].numpy()
    if what == 'silent':
        soundfile.write(path, np.zeros(4000), 8000)
    elif what == 'nan':
        soundfile.write(path, np.where(np.arange(8000) == 77, np.nan, x), 8000, subtype='FLOAT')
    elif what == 'cancelling':
        soundfile.write(path, np.stack([x, -x], 1), 8000, subtype='FLOAT')
    elif what == 'rate':
        soundfile.write(path, x, 8000)
        data = bytearray(path.read_bytes())
        data[24:28] = bytes(4)
        path.write_bytes(data)
    elif what == 'cut':
        soundfile.write(path.with_suffix('.flac'), np.random.default_rng(0).normal(size=40000) / 9, 8000)
        data = path.with_suffix('.flac').read_bytes()
        path.write_bytes(data[: len(data) // 2])
        path.with_suffix('.flac').unlink()
    elif what == 'empty':
        path.write_bytes(b'')
    elif what == 'text':
        path.write_text('hello')
    return path


@pytest.mark.parametrize(
    'what, why',
    [
        ('silent', 'is silent'),
        ('nan', 'sample 77'),
        ('cancelling', 'cancel'),
        ('rate', 'rate|damaged'),
        ('cut', 'breaks off|decoded|damaged'),
        ('empty', 'empty'),
        ('text', 'no sound file'),
        ('missing', 'missing.wav was found'),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path, what, why):
    path = broken(tmp_path, what)
    for call in (lambda: load_wave(path), lambda: recordings(path, seconds=9.0)):
        with pytest.raises((ValueError, FileNotFoundError), match=why) as told:
            call()
        assert len(str(told.value)) <= 200 and '\n' not in str(told.value)


def test_a_broken_file_among_others_is_left_out(folder):
    broken(folder, 'text')
    with pytest.warns(UserWarning, match='1 of 5 left out'):
        mine = recordings(folder, seconds=0.25)
    assert len(mine) == 4 and list(mine.skipped) == ['text.wav']
    with pytest.raises(ValueError, match='text.wav'):
        recordings(folder, on_error='raise')


def test_stereo_rates_and_short_clips(tmp_path):
    x = resample(waves(1)['wave'], 8000, 44100)[0].numpy()
    soundfile.write(tmp_path / 'two.wav', np.stack([x, 0 * x], 1), 44100, subtype='FLOAT')
    b = load_wave(tmp_path / 'two.wav')
    assert_close(2 * b['wave'][0, 100:4000], waves(1)['wave'][0, 100:4000], atol=0.05, rtol=0)
    item = recordings(tmp_path, seconds=3.0)[0]
    assert item['wave'].shape == (24000,) and item['wave_valid'].sum() == b['wave'].shape[1]
    with pytest.raises(ValueError, match='rate=0'):
        load_wave(tmp_path / 'two.wav', rate=0)
    # a file, too, is resampled by a filter: dropping samples would make 3 kHz of 5
    tone = 0.5 * np.sin(2 * np.pi * 5000 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / 'tone.wav', tone, 44100, subtype='FLOAT')
    for x in (load_wave(tmp_path / 'tone.wav')['wave'][0], recordings(tmp_path / 'tone.wav')[0]['wave']):
        assert len(x) == 8000 and x[300:-300].abs().max() < 1e-3
    with pytest.raises(ValueError, match='120 minutes'):
        read_piece(Heard('talk', 8000, 7200 * 8000, lambda *_: x[None]), 8000)


def test_arrays_and_items_of_hugging_face():
    x = np.sin(np.arange(4000) / 9)
    items = [(x, 8000), {'audio': dict(array=x, sampling_rate=8000, path=None), 'label': 3}]
    a, b = recordings(items[:1], seconds=0.5), recordings(items[1:], seconds=0.5)
    assert_close(a[0]['wave'], b[0]['wave'])
    assert b[0]['label'] == 3 and 'label' not in a[0] and isinstance(a, Recordings)
    loud = (x * 2**15 * 0.5).astype(np.int16)
    assert_close(recordings([(loud, 8000)], seconds=0.5)[0]['wave'], a[0]['wave'] / 2, atol=1e-3, rtol=0)


def test_without_soundfile_the_remedy_is_named(monkeypatch, folder):
    monkeypatch.setitem(__import__('sys').modules, 'soundfile', None)
    with pytest.raises(ImportError, match=r"pip install 'maskedlab\[sound\]'"):
        load_wave(folder / 'b' / '0.wav')


# ---- log-mel


def chirp():
    t = np.arange(4000) / 8000
    y = 0.5 * np.sin(2 * np.pi * (200 + 600 * t) * t) * (1 + np.sin(2 * np.pi * 7 * t)) / 2
    return (y + 0.05 * np.sin(2 * np.pi * 2700 * t)).astype(np.float32).astype(np.float64)


# librosa 0.11.0: power_to_db(feature.melspectrogram(y=chirp(), sr=8000, n_fft=256, hop_length=80, n_mels=40),
# top_db=None) * log(10) / 10, rows 0, 8, .. 32 of columns 0, 10, 25 and 50
LIBROSA = [
    [-2.229, -5.9995, -9.1609, -13.75, -6.8861],
    [-14.5516, -14.8459, -21.8104, -23.0259, -11.5301],
    [-21.612, -5.652, -22.6853, -23.0259, -11.5301],
    [-5.2756, -4.1934, -3.686, -7.4915, -7.3985],
]


def test_log_mel_is_that_of_librosa():
    ours = LogMel(8000, 256, 80, 40)(torch.from_numpy(chirp()))
    some = ours[[0, 10, 25, 50]][:, ::8]
    assert_close(some, torch.tensor(LIBROSA).double(), atol=1e-4, rtol=0)
    single = LogMel()(torch.from_numpy(chirp()).float())
    assert_close(single.double()[ours > -12], ours[ours > -12], atol=1e-4, rtol=0)


@pytest.mark.parametrize('rate, n_fft, hop, mels', [(8000, 256, 80, 40), (16000, 400, 160, 80)])
def test_log_mel_is_that_of_an_installed_librosa(rate, n_fft, hop, mels):
    librosa = pytest.importorskip('librosa')
    y = np.resize(chirp(), rate)
    power = librosa.feature.melspectrogram(y=y, sr=rate, n_fft=n_fft, hop_length=hop, n_mels=mels)
    theirs = librosa.power_to_db(power, top_db=None) * math.log(10) / 10
    assert np.abs(LogMel(rate, n_fft, hop, mels)(torch.from_numpy(y)).numpy().T - theirs).max() < 1e-4


def test_a_rate_of_nothing_is_said():
    for rate in (0, -8000):
        with pytest.raises(ValueError, match=f'rate={rate}.* such as 16000'):
            LogMel(rate)


def test_the_way_back_can_be_heard():
    mel, b = LogMel(), waves(6)
    want = mel(b['wave'])
    back = mel.wave(want, generator=gen())
    assert back.shape == b['wave'].shape
    loud = want > -6
    off = (mel(back) - want).abs()[loud].mean()
    other = (mel(b['wave'].roll(1, 0)) - want).abs()[loud].mean()
    assert off < 0.35 < 0.1 * other * 10 and off < 0.1 * other
    assert_close(mel.wave(want, generator=gen()), back)
    assert mel.wave(want, length=8050).shape == (6, 8050)
    with pytest.raises(ValueError, match='8000 to 8079 samples'):
        mel.wave(want, length=5000)
