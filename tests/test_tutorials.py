"""The course: its exercises, its notebooks, and what single tutorials promise. Run they are elsewhere:
test_tutorials_run.py, and a stage of `lab.py test`.
"""
import ast
import json
import re
import runpy
import sys
import tomllib
import wave
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.course.exercises import TUTORIALS, check, exercises, judge

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'tutorials').glob('*.ipynb'))
READ = {p.stem: nbformat.read(p, 4) for p in NOTEBOOKS}
ALL = [e for t in TUTORIALS for e in exercises(t).values()]
CALL = re.compile(r"^check\('([\w/]+)', (\w+)\)", re.M)


def asked(nb):
    """Names of the exercises that a notebook asks for, in order."""
    return [name for cell in nb.cells if cell.cell_type == 'code' for name, _ in CALL.findall(cell.source)]


def lesson(tutorial):
    """The notebook that asks for a tutorial's exercises."""
    found = [stem for stem, nb in READ.items() if any(name.startswith(f'{tutorial}/') for name in asked(nb))]
    assert len(found) == 1, f'{tutorial} should be asked for in one notebook, not in {found}'
    return READ[found[0]]


OWN = re.compile(r"^my_own = None .*\n(?:.*\n)*?.*ml\.Explorer\(([^,]+), my_own", re.M)


@pytest.mark.parametrize('stem', READ)
def test_one_line_swaps_in_what_the_learner_has(stem, tmp_path):
    cells = [c.source for c in READ[stem].cells if 'my_own = None' in c.source]
    assert len(cells) == 1 and OWN.search(cells[0]), 'a cell with the line and its explorer'
    name = OWN.search(cells[0])[1].strip("'")
    if name not in ml.list_recipes():       # a network that the tutorial has trained: one of pictures
        name = 'mae'
    kind = ml.card(name).modality.split()[0]
    path = tmp_path / dict(image='me.png', text='a.txt', points='a.xyz', video='a.gif', wave='a.wav')[kind]
    shades = [Image.new('RGB', (80, 60), (i * 12, 90, 200)) for i in range(17)]
    if kind == 'image':
        shades[3].save(path)
    elif kind == 'video':
        shades[0].save(path, save_all=True, append_images=shades[1:], duration=80)
    elif kind == 'wave':
        with wave.open(str(path), 'wb') as f:
            f.setparams((1, 2, 8000, 0, 'NONE', ''))
            f.writeframes((torch.randn(16000) * 3000).short().numpy().tobytes())
    else:
        path.write_text('The sun is a star.' if kind == 'text' else
                        '\n'.join(' '.join(f'{v:.4f}' for v in row) for row in torch.rand(1100, 3).tolist()))
    e = ml.Explorer(name, str(path))
    assert e.page.state.set == path.name and 'hidden' in e.page.show(e.page.state).status


# -------------------------------------------------------------------------------------------------- exercises

@pytest.mark.parametrize('e', ALL, ids=lambda e: e.name)
def test_the_solution_is_accepted_and_each_wrong_answer_meets_its_own_hint(e):
    assert judge(e, e.run(e.solution)).kind == 'yes'
    assert len(e.wrong) >= 3
    hints = []
    for source, words in e.wrong:
        verdict = judge(e, e.run(source))
        assert verdict.kind == 'hint' and words in verdict.text, (source, verdict)
        assert 'Traceback' not in verdict.text and len(verdict.text) < 260
        hints.append(verdict.text)
    assert len(set(hints)) == len(hints)


@pytest.mark.parametrize('e', ALL, ids=lambda e: e.name)
def test_an_unsolved_exercise_says_not_yet_and_an_exception_is_one_sentence(e, capsys):
    def to_do(*a, **k):
        raise NotImplementedError
    def broken(*a, **k):
        return {}['key']
    code = callable(e.run(e.solution))      # an answer may be a word or a number too
    for empty in (None, ..., *((lambda *a, **k: None, lambda *a, **k: ..., to_do) if code else ())):
        check(e.name, empty)
        assert capsys.readouterr().out.startswith('not yet: ')
    if not code: return
    check(e.name, broken)
    said = capsys.readouterr().out
    assert said.startswith('hint: Your code stopped') and 'KeyError' in said and said.count('\n') == 1
    for nonsense in (7, 'text', [1, 2]):
        check(e.name, nonsense)
        assert capsys.readouterr().out.startswith('hint: ')


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_each_exercise_stands_in_its_tutorial_with_hint_and_solution_folded(tutorial):
    nb = lesson(tutorial)
    known = exercises(tutorial)
    assert sorted(asked(nb)) == sorted(known) and len(known) >= 3
    for i, cell in enumerate(nb.cells):
        for name, answer in CALL.findall(cell.source) if cell.cell_type == 'code' else []:
            assert answer == known[name].answer
            folded = nb.cells[i + 1].source
            assert '<details><summary>Hint</summary>' in folded
            solution = re.search(r'<details><summary>Solution</summary>\n\n```python\n(.*?)```\n\n</details>',
                                 folded, re.S)
            assert solution and solution[1] == known[name].solution, f'the folded solution of {name} differs'


# -------------------------------------------------------------------------------------------------- notebooks

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_tutorial_is_committed_clean_and_small(path):
    text = path.read_text(encoding='utf-8')
    nb = json.loads(text)
    assert len(text.encode()) <= 200_000
    assert 'widgets' not in nb['metadata'] and 'vnd.plotly' not in text and 'widget-state' not in text
    for cell in nb['cells']:
        assert not cell.get('outputs') and cell.get('execution_count') is None
        assert 'attachments' not in cell                # code hosts do not show them
    shown = re.findall(r'!\[([^\]]+)\]\((pictures/[^)]+)\)',
                       '\n'.join(c.source for c in READ[path.stem].cells))
    assert len(shown) >= 3 and all(words for words, _ in shown)
    first = next(c.source for c in READ[path.stem].cells)
    assert shown[0][1] in first                         # the outcome, before anything has run
    for _, name in shown:
        assert (path.parent / name).stat().st_size <= 60_000, name


def test_every_picture_of_a_tutorial_is_made_by_the_command_and_shown():
    frames = runpy.run_path(str(ROOT / 'tools' / 'frames.py'))['PICTURES']
    for stem, nb in READ.items():
        text = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
        assert sorted(re.findall(r'\(pictures/([^)]+)\)', text)) == sorted(frames[stem])
        for words, _ in frames[stem].values():          # each names one cell
            assert sum(words in c.source for c in nb.cells if c.cell_type == 'code') == 1, (stem, words)
    made = {name for pictures in frames.values() for name in pictures}
    assert {p.name for p in (ROOT / 'tutorials' / 'pictures').iterdir()} == made


# -----------------------------------------------------------------------------------------------------
# guesses

# What these cells show between a question and its answer does not tell it: progress, and the loss of
# training.
SHOWN_BEFORE = ('Your network learns', 'is trained', 'Two dictionaries: mean squared error')


def guesses(nb):
    """Each guess of a notebook: its name, the place of its question and that of its answer."""
    code = [c.source if c.cell_type == 'code' else '' for c in nb.cells]
    for i, source in enumerate(code):
        for name in re.findall(r'^(\w+) = predict\(', source, re.M):
            answers = [j for j, other in enumerate(code) if re.search(rf'^reveal\({name},', other, re.M)]
            assert len(answers) == 1 and answers[0] > i, f'{name} is asked and not answered'
            yield name, i, answers[0]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_question_stays_open_until_its_answer(path):
    cells = READ[path.stem].cells
    found = list(guesses(READ[path.stem]))
    assert found
    for name, asked_at, answered_at in found:
        answer = cells[answered_at]
        # whoever reads on sees neither the code that says it nor what it looks like
        assert answer.metadata.get('jupyter', {}).get('source_hidden'), f'the answer of {name} is not folded'
        assert answer.metadata.get('cellView') == 'form'
        for cell in cells[asked_at + 1:answered_at]:
            if cell.cell_type != 'code' or any(words in cell.source for words in SHOWN_BEFORE): continue
            for node in ast.parse(re.sub(r'^ *%.*$', '', cell.source, flags=re.M)).body:
                call = ast.unparse(node) if isinstance(node, ast.Expr) else ''
                silent = not call or re.match(r'check\(|reveal\(|torch\.manual_seed|\w+\.(train|eval)\(',
                                              call)
                assert silent, f'{name}: {call[:60]} shows something before its answer'
            assert 'print(' not in cell.source and 'display(' not in cell.source, name
        # nor does the text behind it
        behind = cells[answered_at + 1]
        if behind.cell_type == 'code':
            assert not behind.source.startswith('assert'), f'{name}: its answer stands in the next cell'
        else:
            options = re.search(rf'^{name} = predict\((.*?)\)$', cells[asked_at].source, re.M | re.S)[1]
            told = re.sub(r'<details>.*?</details>|```.*?```', '', behind.source, flags=re.S)
            for option in re.findall(r"'([^']{9,40})'", options.split('[')[-1]):
                assert option not in told, f'{name}: the text behind it says {option}'


@pytest.mark.parametrize('tutorial', TUTORIALS)
def test_a_learner_trains_with_what_they_wrote(tutorial):
    """Each function that an exercise asks for is used again: by name, in a later cell."""
    nb = lesson(tutorial)
    used_later = []
    for i, cell in enumerate(nb.cells):
        for name, answer in CALL.findall(cell.source) if cell.cell_type == 'code' else []:
            later = '\n'.join(c.source for c in nb.cells[i + 1:] if c.cell_type == 'code')
            used_later.append((name, bool(re.search(rf'\b{answer}\b', later))))
    if tutorial in ('build_it', 'words', 'points', 'targets', 'teachers', 'learned', 'inside', 'where',
                    'time', 'sounds'):
        assert all(used for _, used in used_later), used_later


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_tutorial_opens_in_colab_and_says_what_it_takes(path):
    home = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['urls'][
        'Repository']
    cells = READ[path.stem].cells
    page = f'{home.removeprefix("https://github.com/")}/blob/main/tutorials/{path.name}'
    assert f'colab.research.google.com/github/{page}' in cells[0].source
    assert re.search(r'about \d+ (minutes|seconds)', cells[0].source)
    first = next(c.source for c in cells if c.cell_type == 'code')
    assert f'%pip install -q "maskedlab[colab] @ git+{home}"' in first
    assert "'google.colab' in sys.modules" in first
    assert '## Common mistakes' in '\n'.join(c.source for c in cells)


# ------------------------------------------------------------------------------ what single tutorials promise

def lines(source):
    return sum(bool(line.split('#')[0].strip()) for line in source.split('\n'))


def counted():
    return [c.source for c in lesson('build_it').cells if c.cell_type == 'code'
            and c.source.startswith('# 60 lines')]


def test_a_masked_autoencoder_in_sixty_lines_of_plain_pytorch():
    assert len(counted()) == 4 and sum(map(lines, counted())) <= 60
    used = re.findall(r'^\s*(?:from|import) (\w+)', '\n'.join(counted()), re.M)
    assert set(used) == {'torch'}
    assert max(len(line) for cell in counted() for line in cell.split('\n')) <= 120   # no line is three lines


def test_the_full_run_promises_one_and_a_half_decibels():
    source = '\n'.join(c.source for c in lesson('build_it').cells if c.cell_type == 'code')
    steps = int(re.search(r'steps = budget\((\d+), \d+\)', source)[1])
    assert re.search(rf'promise = 1\.5 \* steps / {steps}\b',
                     source) and 'assert reached >= promise' in source
    assert '< 1e-6' in source


@pytest.mark.parametrize('mask', ['random', 'rows'])
def test_its_loss_is_the_kits_to_six_decimals(mask):
    space = {}
    for cell in counted():
        exec(cell, space)
    names = next(c.source for c in lesson('build_it').cells if 'def kit_name' in c.source)
    exec(names.split('\nkit = ')[0], space)
    torch.manual_seed(3)
    sizes = dict(dim=64, depth=2, heads=2)
    ours = space['MaskedAutoencoder'](**sizes, narrow=32, shallow=1, few=2)
    kit = ml.create_recipe('mae', **sizes, decoder_dim=32, decoder_depth=1, decoder_heads=2, norm_pix=False)
    kit.load_state_dict({space['kit_name'](k): v for k, v in ours.state_dict().items()})
    b = ml.sample('image', n=6)
    m = torch.rand(6, 64).argsort(1) < 48 if mask == 'random' else (torch.arange(64) < 40).expand(6, 64)
    x = space['patches_of'](b['image'])
    loss = ((ours(x, m) - x) ** 2)[m].mean()
    theirs = kit(b, mask=m.view(6, 8, 8)).loss
    assert abs(loss.item() - theirs.item()) < 1e-6
    a, c = torch.autograd.grad(loss, ours.hole)[0], torch.autograd.grad(theirs, kit.decoder.mask_token)[0]
    assert torch.allclose(a.flatten(), c.flatten(), atol=1e-6)


def test_the_plan_of_a_lesson_covers_ninety_minutes_and_asks_what_the_tutorials_ask():
    text = (ROOT / 'tutorials' / 'TEACHING.md').read_text(encoding='utf-8')
    minutes = [int(m) for m in re.findall(r'^\| (\d+) \|', text, re.M)]
    assert minutes == sorted(minutes) and minutes[0] == 0 and 80 < minutes[-1] < 90
    spans = [(int(a), int(b)) for a, b in re.findall(r'^### .*\(minutes (\d+) to (\d+)\)', text, re.M)]
    assert spans[:2] == [(0, 25), (25, 45)] and len(spans) == 4
    for path in sorted((ROOT / 'tutorials').glob('*.ipynb')):
        assert nbformat.read(path, 4).cells[0].source.split('\n')[0].removeprefix('# ').split(' why')[
            0] in text, path.name


def test_a_cloud_turns_and_is_a_strip_of_pictures_without_plotly(monkeypatch):
    from maskedlab.course.pictures import Strip
    from maskedlab.course.points import turntable
    x = torch.rand(20, 3) - .5
    figure = turntable({'seen': [x[:5]], 'returned': [x[:5], x[5:]]})
    assert [t.visible for t in figure.data] == [True, False,
                                                False] and len(figure.layout.updatemenus[0].buttons) == 2
    monkeypatch.setitem(sys.modules, 'plotly.graph_objects', None)
    still = turntable({'seen': [x[:5]], 'returned': [x[:5], x[5:]]})
    assert isinstance(still, Strip) and list(still.rows) == ['seen', 'returned']


@pytest.mark.parametrize('name', ['bert_mlm', 'electra', 'point_mae', 'point_bert'])
def test_words_and_clouds_begin_with_a_success(name):
    """With the weights that ship; where it fails, run tools/first_examples.py again."""
    page = ml.Explorer(name).page
    scores, low = page.show(page.state).scores, page.menus.view(name).measure.low
    rest = [v for k, v in scores.items() if k != 'network'] or [50.]       # a yes or no: half is chance
    assert scores['network'] < min(rest) if low else scores['network'] > max(rest), scores
    # a reader's own data, and another sample, begin where one says
    own = ml.Explorer(name, ml.sample(page.menus.recipe().card.modality.split()[0], n=2)).page.state
    assert (own.index, own.seed) == (0, 0) and ml.Explorer(name, seed=0, index=1).page.state.index == 1
