"""The data room: embedded samples, the reader's own pictures, streams of batches."""
from __future__ import annotations

import ast
import hashlib
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from given import Listed, same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskedlab.data import pictures as pic
from maskedlab.data.batches import batches
from maskedlab.data.embedded import photo_credits, photographs
from maskedlab.data.own import images, load_image, to_pixels
from maskedlab.data.samples import (
    KEPT,
    SAMPLES,
    data_table,
    describe,
    digits,
    list_samples,
    photos,
    sample,
)

FILES = Path(pic.__file__).parent / 'files'


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def says(error, call, *words):
    "The call fails with this error, in one sentence of at most 200 characters that holds these words."
    with pytest.raises(error) as e:
        call()
    text = str(e.value)
    assert len(text) <= 200 and '\n' not in text, text
    for w in words:
        assert w in text, text


@pytest.fixture
def folder(tmp_path):
    """Two classes, one good picture each; one truncated, one text file with a picture's name, one empty, one
    hidden."""
    rng = np.random.default_rng(0)
    for kind in ('left', 'right'):
        (tmp_path / kind).mkdir()
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / kind / 'good.png')
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(tmp_path / 'left' / 'cut.jpg')
    whole = (tmp_path / 'left' / 'cut.jpg').read_bytes()
    (tmp_path / 'left' / 'cut.jpg').write_bytes(whole[:len(whole) // 2])
    (tmp_path / 'right' / 'notes.jpg').write_text('not a picture')
    (tmp_path / 'right' / 'nothing.png').write_bytes(b'')
    (tmp_path / '.hidden').write_text('x')
    return tmp_path


# ---- what is shipped

def test_photographs_are_the_ones_that_were_made():
    rows = photo_credits()
    for i, r in enumerate(rows):
        a = np.asarray(Image.open(FILES / f"photo_{r['name']}.png"))
        assert hashlib.sha256(a.tobytes()).hexdigest() == r['pixels_sha256']
        item = photographs(r['split'])[[x['name'] for x in rows if x['split'] == r['split']].index(r['name'])]
        assert item['label'] == i and item['image'].shape == (3, r['height'], r['width'])


def test_every_photograph_is_credited_and_free():
    text = (FILES / 'CREDITS.md').read_text(encoding='utf-8')
    for r in photo_credits():
        assert r['author'] and r['source'] and r['author'] in text and r['source'] in text
        assert r['licence'] in ('CC0 1.0', 'CC BY 2.0', 'CC BY 4.0', 'CC BY-SA 3.0', 'CC BY-SA 4.0',
                                'public domain', 'no known copyright restrictions')
    assert 'CC BY-SA 3.0' in text


def test_files_are_small():
    assert sum(f.stat().st_size for f in FILES.iterdir()) < 20e6


def test_splits_never_overlap():
    rows = photo_credits()
    assert len({r['pixels_sha256'] for r in rows}) == len(rows) == 30
    assert [r['split'] for r in rows].count('test') == 4
    train, test = (set(photos(None, split=s)['label'].tolist()) for s in ('train', 'test'))
    assert len(train) == 26 and len(test) == 4 and not train & test
    a, b = (digits(None, split=s)['image'].flatten(1) for s in ('train', 'test'))
    assert torch.cdist(b, a).min() > 1


def test_digits_are_balanced():
    for split, each in (('train', 400), ('test', 100)):
        assert digits(None, split=split)['label'].bincount().tolist() == [each] * 10
    assert len(torch.unique(digits(4000, gen())['image'].flatten(1), dim=0)) == 4000


# ---- sample

@pytest.mark.parametrize('name', list_samples())
@pytest.mark.parametrize('split', ['train', 'test'])
def test_sample_is_a_batch_that_its_generator_decides(name, split):
    a, b, other = (sample(name, 5, gen(s), split) for s in (0, 0, 1))
    key = next(iter(a))
    assert len(a[key]) == 5 and a[key].dtype in (torch.float32, torch.int64) and a[key].isfinite().all()
    assert all(len(v) == 5 for v in a.values()) and a.get('label', torch.zeros(0).long()).dtype == torch.int64
    assert all(same(a[k], b[k]) for k in a) and not torch.equal(a[key], other[key])
    state = torch.random.get_rng_state()
    fixed = sample(name, 4, split=split)
    assert torch.equal(fixed[key], sample(name, 30, split=split)[key][:4])
    sample(name, 4, gen(), split)
    assert torch.equal(state, torch.random.get_rng_state()), 'the global generator was used'


@pytest.mark.parametrize('name', ['image', 'digits', 'fashion', 'pairs'])
def test_pixels_are_shares_of_light(name):
    image = sample(name, 9)['image']
    assert image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1


def test_clouds_lie_in_the_unit_sphere():
    points = sample('points', 9)['points']
    assert points.mean(1).abs().max() < 1e-3 and (points.norm(dim=2).amax(1) - 1).abs().max() < 1e-2


@pytest.mark.parametrize('size', [16, (48, 80), 224])
def test_sizes(size):
    shape = size if isinstance(size, tuple) else (size, size)
    assert sample('image', 3, size=size)['image'].shape == (3, 3, *shape)
    assert sample('image', 3, gen(), size=size)['image'].shape == (3, 3, *shape)
    assert sample('digits', 3, size=size)['image'].shape == (3, 1, *shape)


def test_a_new_modality_costs_one_row(monkeypatch):
    def weather(n, generator, split):
        return {'field': torch.randn(n, 2, 4, 4, generator=generator)}
    monkeypatch.setitem(SAMPLES, 'weather', weather)
    assert 'weather' in list_samples() and sample('weather', 3)['field'].shape == (3, 2, 4, 4)
    assert 'weather' in describe('weather')
    assert [b['field'].shape[0] for b in batches('weather', 6, 2)] == [6, 6]
    says(ValueError, lambda: sample('wether'), 'weather')


def test_descriptions_name_licence_and_counts():
    rows = photo_credits()
    assert f"{len(rows)} real photographs" in describe('image') and 'CC BY' in describe('image')
    said = {name: describe(name).replace('\n', ' ') for name in list_samples()}
    for name, kept in KEPT.items():
        for licence in kept.licence.split(', '):
            assert licence in said[name], f'{name} does not name {licence}'
        if name == 'text': continue         # it counts articles, not paragraphs
        for split in ('train', 'test'):
            n = len(next(iter(sample(name, None, split=split).values())))
            assert re.search(rf'\b{n:,} (are )?for {split}ing', said[name]), (name, n)


def test_the_table_of_data():
    rows = {line.split()[0]: line for line in data_table().splitlines()[1:]}
    assert list(rows) == list_samples()
    assert ' 656    164 ' in rows['points'] and ' real ' in rows['points'] and 'CC BY 3.0' in rows['points']


def test_bad_samples():
    says(ValueError, lambda: sample('imge'), 'imge', 'image')
    says(ValueError, lambda: sample('x' * 500), 'image')
    says(ValueError, lambda: sample('image', split='validation'), 'validation', 'train')
    for n in (0, -1, 2.5, True, '8'):
        says((ValueError, TypeError), lambda n=n: sample('image', n), repr(n))
    for size in (0, -8, 1.5, 'big', (1, 2, 3), (8, 0)):
        says((ValueError, TypeError), lambda size=size: sample('image', size=size), repr(size))
    says(ValueError, lambda: sample('digits', 4001), '4001', '4000')
    says(TypeError, lambda: sample('digits', flip=True), 'flip', 'size')
    says(ValueError, lambda: sample('image', 2, gen(), scale=(.5, 1.5)), '1.5')


# ---- boxes and crops

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(.1, 10), st.integers(0, 2**31))
def test_boxes_stay_inside(h, w, aspect, seed):
    shapes = torch.tensor([[h, w]] * 20)
    for boxes in (pic.random_boxes(shapes, gen(seed), aspect=aspect), pic.centre_boxes(shapes, aspect)):
        top, left, bh, bw = boxes.unbind(1)
        assert (torch.stack([top, left]) >= 0).all() and (torch.stack([bh, bw]) >= 1).all()
        assert (top + bh <= h).all() and (left + bw <= w).all()


def test_crops_come_from_where_the_box_says():
    y, x = torch.meshgrid(torch.arange(120), torch.arange(200), indexing='ij')
    place = torch.stack([y, x, x]).to(torch.uint8)
    out = pic.cut([place], torch.tensor([[30, 50, 16, 24]]), (16, 24))[0] * 255
    assert torch.equal(out.round().byte(), place[:, 30:46, 50:74])
    small = pic.cut([place], torch.tensor([[0, 0, 120, 200]]), (12, 20), flip=torch.tensor([True]))[0] * 255
    assert (small[1, 5].diff() < 0).all() and (small[0, :, 3].diff() > 0).all()


def test_fast_enough_for_a_micro_network():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        it = batches('image', 64)
        next(it)
        seconds = []
        for _ in range(12):
            start = time.perf_counter()
            next(it)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert 64 / min(seconds) > 1500     # a loose bound: the machine of the tests may be busy


# ---- batches

@pytest.mark.parametrize('data', ['image', 'digits', 'set'])
def test_streams_repeat(data):
    data = photographs('test') if data == 'set' else data
    first, second = (list(batches(data, 7, 5, gen(3))) for _ in range(2))
    assert len(first) == 5
    assert all(torch.equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a)
    assert not torch.equal(first[0]['image'], first[1]['image'])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 6))
def test_pictures_take_turns(count, batch_size, steps):
    data = [(torch.full((1, 4, 4), i / 10), i) for i in range(count)]
    labels = torch.cat([b['label'] for b in batches(data, batch_size, steps, gen(), size=2, augment=False)])
    times = labels.bincount(minlength=count)
    assert len(labels) == batch_size * steps and times.max() - times.min() <= 1


def test_bad_batches():
    says(ValueError, lambda: batches('image', 0), 'batch_size=0')
    says(TypeError, lambda: batches('image', 4, 1.5), 'steps=1.5')
    says(TypeError, lambda: batches(photographs(), colour=1), 'colour', 'augment')
    says(ValueError, lambda: batches([]), 'empty')
    says(TypeError, lambda: batches(iter([])), 'list')


# ---- the reader's own pictures

def test_folder_reports_by_name(folder):
    with pytest.warns(UserWarning, match='3 of 5') as said:
        mine = images(folder, progress=False)
    assert len(str(said[0].message)) <= 200
    assert [Path(n).as_posix() for n in mine.names] == ['left/good.png', 'right/good.png']
    why = {Path(k).name: v for k, v in mine.skipped.items()}
    assert 'truncated' in why['cut.jpg'] and 'not a picture' in why['notes.jpg'] and 'empty' in why[
        'nothing.png']
    assert mine.classes == ['left', 'right'] and [mine[i]['label'].item() for i in range(2)] == [0, 1]
    b = next(batches(mine, 6, size=24))
    assert b['image'].shape == (6, 3, 24, 24) and b['label'].tolist().count(0) == 3
    says(ValueError, lambda: images(folder, on_error='raise', progress=False), 'cut.jpg', 'truncated')


def test_single_files_and_lists(folder):
    good = folder / 'left' / 'good.png'
    assert load_image(good)['image'].shape == (1, 3, 40, 60)
    assert load_image(str(good), size=32, channels=1)['image'].shape == (1, 1, 32, 32)
    assert len(images(good)) == 1 and 'label' not in images(good)[0]
    assert len(images([good, str(good)], progress=False)) == 2
    says(ValueError, lambda: images(folder / 'right' / 'notes.jpg'), 'notes.jpg', 'not a picture')
    says(ValueError, lambda: load_image(folder / 'left' / 'cut.jpg'), 'cut.jpg', 'truncated')
    says(ValueError, lambda: load_image(folder), 'folder')


def test_progress_bar_for_a_folder(folder, capsys, monkeypatch):
    with pytest.warns(UserWarning):
        images(folder)
    assert capsys.readouterr() == ('', '')              # not a terminal: nothing is left in a log
    monkeypatch.setenv('FORCE_COLOR', '1')
    with pytest.warns(UserWarning):
        images(folder)
    assert 'Reading pictures' in capsys.readouterr().err


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = photographs('test').read(0)[0]
    im = Image.fromarray(upright.permute(1, 2, 0).numpy())
    T = Image.Transpose
    undo = [T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE,
            T.ROTATE_270]
    if orientation > 1:
        im = im.transpose(undo[orientation - 2])
    exif = Image.Exif()
    exif[0x0112] = orientation
    im.save(tmp_path / 'p.png', exif=exif)
    im.save(tmp_path / 'p.jpg', exif=exif, quality=95)
    assert torch.equal((load_image(tmp_path / 'p.png')['image'][0] * 255).round().byte(), upright)
    assert (load_image(tmp_path / 'p.jpg')['image'][0] - upright / 255).abs().mean() < .02
    assert images(tmp_path / 'p.jpg', short_side=64)[0]['image'].shape[1] == 64


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'I;16',
                                  'I', 'F'])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_mode(mode, channels):
    im = Image.new(mode, (5, 4))
    x = to_pixels(im, channels)
    assert x.dtype == torch.uint8 and x.shape == (channels, 4, 5)


def test_sixteen_bits_and_transparency(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / 'deep.png')
    assert ((load_image(tmp_path / 'deep.png')['image'][0, 0,
                                                        0] - torch.tensor([0, .5, 1])).abs() < .003).all()
    half = Image.new('RGBA', (2, 2), (0, 0, 0, 0))
    half.putpixel((0, 0), (255, 0, 0, 255))
    half.save(tmp_path / 'half.png')
    assert load_image(tmp_path / 'half.png')['image'][0, :, 0].T.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_large_pictures_are_reduced(tmp_path):
    Image.new('RGB', (1500, 1000), (200, 100, 50)).save(tmp_path / 'large.jpg')
    assert images(tmp_path, progress=False)[0]['image'].shape == (3, 256, 384)
    assert images(tmp_path, short_side=None)[0]['image'].shape == (3, 1000, 1500)


def test_bad_paths(tmp_path):
    says(FileNotFoundError, lambda: images(tmp_path / 'missing'), 'missing')
    says(FileNotFoundError, lambda: load_image('/nowhere/' + 'a' * 300), 'aaa')
    says(FileNotFoundError, lambda: images('https://example.org/a.jpg'), 'downloaded')
    says(ValueError, lambda: images(tmp_path), 'no files')
    for i in range(5):
        (tmp_path / (f'{i}' + 'x' * 100 + '.jpg')).write_text('x')
    says(ValueError, lambda: images(tmp_path, progress=False), 'none of the 5')
    says(ValueError, lambda: images(tmp_path, on_error='ignore'), 'ignore', 'skip')
    says(ValueError, lambda: images(tmp_path, channels=5), '5')


class Torch(Listed):
    classes = ['a', 'b']


X = torch.rand(3, 6, 8, generator=gen())


@pytest.mark.parametrize('item, label', [
    (X, None), ((X, 1), 1), ([X, torch.tensor(1)], 1), ((X, np.int64(1)), 1), ({'image': X, 'label': 1}, 1),
    (((X * 255).byte(), 0), 0),
    ((Image.new('RGB', (8, 6)), 1), 1), ({'picture': Image.new('L', (8, 6)), 'text': 'a'}, None),
    ((X[0], {'boxes': []}), None),
    (np.zeros((6, 8, 3), np.uint8), None), (np.zeros((6, 8)), None)])
def test_torch_datasets(item, label):
    mine = images(Torch([item] * 3), progress=False)
    got = mine[1]
    assert got['image'].shape == (3, 6, 8) and (got['label'].item() if 'label' in got else None) == label
    assert mine.classes == ['a', 'b']


def test_bad_items_are_named():
    for bad, why in ((X * 3 - 1, 'Normalize'), (X * float('nan'), 'nan'),
                     (torch.zeros(5, 4, 4), '5 channels'), (X.long(), 'int64'),
                     ('text', 'str'), ({'label': 3}, 'no picture'), ((), 'tuple')):
        says(ValueError, lambda bad=bad: images(Torch([X, bad]), on_error='raise', progress=False), 'item 1',
             why)
        with pytest.warns(UserWarning, match='item 1'):
            assert len(images(Torch([X, bad, X]), progress=False)) == 2
    says(TypeError, lambda: images({'train': [X], 'test': [X]}), "'train'")
    says(TypeError, lambda: images(x for x in [X]), 'generator')
    says(TypeError, lambda: images(7), 'int')


def test_hugging_face_datasets():
    hf = pytest.importorskip('datasets')
    ims = [Image.fromarray(np.full((10, 12 + i, 3), 20 * i, np.uint8)) for i in range(4)]
    features = hf.Features({'id': hf.Value('int64'), 'scan': hf.Image(),
                            'kind': hf.ClassLabel(names=['even', 'odd'])})
    ds = hf.Dataset.from_dict({'id': [0, 1, 2, 3], 'scan': ims, 'kind': [0, 1, 0, 1]}, features=features)
    for d in (ds, ds.cast_column('scan', hf.Image(decode=False)), ds.with_format('torch')):
        mine = images(d, progress=False)
        assert mine.classes == ['even', 'odd'] and mine[3]['image'].shape == (3, 10, 15) and mine[3][
            'label'] == 1
        assert (mine[3]['image'] * 255).round().unique().tolist() == [60]
    says(ValueError, lambda: images(ds.remove_columns('scan')), 'no Image column', 'kind (ClassLabel)')
    says(TypeError, lambda: images(hf.DatasetDict(train=ds)), "'train'")
    says(TypeError, lambda: images(ds.to_iterable_dataset()), 'IterableDataset')


def test_sets_can_be_sent_to_workers(folder):
    for mine in (photographs(), images([folder / 'left' / 'good.png']),
                 images(Torch([X, X]), progress=False)):
        again = pickle.loads(pickle.dumps(mine))
        assert torch.equal(again[0]['image'], mine[0]['image'])


def test_nothing_is_loaded_or_fetched_early():
    code = ("import sys, maskedlab.data.batches, maskedlab.data.samples as s; "
            "assert not {'datasets', 'skimage', 'sklearn', 'matplotlib'} & set(sys.modules); "
            "assert not s.small_pictures.cache_info().currsize and not s.photographs.cache_info().currsize; "
            "import socket; socket.socket = None; s.sample('image'); s.sample('digits'); assert 'datasets' "
            "not in sys.modules")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_data_imports_no_other_room():
    for f in FILES.parent.glob('*.py'):
        nodes = list(ast.walk(ast.parse(f.read_text(encoding='utf-8'))))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or '' for n in nodes if isinstance(n, ast.ImportFrom)]
        assert all(n.startswith(('maskedlab.data', 'maskedlab.checks')) for n in names
                   if n.startswith('maskedlab.')), (f.name, names)
