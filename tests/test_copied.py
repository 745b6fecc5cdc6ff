"""Code that the explorer copies runs as it stands, or says what it takes; and a strategy or recipe in
somebody's file works wherever one is written as words."""
import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from given import own_tokenizer

import maskedlab as ml
from maskedlab import cli
from maskedlab.contract.catalogue import list_recipes
from maskedlab.contract.code import code_at
from maskedlab.contract.parse import parse
from maskedlab.contract.saved import as_words
from maskedlab.show.explorer.doors import answer
from maskedlab.show.explorer.page import Page
from maskedlab.show.explorer.widget import notebook_of, shown_elsewhere
from maskedlab.show.views.table import VIEWS

TINY = dict(image=16, patch=4, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
FILE = f'''
from dataclasses import dataclass
from maskedlab.masks.strategies import Random
from maskedlab.recipes.image.mae import MAE

@dataclass(frozen=True)
class Ring(Random):
    "Rings."
    width: int = 1

def half(u, generator=None, **signals):
    return Random(.5)(u, generator=generator)

class Plain:
    "No record: any class whose instances are called on units."
    def __init__(self, ratio=.5): self.ratio = ratio
    def __call__(self, u, generator=None): return Random(self.ratio)(u, generator=generator)

class Mine(MAE):
    sizes = dict(micro={TINY!r})
'''


@pytest.fixture
def ring(tmp_path, monkeypatch):
    """A file of the reader's own, in a folder with a blank in its name; and the folder to work in."""
    (tmp_path / 'my rings').mkdir()
    (tmp_path / 'my rings' / 'ring.py').write_text(FILE)
    (tmp_path / 'ring.py').write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(page, s=None):
    """What a page shows: its drawing of what the network sees, and the loss."""
    d = page.show(page.state if s is None else s)
    return d.pictures['seen'], d.loss


def alike(a, b):
    """Are two such drawings one?"""
    whole = lambda x: x if isinstance(x, dict) else {'': x}
    same = all(torch.equal(v, whole(b[0])[k]) if torch.is_tensor(v) else v == whole(b[0])[k]
               for k, v in whole(a[0]).items())
    return same and a[1] == pytest.approx(b[1])


def pasted(page, s=None, **around):
    """The page that a copied line makes, among these names alone."""
    exec(page.code(page.state if s is None else s).replace('; ml.Explorer', '; shown = ml.Explorer'), around)
    return around['shown'].page


KINDS = [r for r in list_recipes() if ml.card(r).modality.split()[0] in VIEWS]


@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name', KINDS)
def test_what_is_copied_runs_alone_and_shows_the_same(name):
    page = Page(name, seed=1, index=2)
    v = page.menus.view()
    states = [page.state, replace(page.state, paste=False)]
    states.append(replace(page.state, set=list(v.sets)[-1], index=1))
    if v.paintable(page.menus.units(page.state)):
        states.append(replace(page.state, painted=[1, 2]))
    for s in states:
        assert not page.takes(s) and '#' not in page.code(s)
        assert alike(drawn(pasted(page, s)), drawn(page, s)), page.code(s)


def test_a_line_runs_in_another_process(ring):
    pages = [Page('mae', strategy='ring.py:Ring(.25, width=2) | ~Random(.5)'), Page('ring.py:Mine'),
             Page(code_at('my rings/ring.py:Mine'), strategy=code_at('my rings/ring.py:half'))]
    code = '\n'.join(p.code(p.state) for p in pages)
    assert not any(p.takes(p.state) for p in pages)
    assert "ring.py:Ring(ratio=0.25" in code and 'ml.masks.Ring' not in code
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ring)


@pytest.mark.parametrize('words', ['ring.py:Ring(.25, width=2)', 'ring.py:half', '~ring.py:Ring()',
                                   "'my rings/ring.py:Ring'(.25) | Block(ratio=.4)",
                                   '(Random(.1) | ~{here}/ring.py:Ring(ratio=.75))'])
def test_a_strategy_in_a_file_is_shown_and_copied(words, ring, tmp_path_factory, monkeypatch):
    page = ml.Explorer('mae', strategy=words.format(here=ring), seed=3).page
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))         # places are told in full
    again = pasted(page)
    assert alike(drawn(again), drawn(page)), page.code(page.state)
    if words != 'ring.py:half':
        moved = page.menus.strategy(page.state)
        assert repr(parse(as_words(moved), trust=True)) == repr(moved)


def test_a_class_that_is_no_record_is_read_too(ring):
    made = parse('ring.py:Plain(ratio=.25)', trust=True)
    assert float(made(ml.layout((8, 8), batch=2)).float().mean()) == .25
    page = ml.Explorer('mae', strategy=made).page           # no text recreates it, and the line says so
    assert page.code(page.state).endswith('# give strategy') and 'strategy' in page.takes(page.state)


@pytest.mark.parametrize('words, said', [
    ('ring.py:Ring', 'Ring()'), ('ring.py:half()', 'function of units'), ('ring.py:Ring(wide=1)', 'width'),
    ('ring.py:Ring(1, 2, 3, 4)', '3 fields'), ('ring.py:Ring(1.5)', 'from 0'), ('ring.py:Wrong()', 'Wrong'),
    ('none.py:Ring()', 'no file'), ('my rings/ring.py:Ring()', 'blanks'), ('ring.py', 'ring.py:Ring'),
    ('nowhere.at_all:Ring()', 'no module'), ('ring.py:Ring(ratio=open("x"))', 'no strategy')])
def test_what_is_wrong_with_it_is_one_sentence(words, said, ring, capsys):
    for command in (['masks', words], ['leak', 'mae', '--mask', words], ['explore', '--mask', words],
                    ['train', 'mae', '--dry-run', '--mask', words]):
        assert cli.main(command) == 2
        text = capsys.readouterr().err
        assert said in text and text.count('\n') == 1 and len(text) < 220, text


def test_the_text_of_a_checkpoint_names_no_file(ring):
    (ring / 'ring.py').write_text(FILE + "\nraise SystemExit('it ran')\n")
    texts = ('ring.py:Ring()', "'ring.py:Ring'()", 'ring.py:half', '~Random() | ring.py:Ring()', 'ring:half')
    for words in texts:
        with pytest.raises(ValueError, match='not of the kit'):
            parse(words)
    reply, _ = answer(Page('mae'), dict(kind='draw', view=1, seq=1, state=dict(
        recipe='mae', set='Held-out photographs', strategy='ring.py:Ring()')))
    assert reply['kind'] == 'trouble' and 'ring.py' in reply['words']


# --------------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(ring, monkeypatch):
    """The folder of a run: a recipe of a file, a strategy of a file."""
    monkeypatch.setattr('maskedlab.instruments.held_out.held_out', lambda *a, **k: {})
    words = ['train', 'ring.py:Mine', '--mask', "'my rings/ring.py:Ring'(.25, width=2)"]
    assert cli.main([*words, '--steps', '2', '--batch', '2', '--out', 'run']) == 0
    return ring / 'run'


def test_words_and_folders_in_every_command(run, capsys):
    kept = json.loads((run / 'provenance.json').read_text())['command']
    assert shlex.split(kept)[4] == "'my rings/ring.py:Ring'(.25, width=2)"      # the shell reads it back
    assert cli.main(['masks', 'ring.py:Ring(.5, width=2)', '-n', '300']) == 0
    assert cli.main(['leak', 'ring.py:Mine', '--mask', 'ring.py:half', '-n', '2']) == 0
    commands = [['card', 'run'], ['leak', 'run', '-n', '2'], ['train', 'run', '--dry-run'],
                ['leak', 'run', '-n', '2', '--mask', 'ring.py:Ring(.5)']]
    for words in [*commands, ['explore', 'run']]:
        capsys.readouterr()
        assert cli.main(words) == 2 and '--trust' in capsys.readouterr().err
    for words in commands:
        assert cli.main([*words, '--trust']) == 0, capsys.readouterr().err
    assert cli.main(['claim', 'run', '--steps', '1']) == 2 and 'holds weights' in capsys.readouterr().err


def test_the_page_of_the_command_line_opens_both(run, tmp_path_factory, monkeypatch):
    more = shown_elsewhere('run', 'ring.py:Ring(.5) | Block(.3)', True)
    cell = notebook_of(**more)['cells'][0]['source']
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    space = {}
    exec(cell.replace('ml.Explorer', 'shown = ml.Explorer'), space)
    page = space['shown'].page
    assert type(page.recipe).__name__ == 'Mine' and type(page.menus.given.a).__name__ == 'Ring'
    assert 'trust=True' in page.code(page.state) and alike(drawn(pasted(page)), drawn(page))
    reply, _ = answer(page, dict(kind='save', state=vars(page.state), seq=1))
    assert reply['name'] == 'maskedlab-run.png'


# --------------------------------------------------------------------------------- what is the reader's own


def notebook(**names):
    """The names of a notebook, as the explorer of `source` sees them."""
    return names | {'ml': ml}


def test_a_run_that_goes_on_is_called_as_in_the_notebook():
    names = notebook(t=ml.Trainer('mae', steps=3, batch=4, show=False))
    exec('e = ml.Explorer(t.recipe)', names)
    names['t'].fit(background=True)
    page = names['e'].page
    assert 'ml.Explorer(t.recipe, ' in page.code(page.state) and '#' not in page.code(page.state)
    assert 'takes t.recipe from this notebook' in page.takes(page.state)
    names['t'].wait()
    assert pasted(page, **names).recipe is names['t'].recipe
    del names['t']
    line = page.code(page.state)
    assert line.endswith('# give recipe') and 'cannot give recipe' in page.takes(page.state)
    exec(line, {'recipe': page.recipe})             # and runs once it is given


CELL = '''
from dataclasses import dataclass
@dataclass(frozen=True)
class Own(ml.masks.Random):
    width: int = 2
mine = lambda u, generator=None: ml.masks.Random(.25)(u, generator)
e = ml.Explorer(r, b, strategy=Own(.25) | ml.masks.Block(ratio=.3))
f = ml.Explorer(r, b, mine)
'''


def test_what_a_notebook_holds_is_named():
    names = notebook(r=ml.create_recipe('mae', pretrained=True), b=ml.sample('image', n=2, size=64))
    exec(CELL, names)
    for k, words in dict(e='Own(ratio=0.25', f='strategy=mine').items():
        page = names[k].page
        assert words in page.code(page.state) and alike(drawn(pasted(page, **names)), drawn(page))
        assert 'r, b, ' in page.takes(page.state)
        reply, _ = answer(page, dict(kind='draw', state=vars(page.state), seq=1))
        assert reply['takes'] == page.takes(page.state) and reply['code'] == page.code(page.state)


def test_a_file_that_was_opened_is_named_with_where_it_is_read():
    from PIL import Image
    data = io.BytesIO()
    Image.new('RGB', (20, 20), (255, 0, 0)).save(data, 'PNG')
    page = Page('mae')
    page.menus.add('mae', 'red.png', data.getvalue())
    assert 'reads red.png in the working folder' in page.takes(replace(page.state, set='red.png'))
    text = Page('bert_mlm')
    text.menus.add('bert_mlm', 'Your own text', b"It's a long way; we'll see.")
    s = replace(text.state, set='Your own text', index=0)
    assert not text.takes(s) and alike(drawn(pasted(text, s)), drawn(text, s))


def test_a_grey_picture_is_read_as_grey(tmp_path, monkeypatch):
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (16, 16), (255, 10, 80)).save('red.png')
    page = Page(ml.create_recipe('mae', **TINY, channels=1), around=(names := {}))
    names['r'] = page.recipe
    page.menus.add(page.menus.key, 'red.png', (tmp_path / 'red.png').read_bytes())
    s = replace(page.state, set='red.png', index=0)
    assert alike(drawn(pasted(page, s, **names)), drawn(page, s))


def test_texts_are_cut_by_the_tokenizer_that_a_recipe_carries(tmp_path, monkeypatch):
    own = own_tokenizer(ml.decode(ml.sample('text', n=40)['ids']), 300)
    r = ml.create_recipe('bert_mlm', vocab=own.get_vocab_size(), mask_id=4, special=(0, 1, 2, 3, 4))
    r.tokenizer = own
    monkeypatch.chdir(tmp_path)
    r.save_pretrained('weights')
    page = Page('weights')
    assert page.recipe.tokenizer is not None
    page.menus.add('weights', 'Mine', b'The sea is wide and the sky is high above it.')
    for s in (page.state, replace(page.state, set='Mine', index=0)):
        assert 'tokenizer=' in page.code(s) and alike(drawn(pasted(page, s)), drawn(page, s)), page.code(s)


@pytest.mark.parametrize('name', [k for k in KINDS if ml.create_recipe(k).attention])
def test_every_click_shows_attention_or_says_why(name):
    page = Page(name)
    s, u = page.state, page.menus.units(page.state)
    if 'attention' not in page.menus.view().titles: return
    d = page.show(s)
    mask = d.mask.flatten()
    for unit in [int(mask.nonzero()[0]), int((~mask & u.valid[0].cpu().flatten()).nonzero()[0])]:
        shown = page.show(replace(s, look=unit))
        assert 'attention' in shown.pictures or shown.notes['attention'].endswith('.'), unit
        if name == 'mae' and mask[unit]:
            assert shown.part == 'decoder' and 'this is the decoder' in shown.notes['attention']
            assert 'attention' in shown.pictures and d.hidden == 48         # three quarters of 64
