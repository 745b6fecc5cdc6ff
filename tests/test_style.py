"""How it is written: short lines and cells, a statement a line, one word for one thing, pictures to see."""

import ast
import io
import json
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

from bench.price import held

ROOT = Path(__file__).resolve().parents[1]
LINE, CELL = 110, 60
NOTEBOOKS = sorted(
    p
    for f in ('nbs', 'tutorials')
    for p in (ROOT / f).rglob('*.ipynb')
    if '.ipynb_checkpoints' not in p.parts
)
FILES = sorted(
    p
    for f in ('maskedlab', 'tests', 'bench', 'tools')
    for p in (ROOT / f).rglob('*.py')
    if p.name != '_modidx.py'
) + [ROOT / 'lab.py']
MODULES = [p for p in FILES if p.is_relative_to(ROOT / 'maskedlab')]
RECIPES = sorted((ROOT / 'nbs' / 'recipes').rglob('*.ipynb'))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def cells(path, kind='code'):
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in found if c['cell_type'] == kind]


def python(cell):
    """A cell without what only a notebook understands."""
    return re.sub(r'^(\s*)[%!].*$', r'\1pass', cell, flags=re.M)


def sources():
    """Every piece of Python of the project, and where it stands."""
    for p in FILES:
        yield name_of(p), p.read_text(encoding='utf-8')
    for p in NOTEBOOKS:
        for i, cell in enumerate(cells(p)):
            if not cell.startswith('%%') or cell.startswith('%%writefile'):
                yield f'{name_of(p)}, code cell {i}', python(cell)


# ------------------------------------------------------------------------------------------- lines and cells


def exported_by_nbdev(path):
    """Lines that nbdev writes at its own width: the head of the notebook, and `__all__`."""
    text = path.read_text(encoding='utf-8')
    wide = {1, 3} | {i for i, line in enumerate(text.split('\n'), 1) if line.startswith('# %% ')}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            wide |= set(range(node.lineno, node.end_lineno + 1))
    return wide


def test_lines_are_short():
    long = []
    for p in FILES:
        theirs = exported_by_nbdev(p) if p in MODULES and p.name != '__init__.py' else ()
        lines = enumerate(p.read_text(encoding='utf-8').split('\n'), 1)
        long += [f'{name_of(p)}:{i}' for i, line in lines if len(line) > LINE and i not in theirs]
    for p in NOTEBOOKS:
        long += [f'{name_of(p)}: {line}' for c in cells(p) for line in c.split('\n') if len(line) > LINE]
    assert not long, long


def crowded(source):
    """Numbers of the lines on which a statement does not stand alone. `if x is None: return y` may."""
    lines = source.split('\n')
    for node in ast.walk(ast.parse(source)):
        for part in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
            block = getattr(node, part, None)
            for s in block if isinstance(block, list) else ():
                if not isinstance(s, ast.stmt) or not lines[s.lineno - 1].encode()[: s.col_offset].strip():
                    continue
                if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and s.value.value is ...:
                    continue
                leaves = isinstance(s, ast.Return | ast.Raise | ast.Continue | ast.Break)
                alone = isinstance(node, ast.If) and len(node.body) == 1 and not node.orelse
                if not (leaves and alone and node.lineno == s.lineno == s.end_lineno):
                    yield s.lineno


def test_a_statement_a_line():
    found = [
        f'{where}: {source.split(chr(10))[n - 1].strip()}'
        for where, source in sources()
        for n in crowded(source)
    ]
    assert not found, found


@pytest.mark.parametrize(
    'code',
    [
        'a; b',
        'if x: y = 1',
        'for a in b: c',
        'def f(): return 1',
        'try: a\nexcept E: b',
        'if x: return 1\nelse: y',
    ],
)
def test_crowded_lines_are_found(code):
    assert list(crowded('def g():\n    ' + code.replace('\n', '\n    ')))


def test_a_guard_is_not_crowded():
    assert not list(
        crowded('def f(x):\n    if x is None: return 1\n    for y in x:\n        if y: continue\n    raise E')
    )


def code_lines(source):
    """How many lines hold code: no comment, no docstring, nothing empty."""
    lines = held(source)
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_a_cell_fits_on_a_screen():
    """Sixty lines of code: what explains it (docstrings and comments) is not counted."""
    long = {
        f'{name_of(p)}, code cell {i}': n
        for p in NOTEBOOKS
        for i, c in enumerate(cells(p))
        if len(c.split('\n')) > CELL and (n := code_lines(python(c))) > CELL
    }
    assert not long, long


def test_code_is_counted():
    assert (
        code_lines(
            '#| export\ndef f(a,    # one\n      b):\n    """Two\n    lines."""\n\n'
            '    return [a,\n            b]\n'
        )
        == 4
    )


# -------------------------------------------------------------------------------------------------- reading

CUT = re.compile(r'\b(et al|e\.g|i\.e|Figs?|Sec|vs|cf|[Ee]qs?|Tab|App)\.\n[ \t]*\n')


def docstrings(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node, clean=False) or ''


def test_no_docstring_is_cut_at_an_abbreviation():
    found = [(where, m[0]) for where, s in sources() for d in docstrings(s) for m in CUT.finditer(d)]
    assert not found, found


def pushed(source):
    """Numbers of the lines that are short and begin at the right edge, where nobody reads."""
    inside = {
        n
        for t in tokenize.generate_tokens(io.StringIO(source + '\n').readline)
        if t.type == tokenize.STRING
        for n in range(t.start[0] + 1, t.end[0] + 1)
    }
    for i, line in enumerate(source.split('\n'), 1):
        indent = len(line) - len(line.lstrip())
        if i not in inside and indent > 66 and line.strip() and not line.lstrip().startswith('#'):
            yield i


def test_lines_do_not_begin_at_the_right_edge():
    found = [f'{name_of(p)}:{n}' for p in MODULES for n in pushed(p.read_text(encoding='utf-8'))]
    assert not found, found


# ------------------------------------------------------------------------------------ one word for one thing

# Names that several modules of a room have, because each says the same of its own method.
SHARED = {
    ('recipes.', 'stages.'): 'CARD SIZES PLAN PUBLISHED DECLARED',
    ('formats.',): 'FORMATS NAMES HOLDS RELEASED BODY BLOCK ENCODER CONVOLUTION ORIGINAL TRANSFORMERS'
                   ' read write read_original read_transformers write_transformers',
    ('formats.', 'course.exercises'): 'check',      # a checkpoint; a learner's answer
    ('course.',): 'EXERCISES',
    ('cli', 'train.make_stage'): 'main',            # commands
    ('data.text', 'uses.decode'): 'decode',         # ids become a text; holes become ids
}  # fmt: skip


def public_names():
    """Name -> modules that export it."""
    found = defaultdict(list)
    for p in MODULES:
        for node in ast.parse(p.read_text(encoding='utf-8')).body if p.name != '__init__.py' else ():
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
                for name in ast.literal_eval(node.value):
                    found[name].append('.'.join(p.relative_to(ROOT / 'maskedlab').with_suffix('').parts))
    return found


def test_one_word_names_one_thing():
    """Claims are left out: each names its own arms and measures, and nobody imports them."""
    rooms = {name: where for where, names in SHARED.items() for name in names.split()}
    found = {
        name: [m for m in modules if not m.startswith('claims.')] for name, modules in public_names().items()
    }
    twice = {name: m for name, m in found.items() if len(m) > 1}
    wrong = {name: m for name, m in twice.items() if not all(x.startswith(rooms.get(name, ())) for x in m)}
    assert not wrong, wrong
    assert not rooms.keys() - twice.keys(), f'no longer shared: {rooms.keys() - twice.keys()}'


# ------------------------------------------------------------------------------------------------- pictures

DRAWING = re.compile(r'\b(strip|sheet|map_of|attention_map|curve|curves|side_by_side)\(')


@pytest.mark.parametrize('path', RECIPES, ids=name_of)
def test_a_recipe_shows_what_it_does(path):
    """Two drawings by the code, and one that stands still, for those who read without running."""
    drawn = [c for c in cells(path) if not re.search(r'^#\|\s*export', c, re.M) and DRAWING.search(c)]
    assert len(drawn) >= 2, f'{len(drawn)} cells draw a picture; two are wanted'
    still = [m for c in cells(path, 'markdown') for m in re.findall(r'!\[[^\]]+\]\(([^)]+)\)', c)]
    assert still, 'no still picture'
    missing = [s for s in still if not (path.parent / s).is_file() or s.startswith(('/', 'http'))]
    assert not missing, missing


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.name != 'index.ipynb'], ids=name_of)
def test_links_of_notebooks_lead_somewhere(path):
    """The index is seen from the root, as README.md, and tested there."""
    found = [a for c in cells(path, 'markdown') for a in re.findall(r'\]\(([^)#\s]+)[^)]*\)', c)]
    gone = [
        a
        for a in found
        if not re.match(r'https?:|attachment:', a) and not (path.parent / a).exists()
    ]
    assert not gone, gone
