"""What one sees: each method in its own measure and words, one palette, points in no group, clouds that are
never cut, sliders that end where their units end, and a tokenizer that is not the kit's."""
import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import maskedlab as ml
from maskedlab.contract.strategy import hide
from maskedlab.masks.disc import Disc
from maskedlab.show.explorer.doors import answer, spec
from maskedlab.show.explorer.page import Page
from maskedlab.show.scenes import choice_of
from maskedlab.show.views.base import PALETTE, Measure
from maskedlab.show.views.clouds import ROLES, belongs, framed, project, seen_roles
from maskedlab.show.views.features import Projection
from maskedlab.show.views.table import FINER, VIEWS, view_of

STATIC = Path(ml.__file__).parent / 'show' / 'static'
WORDS, FEATURES = ('beit', 'cae', 'seitpp'), ('maskalign', 'hybrid_distillation')


@pytest.fixture(scope='module')
def pages():
    made = {}

    def page(name):
        if name not in made:
            made[name] = Page(name)
        return made[name]

    return page


def draw(page, **changes):
    reply, _ = answer(page, dict(kind='draw', state=asdict(replace(page.state, **changes))))
    assert reply['kind'] == 'drawn', reply.get('words')
    return reply


# --------------------------------------------------------------------------------- each in its own measure


@pytest.mark.parametrize('name', FEATURES)
def test_features_of_teacher_and_student_have_one_projection(pages, name):
    page = pages(name)
    d, v = page.show(page.state), page.menus.view()
    s = d.scene
    assert {'target', 'returned'} <= set(d.pictures) and 'returned' not in d.notes
    same = v.coloured(s, s.out.target)
    assert torch.equal(same, d.pictures['target'])
    # what the student says has the colours that the teacher's projection gives it, not some of its own
    want = Projection(s.out.target.flatten(1))(s.out.pred.flatten(1))
    at = v.pixels(s.units, torch.arange(s.units.count).view(1, *s.units.shape)).long()
    order = s.out.scored.flatten().nonzero()[:, 0]
    for row in (0, len(order) // 2, len(order) - 1):
        got = d.pictures['returned'][at == order[row]]
        assert (got[:, :3].float() - 255 * want[row]).abs().max() <= 1 and (got[:, 3] == 255).all()
    # error per place: where it is compared, and nowhere else
    assert torch.equal(d.pictures['error'][..., 3], d.pictures['target'][..., 3])


@pytest.mark.parametrize('name', FEATURES)
def test_explained_is_100_for_the_teacher_and_0_for_its_mean(pages, name):
    page = pages(name)
    d, v = page.show(page.state), page.menus.view()
    s = d.scene
    assert v.close(s.out.target, s) == pytest.approx(100)
    assert v.close(v.guess('mean', s), s) == pytest.approx(0, abs=1e-3)
    assert 0 < d.scores['network'] < 100, 'shipped weights say more than a constant'
    assert math.isnan(page.show(replace(page.state, painted=list(range(s.units.count)))).scores['network'])


@pytest.mark.parametrize('name', WORDS)
def test_words_predicted_true_and_the_floor_are_shown(pages, name):
    page = pages(name)
    d, v = page.show(page.state), page.menus.view()
    s = d.scene
    assert {'floor', 'true', 'named', 'returned'} <= set(d.pictures)
    right = (s.out.pred.argmax(-1) == s.out.target).float().mean()
    assert d.scores['network'] == pytest.approx(100 * float(right), abs=1e-4)
    # the floor is what the method itself would return had it named the true words
    sure = torch.nn.functional.one_hot(s.out.target, s.out.pred.shape[-1]).float()
    assert torch.equal(v.paint(s.recipe.fill(s.batch, replace(s.out, pred=sure))), d.pictures['floor'])
    assert torch.equal(v.mosaic(s, s.out.target), d.pictures['true'])
    assert torch.equal(d.pictures['true'][..., 3] == 255, v.holes(s))
    assert not torch.equal(d.pictures['true'], d.pictures['named'])
    reply = draw(page, look=int(s.mask.flatten().nonzero()[0]))
    row = s.out.target.reshape(len(s.out.target), -1)[0].tolist()
    assert f"true word {', '.join(map(str, row))}." in reply['notes']['attention']
    assert 'dB' in reply['under']['floor'] and 'dB' in reply['under']['returned']
    assert f'of {s.out.target.numel()} words' in reply['status'] + reply['notes']['']


def test_the_tokenizers_floor_is_above_what_is_predicted(pages):
    """Over all held-out pictures: words that are true paint closer than words that are guessed."""
    page = pages('beit')
    told = [draw(page, index=i)['under'] for i in range(4)]
    number = lambda words: float(words.rpartition('PSNR ')[2].split()[0])
    assert sum(number(t['floor']) - number(t['returned']) for t in told) > 0


def test_placements_are_counted(pages):
    page = pages('selfie')
    for seed in range(3):
        d = page.show(replace(page.state, seed=seed))
        logits, right = d.out.extra['logits'], d.out.extra['right']
        k, n = int((logits.argmax(-1) == right).sum()), len(right)
        assert f'{k} of {n} patches lie in their own place' in d.notes['']
        assert d.scores['network'] == pytest.approx(100 * k / n, abs=1e-4)
        for name, some in (('predicted', k > 0), ('wrong', k < n)):
            frame = d.pictures['returned'][..., :3] == torch.tensor(PALETTE[name], dtype=torch.uint8)
            assert bool(frame.all(-1).any()) == some, name
    assert 'dB' not in draw(page)['status']


def test_a_picture_without_its_mean_is_not_black():
    for p, words in ((0, 'Slow waves are hidden'), (1, 'Fast waves are hidden')):
        page = Page('mfm', strategy=Disc(5, p=p))
        d = page.show(page.state)
        shown = d.pictures['filtered'][..., :3].float()
        assert shown.mean() > 60 and shown.std() > 10
        assert d.notes[''].startswith(words)


def test_no_slider_leads_to_an_error(pages):
    """The upper end of every slider of every strategy that a page offers."""
    for name in ('mfm', 'mae', 'bert_mlm', 'point_mae'):
        page = pages(name)
        assert page.menus.panels(name)
        for key, panel in page.menus.panels(name).items():
            values = {c['name']: c['value'] for c in panel}
            for c in panel:
                if c['kind'] not in ('int', 'float') or c['name'] == 'n':      # thousands of blocks take long
                    continue
                fields = {**values, c['name']: type(c['value'])(c['high'])}
                if c['name'] == 'ratio' and name == 'mfm':
                    continue
                state = replace(page.state, strategy=key, fields=fields)
                mask = hide(page.menus.strategy(state), page.menus.units(state), torch.Generator())
                assert mask.dtype == torch.bool, (name, key, c['name'])
    disc = next(c for c in pages('mfm').menus.panels('mfm')['disc'] if c['name'] == 'radius')
    assert disc['high'] == 45
    assert draw(pages('mfm'), strategy='disc', fields={'radius': 45.})['hidden'] > 0


def test_every_view_can_be_built_and_is_found():
    for name in ml.list_recipes():
        v = view_of(choice_of(name).recipe)
        kind = 'CodeView' if name in WORDS else 'FeatureView' if name in FEATURES else None
        if kind:
            assert type(v).__name__ == kind
    assert type(view_of(ml.create_recipe('selfie', pretrained=True))).__name__ == 'PlacementView'
    pixels = ml.create_recipe('cae', size='micro', target='pixels', tokenizer=None)
    assert type(view_of(pixels)).__name__ == 'PictureView', 'plain pixels have no words'


# ------------------------------------------------------------------------------------- a hidden patch


def test_a_hidden_patch_shows_the_decoder_at_once_and_says_so(pages):
    page = pages('mae')
    mask = page.show(page.state).mask.flatten()
    for unit in mask.nonzero()[:6, 0].tolist():
        for part in (None, 'encoder'):
            reply = draw(page, look=unit, part=part)
            assert 'attention' in [p['name'] for p in reply['pictures']]
            assert reply['part'] == 'decoder' and 'this is the decoder' in reply['notes']['attention']
    seen = int((~mask).nonzero()[0, 0])
    assert draw(page, look=seen)['part'] == 'encoder'
    assert draw(pages('maskalign'), look=int(page.show(page.state).mask.flatten().nonzero()[0]))


# ----------------------------------------------------------------------------------------- clouds


def test_points_in_no_group_are_neither_hidden_nor_seen(pages):
    for name in ('point_mae', 'point_bert'):
        page = pages(name)
        s = page.show(page.state).scene
        x, u = s.batch['points'][0], s.units
        role = seen_roles(s)
        # by hand: in which groups is each point?
        mine = (u.x[0] + u.pos[0][:, None]).flatten(0, 1)
        near = (mine[:, None] - x).abs().amax(-1) < 1e-5
        member = near.view(u.shape[0], -1, len(x)).any(1)
        visible, hidden = member[~s.mask[0]].any(0), member[s.mask[0]].any(0)
        for point, want in (('plain', visible), ('hidden', hidden & ~visible), ('neither', ~member.any(0))):
            assert torch.equal(role == ROLES.index(point), want), point
        nothing = page.show(replace(page.state, painted=[]))
        drawn = nothing.pictures['seen']
        assert not (drawn['role'] == ROLES.index('hidden')).any(), 'orange with nothing hidden'
        alone = drawn['role'] == ROLES.index('neither')
        assert (drawn['unit'][alone] == -1).all(), 'a point of no group is hidden with no group'
        assert (nothing.pictures['error']['role'][alone] == ROLES.index('faint')).all()


def test_a_large_cloud_of_ones_own_is_mostly_in_no_group():
    g = torch.Generator().manual_seed(0)
    page = Page('point_mae', batch={'points': torch.rand(1, 3000, 3, generator=g)})
    d = page.show(page.state)
    role = d.pictures['seen']['role']
    share = {name: float((role == i).float().mean()) for i, name in enumerate(ROLES)}
    assert share['neither'] > .5 and share['hidden'] + share['plain'] < .5 and share['hidden'] > 0


def test_no_point_is_cut_however_a_cloud_is_turned():
    g = torch.Generator().manual_seed(0)
    corners = torch.tensor(list(itertools.product((-1., 1.), repeat=3)))
    long, cloud = corners * torch.tensor([1., .1, 3.]), torch.randn(200, 3, generator=g)
    for x in (corners, 40 * corners + 7, cloud, long, torch.zeros(3, 3)):
        f = framed(x)
        for yaw in torch.linspace(0, 6.3, 13).tolist():
            for pitch in (-1.5, -.6, 0., .3, 1., 1.5):
                at, depth = project((x - f[:3]) * f[3], yaw, pitch)
                assert at.norm(dim=1).max() <= 1 + 1e-5 and depth.abs().max() <= 1 + 1e-5
    far = framed(corners, 2 * corners)
    assert ((2 * corners - far[:3]) * far[3]).norm(dim=1).max() <= 1 + 1e-5
    assert torch.equal(far[:3], framed(corners)[:3])


def test_belongs_knows_groups_that_overlap():
    x = torch.arange(12.).view(4, 3)
    u = ml.Units('set', (2,), x=torch.stack([x[[0, 1]] - x[0], x[[1, 2]] - x[1]])[None], pos=x[[0, 1]][None])
    both = torch.ones(2, dtype=torch.bool)
    assert belongs(x, u, both).tolist() == [True, True, True, False]
    assert belongs(x, u, torch.tensor([False, True])).tolist() == [False, True, True, False]
    assert not belongs(x, u, ~both).any()


# ---------------------------------------------------------------------------------------- one palette


def test_one_palette_in_python_and_in_the_style_sheet():
    css = (STATIC / 'explorer.css').read_text(encoding='utf-8')
    light = css[:css.index('}')]
    for name in ('hidden', 'predicted', 'wrong', 'kept', 'neither'):
        want = '#' + ''.join(f'{x:02x}' for x in PALETTE[name])
        assert f'--mlx-{name}: {want};' in light, name
        assert css.count(f'--mlx-{name}:') == 3, f'{name} in light, in dark and in a dark lab'
        assert f'.mlx-key-{name}' in css
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_every_legend_names_colours_that_exist():
    css = (STATIC / 'explorer.css').read_text(encoding='utf-8')
    for v in [*VIEWS.values(), *FINER['image']]:
        assert v.legend and 'hidden' in v.legend
        for name, words in v.legend.items():
            assert f'.mlx-key-{name} ' in css and words, name
    assert spec(Page('point_mae').menus, 'point_mae')['legend']['neither'] == 'in no group'


def test_a_number_is_rounded_as_the_page_rounds_it():
    m = Measure('', '', ' %', 100, digits=0)
    assert [m.say(x) for x in (12.5, 37.5, .5, 2.4)] == ['13 %', '38 %', '1 %', '2 %']


# ----------------------------------------------------------------------------- another tokenizer


def test_ids_of_another_vocabulary_are_not_read_with_the_kits():
    foreign = ml.create_recipe('bert_mlm', size='micro', vocab=3100, mask_id=5, special=(0, 5))
    page = Page(foreign)
    d = page.show(page.state)
    texts = [c['text'] for c in d.pictures['original']['chips']]
    assert all(t.isdecimal() for t in texts) and 'no tokenizer' in d.notes['']
    reply, _ = answer(page, dict(kind='file', recipe=page.menus.key, name='a'), [b'the river'])
    assert reply['kind'] == 'trouble' and 'tokenizer' in reply['words'] and len(reply['words']) <= 200
    assert not {'the commonest piece', 'counting neighbours'} & set(d.scores)


def test_a_recipe_that_carries_its_tokenizer_is_read_with_it():
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = ['[PAD]', '[MASK]', '[UNK]', 'river', 'the', 'runs']
    own = ml.create_recipe('bert_mlm', size='micro', vocab=len(words), mask_id=1, special=(0, 1, 2))
    own.tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='[UNK]'))
    own.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    page = Page(own)
    reply, _ = answer(page, dict(kind='file', recipe=page.menus.key, name='a'), [b'the river runs'])
    assert reply['kind'] == 'filed'
    d = page.show(replace(page.state, set='a', index=0))
    assert [c['was'] for c in d.pictures['original']['chips']] == ['the', 'river', 'runs']
    assert not page.show(page.state).notes[''].startswith('Pieces')
