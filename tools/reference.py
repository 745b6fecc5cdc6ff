"""Every public function and class of the package on one page, from its source: what it takes, with the
comments that stand there, what it gives, and its docstring. Nothing is imported."""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import Any

from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parents[1]

SEARCH = """<p><label>Search <input id="asked" type="search" autocomplete="off"></label>
<span id="left" role="status" aria-live="polite"></span></p>
"""
SCRIPT = """<script>
const all = (which) => [...document.querySelectorAll(which)];
const names = all('section.name'), rooms = all('section.room');
const said = names.map((n) => n.textContent.toLowerCase());
function search(words) {
  const asked = words.toLowerCase().split(/\\s+/).filter(Boolean);
  names.forEach((n, i) => { n.hidden = !asked.every((w) => said[i].includes(w)); });
  rooms.forEach((r) => { r.hidden = ![...r.querySelectorAll('section.name')].some((n) => !n.hidden); });
  const left = names.filter((n) => !n.hidden).length;
  document.getElementById('left').textContent = `${left} of ${names.length} names`;
}
const asked = document.getElementById('asked');
asked.addEventListener('input', () => search(asked.value));
search('');
</script>
"""


def head(node: Any, lines: list[str]) -> str:
    """A definition up to its body, as it was written."""
    text = '\n'.join(lines[node.lineno - 1:node.body[0].lineno - 1])
    if node.body[0].lineno == node.lineno:                  # all on one line
        text = lines[node.lineno - 1].partition(': ')[0] + ':'
    text = re.sub(r'\n\s*#[^\n]*\Z', '', text.rstrip())      # what is said about the body, not the definition
    deep = node.col_offset
    return '\n'.join(line[deep:] if not line[:deep].strip() else line for line in text.split('\n'))


def fields(node: ast.ClassDef, lines: list[str]) -> str:
    """What a class holds before its first method, with the comments that stand there."""
    first = next((n for n in node.body if isinstance(n, ast.FunctionDef)), None)
    end = node.end_lineno if first is None else min(n.lineno for n in (first, *first.decorator_list)) - 1
    begin = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
    held = '\n'.join(lines[begin:end]).strip('\n')
    return f'\n{held.rstrip()}' if held.strip() else ''


def code(text: str) -> str:
    """Python, coloured as in the notebooks."""
    return highlight(text, PythonLexer(), HtmlFormatter(cssclass='highlight'))


def told(node: Any, lines: list[str]) -> str:
    """What one definition says of itself."""
    doc = ast.get_docstring(node) or ''
    more = fields(node, lines) if isinstance(node, ast.ClassDef) else ''
    return code(head(node, lines) + more) + markdown2html(html.escape(doc, quote=False))


def public(path: Path) -> list[Any]:
    """The functions and classes of a module that its `__all__` names, in the order of the file."""
    tree = ast.parse(path.read_text('utf-8'))
    named = next((ast.literal_eval(n.value) for n in tree.body
                  if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
    return [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in named]


def section(node: Any, lines: list[str], where: str) -> str:
    """One name: a function, or a class with its constructor and public methods."""
    parts = [f'<h3 id="{where}.{node.name}">{node.name}</h3>', told(node, lines)]
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        parts += [told(n, lines) for n in methods if n.name in ('__init__', '__call__') or n.name[0] != '_']
    return f'<section class="name">{"".join(parts)}</section>'


def reference() -> str:
    """The body of the page."""
    parts = ['<h1>Reference</h1>', SEARCH]
    for path in sorted((ROOT / 'maskedlab').rglob('*.py')):
        text = path.read_text('utf-8')
        notebook = re.search(r'File to edit: (?:\.\./)*(nbs/\S+)\.ipynb', text)
        names = public(path) if notebook else []
        if not names:
            continue
        module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        about = html.escape((ast.get_docstring(ast.parse(text)) or '').split('\n')[0])
        inner = '\n'.join(section(n, text.split('\n'), module) for n in names)
        parts.append(f'<section class="room"><h2 id="{module}">{module}</h2><p>{about} '
                     f'(<a href="{notebook[1]}.html">notebook</a>)</p>{inner}</section>')
    return '\n'.join(parts) + SCRIPT
