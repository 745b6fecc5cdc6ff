"""CAE: the invariants of the method (Chen et al. 2022), on a network small enough for seconds."""
import math

import pytest
import torch
from given import g
from torch import nn
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.block import Block
from maskedlab.contract.units import rest, rows
from maskedlab.recipes.image.cae import CAE, held, spread_of


class Codes(nn.Module):
    "A tokenizer in three lines: the nearest of some grey values, for each square of pixels."
    def __init__(self, words=12, stride=8):
        super().__init__()
        self.words, self.stride = words, stride

    def ids(self, image):
        grey = nn.functional.avg_pool2d(image.mean(1, keepdim=True), self.stride)[:, 0]
        return ((grey - .4) * 5 * self.words).long().clamp(0, self.words - 1)

    def decode(self, ids):
        return (ids[:, None] / self.words).repeat_interleave(self.stride, 2).repeat_interleave(
            self.stride, 3).expand(-1, 3, -1, -1)


SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4, regressor_depth=2, decoder_depth=1, drop_path=0.)


def make(**more):
    torch.manual_seed(0)
    r = CAE(**{**SMALL, 'tokenizer': Codes(), **more}).eval()
    with torch.no_grad():       # at the start many numbers are zero, which would hide a mistake
        for p in r.parameters():
            p.add_(torch.randn_like(p) * .1)
    return r


@pytest.fixture(params=['tokens', 'pixels'])
def r(request):
    return make(target=request.param)


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


def encode(r, u, mask):
    return r.encoder.see(r.cut.normal(u.x), rest(mask))


def lengths(r, run):
    "How many tokens the first block of each network gets, in the order of the calls."
    seen, hooks = {}, []
    for name in ('encoder', 'regressor', 'decoder'):
        note = lambda m, args, name=name: seen.setdefault(name, []).append(args[0].shape[1])
        hooks.append(getattr(r, name).blocks[0].register_forward_pre_hook(note))
    run()
    for h in hooks:
        h.remove()
    return seen


# 1. the count, and the lengths

@pytest.mark.parametrize('seed', range(5))
def test_exactly_half_is_hidden_in_every_picture(seed):
    for grid, n in (((14, 14), 98), ((7, 7), 24), ((8, 8), 32)):
        mask = CAE(**SMALL, target='pixels').strategy(ml.layout(grid, batch=40), generator=g(seed))
        assert (mask.flatten(1).sum(1) == n).all()


def test_lengths(r, batch):
    out = {}
    seen = lengths(r, lambda: out.setdefault('out', r(batch, mask=Block(n=6), generator=g())))
    assert out['out'].mask.flatten(1).sum(1).tolist() == [6] * 3
    assert seen == dict(encoder=[1 + 10, 1 + 6], regressor=[6], decoder=[6])


def test_same_generator_same_forward(r, batch):
    a, b = r(batch, generator=g()), r(batch, generator=g())
    assert torch.equal(a.mask, b.mask) and torch.equal(a.pred, b.pred)
    assert not torch.equal(a.mask, r(batch, generator=g(1)).mask)


# 2. and 3. who reads what

def test_hidden_pixels_change_the_aim_of_the_alignment_and_nothing_else(r, batch):
    out = r(batch, generator=g())
    again = r(batch, mask=out.mask, units=out.units.swap(out.mask))
    assert torch.equal(again.pred, out.pred) and torch.equal(again.extra['predicted'], out.extra['predicted'])
    assert (again.extra['aligned'] - out.extra['aligned']).abs().max() > .1


def test_kept_pixels_do_not_change_the_aim_of_the_alignment(r, batch):
    out = r(batch, generator=g())
    again = r(batch, mask=out.mask, units=out.units.swap(~out.mask))
    assert torch.equal(again.extra['aligned'], out.extra['aligned'])
    assert not torch.equal(again.pred, out.pred)


def test_gradient_with_respect_to_hidden_pixels_is_exactly_zero(batch):
    r = make(target='tokens')       # with pixels the target is a function of them
    mask = r(batch, generator=g()).mask
    image = batch['image'].clone().requires_grad_()
    r(dict(image=image), mask=mask).loss.backward()
    grad = r.cut.cut(image.grad)
    assert (grad[mask] == 0).all() and (grad[~mask].abs().amax(-1) > 0).all()


# 4. no gradient into the aim

def test_the_aim_has_no_gradient(r, batch):
    out = r(batch, generator=g())
    assert out.extra['predicted'].requires_grad and not out.extra['aligned'].requires_grad


def test_the_gradient_of_the_alignment_flows_through_the_kept_patches_only(r, batch):
    out = r(batch, generator=g())
    a = out.extra['aligned']
    grads = torch.autograd.grad(out.terms['alignment'], list(r.encoder.parameters()), allow_unused=True)
    h = encode(r, out.units, out.mask)                                  # the same by hand, against a constant
    alone = 2 * (held(r.guess(h, out.mask)[0], out.mask) - a.clone()).square().mean()
    expected = torch.autograd.grad(alone, list(r.encoder.parameters()), allow_unused=True)
    assert any(e.abs().max() > 0 for e in expected)
    for x, y in zip(grads, expected):
        assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_the_second_encoder_is_the_first_one(r, batch):
    before = r(batch, generator=g()).extra['aligned']
    with torch.no_grad():
        r.encoder.blocks[1].mlp.fc2.bias.add_(torch.linspace(-3, 3, 32))
    assert (r(batch, generator=g()).extra['aligned'] - before).abs().max() > .1  # at once, and without a step
    assert not [n for n, _ in r.named_parameters() if 'align' in n]


def test_in_training_it_draws_its_own_noise(batch):
    r = make(drop_path=.5).train()
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    a, b = (r(batch, mask=mask, generator=g(s)).extra['aligned'] for s in (0, 1))
    assert not torch.equal(a, b) and torch.equal(a, r(batch, mask=mask, generator=g()).extra['aligned'])


# 5. and 6. the decoder and the regressor

def test_the_decoder_does_not_see_kept_tokens(r, batch):
    out = r(batch, generator=g())
    z, y = r.guess(encode(r, out.units, out.mask), out.mask)
    assert_close(r.head(held(y, out.mask)), out.pred)
    r.regressor.forward = lambda *more: z                               # the same guess, whatever is visible
    again = r(batch, mask=out.mask, units=out.units.swap(~out.mask))
    assert torch.equal(again.pred, r(batch, mask=out.mask).pred)


def test_the_class_token_is_not_in_the_regressor(r, batch):
    out = r(batch, generator=g())
    h = encode(r, out.units, out.mask)
    changed = h.clone()
    changed[:, 0] = torch.randn(3, 32)
    guess = lambda h: r.guess(h, out.mask)[0]
    assert torch.equal(guess(h), guess(changed))
    assert not torch.equal(guess(h), guess(h + torch.randn_like(h)))


def test_kept_tokens_stay_what_they_are_in_the_regressor(r, batch):
    seen = []
    for b in r.regressor.blocks:
        b.norm_v.register_forward_pre_hook(lambda m, args: seen.append(args[0][:, :8]))
    out = r(batch, mask=Block(n=8), generator=g())
    kept = encode(r, out.units, out.mask)[:, 1:]
    assert len(seen) == 2 and all(torch.equal(s, kept) for s in seen)


def test_positions_go_to_queries_and_keys_and_not_to_values(r):
    block = r.regressor.blocks[0]
    q, kept = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    pos_q, pos_kept = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    a = block.attn
    v = torch.cat([kept, q], 1)
    heads = lambda t: t.view(2, -1, 4, 8).transpose(1, 2)
    Q, K = heads(a.q(block.norm1(q + pos_q))), heads(a.k(block.norm_k(v + torch.cat([pos_kept, pos_q], 1))))
    w = (Q @ K.mT / math.sqrt(8)).softmax(-1)
    x = q + block.gamma_1 * a.proj((w @ heads(a.v(block.norm_v(v)))).transpose(1, 2).flatten(2))
    n = block.norm2(x)
    assert_close(block(q, kept, pos_q, pos_kept), n + block.gamma_2 * block.mlp(n), rtol=1e-5, atol=1e-5)
    assert a.k.bias is None and a.q.bias is not None and a.v.bias is not None


# 7. the loss

def test_loss_is_the_sum_of_its_two_terms_and_the_weight_changes_no_prediction(r, batch):
    out = r(batch, generator=g())
    z, a = out.extra['predicted'], out.extra['aligned']
    first = {'tokens': lambda: nn.functional.cross_entropy(out.pred, out.target),
             'pixels': lambda: (out.pred - out.target).square().mean()}
    name = next(k for k in out.terms if k != 'alignment')
    assert_close(out.loss, first[name]() + 2 * (z - a).square().mean())
    assert_close(out.error[out.mask].mean(), out.terms[name])
    assert torch.equal(out.scored, out.mask)
    r.align = 0.
    none = r(batch, generator=g())
    assert torch.equal(none.pred, out.pred) and none.loss == none.terms[name] and none.terms['alignment'] == 0


def test_a_perfect_guess_has_no_alignment_left(batch):
    r = make()
    out = r(batch, generator=g())
    real = r.regressor.forward
    r.regressor.forward = lambda *given: encode(r, out.units, ~out.mask)[:, 1:] + 0 * real(*given)
    assert r(batch, mask=out.mask).terms['alignment'] == 0


def test_zero_logits_score_the_logarithm_of_the_vocabulary(batch):
    r = make()
    nn.init.zeros_(r.head.weight)
    nn.init.zeros_(r.head.bias)
    assert_close(r(batch, generator=g()).terms['tokens'], torch.tensor(math.log(12)))


def test_targets_are_the_tokens_of_the_clean_picture(batch):
    r = make()
    out = r(batch, generator=g())
    assert torch.equal(out.target, rows(r.tokenizer.ids(batch['image']),
                                        out.mask)) and len(out.target.unique()) > 3
    finer = make(tokenizer=Codes(stride=4))                       # reads the same picture at half of its size
    assert (rows(finer.words.ids(out.units), out.mask) - out.target).abs().max() <= 1


def test_a_collapsed_aim_shows_as_no_spread(batch):
    r = make()
    assert .05 < r(batch, generator=g()).logs['spread'] <= 1
    bias = torch.randn(32)
    with torch.no_grad():                                   # every representation is now the bias of the norm
        r.encoder.norm.weight.zero_()
        r.encoder.norm.bias.copy_(bias)
    assert r(batch, generator=g()).logs['spread'] < 1e-3


def test_spread_compares_pictures_at_the_same_place():
    mask = torch.ones(64, 2, 2, dtype=torch.bool)
    place = torch.randn(1, 4, 16).expand(64, -1, -1)
    assert spread_of(place.flatten(0, 1), mask) < 1e-6                  # places alone are no content
    assert abs(spread_of(torch.randn(64, 4, 16).flatten(0, 1), mask) - 1) < .05
    half = (place + torch.randn(64, 4, 16) * place.square().mean().sqrt()).flatten(0, 1)
    assert abs(spread_of(half, mask) - .5 ** .5) < .05
    assert spread_of(torch.randn(4, 16), mask[:1]).isnan()              # one picture cannot tell


# 8. the complement

def test_the_aim_is_the_encoder_on_the_complement(r, batch):
    out = r(batch, generator=g())
    other = encode(r, out.units, ~out.mask)[:, 1:]
    assert_close(out.extra['aligned'], other.flatten(0, 1), rtol=1e-5, atol=1e-6)
    assert_close(r(batch, mask=~out.mask).extra['aligned'],
                 encode(r, out.units, out.mask)[:, 1:].flatten(0, 1), rtol=1e-5, atol=1e-6)


# any size, any mask

@pytest.mark.parametrize('size', [(32, 64), (8, 40), (16, 16), (8, 8)])
def test_any_size(r, size):
    b = dict(image=torch.rand(2, 3, *size))
    out = r(b, generator=g())
    assert out.loss.isfinite() and out.mask.shape[1:] == (size[0] // 8, size[1] // 8)
    assert (r.cut.cut(r.fill(b, out)['image'] - b['image'])[~out.mask] == 0).all()
    assert r.features(b).shape == (2, 32)


def ragged():
    m = torch.zeros(3, 4, 4, dtype=torch.bool)
    m[0, :2], m[1], m[2, 3, 1] = True, True, True                       # half, all, one
    return m


@pytest.mark.parametrize('mask', [ragged(), torch.zeros(3, 4, 4).bool(), torch.ones(3, 4, 4).bool()],
                         ids=['ragged', 'none', 'all'])
def test_a_batch_is_what_its_pictures_are_alone(r, batch, mask):
    both = r(batch, mask=mask)
    assert both.loss.isfinite()
    for i in range(3):
        alone, mine = r(dict(image=batch['image'][i:i + 1]), mask=mask[i:i + 1]), mask.nonzero()[:, 0] == i
        assert_close(both.pred[mine], alone.pred, rtol=0, atol=1e-5)
        for k in ('predicted', 'aligned'):
            assert_close(both.extra[k][mine], alone.extra[k], rtol=0, atol=1e-5)
        assert_close(both.error[i], alone.error[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    if not mask.any():
        assert both.loss == 0


def test_double_precision_says_the_same(r, batch):
    "Padding is a bias beside the queries: of another precision it would be read as other numbers."
    single = r(batch, mask=ragged(), generator=g())
    double = r.double()(dict(image=batch['image'].double()), mask=ragged(), generator=g())
    assert double.pred.dtype == torch.float64
    assert_close(double.loss.float(), single.loss, rtol=1e-4, atol=1e-4)
    assert_close(double.pred.float(), single.pred, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mask', [ragged(), torch.zeros(3, 4, 4).bool(), torch.ones(3, 4, 4).bool()],
                         ids=['ragged', 'none', 'all'])
def test_gradients_without_nan(r, batch, mask):
    r(batch, mask=mask).loss.backward()
    grads = [p.grad for p in r.parameters() if p.grad is not None]
    assert grads and all(x.isfinite().all() for x in grads)


def test_in_training_every_parameter_learns(r, batch):
    r.train()(batch, generator=g()).loss.backward()
    assert not [n for n, p in r.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


# the doors

def test_fill_of_tokens_does_not_read_what_is_hidden(batch):
    r = make()
    out = r(batch, generator=g())
    other = out.units.swap(out.mask)
    again = r(batch, mask=out.mask, units=other)
    a, b = (rows(r.units(r.fill(batch, o)).x, out.mask) for o in (out, again))
    assert torch.equal(a, b)
    want = rows(r.cut.cut((out.pred.argmax(-1) / 12)[:, None, None, None].expand(-1, 3, 8, 8)),
                torch.ones(len(a), 1, 1).bool())
    assert_close(a, want)


def test_attention_names_units(r, batch):
    w, q, k = r.attention(batch, ragged())
    assert w.shape == (2, 3, 4, 16, 16) and q[0].tolist() == [-1, *range(8, 16)] + [-1] * 7 and torch.equal(
        q, k)
    w, q, k = r.attention(batch, ragged(), part='regressor')
    assert w.shape == (2, 3, 4, 16, 31) and q[0].tolist() == [*range(8)] + [-1] * 8
    assert k[0].tolist() == [*range(8, 16)] + [-1] * 7 + [*range(8)] + [-1] * 8
    assert k[1].tolist() == [-1] * 15 + [*range(16)]
    assert_close(w[:, :, :, 0].sum(-1), torch.ones(2, 3, 4))
    assert (w[:, 0, :, :8, k[0] < 0] == 0).all() and (w[:, 0, :, :8, k[0] >= 0] > 0).all()
    w, q, k = r.attention(batch, ragged(), part='decoder')
    assert w.shape == (1, 3, 4, 16, 16) and q[2].tolist() == [13] + [-1] * 15
    assert r.attention(batch, part='regressor')[0].shape == (2, 3, 4, 0, 16)
    with pytest.raises(ValueError, match='regressor'):
        r.attention(batch, part='tokens')


def test_features_are_those_of_the_encoder(r, batch):
    u = r.units(batch)
    h = r.encoder(r.encoder.embed(r.cut.normal(u.x)))
    assert_close(r.features(batch, pool=False), h[:, 1:])
    assert_close(r.features(batch), h[:, 1:].mean(1))
    assert_close(r.features(batch, pool='class'), h[:, 0])


# bad input

def test_a_codebook_of_another_size_is_told_in_one_sentence(batch):
    r = make()
    r.words.tokenizer = Codes(words=20)
    with pytest.raises(ValueError, match=r'codebook of 20 words.*12.*tokenizer='):
        r(batch)


def test_a_tokenizer_of_another_grid_is_told_in_one_sentence(batch):
    wrong = Codes()
    wrong.ids = lambda image: torch.zeros(len(image), 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r'\[2, 2\].*\[4, 4\]'):
        make(tokenizer=wrong)(batch)


def test_an_unknown_target_is_told_in_one_sentence():
    with pytest.raises(ValueError, match="'tokens', 'pixels'"):
        make(target='words')


# the paper's size

def test_sizes_of_the_paper():
    with torch.device('meta'):
        base = CAE(**{**CAE.sizes['base'], 'tokenizer': Codes(8192)})
    count = lambda part: sum(p.numel() for p in part.parameters())
    D = 768
    # attention, its output bias, MLP, and the two biases, scales
    shared = 4 * D * D + D + 2 * 4 * D * D + 5 * D + 2 * D + 2 * D
    block = shared + 4 * D                                                  # two norms
    # final norm, class token, patch embedding
    assert count(base.encoder) == 12 * block + 2 * D + D + 768 * D + D
    # two more norms a block; final norm, query
    assert count(base.regressor) == 4 * (block + 4 * D) + 2 * D + D
    assert count(base.decoder) == 4 * block + 2 * D and count(base.head) == 8192 * D + 8192


# published files

def test_the_published_layout_there_and_back(tmp_path, batch):
    r = make()
    folder = r.save_pretrained(tmp_path / 'theirs', layout='original')
    saved = torch.load(folder / 'cae.pth', weights_only=True)['model']
    some = {'alignment_encoder.cls_token', 'regresser.regressor_blocks.1.cross_attn.q_bias',
            'decoder.head.weight', 'rd_pos_embed'}
    assert some <= set(saved)
    again = ml.load_pretrained(folder / 'cae.pth', heads=4, tokenizer=r.tokenizer, drop_path=0.)
    a, b = r(batch, generator=g()), again(batch, generator=g())
    assert torch.equal(a.pred, b.pred) and torch.equal(a.loss, b.loss)


def test_a_published_file_has_no_dictionary_of_ours(tmp_path, batch):
    """Its head names words of another tokenizer: features work, a loss asks for a tokenizer, and no stage of
    the kit is put in its place."""
    r = make()
    folder = r.save_pretrained(tmp_path / 'theirs', layout='original')
    again = ml.load_pretrained(folder / 'cae.pth', heads=4, drop_path=0.).eval()
    assert again.tokenizer is None and again.head.out_features == r.head.out_features
    assert torch.equal(again.features(batch), r.features(batch))
    with pytest.raises(ValueError, match='no tokenizer'):
        again(batch, generator=g())
    with pytest.raises(ValueError, match='other|words'):
        ml.load_pretrained(folder / 'cae.pth', heads=4, tokenizer=Codes(words=20))


def test_the_published_layout_refuses_heads_that_it_cannot_tell(tmp_path):
    "Such files do not say how many heads there are; a reader would take those of the released models."
    wide = dict(SMALL, dim=192, heads=6)
    with pytest.raises(ValueError, match='12 for this width') as said:
        make(**wide).save_pretrained(tmp_path / 'six', layout='original')
    assert len(str(said.value)) <= 200 and not (tmp_path / 'six').exists()
    r = make(**dict(wide, heads=12))
    file = r.save_pretrained(tmp_path / 'twelve', layout='original') / 'cae.pth'
    with pytest.raises(ValueError, match='give heads='):        # of this width, but of another depth
        ml.load_pretrained(file)
    assert ml.load_pretrained(file, heads=12).config['heads'] == 12


def test_tokens_need_a_tokenizer_or_words():
    with pytest.raises(ValueError, match='needs words=') as said:
        make(tokenizer=None)
    assert len(str(said.value)) <= 200 and make(tokenizer=None, words=12).head.out_features == 12


def test_positions_have_the_row_first():
    pos = CAE(**SMALL, target='pixels').encoder.pos_embed[0]
    assert (pos[0] == 0).all()
    grid = pos[1:].view(4, 4, 32)
    rate = 10000 ** -(torch.arange(8) / 8)
    assert_close(grid[2, 1], torch.cat([(2 * rate).sin(), (2 * rate).cos(), rate.sin(), rate.cos()]))


# the explorer

def test_the_explorer_shows_where_the_regressor_looks():
    from dataclasses import replace

    from maskedlab.show.explorer.page import Page
    from maskedlab.show.scenes import parts_of
    e = Page(make())
    s = replace(e.state, painted=[1, 2, 5])
    assert parts_of(e.recipe) == ['encoder', 'regressor', 'decoder']
    see = lambda look, part: e.show(replace(s, look=look, part=part))
    assert 'attention' in see(2, 'regressor').pictures and 'brightest' in see(2, 'regressor').notes[
        'attention']
    assert 'this is the regressor' in see(2, 'encoder').notes['attention']
    assert 'on view' in see(8, 'regressor').notes['attention']
