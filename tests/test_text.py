"""Text: the unpadded encoder, BERT's masks and shares, its checkpoints, and bad input."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

import maskedlab as ml
from maskedlab.data.batches import batches
from maskedlab.data.text import encode
from maskedlab.masks.words import Tokens, WholeWords, WordSpans


IDS = dict(mask_id=4, special=(0, 2, 3, 4))      # what a folder without a tokenizer does not say


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope='module')
def r():
    torch.manual_seed(0)
    return ml.create_recipe('bert_mlm').eval()


def test_padding_changes_no_number(r):
    b = ml.sample('text', n=6)
    with torch.no_grad():
        together = r.logits(b)
        for i in range(6):
            n = int(b['valid'][i].sum())
            alone = r.logits(dict(ids=b['ids'][i : i + 1, :n]))
            assert torch.allclose(together[i, :n], alone[0], atol=1e-4)


def test_shares_of_many_draws():
    r = ml.create_recipe('bert_mlm', dim=16, depth=1, heads=2)
    b = ml.sample('text', n=400)
    u = r.units(b)
    with torch.no_grad():
        outs = [r(b, mask=Tokens(.15), generator=gen(s)) for s in range(5)]
    chosen = sum(int(o.mask.sum()) for o in outs)
    token = sum(int((o.mask & (o.seen['ids'] == r.cut.mask_id)).sum()) for o in outs)
    kept = sum(int(o.kept.sum()) for o in outs)
    near = lambda n, p: abs(n / chosen - p) < 4 * (p * (1 - p) / chosen) ** 0.5 + 1e-3
    assert near(token, 0.8) and near(kept, 0.1)
    k = (0.15 * u.valid.sum(1)).round().clamp_min(1)
    assert all(torch.equal(o.mask.sum(1), k.long()) for o in outs)


def test_a_run_shares_its_fate():
    r = ml.create_recipe('bert_mlm', dim=16, depth=1, heads=2, fate='run', shares=(0.5, 0.5, 0),
                         strategy=WordSpans(0.3))
    b = ml.sample('text', n=50)
    out = r(b, generator=gen())
    inner = out.mask[:, 1:] & out.mask[:, :-1]
    assert inner.any() and torch.equal(out.kept[:, 1:][inner], out.kept[:, :-1][inner])


def test_a_word_is_hidden_whole_or_not_at_all(r):
    b = ml.sample('text', n=32)
    m = WholeWords(0.2)(r.units(b), generator=gen())
    for row, word in zip(m, b['word']):
        assert all(row[word == w].unique().numel() == 1 for w in word.unique() if w >= 0)


def test_only_chosen_logits_have_a_gradient(r):
    b = ml.sample('text', n=4)
    out = r(b, generator=gen())
    grad = torch.autograd.grad(out.loss, out.pred)[0]
    assert len(grad) == int(out.mask.sum()) and (grad.abs().sum(1) > 0).all()


def test_the_boundary_reads_the_edges_alone():
    torch.manual_seed(0)
    r = ml.create_recipe('bert_mlm', dim=32, depth=1, heads=2, boundary=True, strategy=WordSpans(0.3)).eval()
    b = ml.sample('text', n=8)
    out = r(b, generator=gen())
    u = out.units
    h = torch.randn(*u.x.shape, 32)
    base = r.boundary(h, u.x, out.mask, u.valid, r.encoder.word.weight)
    moved = torch.where(out.mask[..., None], torch.randn_like(h), h)       # what lies inside a run
    assert torch.equal(base, r.boundary(moved, u.x, out.mask, u.valid, r.encoder.word.weight))
    assert out.terms['boundary'] > 0


def test_the_boundary_scores_runs_inside_the_text_alone():
    from maskedlab.recipes.text.bert_mlm import around
    r = ml.create_recipe('bert_mlm', dim=16, depth=1, heads=2, boundary=True)
    ids = torch.tensor([[2, 10, 11, 12, 13, 14, 15, 3, 0, 0]])
    u = r.units(dict(ids=ids, valid=ids > 0))
    chosen = lambda at: torch.zeros_like(u.valid).index_fill(1, torch.tensor(at), True)
    asked = lambda *at: {int(p) for p in around(chosen(at), r.cut.plain(u), 15)[1]}
    assert asked(1, 2) == asked(5, 6) == asked(*range(1, 7)) == set()      # beside [CLS], beside [SEP], all
    assert asked(1, 3, 4, 6) == {3, 4} and asked(2, 5) == {2, 5}


def random_bert():
    torch.manual_seed(1)
    theirs = BertForMaskedLM(BertConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2,
                                        num_attention_heads=3,
                                        intermediate_size=80, max_position_embeddings=32)).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return theirs


@pytest.mark.parametrize('padded', [False, True])
def test_transformers_gives_the_same_logits_both_ways(tmp_path, padded):
    theirs = random_bert()
    theirs.save_pretrained(tmp_path / 'a')
    ours = ml.load_pretrained(tmp_path / 'a', **IDS).eval()
    ids = torch.randint(5, 300, (6, 30))
    valid = torch.arange(30) < torch.tensor([30, 28, 17, 9, 4, 30])[:, None] if padded else torch.ones(
        6, 30, dtype=torch.bool)
    with torch.no_grad():
        a = theirs(input_ids=ids, attention_mask=valid.long()).logits
        assert (a - ours.logits(dict(ids=ids, valid=valid)))[valid].abs().max() < 1e-4
        ours.save_pretrained(tmp_path / 'b', layout='transformers')
        again = BertForMaskedLM.from_pretrained(tmp_path / 'b').eval()
        assert (again(input_ids=ids, attention_mask=valid.long()).logits - a)[valid].abs().max() < 1e-4


def test_a_missing_key_is_listed(tmp_path):
    theirs = random_bert()
    state = {k: v for k, v in theirs.state_dict().items() if 'layer.1.output.dense.weight' not in k}
    theirs.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match='missing'):
        ml.load_pretrained(tmp_path, **IDS)


@pytest.mark.parametrize(
    ('batch', 'words'),
    [
        (dict(ids=torch.tensor([[2, 3000, 3]])), 'piece 3000 does not exist'),
        (dict(ids=torch.tensor([[2, -1, 3]])), 'piece -1 does not exist'),
        (dict(ids=torch.ones(2, 4, dtype=torch.long), valid=torch.tensor([[True] * 4, [False] * 4])),
         'row 1 is all padding'),
        (dict(ids=torch.zeros(0, 4, dtype=torch.long)), 'at least one row'),
        (dict(ids=torch.rand(2, 4)), 'whole numbers'),
        (dict(image=torch.rand(1, 3, 8, 8)), "with 'ids'"),
    ],
)
def test_bad_batches_are_told_in_a_sentence(r, batch, words):
    with pytest.raises((ValueError, TypeError), match=words) as e:
        r(batch)
    assert len(str(e.value)) <= 200


def test_a_text_longer_than_the_positions():
    r = ml.create_recipe('bert_mlm', dim=16, depth=1, heads=2, length=8, position='learned')
    with pytest.raises(ValueError, match='longer than the 8'):
        r(ml.sample('text', n=2))


def test_an_empty_string():
    with pytest.raises(ValueError, match='text 1 is empty'):
        encode(['a word', ' '])


@pytest.mark.parametrize('shares', [(0.8, 0.1), (0.9, 0.2, 0.1), (-0.1, 0.6, 0.5), 'abc'])
def test_bad_shares(shares):
    with pytest.raises((ValueError, TypeError), match='shares='):
        ml.create_recipe('bert_mlm', shares=shares)


def test_electra_judges_every_real_piece_and_learns_from_both_losses():
    torch.manual_seed(0)
    r = ml.create_recipe('electra')
    b = ml.sample('text', n=8)
    out = r(b, generator=gen())
    fake = out.seen['ids']
    assert torch.equal(out.scored, b['valid'])
    assert torch.equal(fake[~out.mask], b['ids'][~out.mask])
    assert torch.equal(out.target.bool(), (fake != b['ids'])[b['valid']])
    history = ml.fit(r, batches('text', 8, length=32), steps=15, lr=2e-3, seed=0)
    assert history[-1]['generator'] < history[0]['generator'] and history[-1]['discriminator'] < history[0][
        'discriminator']


def test_electra_draws_with_replacement_fewer():
    from maskedlab.masks.words import Slots

    u = ml.create_recipe('electra').units(ml.sample('text', n=200))
    some, all_ = (Slots(0.15, replacement=w)(u, generator=gen()).sum() for w in (True, False))
    assert 0.85 * all_ < some < all_


def test_electra_saves_its_shared_table_once_loaded(tmp_path):
    torch.manual_seed(0)
    r = ml.create_recipe('electra').eval()
    r.save_pretrained(tmp_path)
    again = ml.load_pretrained(tmp_path).eval()
    assert again.generator.word is again.encoder.word
    b = ml.sample('text', n=2)
    assert torch.equal(r.logits(b), again.logits(b))


def random_pair():
    torch.manual_seed(2)
    sizes = dict(vocab_size=300, embedding_size=24, num_hidden_layers=2, max_position_embeddings=32)
    judge = ElectraForPreTraining(ElectraConfig(hidden_size=48, num_attention_heads=3, intermediate_size=192,
                                                **sizes)).eval()
    author = ElectraForMaskedLM(ElectraConfig(hidden_size=24, num_attention_heads=2, intermediate_size=96,
                                              **sizes)).eval()
    for p in [*judge.parameters(), *author.parameters()]:
        torch.nn.init.normal_(p, std=0.2)
    author.electra.embeddings.load_state_dict(judge.electra.embeddings.state_dict())
    return judge, author


@pytest.mark.parametrize('padded', [False, True])
def test_two_folders_of_transformers_fill_one_electra(tmp_path, padded):
    judge, author = random_pair()
    judge.save_pretrained(tmp_path / 'd')
    author.save_pretrained(tmp_path / 'g')
    r = ml.load_pretrained([tmp_path / 'g', tmp_path / 'd'], **IDS)
    r.save_pretrained(tmp_path / 'd2', layout='transformers')
    r.save_pretrained(tmp_path / 'g2', layout='transformers generator')
    pairs = [(judge, author), (ElectraForPreTraining.from_pretrained(tmp_path / 'd2').eval(),
                               ElectraForMaskedLM.from_pretrained(tmp_path / 'g2').eval())]
    ids = torch.randint(5, 300, (6, 30))
    valid = torch.arange(30) < torch.tensor([30, 28, 17, 9, 4, 30])[:, None] if padded else torch.ones(
        6, 30, dtype=torch.bool)
    b, theirs = dict(ids=ids, valid=valid), dict(input_ids=ids, attention_mask=valid.long())
    with torch.no_grad():
        for d, g in pairs:
            assert (d(**theirs).logits - r.logits(b))[valid].abs().max() < 1e-4
            assert (g(**theirs).logits - r.proposals(b))[valid].abs().max() < 1e-4


@pytest.mark.parametrize(('half', 'lacks', 'has'),
                         [('d', 'generator_head', 'verdict'), ('g', 'verdict', 'generator_head')])
def test_one_folder_alone_says_what_is_untrained(tmp_path, half, lacks, has):
    dict(zip('dg', random_pair()))[half].save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match='untrained') as said:
        r = ml.load_pretrained(tmp_path, **IDS)
    assert lacks in str(said[0].message) and has not in str(said[0].message)
    assert (r.encoder.dim, r.generator.dim) == ((48, 12) if half == 'd' else (96, 24))


def test_two_folders_that_are_no_pair(tmp_path):
    judge, author = random_pair()
    torch.nn.init.normal_(author.electra.embeddings.word_embeddings.weight)
    judge.save_pretrained(tmp_path / 'd')
    author.save_pretrained(tmp_path / 'g')
    with pytest.raises(ValueError, match='do not agree in encoder.word') as e:
        ml.load_pretrained([tmp_path / 'd', tmp_path / 'g'], **IDS)
    assert len(str(e.value)) <= 200
    random_bert().save_pretrained(tmp_path / 'b')
    with pytest.raises(ValueError, match='checkpoint of no recipe'):
        ml.load_pretrained([tmp_path / 'd', tmp_path / 'b'], **IDS)


def test_bad_position_and_specials_of_a_checkpoint():
    r = ml.create_recipe('electra')
    with pytest.raises(ValueError, match='learned positions'):
        r.save_pretrained('never', layout='transformers')
