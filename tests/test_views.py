"""Text and clouds in the explorer, without a browser: the kit's recipes, and recipes from outside."""
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

import maskedlab as ml
from maskedlab import show
from maskedlab.masks.strategies import Random
from maskedlab.contract.units import Units, mean, place, rows, spread
from maskedlab.contract.recipe import Card, Out, Recipe, draw
from maskedlab.targets.sets import chamfer
from maskedlab.show.explorer.doors import answer
from maskedlab.show.explorer.page import Page
from maskedlab.show.views.table import view_of

KINDS = {n: ml.card(n).modality.split()[0] for n in ml.list_recipes()}
TEXTS, CLOUDS = ([n for n, k in KINDS.items() if k == kind] for kind in ('text', 'points'))


def ask(core, kind, state=None, buffers=(), **more):
    return answer(core, dict(kind=kind, seq=7, view='v', state=asdict(state or core.state), **more), buffers)


class Judge(Recipe):
    "Swaps hidden pieces for piece 7 and says of every piece how surely it was swapped: it knows."
    card = Card('Judge', 2026, 'text', '', '', '', '', '', '')
    strategy = Random(.3)

    def units(self, batch):
        valid = batch['valid']
        free = valid & (batch['ids'] > 4)
        return Units('sequence', valid.shape[1:], x=batch['ids'], valid=valid, free=free,
                     put=lambda b, x: {**b, 'ids': x})

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        fake = u.x.masked_fill(mask, 7)
        target = rows((fake != u.x).float(), u.valid)
        pred = 8 * target - 4
        e = F.binary_cross_entropy_with_logits(pred, target, reduction='none')
        seen = {**batch, 'ids': fake}
        return Out({'swapped': mean(e)}, mask, pred, target, spread(e, u.valid), u, seen=seen)

    def fill(self, batch, out):
        return out.seen


class Blobs(Recipe):
    "Eight balls of points around fixed centres; predicts each hidden one exactly."
    card = Card('Blobs', 2026, 'points', '', '', '', '', '', '')
    strategy = Random(.5)

    def units(self, batch):
        x = batch['points']
        pos = x[:, :8]
        index = torch.cdist(pos, x).topk(16, largest=False).indices
        local = x[torch.arange(len(x))[:, None, None], index] - pos[:, :, None]
        return Units('set', (8,), x=local, pos=pos, put=lambda b, new: b)

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        target = rows(u.x, mask)
        e = chamfer(target.flip(1), target)
        return Out({'chamfer': mean(e)}, mask, target.flip(1), target, spread(e, mask), u)

    def fill(self, batch, out):
        return out.units.put(batch, place(out.units.x, out.mask, out.pred))


@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name', TEXTS + CLOUDS)
def test_what_is_shown_is_what_the_package_computes(name):
    e = Page(name, seed=3, index=1)
    d = e.show(e.state)
    b = {k: v[1:2] for k, v in e.menus.samples(name, e.state.set)[0].items()}
    with torch.no_grad():
        out = e.menus.recipe(name).eval()(b, generator=torch.Generator().manual_seed(3))
    assert torch.equal(out.mask[0], d.mask) and d.loss == float(out.loss) and d.hidden == int(out.mask.sum())
    assert set(d.pictures) == set(e.menus.view().titles) - {'attention'} - set(d.notes)


@pytest.mark.parametrize('name', TEXTS + CLOUDS)
def test_messages_are_plain(name):
    core = Page(name)
    unit = int(core.menus.units(core.state).free[0].nonzero()[3])
    looking, thumbs = replace(core.state, look=unit), dict(recipe=name, set=core.state.set)
    plain = [(kind, None, {}) for kind in ('open', 'draw', 'slower', 'save')]
    for kind, state, more in [*plain, ('draw', looking, {}), ('thumbs', None, thumbs)]:
        reply, data = ask(core, kind, state, **more)
        assert reply['kind'] != 'trouble', reply
        json.dumps(reply, allow_nan=False)
        assert all(isinstance(x, bytes) for x in data)
        if 'pictures' in reply:
            assert sum(p['buffers'] for p in reply['pictures']) + 2 * (kind == 'draw') == len(data)


@pytest.mark.parametrize('name', TEXTS + CLOUDS)
def test_code_recreates_and_strategies_can_be_drawn(name):
    e = Page(name, seed=1, index=2)
    for s in (e.state, replace(e.state, painted=[5, 6])):
        scope = {}
        exec(e.code(s).replace('; ', '; shown = '), scope)
        again = scope['shown'].page
        want = e.show(s)
        got = again.show(again.state)
        assert torch.equal(got.mask, want.mask) and got.status == want.status
    for key, strategy in e.menus.strategies(name).items():
        reply, _ = ask(e, 'draw', replace(e.menus.start(name), strategy=key, fields={}))
        assert reply['kind'] == 'drawn', (key, strategy, reply)
    for bad in (dict(fields={'ratio': 1.2}), dict(painted=[4000]), dict(index=99)):
        reply, _ = ask(e, 'draw', replace(e.menus.start(name), **bad))
        assert reply['kind'] == 'trouble' and len(reply['words']) <= 200
    e.state = e.menus.start(name)
    assert ask(e, 'draw')[0]['kind'] == 'drawn'


def test_a_perfect_judge_has_all_right_and_its_judgement_is_shown():
    e = Page(Judge, batch=ml.encode('The river runs through the old town and into the sea.'))
    d = e.show(e.state)
    assert d.scores == {'network': 100.} and d.notes['commonest'] and 'suspects 0' in d.status + d.notes['']
    hidden = set(d.mask.nonzero()[:, 0].tolist())
    assert {c['unit'] for c in d.pictures['seen']['chips'] if c['role'] == 'swapped'} == hidden
    values = {c['unit']: c['value'] for c in d.pictures['returned']['chips']}
    assert all((values[i] > .5) == bool(d.mask[i]) for i in values)
    one = e.show(replace(e.state, painted=[]))
    assert one.hidden == 0 and json.dumps(ask(e, 'draw', replace(e.state, painted=[]))[0], allow_nan=False)


def test_blobs_from_outside_come_back_exactly():
    e = Page(Blobs)
    d = e.show(e.state)
    assert d.scores['network'] == 0 and d.scores['the centre alone'] > 0
    drawn = d.pictures['returned']
    assert int((drawn['role'] == 2).sum()) == 16 * d.hidden
    alone = e.show(replace(e.state, paste=False)).pictures['returned']
    assert set(alone['role'].tolist()) == {2}
    assert set(alone['unit'].tolist()) == set(d.mask.nonzero()[:, 0].tolist())
    assert e.picture(e.state).width > 600


def test_own_text():
    core = Page('bert_mlm')
    for text, words in ((b'   ', 'write or paste'), (b'\xff\xfe', 'UTF-8')):
        reply, _ = ask(core, 'file', recipe='bert_mlm', name='a.txt', buffers=[text])
        assert reply['kind'] == 'trouble' and words in reply['words'] and len(reply['words']) <= 200
    long = 'a very long text indeed ' * 200
    reply, _ = ask(core, 'file', recipe='bert_mlm', name=long, buffers=[long.encode()])
    assert reply['kind'] == 'filed' and len(reply['set']) <= 80
    d = core.show(replace(core.menus.start('bert_mlm'), set=reply['set'], index=0))
    assert d.total == 128


def test_own_cloud_with_few_points_is_one_sentence():
    core = Page('point_mae')
    same = b'\n'.join([b'0 0 1'] * 50)
    for data, words in ((b'0 0 0\n1 1 1', '2 points'), (b'0 0 nan\n1 1 1', 'NaN'),
                        (same, 'different points')):
        reply, _ = ask(core, 'file', recipe='point_mae', name='c.xyz', buffers=[data])
        assert reply['kind'] == 'trouble' and words in reply['words'] and len(reply['words']) <= 200, reply


def test_another_kind_of_data_from_the_same_menu():
    core = Page('bert_mlm')
    menu = list(core.menus.kinds())
    assert set(menu[:len(TEXTS)]) == set(TEXTS) and {'mae', 'point_mae'} <= set(menu)
    for name in ('mae', 'point_mae', 'bert_mlm'):
        reply, _ = ask(core, 'open', recipe=name)
        built = reply['spec']
        assert built['stage'] == view_of(core.menus.recipe(name)).stage
        assert reply['state']['set'] in built['sets']
        state = replace(core.state, **reply['state'])
        assert ask(core, 'draw', state)[0]['kind'] == 'drawn'


@pytest.mark.parametrize('name', TEXTS + CLOUDS)
def test_still_pictures(name):
    r = ml.create_recipe(name)
    b = ml.sample(KINDS[name], n=3, split='test')
    assert show.strip(r, b, n=2).height < show.strip(r, b).height
    with torch.no_grad():
        out = r.eval()(b, generator=torch.Generator().manual_seed(1))
    show.strip(r, b, out)
    assert show.attention_map(r, b, 3, mask=r.units(b).none()[:1]).width > 300
