"""A step in rounds or processes is that of one batch: draws belong to samples, means are weighed by their
rows, and what cannot be split is said. Two processes: see test_distributed."""

import warnings

import pytest
import torch
from given import g
from torch import nn
from torch.utils.data import DataLoader

import maskedlab as ml
from maskedlab.contract.chance import MANY, Part, by_row, by_sample
from maskedlab.contract.recipe import Out, Recipe, draw
from maskedlab.contract.units import Units, count_of, mean, rows, spread
from maskedlab.corruptions.degrade import DEGRADE
from maskedlab.corruptions.replace import mask_keep_random
from maskedlab.masks.block import Block
from maskedlab.masks.span import Span
from maskedlab.masks.strategies import Random
from maskedlab.train.seeds import Share
from maskedlab.train.split import IDLE, norms, weights_of

TEXT = ('bert_mlm', 'electra')
RAGGED = 'Random(Uniform(.3, .7))'
# masks of unequal counts; those of texts are, and of some recipes
OWN = (*TEXT, 'seitpp', 'mfm')
CASES = [(name, {} if name in OWN else dict(mask=RAGGED)) for name in ml.list_recipes()]
# clouds that are mixed are mixed with others of their part, diversity counts words of a part, and codes are
# balanced over one
ARGUMENTS = dict(
    point_bert=dict(mixing=False),
    bert_mlm=dict(boundary=True),
    electra=dict(mask_share=0.85),
    wav2vec2=dict(diversity=0.0),
    sigma=dict(rounds=0),
    hicmae=dict(weight=0.0),
    text_guided_video_mae=dict(weight=0.0),
    w2v_bert=dict(diversity=0.0),
    ask2mask=dict(diversity=0.0, weigh='none'),
)


pytestmark = pytest.mark.usefixtures('one_thread')


def frozen_norms(recipe):
    """Batch norms count over what is here: they take what they remember, so that the rest can be compared."""
    forward = recipe.forward

    def without(*args, **kwargs):
        for _, m in norms(recipe):
            m.eval()
        return forward(*args, **kwargs)

    recipe.forward = without


def first_step(recipe, **words):
    """Loss and terms, gradients and the trainer after one step."""
    torch.manual_seed(0)
    t = ml.Trainer(recipe, steps=1, seed=0, show=False, precision='no', batch=8, **words)
    found, clip = {}, t.learner.clip

    def keep():
        found.update({k: p.grad.clone() for k, p in t.recipe.named_parameters() if p.grad is not None})
        return clip()

    t.learner.clip = keep
    frozen_norms(t.recipe)
    return t.fit(background=False)[0], found, t


def made(name, **more):
    torch.manual_seed(0)
    return ml.create_recipe(name, size='micro', **{**ARGUMENTS.get(name, {}), **more})


@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name, words', CASES)
@pytest.mark.filterwarnings('ignore:a step in parts')
def test_the_gradient_of_rounds_is_that_of_one_batch(name, words):
    (one, a, _), (split, b, _) = (first_step(made(name), accumulate=n, **words) for n in (1, 4))
    assert a.keys() == b.keys() and len(a) > 5
    size = max(v.abs().max() for v in a.values())
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-5 * max(size, 1)
    assert split == pytest.approx(one, rel=1e-5)


def test_rounds_of_all_sizes_draw_the_same():
    """Masks, kept and swapped pieces of BERT and the pieces that ELECTRA's generator proposes."""
    for name in TEXT:
        found = []
        for n in (1, 4):
            recipe, seen = made(name), []
            forward = recipe.forward
            recipe.forward = lambda *a, f=forward, s=seen, **k: (s.append(f(*a, **k)), s[-1])[1]
            first_step(recipe, accumulate=n)
            # a ragged batch is looked at once more, without a gradient
            outs = [o for o in seen if o.terms['pieces' if name == 'bert_mlm' else 'generator'].requires_grad]
            found.append([torch.cat([o.mask for o in outs]), torch.cat([o.seen['ids'] for o in outs])])
        assert all(torch.equal(x, y) for f in found[1:] for x, y in zip(found[0], f, strict=True))


def test_a_look_ahead_moves_no_batch_norm():
    """Ragged clouds in two rounds: what is remembered is of two forwards, not of three."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        t = ml.Trainer('point_mae', steps=1, batch=4, accumulate=2, mask=RAGGED, seed=0, show=False)
        t.fit(background=False)
    assert {int(m.num_batches_tracked) for m in t.recipe.modules() if isinstance(m, nn.BatchNorm1d)} == {2}


@pytest.mark.filterwarnings('ignore:a step in parts')
def test_the_queue_takes_the_keys_of_the_whole_batch():
    one, split = (first_step(made('point_bert', mixing=True), accumulate=n)[2].recipe.mixing for n in (1, 4))
    assert int(one.place) == int(split.place) == 8
    torch.testing.assert_close(one.queue, split.queue, atol=1e-5, rtol=0)
    assert not torch.equal(one.queue[:8], made('point_bert', mixing=True).mixing.queue[:8])


@pytest.mark.filterwarnings('ignore:a step in parts')
def test_ragged_rounds_go_on_bit_equal(tmp_path):
    words = dict(steps=4, batch=4, accumulate=2, seed=0, show=False, precision='no', ema=0.9)
    whole = ml.Trainer(made('bert_mlm'), **words)
    history = whole.fit(background=False)
    ml.Trainer(made('bert_mlm'), **words, out=tmp_path, watch=lambda step, _: step == 1).fit(background=False)
    rest = ml.Trainer.resume(tmp_path, show=False)
    assert rest.step == 2 and rest.fit(background=False) == history
    assert all(torch.equal(v, rest.recipe.state_dict()[k]) for k, v in whole.recipe.state_dict().items())


# ------------------------------------------------------------------------------------------ means and draws


def test_weighed_parts_are_the_mean_of_all_rows():
    for seed in range(50):
        n = torch.randint(0, 6, (4,), generator=g(seed)).tolist()
        parts = [torch.rand(k, generator=g(seed + i)) for i, k in enumerate(n)]
        means = [mean(p, 3.0) for p in parts]
        counts = [dict(a=count_of(m)) for m in means]
        joined = sum(weights_of(c, counts)['a'] * m for c, m in zip(counts, means, strict=True)) / 4
        torch.testing.assert_close(joined, mean(torch.cat(parts), 3.0))


def parts(n, total=8, seed=3):
    return [Part(seed, i * total // n, total // n, total) for i in range(n)]


@pytest.mark.parametrize('n', [2, 8])
def test_draws_belong_to_samples(n):
    """Few numbers a sample and many, rows of chosen units, and what corruptions make of them."""
    image, ids = torch.rand(8, 3, 64, 64, generator=g()), torch.randint(5, 99, (8, 20), generator=g())
    chosen = torch.rand(8, 20, generator=g(1)) < 0.3
    here = lambda x, p: x[p.start : p.start + p.size]
    cases = [
        lambda p: by_sample(torch.randn, (p.size, 5), p),
        lambda p: by_sample(torch.rand, (p.size, MANY), p),
        lambda p: by_row(torch.rand, here(chosen, p), (7,), p),
        lambda p: mask_keep_random(here(ids, p), here(chosen, p), 4, 99, (0.5, 0.2, 0.3), generator=p)[0],
        *(lambda p, f=f: f(here(image, p), p) for f in DEGRADE.values()),
    ]
    for case in cases:
        (whole,), split = map(case, parts(1)), [*map(case, parts(n))]
        torch.testing.assert_close(torch.cat(split), whole, atol=1e-6, rtol=0)
    assert not torch.equal(cases[0](parts(1)[0])[0], cases[0](parts(1)[0])[1])


def test_a_generator_of_a_whole_batch_draws_as_ever():
    a, b = Part(5, 0, 4, 4), g(5)
    assert torch.equal(by_sample(torch.rand, (4, 3), a), torch.rand(4, 3, generator=b))
    assert torch.equal(torch.rand(2, generator=a), torch.rand(2, generator=b))


RAGGED_TOO = [Random(0.5), Block(ratio=0.4), Span(length=3), ~Span(length=2) | Random(0.2)]


@pytest.mark.parametrize('strategy', RAGGED_TOO)
def test_masks_of_ragged_units_belong_to_samples(strategy):
    """Where one sample has fewer units than another, and a strategy draws until it has enough."""
    shape = (6, 6) if isinstance(strategy, Block) else (36,)
    valid = torch.rand(8, *shape, generator=g(2)) < torch.linspace(0.2, 1, 8).view(8, *[1] * len(shape))

    def masks(n):
        share, found = Share(strategy, 8, 8 // n), []
        for i in range(0, 8, 8 // n):
            share.at(0, 'mask', 5, start=i)
            found.append(share(Units('grid', shape, valid=valid[i : i + 8 // n])))
        return torch.cat(found)

    assert all(torch.equal(masks(n), masks(1)) for n in (2, 4, 8))
    assert not (masks(1) & ~valid).any()


# -------------------------------------------------------------------------------------------- what is said


class Line(Recipe):
    """Hidden numbers from visible ones, by one matrix."""

    strategy = Random(0.5)

    def __init__(self, weigh=None, noise=None, keep=None):
        super().__init__()
        self.net, self.weigh, self.noise, self.keep = nn.Linear(8, 8), weigh, noise, keep

    def units(self, batch):
        free = None if self.keep is None else batch['x'] > self.keep
        return Units('sequence', (8,), x=batch['x'], free=free)

    def forward(self, batch, mask=None, *, units=None, generator=None, progress=1.0):
        u = self.units(batch) if units is None else units
        mask = draw(self.strategy, u, mask, generator)
        x = u.x + (0 if self.noise is None else self.noise(u.x, generator))
        pred, target = rows(self.net(x.masked_fill(mask, 0)), mask), rows(u.x, mask)
        e = (pred - target).pow(2)
        term = mean(e) if self.weigh is None else self.weigh * mean(e)
        return Out({'square': term}, mask, pred, target, spread(e, mask), u)


DATA = {'x': torch.randn(16, 8, generator=g())}


def said(recipe, data=None, **words):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        words = {**dict(steps=4, batch=4, seed=0, show=False, precision='no'), **words}
        t = ml.Trainer(recipe, DATA if data is None else data, **words)
        t.fit(background=False)
    texts = [str(w.message) for w in found if issubclass(w.category, UserWarning)]
    assert all(len(text) <= 200 and '\n' not in text for text in texts)
    return texts


@pytest.mark.parametrize(
    'recipe, part',
    [
        (lambda: Line(noise=lambda x, _: torch.rand_like(x)), "torch's global generator"),
        (lambda: Line(noise=lambda x, r: by_sample(torch.rand, (3,), r).sum()), 'by_sample'),
        (lambda: Line(weigh=2.0, keep=-1), "'square' does not say of how many rows"),
    ],
)
def test_what_belongs_to_no_sample_is_said_once(recipe, part):
    assert sum(part in text for text in said(recipe(), accumulate=2)) == 1
    assert said(recipe()) == [] and said(Line(keep=-1), accumulate=2) == []


@pytest.mark.parametrize(
    'name, parts_of_text',
    [
        ('point_mae', ['batch norms count over the 2 samples']),
        ('selfie', ['batch norms count over the 2 samples']),
        ('point_bert', ['batch norms', 'clouds are mixed']),
        ('mae', []),
        ('bert_mlm', []),
        ('electra', []),
    ],
)
def test_recipes_say_what_of_them_cannot_be_split(name, parts_of_text):
    recipe = ml.create_recipe(name, size='micro')
    texts = said(recipe, data=recipe.card.modality, accumulate=2, steps=1)
    assert len(texts) == len(parts_of_text)
    assert all(any(p in text for text in texts) for p in parts_of_text)


def test_a_run_that_hides_nothing_is_said():
    """Whole words of a language without blanks: a text is one word, which is more than may be hidden."""
    ids = torch.randint(5, 3000, (8, 20), generator=g())
    data = {'ids': ids, 'word': torch.zeros_like(ids)}
    words = dict(data=data, mask='WholeWords()', steps=IDLE + 3)
    for recipe, term in (('bert_mlm', "'pieces'"), ('electra', "'generator'")):
        texts = said(recipe, **words)
        assert len(texts) == 1 and term in texts[0] and 'mean of nothing' in texts[0]
    assert said('bert_mlm', **{**words, 'mask': None}) == []
    assert len(said(Line(keep=9.0, weigh=2.0), steps=5)) == 1 and said(Line(keep=9.0), steps=IDLE - 1) == []


# ---------------------------------------------------------------------------------------------- streams


def test_a_loader_begins_again_until_the_steps_are_taken():
    loader = DataLoader([{'x': x} for x in DATA['x']], batch_size=4)
    t = ml.Trainer(Line(), loader, steps=10, seed=0, show=False)
    rates = [h['lr'] for h in t.fit(background=False)]
    assert len(rates) == 10 and rates[-1] < 0.1 * max(rates)
    assert ml.Trainer(Line(), loader, epochs=2.5, seed=0, show=False).steps == 10


def test_items_that_draw_draw_by_their_own():
    """A data set of somebody else's may draw from the global generators; each item does so alone."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return {'x': DATA['x'][i] + torch.randn(8)}

    one, split = (losses_of(Line(), Noisy(), n) for n in (1, 4))
    assert split == pytest.approx(one, rel=1e-5) and one != losses_of(Line(), DATA, 1)


def losses_of(recipe, data, n):
    torch.manual_seed(0)
    torch.nn.init.ones_(recipe.net.weight)
    torch.nn.init.zeros_(recipe.net.bias)
    t = ml.Trainer(recipe, data, steps=4, batch=8, accumulate=n, seed=0, show=False, precision='no')
    return [h['loss'] for h in t.fit(background=False)]


def test_a_stream_that_ends_early_says_so():
    texts = said(Line(), data=(DATA for _ in range(3)), steps=9)
    assert len(texts) == 1 and 'ended after 3 of 9 steps' in texts[0] and 'steps=3' in texts[0]
    with pytest.raises(ValueError, match='no epochs'):
        ml.Trainer(Line(), (DATA for _ in range(3)), epochs=1, show=False)
