"""What the text says: its code runs, its commands parse, its buttons exist, its numbers come from cells.

"Text" are the tutorials, README.md and what else is written for readers, without the cells themselves.
"""
import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import maskedlab as ml

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / 'tutorials').glob('*.ipynb'))
PAGES = [*TUTORIALS, ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'tutorials').glob('*.md')),
         *sorted((ROOT / 'docs').glob('*.md'))]
named = pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)


def text_of(page):
    """The text of a page; of a notebook that of its Markdown cells."""
    if page.suffix != '.ipynb': return page.read_text(encoding='utf-8')
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def spans(page):
    """What stands between backticks in a line of text."""
    return re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text_of(page), flags=re.S))


def is_code(span):
    """Does it call something, or name something of the kit? Names, shapes and paths do neither."""
    try:
        tree = ast.parse(span)
    except SyntaxError:
        return False
    return any(isinstance(n, ast.Call) or isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
               and n.value.id == 'ml' for n in ast.walk(tree))


# ------------------------------------------------------------------------------------------------ code in the
# text

@pytest.fixture
def around(tmp_path, monkeypatch):
    """What the text takes for granted: the names of the cells beside it, files of the reader's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    for i in range(9):
        Image.new('RGB', (70, 70), (20 * i, 90, 60)).save(tmp_path / 'folder' / f'{i}.png')
    (tmp_path / 'book.txt').write_text('It was the best of times, it was the worst of times.\n',
                                       encoding='utf-8')
    (tmp_path / 'chair.ply').write_text(
        'ply\nformat ascii 1.0\nelement vertex 64\nproperty float x\nproperty float y\nproperty float z\n'
        'end_header\n' + '\n'.join(f'{i % 4} {i // 4 % 4} {i // 16}' for i in range(64)) + '\n')
    (tmp_path / 'my.py').write_text('from maskedlab.recipes.image.mae import MAE\nclass Mine(MAE):\n    '
                                    'pass\n')
    g = torch.Generator().manual_seed(0)
    r, b = ml.create_recipe('mae').eval(), ml.sample('image', n=4)
    with torch.no_grad():
        out = r(b, generator=g)
    x = torch.rand(2, 6, 12, generator=g)
    mask = torch.tensor([[True, False, True, False, False, True]] * 2)
    points, ids = torch.rand(50, 3, generator=g), torch.randint(5, 30, (2, 6), generator=g)
    stage = lambda name: None
    return dict(
        ml=ml, torch=torch, r=r, kit=r, out=out, b=b, batch=None, u=out.units, units=r.units, g=g,
        generator=g,
        mask=mask, ids=ids, keep=torch.tensor([[0, 1], [2, 3]]), n=6, k=2, B=2,
        v=torch.ones(8, 200, dtype=bool),
        condition=mask, yes=ids, no=0, shape=(3,), labels=ids, hole=torch.rand(12), x=x, words=x[0],
        q=torch.rand(9, 3), p=points,
        patches=x, image=b['image'], lot=torch.rand(2, 6), free=mask, vocab=30, logits=torch.rand(3, 9),
        chances=torch.rand(3, 9), points=points, centres=torch.tensor([1, 2]), near=torch.rand(50),
        distance=torch.rand(50), hidden=mask, folder='folder', new_method=stage,
        # methods of a tensor, named without it
        scatter=torch.ones(2, 6, dtype=torch.bool).scatter, view=torch.rand(2, 3, 4).view, amin=x.amin,
        exp=torch.rand(1).exp)


# Signatures, and names of things that the reader is about to write.
TO_BE_WRITTEN = ("forward(batch, mask=None, *, units=None, generator=None, progress=1.)",
                 "ml.create_recipe('new_method', size='micro')", "ml.Explorer('new_method')",
                 "ml.load_pretrained(folder)")     # tests/test_checkpoints.py opens such folders


def run(source, space):
    """A line of text: an expression, or a statement."""
    try:
        code = compile(source, source, 'eval')
    except SyntaxError:
        exec(source, space)
    else:
        eval(code, space)


@named
def test_code_in_the_text_runs(page, around):
    given = {'06_points.ipynb': 'points', '05_words.ipynb': 'text'}.get(page.name, 'image')
    around['batch'] = ml.sample(given, n=4)
    for span in filter(is_code, spans(page)):
        if span in TO_BE_WRITTEN: continue
        try:
            run(span, around)
        except Exception as error:
            raise AssertionError(f'`{span}` in {page.name}: {type(error).__name__}: {error}') from error


@named
def test_what_looks_like_code_is_code(page):
    for span in spans(page):
        named = re.match(r'(ml|torch)\.\w+', span)
        assert not named or is_code(span) or re.fullmatch(r'[\w.]+', span), span
        for name in re.findall(r'\bmaskedlab(?:\.\w+)+', span):
            parts = name.split('.')
            assert any((ROOT / '/'.join(parts[:k])).with_suffix('.py').exists() or
                       (ROOT / '/'.join(parts[:k])).is_dir() for k in (len(parts), len(parts) - 1)), name


def commands(page):
    """Commands of the kit, in the text and in blocks of shell."""
    blocks = '\n'.join(re.findall(r'```sh\n(.*?)```', text_of(page), re.S))
    lines = [line.split('#')[0].strip() for line in blocks.splitlines()]
    return [c for c in [*spans(page), *lines] if c.startswith('maskedlab ')
            and not c.startswith('maskedlab/')]


@named
def test_commands_in_the_text_are_commands(page, around, capsys):
    from maskedlab.cli import parser
    for command in commands(page):
        words = shlex.split(command)[1:]
        words = ['mae' if w in ('NAME', 'new_method') else w for w in words]
        if words == ['compare']: continue                            # the command as such
        try:
            parser().parse_args(words)
        except SystemExit as end:
            assert end.code in (0, None), f'`{command}` in {page.name}: {capsys.readouterr().err}'


def test_a_run_that_the_text_starts_begins(around, capsys):
    from maskedlab.cli import main
    assert main(['train', 'mae', '--data', 'folder', '--dry-run']) == 0


# ---------------------------------------------------------------------------------------------- what the page
# calls it

def test_buttons_and_menus_that_the_text_names_are_on_the_page():
    script = (ROOT / 'maskedlab' / 'show' / 'static' / 'explorer.js').read_text(encoding='utf-8')
    buttons = set(re.findall(r'button\("([^"]+)"', script)) | {'That is my guess'}
    pressed = [(p.name, name) for p in PAGES for name in re.findall(r'[Pp]ress \*\*([^*]+)\*\*', text_of(p))]
    assert len(pressed) >= 3 and all(name in buttons for _, name in pressed), (pressed, buttons)


# --------------------------------------------------------------------------------------------------------
# numbers

# A measured number in a text is right on the day on which it was written. So a cell writes it (`tell`,
# `reveal`);
# what stands in the text itself was chosen, or is somebody else's: these.
GIVEN = {
    '01_see_it': ['75 %', '15 %', 'Three quarters', 'three quarters', '3 dB more', '"18 dB"', 'A quarter',
                  'a quarter'],
    '02_what_does_true_mean': ['three quarters', '"We hide 75 %"', 'A quarter', 'One quarter', 'one quarter'],
    '03_build_it': ['three quarters', '0 dB means', '1.7 dB above the mean'],
    '04_five_reasons': [],
    '05_words': ['a quarter of an hour', '15 %', '80 %', '10 %', '50 %', 'The tenth', 'two tenths'],
    '06_points': ['three fifths', 'Three fifths'],
    '07_what_to_predict': ['three quarters'],
    '08_teachers_and_tokens': ['half'],
    '09_did_it_learn': [],
    '11_masks_inside_the_network': ['six tenths', 'Six tenths'],
    '10_where_should_one_mask': ['three quarters', 'Three quarters', 'six tenths'],
    '13_guess_what_was_said': ['a tenth of a second', 'half a second'],
    '12_time': ['three quarters', 'Three quarters', 'nine tenths', 'at most a quarter'],
}
MEASURED = re.compile(r'"?\d[\d.,]* ?(?:dB|%|per cent|decibels)"?(?: \w+)?|'
                      r'\b(?:a|one|two|three|four|five|six)[ '
                      r'-](?:third|quarter|fifth|sixth|seventh|tenth)s?\b|'
                      r'\b(?:one|two|three|nine|seven|eight) (?:times )?in (?:four|five|seven|ten)\b', re.I)


@pytest.mark.parametrize('page', TUTORIALS, ids=lambda p: p.stem)
def test_measured_numbers_come_from_cells(page):
    text = re.sub(r'```.*?```|`[^`\n]+`|https?://\S+', '', text_of(page), flags=re.S)
    given = GIVEN[page.stem]
    for found in MEASURED.finditer(text):
        around = text[max(0, found.start() - 12):found.end() + 16]
        assert any(words in around for words in given), f'{page.stem}: "{found[0]}" in "...{around}..."'
