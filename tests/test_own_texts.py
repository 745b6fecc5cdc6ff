"""Texts cut by a tokenizer of one's own, files that are too large to be read, and clouds from everywhere."""
import os
import shlex
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from given import own_tokenizer
from test_journeys import lines

import maskedlab as ml
from maskedlab.cli import main, parser
from maskedlab.data.text import AT_ONCE, Passages, load_text, texts

SAID = ['the ship sailed over the long sea', 'a letter was read aloud in the hall',
        'she wrote the answer on the other side'] * 8


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A tokenizer in a file, beside a folder of texts, in the working folder."
    monkeypatch.chdir(tmp_path)
    made = own_tokenizer(SAID)
    Path('mine').mkdir()
    made.save('mine/tokenizer.json')
    Path('letters').mkdir()
    for i, line in enumerate(SAID):
        Path('letters', f'{i}.txt').write_text(line)
    return made


def run(tokenizer, recipe='bert_mlm', **more):
    return ml.Trainer(recipe, 'letters', tokenizer=tokenizer, steps=1, batch=4, show=False, **more)


def test_a_folder_a_file_and_both_libraries(own):
    from transformers import PreTrainedTokenizerFast
    theirs = PreTrainedTokenizerFast(tokenizer_object=own, mask_token='[MASK]', pad_token='[PAD]')
    found = [run(t) for t in ('mine', Path('mine/tokenizer.json'), own, theirs)]
    for t in found:
        assert t.recipe.cut.vocab == own.get_vocab_size() and t.recipe.cut.mask_id == 4
        assert t.recipe.cut.special.tolist() == [0, 2, 3, 4]
        assert torch.equal(t.source.data['ids'], found[0].source.data['ids'])
    assert own.decode(found[0].source.data['ids'][0].tolist()) == SAID[0]


def test_it_is_kept_with_the_run_and_found_again(own, capsys):
    words = 'train bert_mlm --data letters --tokenizer mine --steps 2 --batch 4 --out runs/own'
    assert main(words.split()) == 0, capsys.readouterr()
    shutil.rmtree('mine')
    for place in ('runs/own', next(Path('runs/own/checkpoints').glob('step*'))):
        again = ml.create_recipe(place)
        assert again.tokenizer.get_vocab() == own.get_vocab()
    again.save_pretrained('copy')
    assert ml.create_recipe('copy').tokenizer.get_vocab() == own.get_vocab()
    assert main(['train', 'runs/own', '--resume', '--steps', '3', '--out', 'runs/own', '--change']) == 0
    assert main(['train', 'runs/own', '--data', 'letters', '--steps', '1', '--batch', '4',
                 '--out', 'runs/more']) == 0
    assert Path('runs/more/tokenizer.json').is_file()
    view = ml.Explorer('runs/own')
    assert view is not None


def test_transformers_opens_what_is_exported(own):
    from transformers import AutoTokenizer, BertForMaskedLM
    r = run('mine', ml.create_recipe('bert_mlm', vocab=own.get_vocab_size(), position='learned')).recipe
    r.save_pretrained('out', layout='transformers')
    theirs, told = AutoTokenizer.from_pretrained('out'), BertForMaskedLM.from_pretrained('out')
    assert theirs.get_vocab() == own.get_vocab()
    assert told.config.vocab_size == own.get_vocab_size()
    assert theirs(SAID[0])['input_ids'] == own.encode(SAID[0]).ids


def test_a_tokenizer_that_does_not_fit_says_so(own):
    for wrong, words in (('nowhere', 'there is no tokenizer'), ('letters', 'there is no tokenizer'),
                         ('letters/0.txt', 'is no tokenizer')):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            run(wrong)
    with pytest.raises(TypeError, match='knows no words'):
        run(3)
    with pytest.raises(ValueError, match='has pieces up to'):
        run(own, ml.create_recipe('bert_mlm', vocab=50))
    with pytest.raises(ValueError, match='hides none'):
        ml.Trainer('mae', tokenizer=own, steps=1)
    with pytest.raises(ValueError, match='hides none'):
        ml.Trainer(ml.create_recipe('mae'), tokenizer=own, steps=1)
    from tokenizers import Tokenizer, models
    bare = Tokenizer(models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
    with pytest.raises(ValueError, match=r'no \[MASK\]'):
        run(bare)


def test_a_file_of_gigabytes_is_read_bit_by_bit(tmp_path):
    place, line = tmp_path / 'long.txt', b'the ship sailed over the long sea\n'
    with place.open('wb') as f:
        f.write(line * 100)
        for at in (2**31, 2**32):           # sparse: it takes no room on the disk
            f.seek(at)
            f.write(b'\n' + line * 100)
    assert os.stat(place).st_size > 4 * 2**30
    tracemalloc.start()
    rows = texts(place, 32)
    found = [rows[i * rows.step // rows.step] for i in (0, 2**31 // rows.step + 2, len(rows) - 3)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6, most
    for row in found:
        assert 'ship sailed over' in ml.decode(row['ids'])
    with pytest.raises(ValueError, match='character 0'):
        rows[len(rows) // 3]
    with pytest.raises(ValueError, match='MB are read'):
        load_text(place)


def test_what_is_larger_is_streamed_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr('maskedlab.data.text.AT_ONCE', 0)
    (tmp_path / 'a.txt').write_text('\n'.join(SAID * 20))
    whole = ml.Trainer('bert_mlm', tmp_path / 'a.txt', steps=4, batch=4, show=False)
    assert isinstance(whole.source.items, Passages) and AT_ONCE > 0
    losses = [h['loss'] for h in whole.fit(background=False)]
    ml.Trainer('bert_mlm', tmp_path / 'a.txt', steps=4, batch=4, show=False, out=tmp_path / 'run',
               watch=lambda step, _: step == 2).fit(background=False)
    again = ml.Trainer.resume(tmp_path / 'run', show=False)
    assert [h['loss'] for h in again.fit(background=False)] == losses


def test_files_that_are_no_text(tmp_path):
    (tmp_path / 'empty.txt').touch()
    (tmp_path / 'bytes.txt').write_bytes(b'\xff\xfe\x00')
    for name, words in (('empty.txt', 'hold no text'), ('bytes.txt', 'no text in UTF-8'),
                        ('none.txt', 'no file')):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            ml.Trainer('bert_mlm', tmp_path / name, steps=1)


def write_clouds():
    for k, name in enumerate(('chair', 'lamp')):
        Path('clouds', name).mkdir(parents=True)
        for i in range(2):
            cloud = np.random.default_rng(2 * k + i).normal(size=(300, 3))
            np.savetxt(Path('clouds', name, f'{i}.xyz'), cloud)


def test_the_lines_of_the_readme(own, capsys, monkeypatch):
    write_clouds()
    shutil.copytree('mine', 'words')
    asked = []
    monkeypatch.setattr('maskedlab.show.explorer.widget.serve', lambda *a, **k: asked.append(a[0]))
    for line in lines('Your own texts and clouds'):
        words = shlex.split(line, comments=True)
        parser().parse_args(words[1:])                  # as it stands
        short = words[1:] + (['--steps', '2', '--batch', '4'] if words[1] == 'train' else [])
        assert words[0] == 'maskedlab' and main(short) == 0, (line, capsys.readouterr())
    assert asked == ['runs/letters', 'runs/clouds']
    assert ml.create_recipe('letters-weights').tokenizer.get_vocab() == own.get_vocab()
    assert ml.create_recipe('runs/clouds').card.modality == 'points'


def clouds_of(kind):
    from torch_geometric.data import Batch, Data, InMemoryDataset
    from torch_geometric.loader import DataLoader
    g = torch.Generator().manual_seed(0)
    some = [Data(pos=torch.randn(200 + i, 3, generator=g), y=torch.tensor([i % 2])) for i in range(4)]

    class Set(InMemoryDataset):
        def __init__(self):
            super().__init__()
            self.data, self.slices = self.collate(some)
    return {'list': lambda: some, 'batch': lambda: Batch.from_data_list(some), 'set': Set,
            'loader': lambda: DataLoader(Set(), batch_size=2), 'folder': lambda: 'clouds',
            'pairs': lambda: [(d.pos.numpy(), int(d.y)) for d in some]}[kind]()


@pytest.mark.parametrize('kind', ['list', 'batch', 'set', 'loader', 'folder', 'pairs'])
def test_what_the_trainer_takes_load_points_takes(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clouds()
    found = ml.load_points(clouds_of(kind))
    assert found['points'].shape[::2] == (4, 3)
    assert sorted(found['label'].tolist()) == [0, 0, 1, 1]
    t = ml.Trainer('point_mae', clouds_of(kind), steps=1, batch=2, show=False)
    assert t.fit(background=False)[-1]['loss'] > 0


@pytest.mark.parametrize('text,says', [
    ('1 2 3\n4 5 6\n7 8 9\n', 'has 3 points, and its groups need at least'),
    ('hello', 'cannot be read as points'), ('', 'holds no points of three numbers')])
def test_what_is_no_cloud(tmp_path, text, says):
    (tmp_path / 'a.xyz').write_text(text)
    with pytest.raises(ValueError, match=says):
        ml.Trainer('point_mae', tmp_path / 'a.xyz', steps=1, batch=1, show=False).fit(background=False)
