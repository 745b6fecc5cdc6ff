"""Hybrid Distillation: the invariants of the method (Shi et al. 2024), on networks small enough for
seconds."""

import math

import pytest
import torch
from given import g, stir
import torch.nn.functional as F
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.masks.guided import Guided
from maskedlab.masks.strategies import Random
from maskedlab.parts.transformer import PreNorm
from maskedlab.parts.watch import watched
from maskedlab.recipes.image import hybrid_distillation as module
from maskedlab.recipes.image.cae import CAE
from maskedlab.recipes.image.hybrid_distillation import (
    HybridDistillation,
    Left,
    aim,
    diagnose,
    head_distance,
    leave,
    nmi,
    redundancy,
)
from maskedlab.recipes.image.mae import MAE
from maskedlab.stages.vit_teacher import ViTTeacher
from maskedlab.targets.features import divergence, relations
from maskedlab.train.trainer import fit

SMALL = dict(image=40, patch=8, dim=32, depth=3, heads=4)  # 25 patches: 18, then 13 stay


def M(seed=1, **more):
    torch.manual_seed(seed)
    return stir(
        MAE(
            **{
                **dict(
                    image=40,
                    patch=8,
                    dim=32,
                    depth=3,
                    heads=4,
                    decoder_dim=16,
                    decoder_depth=1,
                    decoder_heads=2,
                ),
                **more,
            }
        ),
        0.3,
    )


def C(seed=2, **more):
    torch.manual_seed(seed)
    return stir(ViTTeacher(**{**dict(image=40, patch=8, dim=24, depth=2, heads=2, classes=4), **more}))


def make(**more):
    torch.manual_seed(0)
    return stir(HybridDistillation(**{**SMALL, **dict(masked=M(), teacher=C()), **more}))


@pytest.fixture(scope='module')
def r():
    return make()


@pytest.fixture(scope='module')
def batch():
    return dict(image=torch.rand(3, 3, 40, 40, generator=g(1)))


def steps(r, batch, mask=None, generator=None):
    "Places that are held before each block."
    u = r.units(batch)
    return [
        [
            set(p[~q].tolist()) if pad is not None else set(p.tolist())
            for p, q in zip(at, pad if pad is not None else at)
        ]
        for _, at, pad in r.encode(u, r.drops(u, mask, generator, 1.0))[:-1]
    ]


# 1. rows sum to 1


@pytest.mark.parametrize('dropped', [False, True])
def test_rows_of_relations_sum_to_one_also_after_dropping(dropped, r, batch):
    at = torch.tensor([[0, 3, 5, 9], [0, 1, 2, 25], [0, 7, 8, 9]]) if dropped else None
    u = r.units(batch)
    x = r.encode(u)[1].x
    inputs = r.masked.inputs(batch['image'], 1)
    ours, theirs = (
        relations(r.encoder.blocks[1], x, at).exp(),
        relations(r.masked.blocks[1], inputs[1], at).exp(),
    )
    n = 4 if dropped else 26
    assert ours.shape == theirs.shape == (2, 3, 4, n, n)
    for w in (ours, theirs):
        assert_close(w.sum(-1), torch.ones(2, 3, 4, n))


def test_nobody_relates_to_padding(r):
    x, pad = torch.randn(2, 5, 32), torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    w = relations(r.encoder.blocks[0], x, pad=pad)
    assert_close(w[:, 1, :, :3, :3], relations(r.encoder.blocks[0], x[1:, :3])[:, 0], rtol=1e-4, atol=1e-5)
    assert divergence(w, w)[:, 1].abs().max() == 0


# 2. the student that is M


def test_a_student_that_is_its_teacher_loses_nothing_in_relations(batch):
    m = M()
    r = make(masked=m)
    assert float(r(batch).terms['relations']) > 1e-3
    r.encoder.load_state_dict(m.encoder.state_dict())
    assert abs(float(r(batch).terms['relations'])) < 1e-6
    mask = Random(0.5)(r.units(batch), generator=g())
    assert abs(float(r(batch, mask=mask).terms['relations'])) < 1e-6


def test_divergence_is_never_below_zero():
    a, b = torch.randn(2, 500, 7, 7, generator=g()).log_softmax(-1)
    assert divergence(a, b).min() >= -1e-6 and torch.equal(divergence(a, a), torch.zeros(500, 7))
    assert_close(
        divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()),
        torch.tensor([0.5 * math.log(4 / 3)]),
    )


# 3. geometry, not axes


def test_relations_do_not_change_when_a_head_is_turned():
    torch.manual_seed(0)
    block, x = PreNorm(32, 4).eval(), torch.randn(2, 6, 32)
    before = relations(block, x)
    turn = lambda: torch.linalg.qr(torch.randn(8, 8))[0]
    qk, v = torch.block_diag(*(turn() for _ in range(4))), torch.block_diag(*(turn() for _ in range(4)))
    with torch.no_grad():
        w, b = block.attn.qkv.weight, block.attn.qkv.bias
        for part, T in ((0, qk), (1, qk), (2, v)):
            rows = slice(32 * part, 32 * part + 32)
            w[rows] = T @ w[rows]
            b[rows] = T @ b[rows]
    assert_close(relations(block, x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('key_bias', [True, False, None])
def test_relations_by_queries_and_keys_are_the_blocks_own_attention(key_bias):
    "Whatever biases it has: BEiT's and CAE's blocks keep those of queries and values apart."
    torch.manual_seed(0)
    block, x = stir(PreNorm(32, 4, key_bias=key_bias), 0.3), torch.randn(2, 6, 32)
    with watched(block) as weights:
        block(x)
    assert_close(relations(block, x)[0].exp(), weights[0], atol=1e-6, rtol=0)


def test_a_cae_can_be_the_teacher_of_relations(batch):
    torch.manual_seed(0)
    cae = stir(CAE(**SMALL, regressor_depth=1, decoder_depth=1, tokenizer=None, words=8), 0.3)
    assert cae.encoder.blocks[0].attn.key_bias is False
    out = make(masked=cae)(batch)
    for block in cae.encoder.blocks:  # a bias of all queries or values changes who is like whom
        torch.nn.init.zeros_(block.attn.q_bias)
    assert abs(float(make(masked=cae)(batch).terms['relations'] - out.terms['relations'])) > 1e-4


# 4. who is listened to


def test_alpha_zero_does_not_hear_m_and_beta_zero_does_not_hear_c(batch):
    a, b = make(alpha=0.0), make(alpha=0.0, masked=M(7))
    assert torch.equal(a(batch).loss, b(batch).loss) and list(a(batch).terms) == ['features']
    a, b = make(beta=0.0), make(beta=0.0, teacher=C(7))
    assert torch.equal(a(batch).loss, b(batch).loss) and list(a(batch).terms) == ['relations']
    a(batch).loss.backward()
    assert a.head.weight.grad is None and a.encoder.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert make(alpha=0.0, beta=0.0)(batch).loss.item() == 0


def test_both_are_heard_with_weight_one(r, batch):
    out = r(batch)
    assert_close(out.loss, out.terms['relations'] + out.terms['features'])
    assert_close(make(alpha=3.0)(batch).terms['relations'], 3 * out.terms['relations'])


# 5. counts


@pytest.mark.parametrize(
    'side, depth, lengths',
    [(14, 12, [196] * 4 + [138] * 4 + [98] * 4), (8, 6, [64] * 2 + [45] * 2 + [32] * 2)],
)
def test_tokens_before_each_block(side, depth, lengths):
    deep = dict(image=8 * side, dim=16, heads=2, depth=depth)
    r = make(**deep, masked=M(**deep), teacher=C(image=8 * side))
    held = steps(r, dict(image=torch.rand(2, 3, 8 * side, 8 * side, generator=g())))
    assert [[len(s) - 1 for s in row] for row in held] == [[n, n] for n in lengths]


def test_later_sets_lie_inside_earlier_ones_and_the_class_token_stays(r, batch):
    held = steps(r, batch)
    for earlier, later in zip(held, held[1:]):
        for a, b in zip(earlier, later):
            assert b <= a and 0 in b
    assert [len(row[0]) - 1 for row in held] == [25, 18, 13]  # ceil(.7 * 25), ceil(.5 * 25)


# 6. who goes first


def test_twins_go_first():
    x = torch.eye(8)[None].clone()
    x[0, 5] = x[0, 2]
    score = redundancy(x, torch.zeros(1, 8, dtype=torch.bool))
    assert score.argsort(descending=True)[0, :2].sort()[0].tolist() == [2, 5]
    assert_close(score[0, 2], torch.tensor(1 / 7))
    gone = torch.zeros(1, 8, dtype=torch.bool)
    gone[0, 5] = True
    assert_close(redundancy(x, gone)[~gone], torch.zeros(7))  # its twin has left: it is as odd as the rest


def test_the_most_alike_go_first_in_a_forward(r, batch):
    x = r.encode(r.units(batch))[1].x[:, 1:]
    alike = F.cosine_similarity(x[:, :, None], x[:, None], dim=-1).mean(-1)
    for score, held in zip(alike, steps(r, batch)[1]):
        stay = torch.tensor([p in held for p in range(1, 26)])
        assert score[~stay].min() > score[stay].max()


def test_all_alike_goes_by_index(r):
    out = r(dict(image=torch.full((2, 3, 40, 40), 0.5)))  # positions still differ
    assert out.loss.isfinite()
    u = r.units(dict(image=torch.zeros(2, 3, 40, 40)))
    first, last = (pick(torch.ones(2, 25)) for _, pick in r.drops(u, None, None, 1.0))
    assert first[0].nonzero()[:, 0].tolist() == list(range(7)) and last[0].nonzero()[:, 0].tolist() == list(
        range(12)
    )
    assert not redundancy(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool)).isnan().any()


def test_no_gradient_through_the_choice():
    x = torch.randn(1, 5, 4, requires_grad=True)
    assert not redundancy(x, torch.zeros(1, 5, dtype=torch.bool)).requires_grad


# 7. teachers


def test_teachers_see_everything_and_learn_nothing(batch):
    r = make().train()
    seen = []
    for t in (r.masked, r.teacher):
        t.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    a = r(batch)
    r(batch, mask=r.units(batch).none())
    assert set(seen) == {26}
    a.loss.backward()
    for t in (r.masked, r.teacher):
        assert all(p.grad is None for p in t.net.parameters()) and not t.net.training
    assert not [k for k in r.state_dict() if k.startswith(('masked', 'teacher'))]


def test_what_teachers_say_does_not_depend_on_the_choice(r, batch):
    whole = aim(r.teacher, batch['image'], torch.arange(26).expand(3, -1))
    out = r(batch)
    assert torch.equal(out.target, whole[:, 1:][~out.mask.flatten(1)])
    assert_close(out.target.mean(-1), torch.zeros(39), atol=1e-5, rtol=0)


# 8. diagnostics


def test_nmi_at_its_ends():
    assert nmi(torch.full((9, 9), 1 / 9)) < 1e-6
    assert_close(nmi(torch.eye(9)), torch.tensor(1.0))
    one = torch.zeros(9, 9)
    one[:, 3] = 1
    assert nmi(one) == 0
    assert 0 < nmi(torch.rand(9, 9, generator=g()).mul(5).softmax(-1)) < 1


def test_head_distance_in_patches():
    right = torch.eye(9).roll(1, 1)
    right[2], right[5], right[8] = torch.eye(9)[2], torch.eye(9)[5], torch.eye(9)[8]
    assert_close(head_distance(right, (3, 3)), torch.tensor(6 / 9))
    assert head_distance(torch.stack([torch.eye(4)] * 3), (2, 2)).tolist() == [0, 0, 0]


def test_diagnose_looks_at_patches(r, batch):
    for net in (r, r.masked.net.net, r.teacher.net.net):
        found = diagnose(net, batch)
        assert found['nmi'].shape == found['distance'].shape and found['nmi'].shape[0] == len(
            net.encoder.blocks
        )
        assert (found['nmi'] >= 0).all() and (found['distance'] > 0).all()


# all of it, from the weights


def norm(x, n):
    return F.layer_norm(x, x.shape[-1:], n.weight, n.bias, 1e-6)


def put(x, linear):
    return x @ linear.weight.T + linear.bias


def tokens(net, image):
    "What goes into the first block, `[1 + N, D]`."
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    pixels = ((image - mean) / std).unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 3, 4, 0).reshape(-1, 192)
    return torch.cat([net.cls_token[0], put(pixels, net.patch_embed)]) + net.pos_embed[0]


def qkv(block, x):
    "Three times `[heads, n, channels]`."
    return [
        t.view(len(x), block.attn.heads, -1).transpose(0, 1)
        for t in put(norm(x, block.norm1), block.attn.qkv).chunk(3, -1)
    ]


def through(block, x):
    q, k, v = qkv(block, x)
    mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    x = x + put(mixed.transpose(0, 1).flatten(1), block.attn.proj)
    return x + put(F.gelu(put(norm(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)


def by_hand(r, image):
    "For one picture and four blocks: relations, features, and the places that stay."
    masked, teacher = r.masked.net.net.encoder, r.teacher.net.net.encoder
    s, m, c = (tokens(net, image) for net in (r.encoder, masked, teacher))
    at, far = list(range(26)), 0.0
    for i, (ours, theirs) in enumerate(zip(r.encoder.blocks, masked.blocks)):
        if i in (1, 2):  # after D // 3 and 2 * D // 3 blocks, and D - 3 and D - 2
            cosine = [F.cosine_similarity(s[1:], x, dim=-1).sum().item() for x in s[1:]]
            stay = sorted(sorted(range(len(s) - 1), key=cosine.__getitem__)[: {1: 18, 2: 13}[i]])
            s, at = s[[0] + [j + 1 for j in stay]], [0] + [at[j + 1] for j in stay]
            (q, k, v), (Q, K, V) = qkv(ours, s), [t[:, at] for t in qkv(theirs, m)]
            for a, b, A, B in ((q, k, Q, K), (v, v, V, V)):
                have, want = ((x @ y.mT / math.sqrt(8)).softmax(-1) for x, y in ((a, b), (A, B)))
                far = far + (want * (want / have).log()).sum(-1).mean()
        s, m = through(ours, s), through(theirs, m)
    for block in teacher.blocks:
        c = through(block, c)
    white = (c - c.mean(-1, keepdim=True)) / (c.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    d = (put(s, r.head) - white[at]).abs()
    return far, torch.where(d < 1, d**2 / 2, d - 0.5).mean(), at


def test_the_whole_loss_by_hand(batch):
    r = make(depth=4, masked=M(depth=4), alpha=2.0, beta=0.5)
    out = r(batch)
    far, features, places = zip(*(by_hand(r, image) for image in batch['image']))
    assert [[0] + [p + 1 for p in (~m).flatten().nonzero()[:, 0].tolist()] for m in out.mask] == list(places)
    assert_close(out.terms['relations'], 2 * sum(far) / 3, rtol=1e-4, atol=1e-5)
    assert_close(out.terms['features'], 0.5 * sum(features) / 3, rtol=1e-4, atol=1e-5)
    assert_close(out.loss, out.terms['relations'] + out.terms['features'])


@pytest.mark.parametrize(
    'depth, compare, blocks',
    [
        (3, 'before the last', [0, 1]),
        (4, 'before the last', [1, 2]),
        (12, 'before the last', [9, 10]),
        (4, 'last', [3]),
        (4, 'all', [0, 1, 2, 3]),
    ],
)
def test_which_blocks_are_compared(depth, compare, blocks):
    assert make(depth=depth, masked=M(depth=depth), compare=compare).compared == blocks


# what a mask means here


def test_the_mask_is_what_was_dropped_and_can_be_given_back(r, batch):
    out = r(batch, generator=g())
    assert (
        (out.mask.flatten(1).sum(1) == 12).all() and torch.equal(out.kept, out.mask) and not out.secret.any()
    )
    assert torch.equal(out.scored, ~out.mask)
    again = r(batch, mask=out.mask)
    assert torch.equal(again.pred, out.pred) and torch.equal(again.loss, out.loss)
    held = [{p - 1 for p in s if p} for s in steps(r, batch)[-1]]
    assert [set((~m).flatten().nonzero()[:, 0].tolist()) for m in out.mask] == held


def test_a_painted_mask_says_which_and_the_student_when(r, batch):
    mask = torch.zeros(3, 5, 5, dtype=torch.bool)
    mask[1, 0] = mask[2] = True  # nothing, a row, everything
    out = r(batch, mask=mask)
    assert torch.equal(out.mask, mask) and out.loss.isfinite() and out.error[2].isnan().all()
    assert [[len(s) - 1 for s in row] for row in steps(r, batch, mask)] == [
        [25] * 3,
        [25, 20, 18],
        [25, 20, 0],
    ]
    alone = r({'image': batch['image'][1:2]}, mask=mask[1:2])
    assert_close(out.pred[25:], alone.pred, rtol=1e-4, atol=1e-5)
    assert_close(make(strategy=Random(0.4))(batch, generator=g()).mask.float().mean(), torch.tensor(0.4))


def test_the_share_can_be_set(r, batch):
    wanted = Guided('redundancy', 0.2, law='floor hidden', draws='hidden', lottery=False)
    assert (r(batch, mask=wanted).mask.flatten(1).sum(1) == 5).all()


def test_attention_keeps_the_last_row_of_what_was_dropped(r, batch):
    mask = r(batch).mask
    w, q, k = r.attention(batch, mask)
    assert w.shape == (3, 3, 4, 26, 26) and torch.equal(q, k)
    assert_close(w.sum(-1), torch.ones(3, 3, 4, 26))
    dead = (torch.nn.functional.pad(mask.flatten(1), (1, 0)))[0]
    assert (w[2, 0][:, ~dead][..., dead] == 0).all()  # nobody who is left looks at what is gone
    gone_first = sorted(set(range(26)) - steps(r, batch)[1][0])
    assert torch.equal(w[0, 0][:, gone_first], w[2, 0][:, gone_first])


def test_leaving_keeps_places_together():
    left = Left(torch.arange(6.0)[None, :, None], torch.arange(6)[None])
    for gone in ([1, 3], [0, 1, 3]):
        away = torch.zeros(1, 5, dtype=torch.bool)
        away[0, gone] = True
        left = leave(left, away)
        assert torch.equal(left.x[..., 0].long(), left.at) and left.pad is None
    assert left.at.tolist() == [[0, 3, 5]]


def test_without_dropping_nothing_is_gathered(batch, monkeypatch):
    r = make(strategy=Random(0.0))
    monkeypatch.setattr(module, 'redundancy', lambda x, gone: torch.rand(x.shape[:2]))
    assert r(batch, generator=g()).scored.all()


def test_training_moves_both_terms(batch):
    r = make()
    history = fit(r, iter([batch] * 20), 20, lr=5e-3, seed=0, weight_decay=0.0)
    assert all(history[-1][t] < 0.8 * history[0][t] for t in ('relations', 'features'))


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(heads=2), '3 blocks of 4 heads, the student 3 of 2'),
        (dict(depth=2), 'the student 2 of 4'),
        (dict(teacher=C(image=32)), '4 x 4 patches and the student at 5 x 5'),
        (dict(masked=M(image=32)), '4 x 4 patches'),
        (dict(compare='first'), "compare='first'"),
        (dict(first=2.0), 'first=2.0'),
        (dict(masked='dino'), "no teacher 'dino'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as told:
        make(**arguments)
    assert len(str(told.value)) <= 200


def test_save_and_load(tmp_path):
    r = ml.create_recipe('hybrid_distillation', size='micro')
    again = ml.load_pretrained(r.save_pretrained(tmp_path))
    assert again.config['masked'] == 'mae/micro/image/0' and again.strategy == r.strategy
