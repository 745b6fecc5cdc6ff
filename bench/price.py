"""What a method costs to add: lines of its class and of its forward, and lines elsewhere that name it."""
from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median

from bench.tables import HERE, Table

TOLD = {'card', 'sizes', 'plan', 'defaults', 'declared', 'mask_token_in'}     # what a recipe says of itself
LIMITS = {'lines': 60, 'forward': 20, 'elsewhere': 3}       # for each recipe
MEDIAN = 45                                                 # of the lines of all classes
# Rooms that are made of methods: what one says there is no price of another. Generated, or there for one
# release.
ASIDE = ('recipes', 'claims', 'course', 'formats')
GENERATED = ('_modidx.py', '_moved.py')


@dataclass
class Price:
    "Of one recipe."
    name: str
    lines: int              # of its class, without card, sizes, plan, docstrings, comments and blank lines
    forward: int
    module: int             # of all that its notebook exports, counted alike and without imports
    places: list[str]       # 'file:line' elsewhere in the package whose code names it
    files: int              # its notebook, and files elsewhere in the package

    @property
    def elsewhere(self) -> int:
        return len(self.places)


def is_told(node: ast.stmt) -> bool:
    "Whether a statement only says what a recipe is: card, sizes, plan."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(
        node, ast.AnnAssign) else []
    names = {n.id.lower() for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return bool(names) and names <= TOLD | {'__all__'}


def is_text(node: ast.stmt) -> bool:
    "Whether a statement is a docstring."
    return isinstance(node, ast.Expr) and isinstance(node.value,
                                                     ast.Constant) and isinstance(node.value.value, str)


def held(source: str) -> set[int]:
    "Numbers of the lines that hold more than a comment."
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENDMARKER}
    return {n for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in empty
            for n in range(t.start[0], t.end[0] + 1)}


def code_lines(source: str, node: ast.AST) -> set[int]:
    "Numbers of the lines of a node that hold code of its own: no text, no import, nothing it only says."
    first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
    aside = lambda s: is_text(s) or is_told(s) or isinstance(s, ast.Import | ast.ImportFrom)
    left = {n for s in ast.walk(node) if isinstance(s, ast.stmt) and aside(s)
            for n in range(s.lineno, s.end_lineno + 1)}
    return {n for n in held(source) - left if first <= n <= node.end_lineno}


@cache
def mentions(source: str) -> list[tuple[int, str]]:
    """Strings and imported modules in code, with their lines. The default of a parameter is an example, to
    which another method would not add."""
    tree, found = ast.parse(source), []
    defaults = [d for n in ast.walk(tree) if isinstance(n, ast.arguments) for d in n.defaults + n.kw_defaults
                if d]
    defaults += [n.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == 'default']
    examples = {n for d in defaults for n in ast.walk(d)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in examples:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, 'maskedlab.' + (node.module or '').removeprefix('maskedlab.')))
    return found


def named(source: str, name: str, module: str) -> list[int]:
    "Lines whose code names a method: its name as a string, or its module in an import or a string."
    own = {name, module}
    return sorted({n for n, text in mentions(source) if text in own or text.startswith(f'{module}:')})


def price(root: Path, name: str, path: str) -> Price:
    "Of a recipe of the tree at `root`; `path` is 'module:Class'."
    module, cls = path.split(':')
    file = root / f"{module.replace('.', '/')}.py"
    source = file.read_text('utf-8')
    tree = ast.parse(source)
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
    forward = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == 'forward')
    whole = set().union(*(code_lines(source, n) for n in tree.body))
    places = []
    for other in sorted((root / 'maskedlab').rglob('*.py')):
        where = other.relative_to(root / 'maskedlab')
        if where.parts[0] in ASIDE and where.stem != 'table' or where.name in GENERATED:
            continue
        places += [f'{where.as_posix()}:{n}' for n in named(other.read_text('utf-8'), name, module)]
    return Price(name, len(code_lines(source, node)), len(code_lines(source, forward)), len(whole), places,
                 1 + len({p.split(':')[0] for p in places}))


def prices(root: Path | None = None, paths: dict[str, str] | None = None) -> list[Price]:
    "Of every recipe; `paths` are the rows of another tree's table."
    if paths is None:
        from maskedlab.contract.catalogue import RECIPES
        paths = {name: row.path for name, row in RECIPES.items()}
    return [price(root or HERE.parent, name, path) for name, path in paths.items()]


def table_of(root: Path) -> dict[str, str]:
    "The table of methods of another tree, read and not run: names and paths."
    for file, what in (('contract/catalogue.py', 'RECIPES'), ('recipes/table.py', 'TABLE')):
        if not (root / 'maskedlab' / file).exists():
            continue
        for node in ast.parse((root / 'maskedlab' / file).read_text('utf-8')).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
            if any(isinstance(t, ast.Name) and t.id == what
                   for t in targets) and isinstance(node.value, ast.Dict):
                first = lambda v: next(n.value for n in ast.walk(v) if isinstance(n, ast.Constant)
                                       and ':' in str(n.value))
                return {k.value: first(v) for k, v in zip(node.value.keys, node.value.values)}
    raise ValueError(f"{root} holds no table of methods; give --tree the root of a checkout")


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--tree', type=Path, metavar='FOLDER',
                   help='another checkout, such as one of before; never saved')


def tables(a: argparse.Namespace) -> list[Table]:
    if a.tree and a.save:
        raise ValueError("--tree is another checkout, whose prices are not saved here; leave --save out")
    found = prices(a.tree, table_of(a.tree)) if a.tree else prices()
    t = Table('price', 'What a method costs',
              "Lines of code, without docstrings, comments and blank lines. *Class*: without card, sizes "
              "and plan (at most "
              f"{LIMITS['lines']}, median {MEDIAN}); *forward*: at most {LIMITS['forward']}; *notebook*: all "
              "that it exports, "
              "without imports; *elsewhere*: lines of shared code that name the method (at most "
              f"{LIMITS['elsewhere']}); "
              "*files*: its notebook and those.", ['', 'class', 'forward', 'notebook', 'elsewhere', 'files'])
    kinds = ('lines', 'forward', 'module', 'elsewhere', 'files')
    for p in found:
        t.add(p.name, *(getattr(p, kind) for kind in kinds))
    t.add('median', *(f'{median(getattr(p, kind) for p in found):g}' for kind in kinds))
    t.numbers = json.loads(json.dumps([asdict(p) for p in found]))
    t.clock = 'counted'
    return [t]
