"""The still pictures of the tutorials, in tutorials/pictures: one for each idea, for pages without a kernel.

    python tools/frames.py              all of them (about ten minutes: the tutorials run in full)
    python tools/frames.py 01_see_it    those of one tutorial

A tutorial is run cell by cell in this process, answers to its guesses included, and what a named cell shows
is drawn by a browser (Chromium) as a reader would see it. Run this again when weights change.
"""
from __future__ import annotations

import ast
import html
import json
import re
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MOST = 50_000            # bytes of a picture
HERE = ROOT / 'tutorials' / 'pictures'
# tutorial -> picture -> words that its cell holds, and which of the things that the cell shows (with answers)
PICTURES: dict[str, dict[str, tuple[str, int]]] = {
    '01_see_it': {
        'see_it.jpg': ("side_by_side({'original': b['image'], 'mask'", 0),
        'ratio.png': ('reveal(cost,', 0), 'patterns.png': ('side_by_side(masks', 0),
        'pattern_answers.jpg': ('reveal(easiest,', 1), 'grey_and_kept.jpg': ('grey and kept', 0)},
    '02_what_does_true_mean': {
        'true.jpg': ('reveal(better,', 0), 'coverage.png': ('reveal(bias,', 0),
        'which_would_you_keep.png': ('Which of the two would you keep?', 0)},
    '03_build_it': {
        'build_it.jpg': ('reveal(gain,', 0), 'places.png': ("'how alike'", 0),
        'learns.png': ('Your network learns', 0), 'never_put_back.jpg': ("'never put back'", 0)},
    '04_five_reasons': {
        'five.jpg': ('ill = patients(', 0), 'normalised.jpg': ('reveal(perfect,', 0),
        'order.jpg': ('wrong_order=mixed', 0), 'smoothed.jpg': ('smoothed=smoothed', 0),
        'lent.jpg': ('reveal(nothing,', 0)},
    '05_words': {
        'words.png': ("ml.Explorer('bert_mlm', my_own)", 0), 'fates.png': ('fate = [', 0),
        'shares.png': ('reveal(never,', 0), 'electra.png': ("ml.Explorer('electra')", 0)},
    '06_points': {
        'points.png': ('three_rows(few)', 0), 'centres.png': ("'at random': [torch.randperm", 0),
        'overlap.png': ('reveal(twice,', 0), 'riddle.png': ('riddle = at(', 0),
        'one_for_all.png': ('in_order = one_for_all', 0)},
    '07_what_to_predict': {
        'targets.jpg': ('seven_answers(', 0), 'waves.jpg': ('reveal(few_waves,', 0),
        'tokens.jpg': ('reveal(used,', 0), 'wins.png': ('reveal(wins,', 0)},
    '08_teachers_and_tokens': {
        'words_of_digits.png': ("'its 49 words'", 0), 'collapse.png': ('reveal(lowest,', 0),
        'codebooks.png': ('reveal(many,', 0)},
    '09_did_it_learn': {
        'learned.png': ('curves_figure(recorded)', 0), 'gains.png': ('reveal(seen,', 0),
        'averages.png': ('reveal(kept,', 0), 'experiments.png': ('experiments_figure()', 0)},
    '10_where_should_one_mask': {
        'where.png': ('where_figure(state)', 0), 'hard.jpg': ('reveal(times,', 0),
        'tells.png': ('reveal(tells,', 0), 'twice.png': ('reveal(lost,', 0)},
    '11_masks_inside_the_network': {
        'inside.jpg': ("'inside Sparse'] = through", 0), 'hole.png': ('reveal(gone,', 0),
        'disparity.jpg': ("'your disparity'", 0), 'looks.jpg': ("'where it looks'", 0)},
    '12_time': {
        'film.jpg': ("rows[f'{name}, copied']", 0), 'habits.png': ('reveal(habits,', 0),
        'motion.jpg': ('reveal(turned,', 0), 'names.jpg': ('members = {', 0)},
    '13_guess_what_was_said': {
        'heard.png': ("side_by_side({'heard': as_pictures(first.mel), 'one by one'", 0),
        'line.png': ('reveal(worse,', 0), 'dies.png': ('reveal(better,', 0),
        'words_of_sound.png': ('reveal(meant,', 0), 'surest.png': ('in by_name.items()}},', 0)},
}
def _unanswered(strip: Any) -> Any:
    """The rows that were seen, without what came of them."""
    strip.rows = {k: v for k, v in strip.rows.items() if k.endswith('seen')}
    return strip


def _lettered(figure: Any) -> Any:
    """Curves under letters."""
    for letter, trace in zip('ABCD', figure.data):
        trace.name = letter
    return figure


# these stand before the question whose answer they would tell
ALTERED = {'true.jpg': _unanswered, 'collapse.png': _lettered}
PAGE = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; background: #fff; color: #1f2328; font: 14px system-ui, sans-serif; }
#it { display: inline-block; padding: 6px; } img { vertical-align: top; } th { font-weight: normal; }
</style><div id="it">BODY</div>"""


def cells_of(tutorial: str) -> list[str]:
    """The code of a tutorial, without the line for Colab."""
    cells = json.loads((ROOT / 'tutorials' / f'{tutorial}.ipynb').read_text(encoding='utf-8'))['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [re.sub(r'^ +%pip.*$', '    pass', source, flags=re.M) for source in code]


def shown_by(tutorial: str) -> list[tuple[str, list[Any]]]:
    """Each cell, and what it shows: with its answers, and its last expression."""
    import torch
    from maskedlab.course import exercises

    torch.set_grad_enabled(True)            # the tutorial before may have left it off
    seen: list[Any] = []
    pictured = lambda *shown: seen.extend(s for s in shown if not isinstance(s, str))
    exercises.reveal = lambda guess, truth, why='', *shown: pictured(*shown)
    space: dict[str, Any] = {'__name__': '__main__', 'In': []}
    found = []
    for source in cells_of(tutorial):
        seen.clear()
        space['In'].append(source)
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, tutorial, 'exec'), space)
        value = eval(compile(ast.Expression(last.value), tutorial, 'eval'), space) if last else None
        found.append((source, [*seen, *([] if value is None else [value])]))
    return found


def page_of(thing: Any) -> str:
    """A page that shows one thing."""
    if hasattr(thing, 'picture'):                                       # an explorer
        thing = thing.picture()
    if hasattr(thing, 'image'):                                         # a sheet
        thing = thing.image()
    if isinstance(thing, Image.Image):
        from maskedlab.show.stored import image_of
        file = BytesIO()
        thing.save(file, 'PNG')
        return PAGE.replace('BODY', image_of(file.getvalue(), 'a picture'))
    if hasattr(thing, 'to_html'):                                       # a figure of plotly
        thing.update_layout(paper_bgcolor='white', font_color='#444')
        return PAGE.replace('BODY', thing.to_html(full_html=False, include_plotlyjs=True))
    if hasattr(thing, '_repr_html_'): return PAGE.replace('BODY', thing._repr_html_())
    return PAGE.replace('BODY', f'<pre>{html.escape(repr(thing))}</pre>')


def save(image: Image.Image, path: Path) -> None:
    """As a photograph or with few colours, by the ending."""
    if path.suffix == '.jpg':
        image.save(path, quality=75, optimize=True)
    else:
        image.quantize(48).save(path, optimize=True)


def draw(browser: Any, thing: Any, path: Path) -> None:
    """What a browser makes of it, as a small file."""
    page = browser.new_page(viewport=dict(width=900, height=700))
    page.set_content(page_of(thing))
    page.wait_for_timeout(400)
    image = Image.open(BytesIO(page.locator('#it').screenshot(animations='disabled'))).convert('RGB')
    page.close()
    path.parent.mkdir(exist_ok=True)
    save(image, path)
    while path.stat().st_size > MOST:
        image = image.resize((image.width * 9 // 10, image.height * 9 // 10), Image.Resampling.LANCZOS)
        save(image, path)
    print(f'{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB', flush=True)


def main() -> None:
    from playwright.sync_api import sync_playwright

    names = ('chromium', 'chromium-browser', 'google-chrome')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=next(filter(None, map(shutil.which, names)), None),
                                    args=['--no-sandbox', '--disable-gpu'])
        for tutorial in sys.argv[1:] or PICTURES:
            cells = shown_by(tutorial)
            for name, (words, k) in PICTURES[tutorial].items():
                things = next(things for source, things in cells if words in source)
                draw(browser, ALTERED.get(name, lambda thing: thing)(things[k]), HERE / name)
        browser.close()


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    main()
