"""The package as others get it: the wheel, what an import costs, one-way imports, the README, and what no
file may hold."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import maskedlab as ml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'maskedlab'
MODULES = sorted(
    '.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    for p in PACKAGE.rglob('*.py')
    if p.name != '_modidx.py'
)
NOTEBOOKS = sorted(
    p
    for f in ('nbs', 'tutorials')
    for p in (ROOT / f).rglob('*.ipynb')
    if '.ipynb_checkpoints' not in p.parts
)


def read(path):
    return Path(path).read_text(encoding='utf-8')


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def python(code, *, exe=sys.executable, cwd=ROOT, path: str | None = str(ROOT)):
    """Run code in a fresh Python and give what it prints."""
    env = {
        k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST') and not k.startswith('COV_')
    }
    if path:
        env['PYTHONPATH'] = path
    done = subprocess.run(
        [str(exe), '-c', code], capture_output=True, text=True, cwd=cwd, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


# -------------------------------------------------------------------------------------------------- importing

NOTEBOOK_PACKAGES = (
    'IPython',
    'ipywidgets',
    'anywidget',
    'plotly',
    'matplotlib',
    'jupyterlab',
    'nbformat',
    'nbdev',
    'fastcore',
    'ipykernel',
    'voila',
)
HEAVY_PACKAGES = (
    'transformers',
    'timm',
    'torchvision',
    'skimage',
    'sklearn',
    'scipy',
    'pandas',
    'datasets',
    'accelerate',
)
WITH_WIDGETS = (
    'maskedlab.show',
    'maskedlab.course',
)  # the rooms that may ask for notebook packages when they are imported


def loads(modules):
    return json.loads(
        python(
            f'import importlib, json, sys\nfor m in {modules!r}: importlib.import_module(m)\n'
            f'print(json.dumps([p for p in {NOTEBOOK_PACKAGES + HEAVY_PACKAGES!r} if p in sys.modules]))'
        )
    )


def test_every_module_can_be_imported():
    assert len(MODULES) > 10
    python(f'import importlib\nfor m in {MODULES!r}: importlib.import_module(m)')


@pytest.mark.quick
def test_no_notebook_package_is_imported_by_the_core_training_or_the_command_line():
    assert loads(['maskedlab']) == []
    assert loads([m for m in MODULES if not m.startswith(WITH_WIDGETS)]) == []


@pytest.mark.quick
def test_importing_costs_no_more_than_torch():
    code = (
        'import time, torch\nt = time.perf_counter()\nimport maskedlab\n'
        'maskedlab.list_recipes, maskedlab.Units\n'
        'print(time.perf_counter() - t)'
    )
    seconds = []  # the best of four, where others disturb the first
    while len(seconds) < 4 and min(seconds, default=1) > 0.3:
        seconds.append(float(python(code)))
    assert min(seconds) <= 0.3, f'{min(seconds):.2f} s beyond torch'


def test_public_names_exist():
    for name in ml.__all__:
        assert getattr(ml, name) is not None, name
    with pytest.raises(AttributeError):
        _ = ml.no_such_name


# -------------------------------------------------------------------------------------------- how it is built


def plan_of_rooms():
    """ROOMS and APART as the design notebook has them: what stands above may be used."""
    for cell in json.loads(read(ROOT / 'nbs' / 'design.ipynb'))['cells']:
        text = ''.join(cell['source'])
        if text.startswith('ROOMS = ['):
            found = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(text).body}
            return {room: i for i, row in enumerate(found['ROOMS']) for room in row}, found['APART']
    raise AssertionError('nbs/design.ipynb holds no cell that begins with ROOMS = [')


LEVEL, APART = plan_of_rooms()


def imports(path):
    """Modules of the package that a module imports, at the top or in a function."""
    here = ('maskedlab', *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split('.')[0] == 'maskedlab')
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(here[: len(here) - node.level + 1]) if node.level else ''
            module = '.'.join(p for p in (base, node.module) if p)
            if module.split('.')[0] == 'maskedlab':
                yield from ([f'{module}.{a.name}' for a in node.names] if module == 'maskedlab' else [module])


def room(module):
    return (module.split('.') + [''])[1]


def test_imports_point_one_way():
    wrong = []
    for path in PACKAGE.rglob('*.py'):
        own = room('.'.join(path.relative_to(ROOT).with_suffix('').parts))
        if own.startswith('_'):
            continue
        assert own in (*LEVEL, *APART), (
            f'{name_of(path)}: give the new room {own!r} its place in nbs/design.ipynb'
        )
        for module in imports(path):
            other = room(module)
            if other == own or other not in (*LEVEL, *APART):
                continue
            fine = other in ('checks', 'settings') or (
                own not in APART and (other in APART or LEVEL[other] < LEVEL[own])
            )
            if own in ('contract', 'masks', 'corruptions', 'targets', 'parts') and other == 'data':
                fine = False
            if not fine:
                wrong.append(f'{name_of(path)} imports {module}')
    assert not wrong, wrong


def module_at(path):
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def test_no_circle_even_inside_a_room():
    """Modules that import each other, at the top or in a function, are one module in two files."""
    known = {module_at(p) for p in PACKAGE.rglob('*.py') if not p.name.startswith('_')}
    wants = {
        module_at(p): {m for m in imports(p) if m in known}
        for p in PACKAGE.rglob('*.py')
        if not p.name.startswith('_')
    }
    done, on = set(), []

    def walk(m):
        assert m not in on, ' <- '.join([*on[on.index(m) :], m])
        if m in done:
            return
        on.append(m)
        for other in sorted(wants[m]):
            walk(other)
        done.add(on.pop())

    for m in sorted(wants):
        walk(m)


def test_no_recipe_imports_another():
    from maskedlab.contract.catalogue import RECIPES

    table = {row.path.split(':')[0] for row in RECIPES.values()}
    for module in table:
        path = ROOT / (module.replace('.', '/') + '.py')
        assert not {m for m in imports(path) if m.startswith('maskedlab.recipes')}, module


def test_modules_that_moved_answer_to_their_old_names():
    from maskedlab._moved import MOVED

    code = (
        'from maskedlab.recipes.mae import MAE; from maskedlab.recipes.image.mae import MAE as new; '
        'print(MAE is new)'
    )
    assert python(code) == 'True'
    python(f'import importlib\nfor m in {sorted(MOVED)!r}: importlib.import_module("maskedlab." + m)')
    with pytest.warns(DeprecationWarning, match='maskedlab.recipes.image.simmim'):
        sys.modules.pop('maskedlab.recipes.simmim', None)
        import maskedlab.recipes.simmim  # noqa: F401


def test_no_module_is_called_utils():
    assert not [m for m in MODULES if re.search(r'\butils?\b|helpers', m)]


def cells(path):
    return json.loads(read(path))['cells']


def source(cell):
    return ''.join(cell['source'])


def test_each_module_has_one_notebook():
    exps = [
        m[1]
        for p in NOTEBOOKS
        for c in cells(p)
        if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M))
    ]
    assert exps and len(exps) == len(set(exps)), (
        'two notebooks export the same module and the last one would win'
    )


def test_the_package_is_what_its_notebooks_export(tmp_path, monkeypatch):
    import lab

    monkeypatch.setattr(lab, 'PYTHON', Path(sys.executable))
    checks = lab.Checks(lab.parser().parse_args(['test']), tmp_path)
    checks.export()
    assert not checks.results[0][1].failed, checks.results[0][1].text


def test_errors_are_raised_not_asserted():
    found = [
        f'{name_of(p)}:{n.lineno}'
        for p in PACKAGE.rglob('*.py')
        for n in ast.walk(ast.parse(read(p)))
        if isinstance(n, ast.Assert)
    ]
    assert not found, found


# -------------------------------------------------------------------- no shared code asks which method it has

MODALITIES = {
    'image',
    'video',
    'wave',
    'audio',
    'ids',
    'text',
    'points',
    'voxels',
    'volume',
    'motion',
    'graph',
    'boxes',
    'protein',
    'code',
}
# Modules that are about one modality, as a recipe is: the feed of crops, and the views.
ONE_MODALITY = {
    'instruments/baselines.py', 'train/feed.py', 'show/views/words.py', 'show/views/clouds.py',
    'show/views/streams.py',
}
ASKING = {'modality', 'recipe', 'recipe_name', 'method', 'method_name'}  # variables that hold such a name


def named(node, names):
    """Whether an expression is one of the names, or a literal collection with one."""
    if isinstance(node, ast.Constant):
        return node.value in names if isinstance(node.value, str) else False
    return isinstance(node, (ast.Tuple, ast.List, ast.Set)) and any(named(e, names) for e in node.elts)


def variable(node):
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ''


def asks(tree, names, own_batch=False):
    """Comparisons with, and look-ups by, such a name. `own_batch`: this module may ask a batch for the keys
    that it works on."""

    def batch(node):
        name = variable(node.func if isinstance(node, ast.Call) else node)
        if name in ('arguments', 'parameters', 'config'):
            return True  # constructor arguments: `image` is a size there
        return own_batch and not name.isupper()  # a table is written in capitals

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(variable(s) == 'kind' for s in sides):
                continue  # the kind of a layout (grid, sequence, graph) is no modality
            member = (
                len(node.ops) == 1
                and isinstance(node.ops[0], (ast.In, ast.NotIn))
                and not named(node.comparators[0], names)
            )
            if any(named(s, names) for s in sides) and not (member and batch(node.comparators[0])):
                yield node
        elif isinstance(node, ast.MatchValue):
            if named(node.value, names):
                yield node
        elif isinstance(node, ast.Subscript):
            if isinstance(node.ctx, ast.Load) and named(node.slice, names) and not batch(node.value):
                yield node
        elif isinstance(node, ast.Call):
            called, first = variable(node.func), node.args[0] if node.args else None
            if called in ('get', 'pop') and isinstance(node.func, ast.Attribute) and named(first, names):
                if not batch(node.func.value):
                    yield node
            elif called in ('startswith', 'endswith') and named(first, names):
                yield node
            elif (
                called == 'getattr'
                and len(node.args) > 1
                and any(variable(n) in ASKING for n in ast.walk(node.args[1]))
            ):
                yield node


def test_no_shared_code_asks_which_modality_or_recipe_it_has():
    from maskedlab.contract.catalogue import ALIASES, RECIPES, list_recipes
    from maskedlab.contract.create import card

    names = MODALITIES | {*RECIPES, *ALIASES} | {w for n in list_recipes() for w in card(n).modality.split()}
    own = {ROOT / (row.path.split(':')[0].replace('.', '/') + '.py') for row in RECIPES.values()}
    found = [
        f'{name_of(p)}:{n.lineno}: {ast.unparse(n)}'
        for p in sorted(PACKAGE.rglob('*.py'))
        if p.name != '_modidx.py'
        for n in asks(
            ast.parse(read(p)),
            names,
            own_batch=p in own
            or {'parts', 'stages', 'data', 'course', 'claims'} & set(p.relative_to(PACKAGE).parts)
            or p.relative_to(PACKAGE).as_posix() in ONE_MODALITY,
        )
    ]
    assert not found, '\n'.join(found)


@pytest.mark.parametrize(
    'code',
    [
        'if modality == "image": pass',
        'if "mae" != name: pass',
        'if name in ("mae", "simmim"): pass',
        'f = ARTISTS["image"]',
        'f = ARTISTS.get("wave")',
        'match name:\n    case "image": pass',
        'if name.startswith("mae"): pass',
        'f = getattr(artists, modality)',
        'f = getattr(artists, f"draw_{modality}")',
        'x = 1 if r.card.modality == "text" else 2',
        'if "image" in batch: pass',
        'x = batch["image"]',
    ],
)
def test_asking_is_found(code):
    assert list(asks(ast.parse(code), MODALITIES | {'mae', 'simmim'}))


@pytest.mark.parametrize(
    'code',
    [
        'TABLE = {"mae": "m:MAE", "image": draw}',
        'f = ARTISTS[modality]',
        'if name not in TABLE: pass',
        'if u.kind == "graph": pass',
        'create_recipe("mae")',
    ],
)
def test_tables_are_not_asking(code):
    assert not list(asks(ast.parse(code), MODALITIES | {'mae', 'simmim'}))


def test_a_recipe_may_ask_its_own_batch():
    code = 'x = batch["image"]\nif "text" in batch: pass\ny = batch.get("video")'
    assert not list(asks(ast.parse(code), MODALITIES, own_batch=True))
    assert list(asks(ast.parse('if self.card.modality == "image": pass'), MODALITIES, own_batch=True))


# -------------------------------------------------------------------------------------------------- notebooks


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_is_small_and_holds_no_widget_state(path):
    text, nb = read(path), json.loads(read(path))
    assert len(text.encode()) <= 200_000, f'{len(text.encode()) // 1000} kB'
    assert 'widgets' not in nb['metadata'], 'widget state'
    kinds = {k for c in nb['cells'] for o in c.get('outputs', []) for k in o.get('data', {})}
    assert not [k for k in kinds if 'plotly' in k or 'widget' in k], kinds
    assert not [1 for c in nb['cells'] for o in c.get('outputs', []) if 'Plotly.newPlot' in json.dumps(o)], (
        'plotly in html'
    )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_and_reads_well(path):
    whole = [source(c) for c in cells(path)]
    assert not [s for s in whole if 'skip_exec' in s], 'a notebook that is not run is no test'
    assert re.match(r'# \w', whole[0]), f'begins with {whole[0][:30]!r}, not with a title'
    assert not [
        s for c, s in zip(cells(path), whole) if c['cell_type'] == 'markdown' and re.search(r'^# #', s, re.M)
    ], 'a heading with two marks'


# -------------------------------------------------------------------------------------- what no file may hold


def ours():
    """Text files of the project: those that git knows or would add, or all but what is ignored by name."""
    git = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, text=True
    )
    if git.returncode == 0:
        paths = [ROOT / n for n in git.stdout.split('\0') if n]
    else:
        paths = [
            p
            for p in ROOT.rglob('*')
            if not {'.venv', '.git', 'runs', '__pycache__', '.ipynb_checkpoints'}
            & set(p.relative_to(ROOT).parts)
        ]
    binary = {'.png', '.jpg', '.npz', '.safetensors', '.pt', '.ico', '.xz'}
    return [p for p in paths if p.is_file() and p.suffix not in binary]


def test_no_machine_paths():
    folders = '|'.join(('work', 'root', 'home/[a-z]', 'Users/[a-zA-Z]', 'farm', 'opt/py', 'content/'))
    found = [
        f'{name_of(p)}: {m[0]}'
        for p in ours()
        for m in re.finditer(rf'(?<![\w.~/:}}\])>*])/(?:{folders})[\w/.-]*/?', read(p))
        if '/' in m[0][1:]
    ]
    assert not found, found


def test_one_address_everywhere():
    address = tomllib.loads(read(ROOT / 'pyproject.toml'))['project']['urls']['Repository']
    own = address.removeprefix('https://github.com/')
    places = [p for p in ours() if p.suffix in ('.md', '.cff', '.toml', '.ipynb', '.py', '.yml')]
    found = {
        (name_of(p), m) for p in places for m in re.findall(r'github(?:\.com)?/([\w-]+/maskedlab)\b', read(p))
    }
    assert {m for _, m in found} == {own}, found
    assert ('CITATION.cff', own) in found and ('README.md', own) in found


def test_the_version_is_told_once():
    assert f'version: {ml.__version__}' in read(ROOT / 'CITATION.cff') and f'## {ml.__version__}' in read(
        ROOT / 'CHANGELOG.md'
    )


def test_constraints_leave_torch_free():
    lines = [line for line in read(ROOT / 'constraints.txt').splitlines() if not line.startswith('#')]
    assert lines and all(re.fullmatch(r'[\w.-]+==\S+', line) for line in lines)
    assert not [line for line in lines if re.match('torch|nvidia|triton|cuda', line)]


def test_extras():
    extras = tomllib.loads(read(ROOT / 'pyproject.toml'))['project']['optional-dependencies']
    assert {'lab', 'colab', 'data', 'test', 'bench'} <= set(extras)
    assert {re.match(r'[\w-]+', r)[0] for r in extras['colab']} == {'plotly', 'ipywidgets', 'anywidget'}


# ----------------------------------------------------------------------------------------------------- README


def test_readme_agrees_with_its_notebook():
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'readme.py'), '--check'],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_and_pictures_resolve_at_the_root(page):
    text = re.sub(r'```.*?```', '', read(ROOT / page), flags=re.S)
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    missing = [
        link
        for link in links
        if not re.match(r'https?://|mailto:|#', link) and not (ROOT / link.split('#')[0]).exists()
    ]
    assert not missing, missing
    assert '<!-- ' not in text.replace('<!-- Made from', ''), 'a table was not filled in'
    assert not re.search(r'^#\|', text, re.M), 'a directive of nbdev is left'


def test_readme_has_a_row_for_each_recipe():
    text = read(ROOT / 'README.md')
    for name in ml.list_recipes():
        assert f'| `{name}` | [{ml.card(name).title}]' in text


# -------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The Python of an empty environment with the wheel in it. torch and what else is needed is lent by this
    environment."""
    folder = tmp_path_factory.mktemp('wheel')
    tree = folder / 'tree'  # a copy: a build leaves things behind
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    shutil.copytree(PACKAGE, tree / 'maskedlab', ignore=ignore)
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'NOTICE'):
        shutil.copy(ROOT / name, tree)
    build = subprocess.run(
        [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(folder), str(tree)],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-1000:] + build.stderr[-2000:]
    (wheel,) = folder.glob('*.whl')
    venv.create(folder / 'env', with_pip=False, symlinks=os.name != 'nt')
    exe = folder / 'env' / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    pip = subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            '--python',
            str(exe),
            'install',
            '--no-deps',
            '--no-index',
            '--quiet',
            str(wheel),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            k: v for k, v in os.environ.items() if k != 'PYTHONPATH'
        },  # else it would find the package of this tree
    )
    assert pip.returncode == 0, pip.stderr[-2000:]
    site = Path(python('import sysconfig; print(sysconfig.get_paths()["purelib"])', exe=exe, path=None))
    lent = [p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')] or [
        sysconfig.get_paths()['purelib']
    ]
    (site / 'lent.pth').write_text('\n'.join(lent) + '\n')
    empty = folder / 'empty'
    empty.mkdir()
    ask = 'import importlib.util; print(importlib.util.find_spec("maskedlab").origin)'
    where = python(ask, exe=exe, cwd=empty, path=None)
    assert Path(where).resolve().is_relative_to(site.resolve()), f'{where} is not the wheel'
    return exe, site / 'maskedlab', empty


def test_the_wheel_holds_all_modules_data_and_weights(installed):
    exe, package, empty = installed
    files = lambda root: {
        p.relative_to(root).as_posix()
        for p in root.rglob('*')
        if p.is_file() and not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)
    }
    assert files(PACKAGE) == files(package)
    assert {'py.typed', 'data/files/CREDITS.md'} <= files(package)
    python(
        f'import importlib\nfor m in {MODULES!r}: importlib.import_module(m)', exe=exe, cwd=empty, path=None
    )
    (info,) = package.parent.glob('maskedlab-*.dist-info')
    assert {'LICENSE', 'NOTICE'} <= {p.name for p in info.rglob('*')}
    held = lambda root: sum(p.stat().st_size for p in root.rglob('*') if p.is_file())
    assert held(package / 'weights') < 60e6 and held(package) < 80e6


def test_the_command_comes_with_the_wheel(installed):
    exe, _, empty = installed
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH' and not k.startswith('MASKEDLAB_')}
    done = subprocess.run(
        [str(exe.parent / 'maskedlab'), 'settings'], capture_output=True, text=True, cwd=empty, env=env
    )
    assert done.returncode == 0 and 'seed' in done.stdout, done.stderr[-2000:]


def test_the_code_of_the_readme_runs_from_the_wheel_in_an_empty_folder(installed):
    exe, _, empty = installed
    blocks = re.findall(r'```python\n(.*?)```', read(ROOT / 'README.md'), re.S)
    assert blocks
    python('\n'.join(blocks), exe=exe, cwd=empty, path=None)
