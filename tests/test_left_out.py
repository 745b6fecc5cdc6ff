"""Nothing is left out without a word, and nothing that is no file is waited for.

Files, links, labels, classes, pages, bands, rows: what is not read is counted and said once, with three
examples."""

from __future__ import annotations

import os
import random
import signal
import struct
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from given import Listed, g
from PIL import EpsImagePlugin, Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from maskedlab.data import found
from maskedlab.data.own import images, load_image, to_pixels
from maskedlab.data.points import load_points, read_points
from maskedlab.data.samples import sample
from maskedlab.data.text import load_text
from maskedlab.instruments.decide import t95
from maskedlab.parts.groups import dense, groups
from maskedlab.recipes.image.seitpp import SeiTPP, crop_words
from maskedlab.recipes.points.point_mae import PointMAE
from maskedlab.train.feed import Items, Joined, Portion, Rows, as_batch, hold, rounds, source_of
from maskedlab.train.setup import is_stream, named_data

CLOUDS = dict(
    groups=8, size=8, dim=16, depth=1, heads=2, decoder_depth=1, decoder_heads=2, pointnet=(8, 8, 8)
)


@contextmanager
def said():
    """The warnings, each in one line of at most 200 characters."""
    with warnings.catch_warnings(record=True) as kept:
        warnings.simplefilter('always')
        found: list[str] = []
        yield found
    found += [str(w.message) for w in kept if w.category is UserWarning]
    assert all(len(t) <= 200 and '\n' not in t for t in found), found


@contextmanager
def seconds(n):
    """What waits longer is ended."""

    def late(*_):
        raise AssertionError('it waits')

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(n)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def says(error, call, *words):
    with pytest.raises(error) as e:
        call()
    text = str(e.value)
    assert len(text) <= 200 and '\n' not in text, text
    assert all(w in text for w in words), text


def picture(path, i=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (i % 256, 7, 9)).save(path)


class Endless(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items * 3)


# ----------------------------------------------------------------------------------------- files and folders


def test_linked_folders_are_entered_and_loops_end(tmp_path):
    for kind in ('cat', 'dog'):
        for i in range(3):
            picture(tmp_path / 'store' / kind / f'{i}.png', i)
    (tmp_path / 'set').mkdir()
    for kind in ('cat', 'dog'):
        (tmp_path / 'set' / kind).symlink_to(tmp_path / 'store' / kind)
    (tmp_path / 'store' / 'cat' / 'up').symlink_to(tmp_path / 'set')
    picture(tmp_path / 'set' / 'owl' / 'a.png')
    with said() as told:
        mine = images(tmp_path / 'set', progress=False)
    assert len(mine) == 7 and mine.classes == ['cat', 'dog', 'owl']
    assert [int(mine[i]['label']) for i in range(7)] == [0] * 3 + [1] * 3 + [2]
    assert mine.skipped == {'cat/up': 'is a link to a folder that is read already'} and len(told) == 1


@pytest.mark.parametrize('seed', range(6))
def test_every_file_is_read_or_said(tmp_path, seed):
    r = random.Random(seed)
    kinds = {
        'good': picture,
        'text': lambda p: p.write_text('dear cat'),
        'empty': lambda p: p.write_bytes(b''),
        'pipe': lambda p: os.mkfifo(p),
        'nowhere': lambda p: p.symlink_to(tmp_path / 'gone'),
        'itself': lambda p: p.symlink_to(p),
    }
    picture(tmp_path / 'a.png')
    names = ['a.png']
    for i in range(r.randint(2, 12)):
        names.append(f'{i}.png')
        kinds[r.choice(list(kinds))](tmp_path / names[-1])
    for check in (True, False):
        with seconds(5), said() as told:
            mine = images(tmp_path, progress=False, check=check)
            for i in range(len(mine)):
                _ = mine[i]
        bad = set(mine.skipped)
        assert bad | (set(mine.names) - bad) == set(names) and 'a.png' in mine.names
        assert bad == {n for n in names if not good(tmp_path / n)}
        assert bool(told) == bool(bad) and (not bad or f'{len(bad)} of {len(names)}' in told[0] or not check)


def good(path):
    try:
        return path.is_file() and load_image(path) is not None
    except (OSError, ValueError):
        return False


def test_three_examples_and_the_number(tmp_path):
    picture(tmp_path / 'a.png')
    for i in range(40):
        (tmp_path / f'broken{i:02}.jpg').write_bytes(b'x')
    with said() as told:
        images(tmp_path, progress=False)
    assert len(told) == 1 and told[0].startswith('40 of 41') and told[0].count('broken') == 3


@pytest.mark.parametrize('n', [30, 5001])
def test_a_broken_picture_in_a_large_set_ends_no_run(tmp_path, n):
    """Its neighbour stands in, the same one whenever it is asked for."""
    picture(tmp_path / '0000.png')
    whole = (tmp_path / '0000.png').read_bytes()
    for i in range(1, n):
        (tmp_path / f'{i:04}.png').write_bytes(whole if i % 10 else b'broken')
    (tmp_path / 'labels.csv').write_text('a,b')
    with said() as told:
        mine = images(tmp_path, check=None if n > 5000 else False, progress=False)
        assert len(mine) == n and 'labels.csv' in mine.skipped
        source = source_of(mine, 0, 8)
        a, b = source.batch(range(20)), source_of(mine, 0, 8).batch(range(20))
        assert torch.equal(a['image'], b['image'])
        for i in (10, 20):
            assert mine[i]['image'].shape == (3, 10, 12)
    assert '0010.png' in mine.skipped and any('left out so far' in t for t in told)


@pytest.mark.parametrize('workers', [0, 1])
def test_what_a_reading_process_cannot_read_is_said_once_and_here(tmp_path, workers):
    """It finds it in a process of its own, whose warnings and whose list nobody sees."""
    for i in range(12):
        picture(tmp_path / f'{i:02}.png', i)
    for i in (3, 7):
        (tmp_path / f'{i:02}.png').write_bytes(b'broken')
    mine = images(tmp_path, check=False, progress=False)
    source = source_of(mine, 0, 8)
    with said() as told:
        made = list(rounds(source, Portion(4), 0, 0, 6, workers))
    assert len(made) == 6 and len(told) == 1 and 'left out so far' in told[0]
    assert set(mine.skipped) == {'03.png', '07.png'}


class Grumbling(Listed):
    def __getitem__(self, i):
        warnings.warn('this scan has no date', stacklevel=2)
        return self.items[i]


@pytest.mark.filterwarnings('ignore:this scan')
@pytest.mark.parametrize('workers', [0, 1])
def test_what_somebody_elses_data_say_in_a_reading_process_is_heard(workers):
    source = source_of(Grumbling([{'image': torch.rand(3, 8, 8)}] * 8), 0, 8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('default')
        assert len(list(rounds(source, Portion(4), 0, 0, 3, workers))) == 3
    assert ['this scan has no date' in str(w.message) for w in told] == [True]


def test_a_folder_of_nothing_readable_ends(tmp_path):
    for i in range(120):
        (tmp_path / f'{i}.png').write_bytes(b'x')
    with said():
        mine = images(tmp_path, check=False)
        says(ValueError, lambda: mine[0], '100 pictures in a row')
    says(ValueError, lambda: images(tmp_path, progress=False), 'none of the 120')


def test_classes_and_labels_do_not_vanish(tmp_path):
    for kind in ('cat', 'dog'):
        picture(tmp_path / kind / 'a.png')
    (tmp_path / 'labels.csv').write_text('x')
    (tmp_path / 'owl').mkdir()
    with said() as told:
        mine = images(tmp_path, progress=False)
    assert mine.classes == ['cat', 'dog'] and 'label' in mine[0]    # a list beside the folders is no picture
    assert any('owl' in t for t in told)
    picture(tmp_path / 'b.png')
    with said() as told:
        assert not images(tmp_path, progress=False).classes
    assert any('no labels: 1 of 3' in t and 'b.png' in t for t in told)


def test_items_whose_labels_or_columns_are_not_used():
    X = torch.rand(3, 6, 8, generator=g())
    for items in ([(X, 1), (X, None), (X, 2)], [(X, 'cat'), (X, 1)], [(X, .5), (X, 1)]):
        with said() as told:
            assert 'label' not in images(items, progress=False)[0]
        assert any('no labels' in t for t in told)
    with said() as told:
        images([(X, 'cat'), (X, 'dog')], progress=False)
    assert any("'cat'" in t for t in told)
    with said() as told:
        assert int(images([(X, np.float64(2)), (X, torch.tensor(1))], progress=False)[0]['label']) == 2
    assert not told

    class Two(Listed):
        features = {k: type(kind, (), {})() for k, kind in (('scan', 'Image'), ('mask', 'Image'))}

    im = Image.new('RGB', (6, 8))
    with said() as told:
        images(Two([{'scan': im, 'mask': im}] * 2), progress=False)
    assert any('2 Image columns' in t and 'scan' in t for t in told)


@pytest.mark.parametrize('ending, words', [('tif', '4 pages'), ('gif', '4 frames'), ('webp', '4 frames')])
def test_pages_and_frames_are_said(tmp_path, ending, words):
    ims = [Image.new('RGB', (9, 9), (60 * i, 0, 0)) for i in range(4)]
    ims[0].save(tmp_path / f'many.{ending}', save_all=True, append_images=ims[1:])
    picture(tmp_path / 'one.png')
    with said() as told:
        mine = images(tmp_path, progress=False)
    assert len(mine) == 2 and words in mine.partly[f'many.{ending}'] and len(told) == 1 and words in told[0]
    with said() as told:
        load_image(tmp_path / f'many.{ending}')
        images([ims[0], Image.open(tmp_path / f'many.{ending}')], progress=False)
    assert len(told) == 2


# ------------------------------------------------------------------------------------ pipes, devices, bombs


def doors():
    return [load_image, images, lambda p: images(p, check=False), lambda p: images([p, p]), read_points,
            load_points, load_text, lambda p: source_of(p, 0), lambda p: source_of(p, 0, modality='points'),
            lambda p: source_of(p, 0, modality='text')]  # fmt: skip


@pytest.mark.parametrize('door', range(len(doors())))
def test_what_is_no_file_is_refused_at_once(tmp_path, door):
    call = doors()[door]
    for ending in ('png', 'xyz', 'txt'):
        pipe, big, loop = (tmp_path / f'{n}.{ending}' for n in ('pipe', 'big', 'loop'))
        os.mkfifo(pipe)
        loop.symlink_to(loop)
        with big.open('wb') as f:
            f.truncate(2**41)
        much = 'no text' if door == 9 else 'MB'     # texts may be large; this is zeros
        for p, word in ((pipe, 'pipe'), (big, much), (loop, 'link'), (Path('/dev/zero'), 'device')):
            with seconds(5), said():
                says((ValueError, FileNotFoundError), lambda p=p: call(p), word)
    for p in ('a' * 5000, 'a\0b'):
        with said():
            says((ValueError, FileNotFoundError), lambda p=p: call(p))


def test_limits_are_said_and_can_be_raised(tmp_path, monkeypatch):
    picture(tmp_path / 'a.png', size=(40, 30))
    monkeypatch.setattr(found.LIMITS, 'pixels', 1000)
    says(ValueError, lambda: load_image(tmp_path / 'a.png'), 'LIMITS.pixels')
    monkeypatch.setattr(found.LIMITS, 'pixels', 1200)
    assert load_image(tmp_path / 'a.png')['image'].shape == (1, 3, 30, 40)
    monkeypatch.setattr(found.LIMITS, 'megabytes', 0)
    says(ValueError, lambda: load_image(tmp_path / 'a.png'), 'LIMITS.megabytes')
    monkeypatch.setattr(found.LIMITS, 'megabytes', 1)
    monkeypatch.setattr(found.LIMITS, 'files', 0)
    says(ValueError, lambda: images(tmp_path), 'LIMITS')


def bomb(w, h):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    head = struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(
        b'IEND', b'')


def test_a_small_file_that_unpacks_into_gigabytes(tmp_path, monkeypatch):
    (tmp_path / 'bomb.png').write_bytes(bomb(60_000, 60_000))
    with seconds(5):
        says(ValueError, lambda: load_image(tmp_path / 'bomb.png'), 'million pixels', 'LIMITS.pixels')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    monkeypatch.setattr(found.LIMITS, 'pixels', 2000)      # raising the kit's limit raises Pillow's
    picture(tmp_path / 'a.png', size=(40, 30))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        assert load_image(tmp_path / 'a.png')['image'].shape[-1] == 40


def test_postscript_with_another_name_starts_no_program(tmp_path, monkeypatch):
    def started(*a, **k):
        raise AssertionError('Ghostscript was asked')

    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', started)
    head = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n'
    for name in ('a.png', 'a.eps', 'a'):
        (tmp_path / name).write_bytes(head)
        says(ValueError, lambda name=name: load_image(tmp_path / name), 'PNG', 'TIFF')
    item = {'bytes': head, 'path': None}
    with said() as told:
        assert len(images([{'image': item}, {'image': Image.new('L', (4, 4))}], progress=False)) == 1
    assert len(told) == 1


@pytest.mark.parametrize('name, content', [
    ('a.ply', 'ply\nformat ascii 1.0\nelement vertex 1000000000000\nproperty float x\nend_header\n1\n'),
    ('b.ply', 'ply\nformat binary_little_endian 1.0\nelement vertex 1000000000000\nproperty float x\n'
              'end_header\n'),
    ('c.ply', 'ply\nformat binary_little_endian 1.0\nelement vertex -1\nproperty float x\nproperty float y\n'
              'property float z\nend_header\n' + 'x' * 24),
    ('a.xyz', '1000000000000\n0 0 0\n1 0 0\n'), ('a.off', 'OFF\n1000000000000 0 0\n0 0 0\n'),
    ('b.off', 'OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n9 0 1 2\n')])  # fmt: skip
def test_headers_that_promise_more_than_there_is(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with seconds(5):
        says(ValueError, lambda: load_points(tmp_path / name), name)


# ----------------------------------------------------------------------------------------------------- bands


@pytest.mark.parametrize('n', [2, 4, 58])
def test_cubes_of_any_bands(n):
    cube = torch.rand(n, 20, 24, generator=g())
    assert torch.allclose(to_pixels(cube.permute(1, 2, 0).numpy(), n) / 255, cube)     # and not in 256 steps
    source = source_of([(cube, i) for i in range(5)], 0, 16, channels=n)
    b = source.batch(range(4))
    assert b['image'].shape == (4, n, 16, 16) and len(b['label']) == 4
    a, b = (s.batch(range(6))['image'] for s in (source, hold(source, torch.device('cpu'), 2**30)))
    assert (a - b).abs().max() < 1e-5       # kept on a device they are not rounded either
    says(ValueError, lambda: to_pixels(cube, 3), f'{n} channels')


def test_a_fourth_band_is_not_taken_for_opacity(tmp_path):
    four = torch.rand(4, 6, 7, generator=g())
    for x in (four, four.numpy(), four.permute(1, 2, 0).numpy(), (four * 255).byte()):
        says(ValueError, lambda x=x: to_pixels(x), 'fourth', 'channels=4')
        assert to_pixels(x, 4).shape == (4, 6, 7)
    assert to_pixels(Image.new('RGBA', (2, 2), (0, 0, 0, 0)))[0, 0, 0] == 255      # here it is opacity
    tifffile = pytest.importorskip('tifffile')
    a = np.zeros((8, 9, 4), np.uint8)
    tifffile.imwrite(tmp_path / 'a.tif', a, photometric='rgb', extrasamples=['unspecified'], metadata=None)
    says(ValueError, lambda: load_image(tmp_path / 'a.tif'), '4 bands')
    tifffile.imwrite(tmp_path / 'b.tif', a, photometric='rgb', extrasamples=['unassalpha'], metadata=None)
    assert load_image(tmp_path / 'b.tif')['image'].min() == 1


# ---------------------------------------------------------------------------------------------------- clouds


class Data:
    """What a graph of PyTorch Geometric shows."""

    def __init__(self, **k):
        self.__dict__.update(k)


def packed(sizes, order=None, **k):
    pos = torch.rand(sum(sizes), 3, generator=g())
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = torch.arange(len(pos)) if order is None else torch.randperm(len(pos), generator=g(order))
    return Data(pos=pos[order], batch=owner[order], ptr=torch.tensor([0, *np.cumsum(sizes)]), **k)


@pytest.mark.parametrize('offset', [0., 5e5, 5.4e6, 1e9])
def test_clouds_far_from_the_origin_keep_their_points(tmp_path, offset):
    near = torch.rand(1024, 3, dtype=torch.float64, generator=g())
    far = near + torch.tensor([offset, -offset, 300.])
    np.savetxt(tmp_path / 'a.xyz', far.numpy(), '%.9f')
    want = load_points(near)['points']
    pair = TensorDataset(far[None], torch.zeros(1))
    for x in (far, far.numpy(), tmp_path / 'a.xyz', [Data(pos=far)], pair):
        got = load_points(x)['points']
        assert got.dtype == torch.float32 and len(got[0].unique(dim=0)) == 1024
        assert torch.allclose(got, want, atol=1e-5)
    if offset > 1e6:
        says(ValueError, lambda: load_points(far, normalise=False), '32 bits')
        says(ValueError, lambda: dense(Data(pos=far)), '32 bits', 'load_points')


def test_one_list_of_points_is_taken_apart_by_its_owner():
    plain, mixed = packed([9, 5, 12]), packed([9, 5, 12], order=3)
    for read in (dense, load_points):
        a, b = read(plain), read(mixed)
        assert a['points_valid'].sum(1).tolist() == [9, 5, 12] == b['points_valid'].sum(1).tolist()
        for i in range(3):
            p, q = (x['points'][i][x['points_valid'][i]] for x in (a, b))
            key = lambda x: sorted(map(tuple, (x * 1e4).round().tolist()))
            assert key(p) == key(q)


def test_an_empty_cloud_does_not_vanish():
    assert dense(packed([9, 5, 0]))['points_valid'].sum(1).tolist() == [9, 5, 0]
    with said() as told:
        b = load_points(packed([9, 0, 5, 0], y=torch.tensor([4, 5, 6, 7])))
    assert b['label'].tolist() == [4, 6] and '2 of 4 left out' in told[0]
    says(ValueError, lambda: PointMAE(**CLOUDS)(packed([9, 9, 0])), 'cloud 2 has 0 points')


def test_labels_and_folders_of_clouds(tmp_path):
    for kind in ('chair', 'lamp'):
        (tmp_path / kind).mkdir()
        for i in range(2):
            np.savetxt(tmp_path / kind / f'{i}.xyz', np.random.default_rng(i).random((20, 3)))
    (tmp_path / 'lamp' / 'bad.ply').write_bytes(b'x')
    os.mkfifo(tmp_path / 'lamp' / 'pipe.xyz')
    (tmp_path / 'about.md').write_text('hello')
    with seconds(5), said() as told:
        b = load_points(tmp_path)
    assert b['label'].tolist() == [0, 0, 1, 1] and len(told) == 1 and '3 of 7 left out' in told[0]
    says(ValueError, lambda: load_points(tmp_path, on_error='raise'))
    x = torch.rand(20, 3, generator=g())
    assert load_points([Data(pos=x, y=torch.tensor([i])) for i in (3, 1)])['label'].tolist() == [3, 1]
    for odd in (torch.rand(20), torch.arange(20), torch.tensor([.5])):
        with said() as told:
            assert 'label' not in load_points([Data(pos=x, y=odd), Data(pos=x, y=torch.tensor([1]))])
        assert 'no labels: 1 of 2' in told[0]


def test_moved_clouds_are_grouped_anew():
    batch = sample('points', n=3, points=64)
    r = PointMAE(**CLOUDS).eval()
    filled = r.fill(batch, r(batch, generator=g()))
    kept = r.units(filled)
    assert torch.equal(kept.index, r.units(batch).index)       # what was filled keeps its groups
    for change in (lambda p: p + 3, lambda p: p.flip(1), lambda p: p * torch.tensor([2., 1, 1])):
        moved = {**filled, 'points': change(filled['points'])}
        fresh = r.units({'points': moved['points']})
        u = r.units(moved)
        assert all(torch.equal(getattr(u, k), getattr(fresh, k)) for k in ('index', 'x', 'pos'))
    part = {**filled, 'points_valid': torch.arange(64) < torch.tensor([[64], [40], [64]])}
    assert int(r.units(part).index[1].max()) < 40
    u = groups(batch, 8, 8)
    new = torch.where(torch.rand(3, 8, 1, 1, generator=g()) < .5, u.x + 1, u.x)
    assert torch.allclose(groups(u.put(batch, u.x), 8, 8).x, u.x)
    assert u.put(batch, new)['points'].shape == batch['points'].shape


# ---------------------------------------------------------------------------------------------------- texts


def test_texts_of_a_folder(tmp_path):
    for kind, text in (('a', 'One bird in the hand.\n\nTwo in the bush.'), ('b', 'Still waters run deep.')):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / 'x.txt').write_text(text)
    (tmp_path / 'b' / 'y.txt').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'b' / 'z.bin').write_bytes(b'a\0b')
    os.mkfifo(tmp_path / 'b' / 'pipe.txt')
    with seconds(5), said() as told:
        b = load_text(tmp_path, length=16)
    assert b['label'].tolist() == [0, 0, 1] and len(told) == 1 and '3 of 5 left out' in told[0]
    assert len(source_of(tmp_path / 'a', 0, modality='text')) == 2
    plain = load_text(tmp_path / 'a' / 'x.txt', length=16)
    (tmp_path / 'bom.txt').write_bytes(b'\xef\xbb\xbf' + (tmp_path / 'a' / 'x.txt').read_bytes())
    assert torch.equal(load_text(tmp_path / 'bom.txt', length=16)['ids'], plain['ids'])
    with said() as told:
        b = load_text(Listed([{'text': 'Still waters run deep.'}, {'text': ' '}, {'text': 3}]))
    assert len(b['ids']) == 1 and '2 of 3 left out' in told[0]


# ------------------------------------------------------------------------------- whatever a run is given


class LooksLikeHF(Listed):
    """It has a `batch` of its own, as data sets of Hugging Face have."""

    column_names: tuple[str, ...] = ()

    def batch(self, batch_size):
        raise AssertionError('not a source')


X, Y = torch.rand(8, 3, 16, 16, generator=g()), torch.arange(8)
PILS = [Image.new('RGB', (20 + i, 18)) for i in range(8)]
IDS = sample('text', n=8)
PROSE = ['Still waters run deep, it is said.'] * 8
GIVEN = {
    'image': [TensorDataset(X, Y), Listed([(p, 1) for p in PILS]),
              Listed([{'image': x, 'label': 1} for x in X]),
              LooksLikeHF([{'image': (x * 255).byte(), 'label': torch.tensor(1)} for x in X]),
              DataLoader(TensorDataset(X, Y), 4), DataLoader(TensorDataset((X * 255).byte()), 4),
              Endless(list(zip(X, Y))), Endless(PILS), Endless([{'image': x} for x in X]),
              DataLoader(Endless([{'image': x} for x in X]), 4), ({'image': X[:4]} for _ in range(2))],
    'points': [TensorDataset(torch.rand(8, 40, 3), Y), [torch.rand(40, 3)] * 8,
               Listed([Data(pos=torch.rand(30 + i, 3)) for i in range(8)]), torch.rand(8, 40, 3),
               DataLoader(TensorDataset(torch.rand(8, 40, 3), Y), 4),
               Endless([Data(pos=torch.rand(40, 3))] * 4), iter([packed([20, 20, 20, 20])])],
    'text': [TensorDataset(IDS['ids'], Y), Listed(PROSE), LooksLikeHF([{'text': t} for t in PROSE]),
             DataLoader(TensorDataset(IDS['ids'], Y), 4), Endless(PROSE),
             Endless([{'text': t} for t in PROSE]),
             Listed([{k: v[i] for k, v in IDS.items()} for i in range(8)])],
}  # fmt: skip
KEY = {'image': 'image', 'points': 'points', 'text': 'ids'}
CASES = [pytest.param(m, i, id=f'{m}-{i}') for m, data in GIVEN.items() for i in range(len(data))]


@pytest.mark.parametrize('modality, i', CASES)
def test_whatever_packs_data_becomes_batches(modality, i):
    data = GIVEN[modality][i]
    if is_stream(data):
        batch = next(iter(Joined(data, modality, 4, 16, 3, 0)))
    else:
        batch = source_of(data, 0, 16, modality=modality).batch(range(4))
    x = batch[KEY[modality]]
    assert len(x) == 4 and x.ndim == {'image': 4, 'points': 3, 'text': 2}[modality]
    if modality == 'image':
        assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1


def test_what_cannot_be_named_is_refused():
    says(TypeError, lambda: as_batch([X, Y, Y], 'image'), '3 parts')
    says(TypeError, lambda: as_batch(['a'], 'image'), 'list')
    says(ValueError, lambda: Rows(dict(image=X, label=Y[:5]), 0), '8 rows', '5 of')
    says(ValueError, lambda: Rows(dict(image='no'), 0), 'no tensor')
    says(ValueError, lambda: Items([dict(a=Y, b=Y), dict(a=Y)], 0).batch(range(2)), "'b'")
    for label in (Y, Y.numpy(), Y.tolist()):
        b = Rows(dict(image=Y.float().numpy(), label=label), 0).batch(range(5))
        assert torch.equal(b['image'], b['label'].float())


def test_a_folder_that_is_called_like_a_sample(tmp_path, monkeypatch):
    (tmp_path / 'digits').mkdir()
    monkeypatch.chdir(tmp_path)
    with said() as told:
        named_data('digits', 'image')
        assert named_data('./digits', 'image') == tmp_path / 'digits'
        assert named_data(None, 'image') == 'image'
    assert len(told) == 1 and "'./digits'" in told[0]


# ---------------------------------------------------------------------------------------------------- numbers


def test_stored_words_are_cut_to_the_grid_in_training():
    r = SeiTPP(image=32, patch=8, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2,
               code=8, tokenizer=Tiny(), adapt=None)    # fmt: skip
    ids = torch.arange(12 * 14).view(1, 12, 14).repeat(40, 1, 1) % 16
    assert r.eval()(dict(ids=ids), generator=g()).mask.shape == (40, 6, 7)
    out = r.train()(dict(ids=ids), generator=g())
    assert out.mask.shape == (40, 4, 4)
    corners = crop_words(torch.arange(12 * 14).view(1, 12, 14).repeat(400, 1, 1), (8, 8), g())[:, 0, 0]
    assert (corners // 14).unique().tolist() == [0, 1, 2, 3, 4] and len((corners % 14).unique()) == 7


class Tiny(torch.nn.Module):
    """A tokenizer that was trained elsewhere: words of four pixels."""

    words, stride, channels = 16, 4, 3

    def __init__(self):
        super().__init__()
        self.register_buffer('codebook', torch.rand(16, 8))

    def ids(self, image):
        return image.new_zeros(len(image), image.shape[2] // 4, image.shape[3] // 4).long()

    def decode(self, ids):
        return torch.zeros(len(ids), 3, 4 * ids.shape[1], 4 * ids.shape[2])


def test_students_t_for_any_number_of_seeds():
    table = {2: 12.7062047, 5: 2.7764451, 10: 2.2621572, 11: 2.2281389, 12: 2.2009852, 20: 2.0930241,
             30: 2.0452296, 101: 1.9839715, 1001: 1.9623391}  # fmt: skip
    for n, t in table.items():
        assert abs(t95(n) - t) < 1e-6, (n, t95(n))
