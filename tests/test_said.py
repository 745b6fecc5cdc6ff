"""What the kit says is so: code, strategies, commands and options in its messages, docstrings, helps and
recorded results exist, fit and run."""
import ast
import json
import re
import shlex
from pathlib import Path

import pytest

import maskedlab as ml
from maskedlab.cli import parser
from maskedlab.contract.parse import _records, parse

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'maskedlab'
HOLE = 'HOLE'       # what a message is filled with
INNER = r'\((?:[^()\n]|\([^()\n]*\))*\)'
CALL = re.compile(rf'(?<![\w.])((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(\((?:[^()\n]|{INNER})*\))')
CODE = [p for p in sorted(PACKAGE.rglob('*.py')) if p.name != '_modidx.py']


def strings(path):
    """(place, text) of each string of a module, docstrings too; what fills it is one name."""
    tree = ast.parse(path.read_text('utf-8'))
    parts = {id(c) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for c in ast.walk(n) if c is not n}
    for n in ast.walk(tree):
        if id(n) in parts: continue
        where = f'{path.relative_to(ROOT)}:{getattr(n, "lineno", 0)}'
        if isinstance(n, ast.Constant) and isinstance(n.value, str):
            yield where, n.value
        elif isinstance(n, ast.JoinedStr):
            yield where, ''.join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in n.values)


def defined():
    """Name of a function, method or class of the kit -> the words that its definitions take; None: any."""
    found = {}
    for path in CODE:
        for n in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(n, ast.FunctionDef):
                a = n.args
                found.setdefault(n.name, []).append(None if a.kwarg else {
                    x.arg for x in [*a.posonlyargs, *a.args, *a.kwonlyargs]})
            elif isinstance(n, ast.ClassDef):
                own = [b for b in n.body if isinstance(b, ast.AnnAssign)]
                plain = own and not n.bases
                found.setdefault(n.name, []).append({b.target.id for b in own} if plain else None)
    return found


# but the examples of help(), which tests/test_names.py runs
SAID = [(where, text) for path in CODE if path.name != 'told.py' for where, text in strings(path)]


def test_names_of_the_package_exist_and_their_calls_run():
    wrong = []
    for where, text in SAID:
        for name in re.findall(r'(?<![\w.])ml((?:\.[A-Za-z_]\w*)+)', text):
            at = ml
            for part in name[1:].split('.'):
                at = None if at is None or part == HOLE else getattr(at, part, None)
            if at is None and HOLE not in name:
                wrong.append(f'{where} names ml{name}')
        for name, given in CALL.findall(text):
            if name.startswith('ml.') and HOLE not in given and '...' not in given:
                try:
                    eval(f'{name}{given}', {'ml': ml})
                except Exception as error:
                    wrong.append(f'{where}: {name}{given}: {error}')
    assert not wrong, wrong


def test_calls_in_a_message_take_the_words_that_they_are_given():
    known, wrong = defined(), []
    for where, text in SAID:
        if '/course/' in where: continue        # solutions, which tests/test_exercises.py runs
        for name, given in CALL.findall(text):
            if re.match('(?!ml[.])[a-z_]', name) and '.' in name: continue      # a tensor's own
            takes = known.get(name.rpartition('.')[2])
            try:
                call = ast.parse(f'f{given}'.replace('...', '0'), mode='eval').body
            except SyntaxError:
                continue            # a formula, or a regular expression
            if takes is None or None in takes: continue
            said = {k.arg for k in call.keywords if k.arg and HOLE not in k.arg}
            if not any(said <= t for t in takes):
                wrong.append(f'{where}: {name}{given} takes no {", ".join(said)}')
    assert not wrong, wrong


def test_strategies_in_a_message_are_strategies():
    wrong, seen = [], 0
    for where, text in SAID:
        for name, given in CALL.findall(text):
            if name.removeprefix('ml.masks.') not in _records() or HOLE in given: continue
            try:
                parse(f"{name.removeprefix('ml.masks.')}{given}")
                seen += 1
            except ValueError as error:
                wrong.append(f'{where}: {name}{given}: {error}')
    assert not wrong and seen > 5, wrong


def commands(text):
    """Commands of the kit in a text: between backticks, or said to be run."""
    held = re.findall(r'`maskedlab ([^`]+)`', text) + re.findall(r'run maskedlab ([\w .-]+)', text)
    return [w for w in held if HOLE not in w and '...' not in w and w.split()[0] != 'TABLE']


def parsed(words, capsys):
    """Whether the command line takes them."""
    words = ['mae' if w in ('NAME', 'RECIPE', 'new_method') else w for w in words]
    known = parser()._subparsers._group_actions[0].choices
    if words[0] in known and len(words) < 3:        # a command as such, or one of its options
        if len(words) == 1: return True
        if words[1].startswith('--'): return words[1] in known[words[0]]._option_string_actions
    try:
        parser().parse_args(words)
    except SystemExit as end:
        capsys.readouterr()
        return end.code in (0, None)
    return True


def prose():
    """(place, text) of what is written beside the code: all notebooks' Markdown."""
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        cells = json.loads(path.read_text('utf-8'))['cells']
        texts = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
        yield path.relative_to(ROOT), '\n'.join(texts)


def test_commands_in_messages_and_in_the_notebooks_are_commands(capsys):
    found = [(where, w) for where, text in [*SAID, *prose()] for w in commands(text)]
    wrong = [f'{where}: maskedlab {w}' for where, w in found if not parsed(shlex.split(w), capsys)]
    assert not wrong and len(found) > 10, wrong


def test_names_of_the_package_in_the_notebooks_exist():
    wrong = []
    for where, text in prose():
        for name in re.findall(r'`ml((?:\.[A-Za-z_]\w*)+)', text):
            at = ml
            for part in name[1:].split('.'):
                at = getattr(at, part, None)
            if at is None:
                wrong.append(f'{where}: ml{name}')
    assert not wrong, wrong


# options of other programs that the kit starts or names: pip, bench/ of a checkout
FOREIGN = {'--help', '--no-deps', '--no-memory'}


def test_options_in_a_message_exist():
    files = [PACKAGE / p for p in ('cli.py', 'train/make_stage.py', 'show/gate.py')]
    source = ''.join(p.read_text('utf-8') for p in [*files, ROOT / 'lab.py'])
    known = set(re.findall(r"'(--[a-z][\w-]*)'", source)) | FOREIGN
    known |= {f"--{k.replace('_', '-')}" for k in re.findall(r"^    '(\w+)': \(dict\(", source, re.M)}
    wrong = [f'{where}: {o}' for where, text in SAID if 'gate.py' not in where
             for o in re.findall(r'(?<![\w-])--[a-z][\w-]*', text) if o not in known]
    assert not wrong, wrong


def test_packages_that_a_message_asks_for_are_extras():
    extras = set(re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text('utf-8'), re.M))
    asked = [(w, e) for w, text in SAID for e in re.findall(r'maskedlab\[(\w+)\]', text)]
    assert asked and all(e in extras for _, e in asked), asked


RECORDED = [*sorted(PACKAGE.glob('weights/*/*.json')), *sorted((ROOT / 'claims').glob('*.json')),
            *sorted(PACKAGE.rglob('stage.json'))]


@pytest.mark.parametrize('file', RECORDED, ids=lambda f: f'{f.parent.name}/{f.name}')
def test_a_recorded_command_is_a_command(file, capsys):
    about = json.loads(file.read_text('utf-8'))
    if not isinstance(about, dict) or 'command' not in about: return
    words = shlex.split(about['command'])
    if words[0] == 'maskedlab':
        assert parsed(words[1:], capsys), about['command']
    else:
        assert words[:3] == ['python', '-m', 'maskedlab.train.make_stage'], about['command']


def test_what_a_run_records_is_read_by_a_shell():
    from maskedlab.instruments.compare import command_of
    budget = ml.instruments.compare.Budget(steps=7)
    words = shlex.split(command_of(['mae', 'my rings/ring.py:Mine'], 2, budget))
    a = parser().parse_args(words[1:])
    assert (a.recipes, a.seeds, a.steps, a.tune) == (['mae', 'my rings/ring.py:Mine'], 2, 7, 200)
