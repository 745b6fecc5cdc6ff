"""Pictures and the explorer's answers, without a browser."""
import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.contract.recipe import Card, Out, Recipe
from maskedlab.recipes.image.mae import MAE
from maskedlab.show.explorer.doors import answer, spec
from maskedlab.show.explorer.menus import State
from maskedlab.show.explorer.page import Page
from maskedlab.show.views.base import PALETTE
from maskedlab.show.explorer.sentences import closest, spelled
from maskedlab.show.scenes import look_at
from maskedlab.show.views.base import Measure, cividis
from maskedlab.show.views.pictures import PictureView
from maskedlab.show.views.table import VIEWS, view_of

RECIPES = [n for n in ml.list_recipes() if ml.card(n).modality.split()[0] == 'image']


@pytest.fixture(scope='module')
def core():
    return Page('mae')


def ask(core, kind, state=None, buffers=(), **more):
    return answer(core, dict(kind=kind, seq=7, view='v', state=asdict(state or core.state), **more), buffers)


@pytest.mark.parametrize('name', RECIPES)
def test_what_is_shown_is_what_the_package_computes(name):
    e = Page(name, seed=5)
    d = e.show(e.state)
    b = {k: v[:1] for k, v in e.menus.samples(name, e.state.set)[0].items()}
    r = e.menus.recipe(name).eval()
    with torch.no_grad():
        out = r(b, generator=torch.Generator().manual_seed(5))
    first = out.mask.reshape(-1, *out.units.shape)[0]           # of several views
    assert torch.equal(first, d.mask) and d.hidden == int(first.sum())
    if r.fill:
        got, want = d.pictures['returned'], e.menus.view().paint(r.fill(b, out))
        frames = torch.tensor([PALETTE['predicted'], PALETTE['wrong']], dtype=torch.uint8)
        framed = (got[..., None, :3] == frames).all(-1).any(-1)      # placements are judged by a frame
        assert torch.equal(got[~framed], want[~framed]) and framed.float().mean() < .1
    assert d.loss == float(out.loss)
    h = d.mask.shape[0] and d.pictures['seen'].shape[0] // d.mask.shape[0]
    cells = d.mask.repeat_interleave(h, 0).repeat_interleave(h, 1)
    assert torch.equal(d.pictures['seen'][..., 3] == 0, cells)   # hidden pixels are not in the drawing at all
    asked = out.scored.reshape(-1, *out.units.shape)[0].repeat_interleave(h, 0).repeat_interleave(h, 1)
    assert torch.equal(d.pictures['error'][..., 3] == 255, asked)


@pytest.mark.parametrize('name', RECIPES)
def test_code_runs_and_recreates(name):
    e = Page(name, seed=1, index=3)
    # the other choices of the page: tests/test_copied.py
    states = [replace(e.state, strategy=k, fields={}) for k in e.menus.strategies(name)][:3]
    for s in states:
        scope = {}
        exec(e.code(s).replace('; ', '; shown = '), scope)
        again = scope['shown'].page
        assert torch.equal(again.show(again.state).pictures['seen'], e.show(s).pictures['seen']), e.code(s)


def test_code_of_combined_strategies():
    s = ml.masks.Random(.3) | ~ml.masks.Block(ratio=.5)
    e = Page('mae', strategy=s)
    assert eval(spelled(s), {'ml': ml}) == s
    assert 'ml.masks.Block(' in e.code(e.state)


def test_every_strategy_of_the_menu_and_its_ends_can_be_drawn(core):
    built = spec(core.menus, 'mae')
    json.dumps(built, allow_nan=False)
    for s in built['strategies']:
        base = replace(core.state, strategy=s['key'], fields={c['name']: c['value'] for c in s['controls']})
        for c in s['controls']:
            for value in c.get('choices', [c.get('low', True), c.get('high', False)]):
                reply, _ = ask(core, 'draw', replace(base, fields={**base.fields, c['name']: value}))
                assert reply['kind'] == 'drawn' or reply['words'], (s['key'], c['name'], value)
                assert len(reply.get('words', '')) <= 200


def test_messages_are_plain_and_carry_their_number(core):
    for kind, more in dict(open={}, draw={}, slower=dict(of=3), save={},
                           thumbs=dict(recipe='mae', set='Handwritten digits')).items():
        reply, data = ask(core, kind, **more)
        assert reply['kind'] != 'trouble', reply
        assert (reply['seq'], reply['view']) == (7, 'v') and all(isinstance(b, bytes) for b in data)
        json.dumps(reply, allow_nan=False)


@pytest.mark.parametrize('change, words', [
    (dict(fields={'ratio': 1.2}), '1.2'), (dict(fields={'ratio': float('nan')}), 'nan'),
    (dict(fields={'ratio': -.1}), '-0.1'),
    (dict(strategy='hard'), 'hard'), (dict(set='Elsewhere'), 'Elsewhere'), (dict(index=99), '99'),
    (dict(seed=-1), '-1'),
    (dict(seed=None), 'None'), (dict(painted=[400]), '400'), (dict(recipe='mea'), 'mea'),
    (dict(fields={'shape': 1}), 'shape')])
def test_bad_input_is_one_sentence_and_the_next_request_works(core, change, words):
    reply, data = ask(core, 'draw', replace(core.state, **change))
    assert reply['kind'] == 'trouble' and words in reply['words'] and len(
        reply['words']) <= 200 and data == []
    core.state = core.menus.start('mae')
    assert ask(core, 'draw')[0]['kind'] == 'drawn'


def test_unknown_message(core):
    assert ask(core, 'dance')[0]['kind'] == 'trouble'


def test_bad_arguments():
    with pytest.raises(ValueError, match='shape'):
        Page('mae', mask=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match='bool'):
        Page('mae', mask=torch.zeros(8, 8))
    with pytest.raises(ValueError, match='multiple'):
        Page('mae', batch={'image': torch.rand(1, 3, 63, 64)})
    with pytest.raises(ValueError, match='did you mean'):
        Page('mea')


def test_recipes_from_outside(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('from maskedlab.recipes.image.mae import MAE\nclass Mine(MAE):\n    "Mine."\n')
    for which in (f'{file}:Mine', MAE, ml.create_recipe('mae')):
        e = Page(which)
        assert e.show(e.state).hidden == 48
        assert e.menus.key in e.menus.kinds()


def test_training_mode_and_threads_are_left_alone():
    r, threads = ml.create_recipe('mae').train(), torch.get_num_threads()
    state = {k: v.clone() for k, v in r.state_dict().items()}
    luck = torch.random.get_rng_state()
    e = Page(r)
    e.show(replace(e.state, look=3))
    assert all(m.training for m in r.modules()) and torch.get_num_threads() == threads
    assert all(torch.equal(v, state[k]) for k, v in r.state_dict().items())
    assert torch.equal(luck, torch.random.get_rng_state())


def test_method_without_doors_and_of_other_data():
    class Silent(MAE):
        fill = None
        attention = None

    d = Page(Silent)
    shown = d.show(replace(d.state, look=3))
    assert 'returned' not in shown.pictures and 'does not predict' in shown.notes[
        'returned'] and 'no attention' in shown.notes['attention']

    class Smells(Recipe):
        card = Card('Smells', 2018, 'smell', '', '', '', '', '', '')

    with pytest.raises(ValueError, match='only image'):
        Page(Smells)


def test_a_new_kind_of_data_needs_one_view(monkeypatch):
    from maskedlab.masks.strategies import Random
    from maskedlab.contract.recipe import draw

    class Heights(Recipe):
        card = Card('Heights', 2026, 'heights', '', '', '', '', '', '')
        strategy = Random(.5)

        def units(self, batch):
            return ml.Units('grid', (4, 4), x=batch['heights'][..., None],
                            put=lambda b, x: {**b, 'heights': x[..., 0]})

        def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
            u = units or self.units(batch)
            m = draw(self.strategy, u, mask, generator)
            e = u.x[m].pow(2).mean(-1)
            return Out({'h': e.mean()}, m, torch.zeros_like(u.x[m]), u.x[m], ml.masks.spread(e, m), u)

        def fill(self, batch, out):
            return out.units.put(batch, ml.masks.place(out.units.x, out.mask, out.pred))

    class HeightsView(PictureView):
        key, one, many = 'heights', 'place', 'places'
        sets = {'Hills': ('hills', {}, str)}

        def load(self, label, recipe):
            return {'heights': torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))}, ['a', 'b']

        def options(self, label, recipe):
            return 'heights', {}

        def fit(self, batch, recipe):
            return batch

        def paint(self, batch):
            return cividis(batch['heights'][0])

        def pixels(self, u, values):
            return values[0].float()

        def guess(self, name, scene):
            return scene.batch

        def close(self, filled, scene):
            return 1.

    monkeypatch.setitem(VIEWS, 'heights', HeightsView())
    e = Page(Heights)
    d = e.show(e.state)
    assert d.hidden == 8 and 'places hidden' in d.status and d.pictures['returned'].shape == (4, 4, 4)


def test_ragged_ends():
    e = Page('mae')
    none, all_ = e.show(replace(e.state, painted=[])), e.show(replace(e.state, painted=list(range(64))))
    assert none.hidden == 0 and 'Nothing is hidden' in none.notes[''] and none.scale == 0
    assert all_.hidden == 64 and 'Everything is hidden' in all_.notes['']
    assert json.dumps(ask(e, 'slower', replace(e.state, painted=[]))[0], allow_nan=False)


def test_own_file(core, tmp_path):
    from PIL import Image
    data = io.BytesIO()
    im = Image.new('RGB', (40, 90), (255, 0, 0))
    exif = im.getexif()
    exif[0x0112] = 6                   # lies on its side
    im.save(data, 'JPEG', exif=exif)
    raw = data.getvalue()
    cut = len(raw) // 2
    for part, piece in enumerate((raw[:cut], raw[cut:])):
        reply, _ = answer(core, dict(kind='file', recipe='mae', name='holiday.jpg', part=part, parts=2,
                                     seq=1),
                               [memoryview(piece)])
    assert reply['kind'] == 'filed' and reply['set'] in reply['sets']
    s = replace(core.state, set='holiday.jpg')
    assert core.show(s).pictures['original'].shape == (64, 64, 4)
    assert "ml.load_image('holiday.jpg'" in core.code(s)
    for name, bad in (('a.png', b''), ('b.png', b'text'), ('c.jpg', raw[:cut])):
        reply, _ = answer(core, dict(kind='file', recipe='mae', name=name, seq=2), [bad])
        assert reply['kind'] == 'trouble' and reply['words'].startswith(name) and len(reply['words']) <= 200
    assert 'a.png' not in core.menus.sets()


def test_attention_adds_up(core):
    s = replace(core.state, painted=[0, 1])
    r, b = core.menus.recipe('mae'), core.menus.batch(s)
    with torch.no_grad():
        w, q, k = r.attention(b, core.show(s).out.mask)
    seen, elsewhere = look_at(w, q, k, 30, 64)
    assert float(seen.nansum()) + elsewhere == pytest.approx(1, abs=1e-4)
    assert seen[:2].isnan().all() and look_at(w, q, k, 0, 64)[0] is None
    one, _ = look_at(w, q, k, 30, 64, 2, 1)
    assert torch.allclose(one[2:], w[2, 0, 1, (q[0] == 30).nonzero()[0, 0], 1:])


def test_who_is_closest_is_said_honestly():
    decibels = Measure('', 'PSNR', ' dB', 25)
    assert 'further off than inpainting' in closest({'network': 10., 'inpainting': 12.}, decibels)
    assert 'closer than inpainting' in closest({'network': 13., 'inpainting': 12.}, decibels)
    assert closest({'network': float('nan'), 'inpainting': 1.}, decibels) == ''


def test_still_pictures():
    from maskedlab import show
    b = ml.sample('image', n=3, split='test')
    r = ml.create_recipe('mae')
    four, two = show.strip(r, b), show.strip(r, b, n=2)
    assert four.width == two.width and four.height > two.height
    with torch.no_grad():
        out = r.eval()(b, mask=torch.zeros(3, 8, 8, dtype=torch.bool))
    show.strip(r, b, out)
    assert show.attention_map(r, b, 5, part='decoder').width > 400
    assert show.map_of(torch.rand(5)).width > 100
    with pytest.raises(ValueError, match='axes'):
        show.map_of(torch.zeros(2, 2, 2))


def test_the_explorer_opens_what_the_reader_has(tmp_path):
    for i in range(3):
        Image.new('RGB', (90, 70), (i * 80, 90, 200)).save(tmp_path / f'{i}.png')
    one = ml.Explorer('mae', str(tmp_path / '1.png')).page
    assert one.state.set == '1.png' and one.show(one.state).status
    assert f"ml.load_image({str(tmp_path / '1.png')!r}" in one.code(one.state)
    (tmp_path / '0.jpg').write_bytes(b'no picture')
    with pytest.warns(UserWarning, match='1 of 4 left out.*0.jpg'):
        all_ = ml.Explorer('simmim', tmp_path).page
    assert all_.state.set == '0.png'
    assert [s for s in all_.menus.sets() if s.endswith('.png')] == ['0.png', '1.png', '2.png']
    said = ml.Explorer('bert_mlm', 'The sun is a star.').page
    assert 'The sun is a star.' in said.code(said.state) and said.state.index == 0
    (tmp_path / 'empty').mkdir()
    for what, why in ((tmp_path / 'no.png', 'no file'), (tmp_path / '0.jpg', '0.jpg'),
                      (tmp_path / 'empty', 'empty'), ('', 'empty')):
        with pytest.raises(ValueError, match=why):
            ml.Explorer('mae', what)


@pytest.mark.parametrize('kind', ('png', 'svg', 'html'))
@pytest.mark.parametrize('what', ('explorer', 'sheet', 'plotly', 'course', 'pillow'))
def test_all_that_the_kit_draws_is_saved_by_one_function(what, kind, tmp_path):
    from maskedlab import show
    from maskedlab.course.pictures import side_by_side
    if what == 'plotly' and kind != 'html':
        pytest.importorskip('kaleido')
        if not which_browser():
            pytest.skip('no Chrome or Chromium')
    made = dict(explorer=lambda: ml.Explorer('mae'), sheet=lambda: show.map_of(torch.rand(4, 4), 'a & b'),
                plotly=lambda: show.curve({'a': [3., 2., 1.]}), pillow=lambda: Image.new('RGB', (8, 8)),
                course=lambda: side_by_side({'x': torch.rand(2, 3, 8, 8)}))[what]()
    path = show.save_figure(made, tmp_path / f'it.{kind}')
    if kind == 'png':
        assert min(Image.open(path).size) >= 8
    elif kind == 'svg':
        root = ElementTree.fromstring(path.read_text())
        said = ''.join(root.itertext())
        assert root.tag.endswith('svg') and ('Original' in said) == (what == 'explorer')
        assert ('a & b' in said) == (what == 'sheet')
    else:
        assert path.stat().st_size < 1e6 and ('<svg' in path.read_text()) == (what != 'plotly')


def test_a_figure_of_plotly_says_what_it_lacks(tmp_path, monkeypatch):
    from maskedlab import show
    from maskedlab.show import sheets
    monkeypatch.setattr(sheets, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'maskedlab\[figures\]'):
        show.save_figure(show.curve({'a': [1.]}), tmp_path / 'it.svg')
    pytest.importorskip('kaleido')
    monkeypatch.undo()
    figure = show.curve({'a': [1.]})
    monkeypatch.setattr(type(figure), 'to_image', lambda *a, **k: 1 / 0)
    with pytest.raises(RuntimeError, match='Chrome or Chromium'):
        show.save_figure(figure, tmp_path / 'it.svg')
    assert not list(tmp_path.iterdir())


def which_browser():
    return any(map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome')))


def test_explorer_carries_a_picture_and_a_widget():
    pytest.importorskip('anywidget')
    e = ml.Explorer('mae')
    data, _ = e._repr_mimebundle_()
    assert data['image/png'][:4] == b'\x89PNG' and len(data['image/png']) < 150_000
    assert '48 of 64 patches hidden' in data[
        'text/plain'] and 'application/vnd.jupyter.widget-view+json' in data
    sent = []
    e.widget.send = lambda content, buffers: sent.append((content, buffers))
    e.widget._handle_custom_msg(dict(kind='draw', seq=1, view='x', state=asdict(e.page.state)), [])
    assert sent[0][0]['kind'] == 'drawn' and sent[0][0]['seq'] == 1


def test_explorer_without_anywidget():
    code = ("import sys; sys.modules['anywidget'] = None\nimport maskedlab as ml\n"
            "d, _ = ml.Explorer('mae')._repr_mimebundle_()\nassert 'image/png' in d and 'pip install "
            "anywidget' in d['text/plain']")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_rooms_import_stays_light():
    code = ("import sys, maskedlab.show, maskedlab.show.explorer.widget, maskedlab.show.figures\n"
            "bad = {'plotly', 'ipywidgets', 'anywidget', 'IPython', 'matplotlib', 'skimage'} & "
            "set(sys.modules); assert not bad, bad")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_view_of_names_the_kinds():
    assert isinstance(view_of(ml.create_recipe('mae')), PictureView)


def test_state_has_plain_defaults():
    json.dumps(asdict(State('mae', 'x')))
