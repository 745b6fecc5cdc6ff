"""Clips inside the package, the reader's own films, and cubes."""
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
import torch
from given import g

import maskedlab as ml
from maskedlab.data import films, video
from maskedlab.data.embedded import CLOTHES, photo_credits
from maskedlab.data.films import look_at_film, read_frames
from maskedlab.data.video import CLIP_NUMBERS, MOTIONS, PHRASES, caption_ids, clips_of, film, read_captions
from maskedlab.parts.patches import ORDERS, Patches, patchify, unpatchify
from maskedlab.train.feed import Cuts, Made, source_of


# ---------------------------------------------------------------- the sample

def test_labels_are_those_of_the_captions():
    b = ml.sample('video', 40, g(), size=16, frames=4)
    photos = [p['name'] for p in photo_credits() if p['split'] == 'train']
    for label, motion, said, real in zip(b['label'], b['motion'], read_captions(b), b['real']):
        if real:
            assert label == len(CLOTHES) and motion == len(MOTIONS) and 'rabbit' in said[0]
            continue
        assert all(s.endswith(w) for s, w in zip(said, PHRASES[motion]))
        assert all(CLOTHES[label].replace('-', ' - ') in s for s in said)
        assert any(f'the {p}' in said[1] for p in photos)
    assert 0 < b['real'].sum() < 40


@pytest.mark.parametrize('motion', range(len(MOTIONS)))
def test_things_move_as_their_label_says(motion):
    "On a grey ground: where the middle of what differs goes, how its size changes, and what else does."
    table = torch.full((1, CLIP_NUMBERS), .5)
    table[0, 0], table[0, 1], table[0, 2] = .99, .75, (motion + .5) / len(MOTIONS)
    x = clips_of(table, 'test', 32, 8, real=0., speed=.6)['video'][0]
    still = clips_of(table, 'test', 32, 8, real=0., speed=1e-6)['video'][0]
    if motion == 0:
        assert torch.equal(x, x[:, :1].expand_as(x))
        return
    assert (x[:, 0] - x[:, -1]).abs().max() > .1 and (still - still[:, :1]).abs().max() < .01
    ink = (x - still).abs().amax(0) > .05
    assert not ink[:, 0].all()          # it is not the ground that moves
    # the middle of the motion is where a thing stands that does not move
    assert (x[:, 3:5].mean(1) - still[:, 0]).abs().mean() < .5 * (x[:, 0] - still[:, 0]).abs().mean()


def test_directions_are_those_of_the_picture():
    white = torch.ones(4, 3, 32, 32)
    thing = torch.zeros(4, 2, 28, 28)
    thing[:, 1, 8:20, 8:20] = 1.                # black and square
    path = video.path_of(torch.tensor([1, 2, 3, 4]), torch.full((4,), .5), 8)
    x = 1 - video.pasted(white, thing, path, torch.zeros(4, 2), torch.full((4,), .5))[:, 0]
    across, down = (x.sum(d) for d in (2, 3))
    middle = lambda v: (v * torch.arange(32.)).sum(-1) / v.sum(-1)
    moved = torch.stack([middle(v)[:, -1] - middle(v)[:, 0] for v in (across, down)], 1)
    far = .5 * 32 * 7 / 8
    want = torch.tensor([[far, 0], [-far, 0], [0, far], [0, -far]])
    torch.testing.assert_close(moved, want, atol=.3, rtol=0)


def test_a_missing_film_is_replaced_and_said(monkeypatch):
    monkeypatch.setattr(video, 'film', lambda: None)
    b = ml.sample('video', 12, size=16, frames=2, real=1.)
    assert not b['real'].any() and len(b['video']) == 12


def test_parts_of_the_film_do_not_overlap():
    seen = {s: {t for c in video.film_credits()['scenes'] if c['split'] == s
                for t in range(c['start'], c['stop'])} for s in ('train', 'test')}
    assert not seen['train'] & seen['test'] and max(seen['train'] | seen['test']) < film().shape[1]
    b = ml.sample('video', 30, g(), 'test', size=24, real=1., frames=32)
    assert b['video'].shape == (30, 3, 32, 24, 24) and b['real'].all()


def test_a_clip_is_the_same_in_every_batch_of_a_run():
    made = source_of('video', 3, 16)
    assert isinstance(made, Made)
    whole = made.batch(range(6))
    for i in range(6):
        one = made.batch(range(i, i + 1))
        assert all(torch.allclose(one[k][0].float(), whole[k][i].float(), atol=1e-5) for k in whole)


@pytest.mark.parametrize('call, words', [
    (lambda: ml.sample('video', 2, real=1., frames=45), ['45', 'at most 44']),
    (lambda: ml.sample('video', 2, frames=0), ['frames=0']),
    (lambda: ml.sample('video', 2, speed=2.), ['speed']),
    (lambda: caption_ids([['a shoe', ' .! ']]), ['no words']), (lambda: caption_ids([]), ['no captions']),
    (lambda: caption_ids([['a shoe ' * 40]]), ['pieces']),
    (lambda: read_captions({}), ['caption'])])
def test_bad_samples_of_clips(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert all(w in str(e.value) for w in words) and len(str(e.value)) <= 200


# ---------------------------------------------------------------- own films

def write(path, frames, codec='mpeg4', rate=25, pixels='yuv420p'):
    """Frames `[T, 3, H, W]`, uint8, as a film."""
    av = pytest.importorskip('av')
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, options=dict(g='10', qscale='2'))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], pixels
        for x in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(
                x.permute(1, 2, 0).contiguous().numpy(), format='rgb24')))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('films')
    frames = film().transpose(0, 1)
    for kind in ('a', 'b'):
        (root / kind).mkdir()
    write(root / 'a' / 'one.mp4', frames[:60])
    write(root / 'b' / 'two.gif', frames[60:90], 'gif', 20, 'rgb8')
    write(root / 'b' / 'wide.webm', frames[90:120], 'libvpx-vp9', 30)
    write(root / 'b' / 'short.mp4', frames[:4])
    (root / 'b' / 'broken.mp4').write_bytes((root / 'a' / 'one.mp4').read_bytes()[:3000])
    (root / 'b' / 'empty.webm').write_bytes(b'')
    (root / 'b' / 'list.mp4').write_text('#EXTM3U\nhttp://127.0.0.1:9/x.ts\n')
    return root


def opened(folder, **more):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = ml.videos(folder, **more)
    return found, [str(w.message) for w in said]


def test_a_folder_of_films(folder):
    found, said = opened(folder, frames=8)
    assert [n.replace('\\', '/') for n in found.names] == ['a/one.mp4', 'b/two.gif', 'b/wide.webm']
    assert found.classes == ['a', 'b'] and found.labels == [0, 1, 1]
    left = {k.replace('\\', '/').rpartition('/')[2]: v for k, v in found.skipped.items()}
    assert 'has 4 frames, and a clip of 8 needs 8' in left['short.mp4']
    assert left['empty.webm'] == 'is an empty file'
    assert all('truncated or damaged' in left[n] for n in ('broken.mp4', 'list.mp4'))
    assert len(said) == 1 and '4 of 7' in said[0] and len(said[0]) <= 200
    x = found[1]
    assert x['video'].shape == (3, 8, 72, 128) and int(x['label']) == 1 and 0 <= x['video'].min() <= 1
    for i, start in enumerate((26, 71, 101)):       # the middle of each, as the film has it
        x, like = found[i]['video'], film().float() / 255
        off = [float((x - like[:, s:s + 8]).abs().mean()) for s in range(124)]
        assert off.index(min(off)) == start and min(off) < .1, found.names[i]
    with pytest.raises(ValueError):
        ml.videos(folder, frames=8, on_error='raise')


@pytest.mark.parametrize('start, step', [(0, 1), (1, 1), (9, 2), (10, 1), (37, 3), (52, 1)])
def test_winding_gives_the_frames_that_reading_gives(folder, start, step):
    f = look_at_film(folder / 'a' / 'one.mp4')
    whole = read_frames(f, 0, 60)
    assert torch.equal(read_frames(f, start, 8, step), whole[start:start + 8 * step:step])


def test_no_film_is_decoded_whole(folder, monkeypatch):
    "Of a film of 60 frames, a clip at the end is read from the last whole picture, at most 10 frames before."
    f, seen, decoded = look_at_film(folder / 'a' / 'one.mp4'), [], []
    pixels, open_film = films._pixels, films._opened_film

    @contextmanager
    def counting(path):
        with open_film(path) as (container, stream):
            class Counted:
                __getattr__ = staticmethod(lambda name: getattr(container, name))

                def decode(self, *args):
                    for frame in container.decode(*args):
                        decoded.append(path.name)
                        yield frame
            yield Counted(), stream
    monkeypatch.setattr(films, '_pixels', lambda frame, *a: seen.append(frame.pts) or pixels(frame, *a))
    monkeypatch.setattr(films, '_opened_film', counting)
    assert len(read_frames(f, 56, 4)) == 4 and len(seen) == 4       # what is not kept is not even unpacked
    assert 4 <= len(decoded) <= 14
    decoded.clear()
    found, _ = opened(folder, frames=4)
    held = [v for v in vars(found).values() if torch.is_tensor(v)]
    assert not held and len(found) == 4
    assert all(decoded.count(n.replace('\\', '/').rpartition('/')[2]) == 1 for n in found.names)


def test_training_on_films(folder):
    found, _ = opened(folder, frames=8)
    source = source_of(found, 0, 16)
    assert isinstance(source, Cuts) and len(source) == 3
    whole = source.batch(range(6))
    assert whole['video'].shape == (6, 3, 8, 16, 16) and sorted(whole['label'].tolist()) == [0, 0, 1, 1, 1, 1]
    assert torch.equal(source.batch(range(2, 3))['video'][0], whole['video'][2])
    plain = source_of(found, 0, 16, augment=False).batch(range(3))['video']
    assert not torch.equal(plain, whole['video'][:3])


def test_a_film_that_breaks_off_is_replaced_by_the_next_and_said(folder, tmp_path):
    import shutil
    shutil.copy(folder / 'a' / 'one.mp4', tmp_path / 'a.mp4')
    shutil.copy(folder / 'b' / 'two.gif', tmp_path / 'b.gif')
    found, _ = opened(tmp_path, frames=4)
    data = (tmp_path / 'a.mp4').read_bytes()
    (tmp_path / 'a.mp4').write_bytes(data[:len(data) // 3])
    with pytest.warns(UserWarning, match='1 of 2 left out so far'):
        x, _ = found.clip(0, 1.)
    assert torch.equal(x, found.clip(1, 1.)[0]) and list(found.skipped) == ['a.mp4']
    (tmp_path / 'b.gif').unlink()
    with pytest.raises(ValueError, match='none of 2'):
        found.clip(0)


@pytest.mark.parametrize('name, more, words', [
    ('a/one.mp4', dict(frames=61), ['one.mp4', 'has 60 frames', 'needs 61']),
    ('a/one.mp4', dict(frames=16, step=5), ['needs 76', 'every 5th']), ('b', {}, ['is a folder']),
    ('b/empty.webm', {}, ['empty file']), ('b/list.mp4', {}, ['truncated or damaged']),
    ('a/none.mp4', {}, ['none.mp4', 'was found']), ('a/one.txt', {}, ['was found'])])
def test_films_that_cannot_be_read(folder, name, more, words):
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        ml.load_video(folder / name, **more)
    assert all(w in str(e.value) for w in words) and len(str(e.value)) <= 200 and '\n' not in str(e.value)


def test_without_pyav_one_sentence_says_so(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install maskedlab\[video\]'):
        ml.load_video(folder / 'a' / 'one.mp4')


def test_pyav_is_imported_late():
    code = "import sys, maskedlab.data.films, maskedlab.train.feed; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True)


# ---------------------------------------------------------------- cubes

@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('sides, shape', [((2, 4, 4), (4, 8, 12)), ((1, 8, 2), (3, 8, 4)), ((3, 2), (9, 4)),
                                          ((2, 2, 2, 2), (2, 4, 2, 6))])
def test_any_axes_are_cut_and_put_together(order, sides, shape):
    x = torch.rand(2, 3, *shape, generator=g())
    cells = patchify(x, sides, order)
    assert cells.shape[1:-1] == tuple(n // s for n, s in zip(shape, sides))
    assert torch.equal(unpatchify(cells, sides, order), x)


def test_cubes_of_one_frame_are_patches():
    x = torch.rand(2, 3, 5, 8, 8, generator=g())
    cut = Patches((1, 4, 4), 3, key='video')
    u = cut.units({'video': x})
    assert torch.equal(u.x.flatten(0, 1), Patches(4, 3).cut(x.transpose(1, 2).flatten(0, 1)))
    assert torch.equal(u.put({}, u.x)['video'], x) and u.shape == (5, 2, 2)
    one = u.but(x=u.x.clone())
    one.x[0, 3, 1, 0] = 0.
    changed = (one.put({}, one.x)['video'] != x).nonzero()
    assert changed.amin(0).tolist() == [0, 0, 3, 4, 0] and changed.amax(0).tolist() == [0, 2, 3, 7, 3]
