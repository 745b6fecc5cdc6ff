"""What a recipe knows about its training is run: every value of every plan moves the weights, each can be
overridden, and one law says what decays."""
import ast
import inspect
import json
import textwrap
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import maskedlab as ml
from maskedlab import cli
from maskedlab.contract.catalogue import STAGES
from maskedlab.contract.create import recipe_class
from maskedlab.contract.plan import SMALL, Plan
from maskedlab.contract.recipe import Out, Recipe, draw
from maskedlab.contract.units import Units, mean, rows, spread
from maskedlab.masks.strategies import Random
from maskedlab.stages.image_dvae import ImageDVAE
from maskedlab.stages.shelf import stage_class
from maskedlab.train.loop import decays
from maskedlab.train.setup import PLANNED, picture_size
from maskedlab.train.step import tensors_of
from maskedlab.uses.finetune import TUNING, Classifier, finetune

DATA = {'x': torch.randn(32, 8, generator=torch.Generator().manual_seed(0))}


class Line(Recipe):
    "The smallest network that can be trained: hidden numbers from visible ones, by one matrix."
    strategy = Random(.5)

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 8)

    def units(self, batch):
        return Units('sequence', (8,), x=batch['x'])

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        y = self.net(u.x.masked_fill(mask, 0))
        pred, target = rows(y, mask), rows(u.x, mask)
        e = (pred - target).pow(2)
        return Out({'square': mean(e)}, mask, pred, target, spread(e, mask), u)


def make(data=None, **words) -> ml.Trainer:
    torch.manual_seed(0)
    return ml.Trainer(Line(), DATA if data is None else data,
                      **{**dict(steps=8, batch=4, seed=0, show=False, precision='no'), **words})


@cache
def plans() -> dict[str, Plan]:
    return {**{name: recipe_class(name).plan for name in ml.list_recipes()},
            **{name: stage_class(name).plan for name in STAGES}}


@cache
def weights(plan: Plan) -> torch.Tensor:
    "The weights after four steps."
    t = make(plan=plan, steps=4)
    t.fit(background=False)
    return torch.cat([p.detach().flatten() for p in t.recipe.parameters()])


CHANGED = dict(
    optimiser=lambda v: 'SGD' if v == 'AdamW' else 'AdamW', lr=lambda v: 2 * v, per=lambda v: 2 * (v or 16),
    small=lambda v: 2 * v, weight_decay=lambda v: v + .3, betas=lambda v: (.5, .6), eps=lambda v: .01,
    momentum=lambda v: .5, nesterov=lambda v: not v,
    schedule=lambda v: 'linear' if v != 'linear' else 'cosine',
    floor=lambda v: v + .3, milestones=lambda v: (.3,), gamma=lambda v: v / 2, warmup=lambda v: .5,
    clip=lambda v: 1e-3)


def test_every_value_of_every_plan_changes_the_run():
    assert set(CHANGED) == set(PLANNED), 'a value that no run was tried with'
    silent = []
    for name, plan in plans().items():
        for key, value in plan.rows().items():
            # the rate of small networks hides the paper's: it is taken away where the paper's is looked at
            base = replace(plan, small=None) if key in ('lr', 'per') else plan
            other = {**base.rows(), key: CHANGED[key](value)}
            changed = base.but(**{key: other[key]}) if key in ('optimiser', 'schedule') else Plan(**other)
            a, b = weights(base), weights(changed)
            assert a.isfinite().all() and b.isfinite().all(), (name, key)
            if torch.equal(a, b):
                silent.append((name, key))
    assert not silent


def test_every_argument_of_every_recipe_is_read():
    "By its constructor; the size of pictures that nothing in a network depends on is read by the trainer."
    for cls in [recipe_class(n) for n in ml.list_recipes()] + [stage_class(n) for n in STAGES]:
        source = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__))).body[0]
        assert isinstance(source, ast.FunctionDef)
        given = {a.arg for a in source.args.args[1:] + source.args.kwonlyargs}
        read = {n.id for line in source.body for n in ast.walk(line) if isinstance(n, ast.Name)}
        assert given - read <= {'image'}, cls
    assert picture_size(ImageDVAE(image=48, stride=8, words=8, width=8)) == 48


def test_an_option_that_nothing_reads_is_refused():
    with pytest.raises(ValueError, match='vary=True turns'):
        make(vary=True)


@pytest.mark.quick
def test_plans_say_what_the_cards_say():
    says = lambda name, **facts: {k: getattr(plans()[name], k) for k in facts} == facts
    assert says('mae', lr=1.5e-4, per=256, weight_decay=.05, betas=(.9, .95), schedule='cosine', floor=0.)
    assert says('simmim', lr=1e-4, per=512, schedule='multistep', milestones=(.875,), gamma=.1, clip=5.)
    assert says('selfie', optimiser='SGD', lr=.4, momentum=.9, nesterov=True, weight_decay=1e-4)
    assert says('bert_mlm', lr=1e-4, schedule='linear', weight_decay=.01)
    assert says('electra', lr=5e-4, schedule='linear')
    assert says('point_mae', lr=1e-3, floor=1e-3) and says('point_bert', lr=5e-4)
    assert says('beit', lr=1.5e-3, per=2048, betas=(.9, .98), clip=3.)
    assert says('cae', betas=(.9, .999), clip=3.)
    for name in plans():
        others = dict(bert_mlm='linear', electra='linear', wav2vec2='linear', w2v_bert='linear',
                      ask2mask='linear', simmim='multistep', mto='multistep')
        assert plans()[name].schedule == others.get(name, 'cosine'), name


@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name', ml.list_recipes())
def test_a_trainer_follows_the_plan_of_its_recipe(name):
    t = ml.Trainer(name, steps=20, batch=4, seed=0, show=False)
    plan, (wide, plain) = recipe_class(name).plan, t.learner.optimiser.param_groups
    assert t.plan == plan and type(t.learner.optimiser).__name__ == plan.optimiser
    own = {k: v for k, v in plan.rows().items() if k in ('betas', 'eps', 'momentum', 'nesterov')}
    assert own == {k: wide[k] for k in own}
    assert (wide['weight_decay'], plain['weight_decay']) == (plan.weight_decay, 0)
    assert t.parameters < SMALL and t.lr == plan.small
    sizes = [sum(p.numel() for p in g['params']) for g in (wide, plain)]
    assert sum(sizes) == t.parameters and sizes[0] > sizes[1]


def test_the_rate_of_a_run():
    plan = Plan(lr=1e-4, per=256)
    assert [make(plan=plan, batch=b).lr for b in (4, 32)] == [1e-3] * 2
    assert make(plan=plan, lr=.02).lr == .02 and make(lr_base=1e-3, batch=32).lr == pytest.approx(1e-3 / 8)
    assert make(plan=plan.but(small=None), batch=32).lr == pytest.approx(1e-4 / 8)
    assert plan.highest(512, SMALL) == 2e-4 and plan.highest(512, SMALL - 1) == 1e-3
    t = make(plan=Plan(schedule='multistep', milestones=(.5,), warmup=2))
    rates = [h['lr'] for h in t.fit(background=False)]
    assert rates == pytest.approx([.25e-3, .75e-3, 1e-3, 1e-3, *[1e-4] * 4])


def test_each_value_is_overridden_by_its_name():
    t = make(optimiser='SGD', lr=.1, momentum=.8, schedule='linear', floor=.2, warmup=3, clip=float('inf'))
    assert t.plan == Plan(optimiser='SGD', lr=.1, small=None, momentum=.8, schedule='linear', floor=.2,
                          warmup=3)
    assert make(betas=None, clip=None, weight_decay=None).plan == Line.plan
    with pytest.raises(ValueError, match="momentum=0.9 says nothing under optimiser='AdamW'"):
        make(momentum=.9)
    with pytest.raises(TypeError, match="'weight_decay' meant"):
        make(weigth_decay=.1)
    named = inspect.signature(ml.Trainer).parameters
    assert {*PLANNED, 'steps', 'out', 'plan', 'lr_base'} <= set(named) and named['batch'].default == 64


# ---------------------------------------------------------------- folders

def test_stopped_and_gone_on_with_sgd(tmp_path):
    words = dict(optimiser='SGD', lr=.05, nesterov=True, schedule='multistep', milestones=(.5,), ema=.9,
                 accumulate=2)
    whole = make(**words)
    history = whole.fit(background=False)
    make(**words, out=tmp_path, watch=lambda step, _: step == 2).fit(background=False)
    parts = ml.Trainer.resume(tmp_path, recipe=Line(), data=DATA, show=False)
    assert parts.step == 3 and parts.plan == whole.plan and parts.fit(background=False) == history
    assert all(torch.equal(v, parts.recipe.state_dict()[k]) for k, v in whole.recipe.state_dict().items())
    memory = tensors_of(parts.learner)['optimiser']
    assert memory and all(k.endswith('momentum_buffer') for k in memory)
    with pytest.raises(ValueError, match="optimiser='SGD', here it is 'AdamW'"):
        make(out=tmp_path, resume=True, ema=.9, accumulate=2)


def test_a_folder_from_before_there_were_plans(tmp_path):
    "Its run had AdamW and half a cosine, whatever the recipe's plan says today."
    make(out=tmp_path, watch=lambda step, _: step == 2).fit(background=False)
    file = tmp_path / 'run.json'
    about = {k: v for k, v in json.loads(file.read_text()).items() if k not in ('plan', 'optimiser')}
    old = dict(lr=2e-3, weight_decay=.01, betas=[.9, .99], warmup=2, clip=None)
    file.write_text(json.dumps({**about, **old}))
    recipe = Line()
    recipe.plan = Plan(schedule='linear', floor=.1)
    # its checkpoint is of today and knows the plan
    t = ml.Trainer.resume(tmp_path, recipe=recipe, data=DATA, show=False, change=True)
    assert t.step == 3 and t.plan == Plan(lr=2e-3, small=None, weight_decay=.01, betas=(.9, .99), warmup=2)


# ---------------------------------------------------------------- the command line

def test_a_dry_run_prints_the_plan_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ml.Trainer, 'fit', None)
    words = 'train simmim --size micro --dry-run --steps 30 --floor .1 --schedule linear --betas .8 .9'
    assert cli.main(words.split()) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: line[1:] for line in lines}
    assert said['schedule'] == ['linear', 'command', 'line'] and said['clip'] == ['5.0', 'recipe']
    assert said['betas'] == ['(0.8,', '0.9)', 'command', 'line'] and said['steps'][0] == '30'
    assert ['highest', 'rate', '0.001', 'size', 'rule'] in lines
    number = lambda text: int(text.replace(',', ''))
    assert number(said['with'][-1]) + number(said['without'][-1]) == number(said['parameters'][0])
    assert not list(tmp_path.iterdir())
    assert cli.main(['train', 'mae', '--size', 'micro']) == 2 and '--dry-run' in capsys.readouterr().err


def test_every_value_has_an_option(capsys):
    assert set(cli._PLAN) == set(PLANNED)
    words = ('train selfie --size micro --dry-run --optimiser AdamW --lr 1e-3 --weight-decay .1 --betas .8 '
             '.9 --eps 1e-6 --schedule multistep --milestones .5 .9 --gamma .2 --warmup 20 --clip 2')
    assert cli.main(words.split()) == 0
    out = capsys.readouterr().out
    assert '(0.5, 0.9)' in out and 'momentum' not in out
    given = [line.split()[0] for line in out.splitlines() if line.endswith('command line')]
    assert set(given) == {'optimiser', 'lr', 'small', 'weight_decay', 'betas', 'eps', 'schedule',
                          'milestones', 'gamma', 'warmup', 'clip', 'highest'}


# ---------------------------------------------------------------- what decays

@pytest.mark.parametrize('name', ml.list_recipes())
def test_one_law_of_decay(name):
    "Matrices decay; biases, scales and single tokens do not; pre-training and fine-tuning agree."
    r = ml.create_recipe(name, size='micro')
    law, named = decays(r), dict(r.named_parameters())
    assert all(named[n].squeeze().ndim > 1 for n, wide in law.items() if wide)
    for n in (n for n, wide in law.items() if not wide and named[n].squeeze().ndim > 1):
        words = n.split('.')
        asked = [(r.get_submodule('.'.join(words[:i])), '.'.join(words[i:])) for i in range(len(words))]
        told = any(leaf in getattr(m, 'no_weight_decay', set)() for m, leaf in asked)
        assert told, f'{n} is spared, and nobody says why'
    tuned = decays(Classifier(r, 10, 8))
    assert {n.removeprefix('recipe.'): w for n, w in tuned.items() if n.startswith('recipe.')} == law


@pytest.mark.parametrize('name', ['simmim', 'beit'])
def test_the_table_of_position_biases_decays(name):
    law = decays(ml.create_recipe(name, size='micro'))
    assert law['encoder.rel_pos_bias.table']


def test_learned_positions_are_spared_by_the_network_that_owns_them():
    from maskedlab.parts.vit import ViT
    inside = nn.ModuleList([ViT((4, 4), 48, 16, 1, 2, learned=True)])
    assert not decays(inside)['0.pos_embed'] and decays(inside)['0.patch_embed.weight']


def test_fine_tuning_takes_a_plan():
    "SGD, the schedule and the clip are run; each is overridden by its name."
    data = {'image': torch.rand(8, 3, 16, 16), 'label': torch.arange(8) % 2}
    def tuned(**words):
        torch.manual_seed(0)
        r = ml.create_recipe('mae', image=16, patch=8, dim=16, depth=1, heads=2, decoder_dim=16,
                             decoder_depth=1, decoder_heads=2)
        finetune(r, data, data, steps=3, batch=4, **words)
        return r.encoder.blocks[0].mlp.fc1.weight.detach()
    plain = tuned()
    assert torch.equal(plain, tuned(plan=TUNING))
    for words in (dict(lr=.1), dict(optimiser='SGD'), dict(schedule='constant'), dict(warmup=2),
                  dict(clip=1e-4), dict(weight_decay=.5), dict(betas=(.5, .5))):
        assert not torch.equal(plain, tuned(**words)), words
    with pytest.raises(ValueError, match="no 'rate'"):
        tuned(rate=1)


def test_a_class_that_still_has_defaults_is_told():
    with pytest.warns(FutureWarning, match='plan = Plan'):
        type('Old', (ml.Recipe,), {'defaults': {'lr': 1e-3}})
