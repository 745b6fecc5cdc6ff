#!/usr/bin/env python3
"""Notebooks, tutorials and index as plain HTML that opens from a folder: no kernel, no server, no network.

python tools/site.py                 write _docs/ ; tutorials are run first, on the budget of the tests
python tools/site.py --no-run        write it from the outputs that are stored in the notebooks
python tools/site.py --run-all       run the notebooks of nbs/ too
python tools/site.py --out FOLDER    write it elsewhere
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
import json
import os
import re
import shutil
import sys
import tomllib
from io import BytesIO
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import TagRemovePreprocessor
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
RATIOS = [k / 10 for k in range(1, 10)]
WIDGET, FIGURE = 'application/vnd.jupyter.widget-view+json', 'application/vnd.plotly.v1+json'
FRAME = '<iframe src="{up}{file}" title="Move the ratio: stored pictures of {recipe}"></iframe>'
MARK = 'maskedlab answer'        # in an output's metadata: it tells the answer to a guess (course.exercises)
FOLD = '<details><summary>{title}</summary>\n\n{body}\n\n</details>'


# ---- the shell

CSS = """
:root { --paper: #fff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --code: #f6f8fa; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e6e9ed; --faint: #a0a9b4; --line: #3a424c; --code: #1d2228; --link: #7ab7ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif; }
nav, main { max-width: 56rem; margin: 0 auto; padding: .8rem 1.2rem; }
nav { border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid #d97706; outline-offset: 2px; }
h1, h2, h3 { line-height: 1.25; margin: 1.6em 0 .5em; }
h1 { margin-top: .6em; }
.anchor-link { display: none; }
pre {
  margin: 0; padding: .7rem .9rem; overflow-x: auto; white-space: pre;
  font: 13.5px/1.5 ui-monospace, monospace;
}
code {
  font-family: ui-monospace, monospace; font-size: .9em; background: var(--code); padding: .1em .3em;
  border-radius: 4px;
}
pre code { padding: 0; background: none; font-size: 1em; }
.highlight, .jp-RenderedHTMLCommon pre, main > pre, details pre {
  background: var(--code); border-radius: 6px; margin: .6rem 0;
}
.output, .jp-OutputArea { overflow-x: auto; }
.prompt, .jp-InputPrompt, .jp-OutputPrompt { display: none; }
blockquote { margin: 0 0 1em; padding-left: 1em; border-left: 4px solid var(--line); color: var(--faint); }
main table { border-collapse: collapse; display: block; overflow-x: auto; max-width: 100%; }
main th, main td {
  border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top;
}
main img { max-width: 100%; height: auto; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
iframe {
  width: 100%; height: 30rem; border: 1px solid var(--line); border-radius: 6px; background: var(--paper);
}
.note { color: var(--faint); }
.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] { display: none; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="UPsite.css">
</head>
<body>
<nav aria-label="Site">
<a href="UPindex.html">maskedlab</a><a href="UPframes.html">Move the ratio</a>
<a href="UPindex.html#tutorials">Tutorials</a><a href="UPindex.html#notebooks">Notebooks</a>
<a href="UPreference.html">Reference</a>
</nav>
<main>
BODY
</main>
SCRIPT</body>
</html>
"""

PLOTS = """<script src="UPplotly.min.js"></script>
<script>
for (const el of document.querySelectorAll('.figure')) {
  const { data, layout } = JSON.parse(el.querySelector('script').textContent);
  Plotly.newPlot(el, data, layout, { displaylogo: false, responsive: true });
}
</script>
"""


def shell(title: str, body: str, depth: int) -> str:
    """A whole page; `depth` folders below the index."""
    up = '../' * depth
    script = PLOTS.replace('UP', up) if 'class="figure"' in body else ''
    page = PAGE.replace('UP', up).replace('TITLE', html.escape(title)).replace('SCRIPT', script)
    return page.replace('BODY', body)


def css() -> str:
    """The one style sheet, with the colours of code for light and dark."""
    light, dark = (HtmlFormatter(style=s).get_style_defs('.highlight') for s in ('default', 'github-dark'))
    clean = lambda text: re.sub(r'^(pre|td\.linenos|span\.linenos)[^\n]*\n', '', text, flags=re.M)
    plain = '.highlight { background: var(--code) !important; }\n'
    return f'{CSS}{clean(light)}\n@media (prefers-color-scheme: dark) {{\n{clean(dark)}\n}}\n{plain}'


# ---- notebooks


def cleaned(nb: nbformat.NotebookNode, up: str = '../') -> nbformat.NotebookNode:
    """A copy as a reader wants it: no directives, no plumbing, outputs that need no kernel."""
    nb = nbformat.from_dict(json.loads(json.dumps(nb)))
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*(hide|default_exp)', c.source, re.M)]
    nb.metadata.pop('widgets', None)
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            # a badge is a picture from the web; its words are enough
            cell.source = re.sub(r'\[!\[([^\]]*)\]\(https?://[^)]*\)\]\(([^)]*)\)', r'[\1](\2)', cell.source)
            continue
        cell.source = re.sub(r'^#\|[^\n]*\n?', '', cell.source, flags=re.M)
        cell['outputs'] = folded(readable(cell, up))
    nb.cells = [part for c in nb.cells for part in parts_of(c)]
    return nb


def frames_of(recipe: str) -> str:
    """The page of stored pictures of a recipe."""
    return 'frames.html' if recipe == 'mae' else f'frames_{recipe}.html'


def readable(cell: nbformat.NotebookNode, up: str) -> list[nbformat.NotebookNode]:
    """The outputs of a cell without what needs a kernel: a figure as its data, a widget as its picture, or
    as a page of stored pictures of that very recipe where there is one."""
    kept = []
    for out in cell.get('outputs', []):
        data = out.get('data', {})
        widget, figure = data.pop(WIDGET, None), data.pop(FIGURE, None)
        page = ''.join(data.get('text/html', ''))
        if 'class="ml-stored"' in page:
            data['text/html'] = re.sub(r'<style>.*?</style>', '', page, flags=re.S)
        if figure:
            text = json.dumps({k: figure[k] for k in ('data', 'layout')}).replace('</', '<\\/')
            stored = f'<script type="application/json">{text}</script>'
            data['text/html'] = f'<div class="figure">{stored}</div>'
        # the still picture of a widget stands before it
        if widget and kept and 'class="ml-stored"' in ''.join(kept[-1].get('data', {}).get('text/html', '')):
            out = kept.pop()
        explored = re.search(r"ml\.Explorer\('(\w+)'\)", cell.source)
        if widget and explored and explored[1] in STORED:
            out.data['text/html'] = (
                '<p class="note">The page itself needs a kernel. Here the same with stored pictures: move '
                f'the ratio.</p>{FRAME.format(up=up, file=frames_of(explored[1]), recipe=explored[1])}')
        kept.append(out)
    return kept


def folded(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Answers to guesses, one after the other, behind one line that can be opened."""
    kept: list[nbformat.NotebookNode] = []
    before = False
    for out in outputs:
        data = out.get('data', {})
        if not out.get('metadata', {}).pop(MARK, False):
            kept.append(out)
            before = False
            continue
        text = ''.join(data.get('text/markdown', ''))
        body = ''.join(data.get('text/html', '')) or (markdown2html(text) if text else '')
        if not body and 'image/png' in data:
            body = f'<img alt="What this cell shows" src="data:image/png;base64,{data["image/png"]}">'
        if before:
            whole = kept[-1].data['text/html'].removesuffix('\n\n</details>')
            kept[-1].data['text/html'] = f'{whole}\n{body}\n\n</details>'
        else:
            whole = FOLD.format(title='The answer: make your guess first', body=body)
            kept.append(nbformat.v4.new_output('display_data', {'text/html': whole, 'text/plain': ''}))
        before = True
    return kept


def parts_of(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """A cell whose code is folded in a notebook, as folded code and its outputs."""
    if cell.cell_type != 'code' or not cell.metadata.get('jupyter', {}).get('source_hidden'): return [cell]
    code = nbformat.v4.new_markdown_cell(
        FOLD.format(title='Code of the answer', body=f'```python\n{cell.source}\n```'))
    cell.metadata['tags'] = ['folded']
    return [code, cell]


def run(nb: nbformat.NotebookNode, folder: Path, **env: str) -> None:
    """Execute a notebook in place, on the budget of the tests."""
    from nbclient import NotebookClient

    old = dict(os.environ)
    path = os.pathsep.join(p for p in (str(ROOT), old.get('PYTHONPATH', '')) if p)
    os.environ.update({'MASKEDLAB_BUDGET': 'test', 'OMP_NUM_THREADS': '1',
                       'PLOTLY_RENDERER': 'plotly_mimetype', 'PYTHONPATH': path, **env})
    try:
        where = {'metadata': {'path': str(folder)}}
        # nothing can be pressed on a page, so the guesses of a tutorial are answered, and the answers folded
        opened = nbformat.v4.new_code_cell('from maskedlab.course.exercises import unasked\nunasked()')
        nb.cells.insert(0, opened)
        NotebookClient(nb, timeout=600, kernel_name='python3', store_widget_state=False,
                       resources=where).execute()
        nb.cells.remove(opened)
    finally:
        os.environ.clear()
        os.environ.update(old)


def local(body: str) -> str:
    """Links to notebooks become links to their pages."""
    return re.sub(r'href="(?!https?:)([^"#]*)\.ipynb', r'href="\1.html', body)


def described(body: str) -> str:
    """Every picture has words for those who cannot see it."""
    return re.sub(r'<img(?![^>]*\balt=)', '<img alt="What this cell shows"', body)


@functools.cache
def exporter() -> HTMLExporter:
    """One for all pages: its templates are compiled once."""
    made = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    made.register_preprocessor(TagRemovePreprocessor(remove_input_tags={'folded'}), enabled=True)
    # code of our own notebooks, escaped as it was highlighted: to clean it again took a third of the time
    made.register_filter('clean_html', lambda html: html.decode() if isinstance(html, bytes) else html)
    return made


def page(nb: nbformat.NotebookNode, title: str, depth: int) -> str:
    """The page of a notebook."""
    body, _ = exporter().from_notebook_node(cleaned(nb, '../' * depth))
    return shell(title, described(local(body)), depth)


def inline(text: str) -> str:
    """A line of Markdown, such as a heading, as HTML."""
    return re.sub(r'^\s*<p>(.*)</p>\s*$', r'\1', markdown2html(text), flags=re.S)


def heading(nb: nbformat.NotebookNode) -> tuple[str, str]:
    """Title and subtitle of a notebook."""
    text = nb.cells[0].source
    title, quote = re.search(r'^# +(.*)', text, re.M), re.search(r'^> *(.*)', text, re.M)
    return title[1].removeprefix('# ') if title else 'Notebook', quote[1] if quote else ''


# ---- frames: the ratio, no kernel


def frames(pictures: int = 4, masks: int = 3) -> str:
    """One page that holds what a masked autoencoder makes of a few photographs at nine ratios."""
    import torch
    from PIL import Image

    import maskedlab as ml
    from maskedlab.instruments.baselines import hidden_pixels, inpaint, psnr, visible_mean

    try:
        r, trained = ml.create_recipe('mae', pretrained=True).eval(), True
    except (FileNotFoundError, ValueError):
        r, trained = ml.create_recipe('mae').eval(), False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small steps: on a busy machine two threads wait for each other
    b = ml.sample('image', n=pictures, split='test')
    truth = b['image']
    u = r.units(b)

    def byte(x):
        return (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)

    store: list[dict] = []
    for seed in range(masks):
        # one order of the patches for all ratios: what is hidden at a tenth stays hidden at two tenths
        drawn = torch.rand(pictures, u.count, generator=torch.Generator().manual_seed(seed))
        rank = drawn.argsort(1).argsort(1)
        rows, facts = [], []
        for ratio in RATIOS:
            mask = (rank < round(ratio * u.count)).view(pictures, *u.shape)
            with torch.no_grad():
                out = r(b, mask=mask)
            hidden = hidden_pixels(out.units, out.mask)
            filled = r.fill(b, out)['image']
            error = (filled - truth).abs().mean(1, keepdim=True).expand_as(truth) * 3
            seen = torch.where(hidden[:, None], 0.5, truth)
            rows.append(torch.cat([byte(seen), byte(filled), byte(error)], 2))
            guesses = filled, inpaint(truth, hidden, 'harmonic'), visible_mean(truth, hidden)
            score = [psnr(x, truth, hidden) for x in guesses]
            told = lambda i, score=score: [round(s[i].item(), 1) for s in score]
            facts.append([[int(mask[i].sum()), *told(i)] for i in range(pictures)])
        for i in range(pictures):
            sheet = torch.cat([row[i] for row in rows])
            store.append({'picture': i, 'mask': seed, 'sheet': _png(Image.fromarray(sheet.numpy())),
                          'facts': [f[i] for f in facts]})
    torch.set_num_threads(threads)
    names = [ml.data.embedded.photo_credits()[int(k)]['title'] for k in b['label']]
    originals = [_png(Image.fromarray(x.numpy())) for x in byte(truth)]
    data = {'side': truth.shape[-1], 'patches': u.count, 'ratios': RATIOS, 'names': names,
            'originals': originals, 'frames': store}
    about = '' if trained else 'The network here has random weights: its trained ones are not in this copy. '
    held = json.dumps(data).replace('</', '<\\/')
    return FRAMES.replace('LOOK', LOOK).replace('ABOUT', about).replace('DATA', held)


def _png(image) -> str:
    file = BytesIO()
    image.save(file, 'PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


# what the pages of frames look like alike
LOOK = """:root { --paper: #fff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --accent: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --faint: #a0a9b4; --line: #3a424c; --accent: #7ab7ff; }
}
body { margin: 0 auto; max-width: 56rem; padding: .6rem 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.4rem; align-items: center; }
label { display: inline-flex; gap: .5rem; align-items: center; }
input[type=range] { width: 15rem; max-width: 60vw; accent-color: var(--accent); }
:focus-visible { outline: 3px solid #d97706; outline-offset: 2px; }
"""

FRAMES = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Move the ratio</title>
<link rel="icon" href="data:,">
<style>
LOOK
* { box-sizing: border-box; }
output { font-variant-numeric: tabular-nums; min-width: 3ch; }
button, select {
  font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--faint); border-radius: 6px;
  padding: .2rem .7rem; max-width: 22rem;
}
.pictures {
  display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .8rem; margin: .9rem 0 .4rem;
}
@media (max-width: 34rem) { .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 0; }
canvas {
  width: 100%; aspect-ratio: 1; display: block; image-rendering: pixelated; border: 1px solid var(--line);
}
figcaption { font-size: .9rem; }
#said { margin: .4rem 0; min-height: 3em; }
.faint { color: var(--faint); font-size: .9rem; margin: .2rem 0; }
</style>
</head>
<body>
<h1>Hide a part of a photograph: a small masked autoencoder fills it in</h1>
<div class="controls">
<label>Ratio <input id="ratio" type="range" min="0" max="8" step="1" value="7" aria-describedby="said">
<output id="value" for="ratio"></output></label>
<label>Photograph <select id="picture"></select></label>
<button id="mask" type="button">New mask</button>
</div>
<div class="pictures">
<figure><canvas id="original" role="img"></canvas><figcaption>original</figcaption></figure>
<figure><canvas id="seen" role="img"></canvas><figcaption>seen by the network</figcaption></figure>
<figure><canvas id="returned" role="img"></canvas><figcaption>returned</figcaption></figure>
<figure><canvas id="error" role="img"></canvas><figcaption>error, three times enlarged</figcaption></figure>
</div>
<p id="said" role="status" aria-live="polite"></p>
<p class="faint">ABOUTThe pictures are stored in this page; nothing is computed here. The photographs were not
used in training. PSNR is measured on hidden pixels, more is better. Arrow keys move the slider.</p>
<script type="application/json" id="data">DATA</script>
<script>
const d = JSON.parse(document.getElementById('data').textContent), s = d.side;
const at = (id) => document.getElementById(id);
const load = (src) => new Promise((done) => {
  const i = new Image();
  i.onload = () => done(i);
  i.src = src;
});
d.names.forEach((name, i) => at('picture').add(new Option(name, i)));
const masks = d.frames.length / d.names.length;
let mask = 0, newest = 0;
async function show() {
  const mine = ++newest, k = +at('ratio').value, p = +at('picture').value;
  const f = d.frames.find((f) => f.picture === p && f.mask === mask);
  const [whole, sheet] = await Promise.all([load(d.originals[p]), load(f.sheet)]);
  if (mine !== newest) return;                                  // a newer value is on its way
  const [hidden, network, smooth, mean] = f.facts[k];
  const draw = (id, image, x, y, words) => {
    const c = at(id);
    c.width = c.height = s;
    c.getContext('2d').drawImage(image, x, y, s, s, 0, 0, s, s);
    c.setAttribute('aria-label', words);
  };
  draw('original', whole, 0, 0, 'original: ' + d.names[p]);
  draw('seen', sheet, 0, k * s, `seen by the network: ${hidden} of ${d.patches} patches are grey`);
  draw('returned', sheet, s, k * s, `returned, ${network} dB`);
  draw('error', sheet, 2 * s, k * s, 'error: brighter is farther from the original');
  at('value').textContent = d.ratios[k].toFixed(1);
  at('ratio').setAttribute('aria-valuetext', d.ratios[k].toFixed(1));
  at('said').textContent = `${hidden} of ${d.patches} patches hidden. Network ${network} dB, ` +
    `inpainting ${smooth} dB, mean of the visible pixels ${mean} dB.`;
  document.body.dataset.shown = [p, mask, k].join(' ');
}
at('ratio').addEventListener('input', show);
at('picture').addEventListener('change', show);
at('mask').addEventListener('click', () => { mask = (mask + 1) % masks; show(); });
show();
</script>
</body>
</html>
"""


# ---- frames of words and clouds: the sheets that the explorer itself draws on paper

STORED = ('mae', 'bert_mlm', 'electra', 'point_mae')       # recipes whose explorer a tutorial shows


def stored(recipe: str, samples: int = 3, ratios: tuple[float, ...] = (.05, .15, .3, .6, .9)) -> str:
    """A page of stored pictures of a recipe: a few samples at a few ratios, the first example first."""
    from dataclasses import replace

    import torch

    from maskedlab.show.explorer.page import Page

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    page = Page(recipe)
    start = page.state
    name = 'ratio' if 'ratio' in start.fields else None
    own = start.fields.get('ratio')
    ratios = tuple(sorted({*ratios, own} if name else {0.}))
    known = page.menus.samples(recipe, start.set)[1]
    chosen = [start.index, *(i for i in range(len(known)) if i != start.index)][:samples]
    sheets, facts = [], []
    for i in chosen:
        for ratio in ratios:
            s = replace(start, index=i, fields={**start.fields, **({name: ratio} if name else {})})
            image = page.picture(s).image()
            sheets.append(_png(image.convert('RGB').quantize(32)))
            facts.append(page.show(s).status)
    torch.set_num_threads(threads)
    data = dict(recipe=recipe, ratios=ratios, first=ratios.index(own) if name else 0,
                names=[known[i] for i in chosen], sheets=sheets, facts=facts)
    held = json.dumps(data).replace('</', '<\\/')
    return SHEETS.replace('LOOK', LOOK).replace('DATA', held).replace('RECIPE', recipe)


SHEETS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Move the ratio: RECIPE</title>
<link rel="icon" href="data:,">
<style>
LOOK
select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--faint);
  border-radius: 6px; padding: .2rem .7rem; max-width: 22rem; }
img { max-width: 100%; height: auto; margin-top: .6rem; border: 1px solid var(--line); }
.faint { color: var(--faint); font-size: .9rem; }
</style>
</head>
<body>
<h1>RECIPE: hide a part, see what comes back</h1>
<div class="controls">
<label>Ratio <input id="ratio" type="range" min="0" step="1" aria-describedby="said">
<output id="value" for="ratio"></output></label>
<label>Sample <select id="sample"></select></label>
</div>
<img id="sheet" alt="">
<p id="said" role="status" aria-live="polite"></p>
<p class="faint">The pictures are stored in this page; nothing is computed here. The samples were not used in
training. Arrow keys move the slider.</p>
<script type="application/json" id="data">DATA</script>
<script>
const d = JSON.parse(document.getElementById('data').textContent);
const at = (id) => document.getElementById(id);
d.names.forEach((name, i) => at('sample').add(new Option(name, i)));
at('ratio').max = d.ratios.length - 1;
at('ratio').value = d.first;
function show() {
  const k = +at('ratio').value, i = +at('sample').value * d.ratios.length + k;
  at('sheet').src = d.sheets[i];
  at('sheet').alt = at('said').textContent = d.facts[i];
  at('value').textContent = d.ratios[k].toFixed(2);
  document.body.dataset.shown = [at('sample').value, k].join(' ');
}
at('ratio').addEventListener('input', show);
at('sample').addEventListener('change', show);
show();
</script>
</body>
</html>
"""


# ---- the site


def found(folder: str) -> list[Path]:
    """The notebooks below a folder, in order."""
    paths = sorted((ROOT / folder).rglob('*.ipynb'))
    return [p for p in paths if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts)]


def index(lists: str) -> str:
    """README.md as the first page; what it links to beside notebooks is in the repository."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'\[!\[([^\]]*)\]\(https?://[^)]*\)\]\(([^)]*)\)', r'[\1](\2)', text)
    body = markdown2html(text)
    body = re.sub(r'<pre><code class="([\w-]*)">', r'<pre class="highlight"><code>', body)
    blob = f'{project["urls"]["Repository"]}/blob/main/'
    body = re.sub(r'href="(?!https?:|#)(?![^"]*\.ipynb)([^"]*)"', lambda m: f'href="{blob}{m[1]}"', body)
    frame = FRAME.format(up='', file=frames_of('mae'), recipe='a masked autoencoder')
    first, rest = body.split('<h2', 1) if '<h2' in body else (body, '')
    return shell('maskedlab', described(local(f'{first}{frame}{lists}' + (f'<h2{rest}' if rest else ''))), 0)


def pictures_of(body: str, out: Path, folder: str = '') -> None:
    """Copy the pictures that a page shows by an address relative to its folder."""
    for name in re.findall(r'<img[^>]*src="(?!data:|https?:)([^"]+)"', body):
        path = os.path.normpath(Path(folder) / name)
        if (ROOT / path).is_file():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, out / path)


def build(out: Path, run_tutorials: bool = True, run_all: bool = False, match: str = '') -> int:
    """Write the site; its size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    lists = {}
    for folder, title in (('tutorials', 'Tutorials'), ('nbs', 'Notebooks')):
        items = []
        for path in found(folder):
            name = path.relative_to(ROOT).as_posix()
            if match not in name or name == 'nbs/index.ipynb':
                continue
            nb = nbformat.read(path, as_version=4)
            if (run_tutorials and folder == 'tutorials') or run_all:
                print(f'running {name}', flush=True)
                run(nb, path.parent, **({'IN_TEST': '1'} if folder == 'nbs' else {}))
            to = out / Path(name).with_suffix('.html')
            to.parent.mkdir(parents=True, exist_ok=True)
            head, below = heading(nb)
            body = page(nb, f"{head.replace('`', '')} · maskedlab", len(to.relative_to(out).parts) - 1)
            to.write_text(body, encoding='utf-8')
            pictures_of(body, out, to.parent.relative_to(out).as_posix())
            room = path.parent.relative_to(ROOT / folder).as_posix()
            items.append((room, to.relative_to(out).as_posix(), head, below))
        text, last = [f'<h2 id="{title.lower()}">{title}</h2>'], None
        for room, href, head, below in items:
            if room != last:
                section = f'<h3>{html.escape(room)}</h3>' if room != '.' else ''
                text.append(f"{'' if last is None else '</ul>'}{section}<ul>")
            last = room
            more = f': {inline(below)}' if below else ''
            text.append(f'<li><a href="{href}">{inline(head)}</a>{more}</li>')
        lists[folder] = '\n'.join(text) + ('</ul>' if items else '')
    first = index('\n'.join(lists.values()))
    pictures_of(first, out)
    (out / 'index.html').write_text(first, encoding='utf-8')
    (out / frames_of('mae')).write_text(frames(), encoding='utf-8')
    for recipe in STORED[1:]:
        (out / frames_of(recipe)).write_text(stored(recipe), encoding='utf-8')
    from tools.reference import reference

    (out / 'reference.html').write_text(shell('Reference · maskedlab', reference(), 0), encoding='utf-8')
    (out / 'site.css').write_text(css(), encoding='utf-8')
    if any('class="figure"' in p.read_text(encoding='utf-8') for p in out.rglob('*.html')):
        from plotly.offline import get_plotlyjs

        (out / 'plotly.min.js').write_text(get_plotlyjs(), encoding='utf-8')
    return sum(p.stat().st_size for p in out.rglob('*') if p.is_file())


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', type=Path, default=ROOT / '_docs', help='the folder to write (default: _docs)')
    p.add_argument('--no-run', action='store_true', help='take the outputs that are stored in the notebooks')
    p.add_argument('--run-all', action='store_true', help='run the notebooks of nbs/ too')
    p.add_argument('--match', default='', help='only notebooks with this in their path')
    o = p.parse_args()
    size = build(o.out, not o.no_run, o.run_all, o.match)
    print(f'{o.out / "index.html"} ({size / 1e6:.1f} MB); open it in a browser')
    return 0


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
