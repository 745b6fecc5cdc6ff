"""What comes from elsewhere: tokenizers, stages and checkpoints are read as they are, left as they were, and
asked about what they do not say.
"""
import json
import time

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import maskedlab as ml
from maskedlab.data.text import encode, load_text, pack, tokenizer


def by_letter(*more):
    "A tokenizer of single letters, which puts nothing around a text."
    letters = {c: i for i, c in enumerate(['?', *'abcdefgh', *more])}
    found = Tokenizer(models.WordLevel(letters, unk_token='?'))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


# tokenizers

def test_a_tokenizer_that_was_told_to_cut_and_pad_gives_whole_texts_and_stays_as_it_was():
    told = Tokenizer.from_str(tokenizer().to_str())
    told.enable_truncation(32, stride=3, direction='left')
    told.enable_padding(direction='left', pad_id=7, length=40)
    before, text = (told.truncation, told.padding), 'to be or not to be ' * 30
    assert torch.equal(encode(text, told)['ids'], encode(text)['ids'])
    assert (told.truncation, told.padding) == before


def test_an_earlier_call_of_transformers_cuts_nothing():
    from transformers import PreTrainedTokenizerFast
    inner = Tokenizer.from_str(tokenizer().to_str())
    theirs = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token='[PAD]')
    text = 'to be or not to be ' * 30
    theirs(text, truncation=True, max_length=16, padding='max_length')
    assert torch.equal(encode(text, theirs)['ids'], encode(text)['ids'])
    assert len(theirs(text, truncation=True, max_length=16)['input_ids']) == 16


def test_a_failed_reading_leaves_a_tokenizer_as_it_was():
    told = by_letter()
    told.enable_truncation(2)
    with pytest.raises(TypeError):
        encode(['a', 3], told)
    assert told.truncation['max_length'] == 2


def test_cutting_keeps_what_this_tokenizer_puts_around_a_text_and_no_more():
    assert encode('a b c d e f g h', by_letter(), length=4, cut=True)['ids'].tolist() == [[1, 2, 3, 4]]
    one = by_letter('<s>')
    from tokenizers.processors import TemplateProcessing
    one.post_processor = TemplateProcessing(single='$A <s>', special_tokens=[('<s>', 9)])
    cut = encode(['a b c d e f g h', 'a'], one, length=4, cut=True)
    assert cut['ids'].tolist() == [[1, 2, 3, 9], [1, 9, 0, 0]] and cut['valid'].sum(1).tolist() == [4, 2]
    with pytest.raises(ValueError, match='give 2 or more'):
        encode('a b', one, length=1, cut=True)


def test_what_a_tokenizer_does_not_read_is_told(tmp_path):
    with pytest.raises(ValueError, match="text 1, '.u200b.u200d', holds nothing"):
        encode(['a word', '\u200b\u200d'])
    (tmp_path / 'a.txt').write_text('\u200b\u200d\n\nA paragraph.\n\n\u2060', 'utf-8')
    with pytest.warns(UserWarning, match='2 of the paragraphs'):
        assert len(load_text(tmp_path / 'a.txt')['ids']) == 1


def test_long_texts_take_linear_time(tmp_path):
    def seconds(n):
        (tmp_path / 'a.txt').write_text('word ' * n, 'utf-8')
        start = time.perf_counter()
        encode('word ' * n)
        load_text(tmp_path / 'a.txt')
        return time.perf_counter() - start
    seconds(100)
    assert seconds(16000) < 2                       # quadratic: a minute
    many = [(list(range(40000)), list(range(40000)))]
    assert sum(len(i) for i, _ in pack(many, 10)) == 40000


# stages and teachers given as objects

def stages_of(r):
    "The frozen networks of a recipe."
    from maskedlab.targets.cycles import Frozen
    return [m for m in r.modules() if isinstance(m, Frozen)]


STANDING = [n for n in ml.list_recipes() if stages_of(ml.create_recipe(n, size='micro'))]


@pytest.mark.parametrize('name', STANDING)
def test_a_stage_given_as_an_object_is_frozen_and_stays_as_it_was(name):
    """The kit's own stages, as plain modules in training mode, in another dtype and with gradient."""
    import inspect

    import maskedlab.stages.shelf as shelf
    made = ml.create_recipe(name, size='micro')
    keys = {k: v for k, v in type(made).sizes['micro'].items() if isinstance(v, str) and v.count('/') == 3}
    assert keys and set(keys) <= set(inspect.signature(type(made)).parameters)
    given = {k: shelf.stage(v).net.train().requires_grad_(True).double() for k, v in keys.items()}
    torch.manual_seed(0)
    r = ml.create_recipe(name, size='micro', **given).train()
    assert len(stages_of(r)) == len(stages_of(made)) and set(r.state_dict()) == set(made.state_dict())
    assert {n for n, _ in r.named_parameters()} == {n for n, _ in made.named_parameters()}
    held = [{k: v.clone() for k, v in s.net.state_dict().items()} for s in stages_of(r)]
    b = ml.sample(r.card.modality.split()[0], n=2)
    r(b, generator=torch.Generator().manual_seed(0)).loss.backward()
    for s, before in zip(stages_of(r), held, strict=True):
        assert not any(m.training for m in s.net.modules())
        assert all(torch.equal(v, before[k]) for k, v in s.net.state_dict().items())
        assert all(p.grad is None and not p.requires_grad and p.dtype == torch.float32
                   for p in s.net.parameters())
    for net in given.values():
        assert all(m.training for m in net.modules())
        assert all(p.requires_grad and p.dtype == torch.float64 for p in net.parameters())


# checkpoints of text: ids of special pieces

# [MASK] is 4, [CLS] 10
WORDS = ['[PAD]', 'a', 'b', 'c', '[MASK]', 'd', 'e', '[UNK]', 'f', 'g', '[CLS]', '[SEP]']


def bert(folder, vocab=12, **more):
    "A random BERT of transformers, without a tokenizer."
    from transformers import BertConfig, BertForMaskedLM
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                 max_position_embeddings=24)
    BertForMaskedLM(BertConfig(vocab_size=vocab, **{**sizes, **more})).save_pretrained(folder)
    return folder


def edited(folder, **changes):
    "Its config.json changed; None takes a key away."
    file = folder / 'config.json'
    held = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))
    return folder


def whole():
    found = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token='[UNK]'))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.add_special_tokens(['[PAD]', '[MASK]', '[UNK]', '[CLS]', '[SEP]'])
    return found


def beside(folder, how):
    if how == 'vocab.txt':
        (folder / how).write_text('\n'.join(WORDS))
    elif how == 'tokenizer.json':
        whole().save(str(folder / how))
    elif how == 'added_tokens_decoder':
        named = {str(i): {'content': w} for i, w in enumerate(WORDS) if w[0] == '['}
        config = {'mask_token': {'content': '[MASK]'}, 'cls_token': '[CLS]', how: named}
        (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    else:
        from transformers import BertTokenizerFast
        (folder / 'vocab.txt').write_text('\n'.join(WORDS))
        made = BertTokenizerFast(str(folder / 'vocab.txt'))
        (folder / 'vocab.txt').unlink()
        made.save_pretrained(folder)


@pytest.mark.parametrize('how', ['vocab.txt', 'tokenizer.json', 'added_tokens_decoder', 'transformers'])
def test_ids_come_from_the_tokenizer_that_lies_beside_the_weights(tmp_path, how):
    beside(bert(tmp_path), how)
    r = ml.load_pretrained(tmp_path)
    assert (r.cut.mask_id, sorted(r.cut.special.tolist())) == (4, [0, 4, 10, 11])
    u = r.units(dict(ids=torch.tensor([[10, 1, 2, 11]])))
    assert u.free.tolist() == [[False, True, True, False]]
    assert ml.load_pretrained(tmp_path, mask_id=7).cut.mask_id == 7 if how == 'vocab.txt' else True


@pytest.mark.parametrize('vocab', [12, 28996, 30522])
def test_ids_are_asked_for_where_nothing_says_them(tmp_path, vocab):
    bert(tmp_path, vocab)
    for given in ({}, dict(mask_id=4), dict(special=(0, 4))):
        with pytest.raises(ValueError, match='give mask_id= and special= to load_pretrained') as e:
            ml.load_pretrained(tmp_path, **given)
        assert len(str(e.value)) <= 200
    assert ml.load_pretrained(tmp_path, mask_id=4, special=(0, 4)).cut.mask_id == 4


def test_a_tokenizer_of_another_network_is_refused(tmp_path):
    beside(bert(tmp_path, vocab=8), 'tokenizer.json')
    with pytest.raises(ValueError, match='names piece 11, and this BERT has 8'):
        ml.load_pretrained(tmp_path)
    r = ml.create_recipe('bert_mlm', size='micro')
    with pytest.raises(ValueError, match='mask_id=4'):
        r.tokenizer = by_letter('[MASK]')
    with pytest.raises(TypeError, match='knows no words'):
        r.tokenizer = 'bert-base-uncased'


@pytest.mark.parametrize('layout', ['maskedlab', 'transformers'])
def test_a_recipe_carries_its_tokenizer_and_saves_it(tmp_path, layout):
    (tmp_path / 'a').mkdir()
    beside(bert(tmp_path / 'a'), 'tokenizer.json')
    r = ml.load_pretrained(tmp_path / 'a')
    again = ml.load_pretrained(r.save_pretrained(tmp_path / 'b', layout=layout))
    assert again.tokenizer.to_str() == r.tokenizer.to_str() == whole().to_str()
    assert (again.cut.mask_id, again.cut.special.tolist()) == (r.cut.mask_id, r.cut.special.tolist())


def test_without_a_tokenizer_the_layout_of_transformers_still_says_the_ids(tmp_path):
    r = ml.create_recipe('bert_mlm', size='micro', position='learned', mask_id=7, special=(5, 7))
    again = ml.load_pretrained(r.save_pretrained(tmp_path, layout='transformers'))
    assert (again.cut.mask_id, again.cut.special.tolist()) == (7, [5, 7])


def test_one_tokenizer_serves_both_folders_of_electra(tmp_path):
    from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining
    sizes = dict(vocab_size=12, embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                 intermediate_size=64, max_position_embeddings=24)
    judge, author = ElectraForPreTraining(ElectraConfig(**sizes)), ElectraForMaskedLM(ElectraConfig(**sizes))
    author.electra.embeddings.load_state_dict(judge.electra.embeddings.state_dict())
    judge.save_pretrained(tmp_path / 'd')
    author.save_pretrained(tmp_path / 'g')
    beside(tmp_path / 'g', 'tokenizer.json')
    for order in ('dg', 'gd'):
        assert ml.load_pretrained([tmp_path / k for k in order]).cut.mask_id == 4


def test_a_vocabulary_that_does_not_fit_the_data_is_refused(tmp_path):
    (tmp_path / 'a.txt').write_text('a b c d e f g\n\nb c d e f')
    for data in ('text', tmp_path / 'a.txt'):
        with pytest.raises(ValueError, match='30522 pieces and mask_id=103') as e:
            ml.Trainer('bert_mlm', data, size='small', steps=1)
        assert len(str(e.value)) <= 200
    r = ml.create_recipe('bert_mlm', dim=16, depth=1, heads=2, vocab=12, mask_id=4, special=(0, 4, 10, 11))
    r.tokenizer = whole()
    t = ml.Trainer(r, tmp_path / 'a.txt', steps=1, batch=2, show=False)
    assert int(t.source.batch(range(2))['ids'].max()) < 12
    with pytest.raises(ValueError, match='12 pieces'):
        ml.Trainer(r, 'text', steps=1)


# checkpoints: what is not said is asked for

@pytest.mark.parametrize(('key', 'argument', 'value'), [('num_attention_heads', 'heads', 2),
                                                        ('layer_norm_eps', 'eps', 1e-12)])
def test_a_key_that_config_json_lacks_is_asked_for(tmp_path, key, argument, value):
    edited(bert(tmp_path), **{key: None})
    ids = dict(mask_id=4, special=())
    with pytest.raises(ValueError, match=f'does not say its {key}; give {argument}='):
        ml.load_pretrained(tmp_path, **ids)
    ml.load_pretrained(tmp_path, **ids, **{argument: value})


@pytest.mark.parametrize('changes', [
    dict(hidden_act=None), dict(hidden_act='relu'), dict(hidden_act='gelu_new'),
    dict(position_embedding_type='relative_key')])
def test_another_activation_or_position_is_refused(tmp_path, changes):
    edited(bert(tmp_path), **changes)
    with pytest.raises(ValueError, match=next(iter(changes))) as e:
        ml.load_pretrained(tmp_path, mask_id=4, special=())
    assert len(str(e.value)) <= 200


SMALL = dict(image=32, patch=8, dim=32, depth=2, heads=4)
ASKS = {('mae', 'transformers'): dict(decoder_dim=16, decoder_depth=1, decoder_heads=2),
        ('beit', 'transformers'): dict(tokenizer=None, words=12)}


@pytest.mark.parametrize(('name', 'layout'), ASKS)
def test_colours_come_from_the_processor_as_it_treats_bytes(tmp_path, name, layout):
    r = ml.create_recipe(name, **SMALL, **ASKS[name, layout], mean=(.1, .2, .3), std=(.4, .5, .6)).eval()
    r.save_pretrained(tmp_path, layout=layout)
    b, read = dict(image=torch.rand(2, 3, 32, 32)), lambda: ml.load_pretrained(tmp_path)
    assert torch.allclose(read().features(b), r.features(b), atol=1e-5)
    file = tmp_path / 'preprocessor_config.json'
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, 'do_normalize': False}))
    assert read().cut.colours.mean.tolist() == [0] * 3 and read().cut.colours.std.tolist() == [1] * 3
    file.write_text(json.dumps({**said, 'rescale_factor': 1 / 127.5,
                                'image_mean': [1.] * 3, 'image_std': [1.] * 3}))
    assert read().cut.colours.mean.tolist() == [.5] * 3 and read().cut.colours.std.tolist() == [.5] * 3
    file.unlink()
    with pytest.raises(ValueError, match='give mean= and std='):
        read()


@pytest.mark.parametrize(('name', 'more', 'words'), [
    ('mae', dict(decoder_dim=16, decoder_depth=1, decoder_heads=2), ['heads', 'decoder_heads']),
    ('cae', dict(tokenizer=None, words=12, regressor_depth=1, decoder_depth=1), ['heads']),
    ('point_mae', None, ['heads', 'decoder_heads'])])
def test_heads_of_an_original_file_are_asked_for(tmp_path, name, more, words):
    "Also where the width is that of a published network, whose heads a guess would take."
    r = ml.create_recipe(name, **({**SMALL, **more, 'dim': 768} if more else dict(dim=384, depth=1, heads=4,
                                                                                 decoder_heads=4)))
    folder = r.save_pretrained(tmp_path, layout='original') if name != 'cae' else None
    if folder is None:
        from maskedlab.formats.cae import FORMATS, NAMES
        weights = FORMATS[0].write(r, NAMES.theirs(r.state_dict(), r))['cae.pth']
        torch.save(weights, tmp_path / 'cae.pth')
    for i, word in enumerate(words):
        with pytest.raises(ValueError, match=f'give {word}='):
            ml.load_pretrained(tmp_path, **dict.fromkeys(words[:i], 4))


def test_positions_of_oblong_pictures_are_no_square(tmp_path):
    r = ml.create_recipe('mae', image=(16, 64), patch=8, dim=32, depth=1, heads=4, decoder_dim=16,
                         decoder_depth=1, decoder_heads=2)
    again = ml.load_pretrained(r.save_pretrained(tmp_path, layout='original'), heads=4, decoder_heads=2)
    assert again.encoder.grid == (2, 8)               # 16 patches, and not 4 x 4


# checkpoints for pictures of another size

IMAGES = ['mae', 'simmim', 'beit', 'cae', 'mfm', 'maskalign', 'hybrid_distillation', 'seitpp', 'mto',
          'hard_patches_mining']


@pytest.mark.parametrize('name', IMAGES)
def test_larger_pictures_resize_what_is_held_by_place(tmp_path, name):
    torch.manual_seed(0)
    r = ml.create_recipe(name, size='micro').eval()
    folder, b = r.save_pretrained(tmp_path), dict(image=torch.rand(1, 3, 128, 128))
    try:
        again = ml.load_pretrained(folder, image=128)
    except ValueError as error:                 # a teacher that looks at fewer patches
        assert 'teacher looks at' in str(error) and name in ('maskalign', 'hybrid_distillation')
        return
    assert again.config['image'] == 128 and torch.isfinite(again.features(b)).all()
    if name not in ('simmim', 'beit', 'mto'):          # they take other sizes as they come: the same numbers
        assert torch.allclose(again.features(b), r.features(b), atol=1e-5)
    twice = ml.load_pretrained(again.save_pretrained(tmp_path / 'b'))
    assert torch.equal(twice.features(b), again.features(b))


@pytest.mark.parametrize('name', ['simmim', 'beit'])
def test_a_bias_table_of_another_size(tmp_path, name):
    r = ml.create_recipe(name, size='micro').eval()
    offsets = torch.cartesian_prod(torch.arange(-7., 8), torch.arange(-7., 8))
    r.encoder.rel_pos_bias.table.data[:-3] = (-offsets.square().sum(1) / 8).exp()[:, None]     # what is near
    folder = r.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='larger than the 8 x 8'):
        r.features(dict(image=torch.rand(1, 3, 128, 128)))
    wide, small = (ml.load_pretrained(folder, image=n) for n in (128, 32))
    b = dict(image=torch.rand(1, 3, 32, 32))
    assert torch.equal(small.features(b), r.features(b))        # a smaller one is the middle of the table
    near = lambda r, n: r.encoder.rel_pos_bias((n, n))[0, :, 1, 1:4]
    assert torch.allclose(near(wide, 16), near(r, 8), atol=.08)
    assert torch.equal(wide.encoder.rel_pos_bias.table[-3:], r.encoder.rel_pos_bias.table[-3:])


def test_a_table_is_stretched_as_by_the_code_of_its_authors():
    "Offsets of 14 patches among those of 24: a geometric series of places, and a bicubic spline between."
    from scipy.interpolate import RectBivariateSpline

    from maskedlab.parts.positions import RelativeBias
    old, new = RelativeBias((14, 14), 2), RelativeBias((24, 24), 2)
    torch.nn.init.normal_(old.table)
    low, high = 1.01, 1.5
    while high - low > 1e-12:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q ** 13) / (1 - q) > 23 else (q, high)
    far = [sum(q ** k for k in range(n + 1)) for n in range(13)]
    nodes, at = [-x for x in far[::-1]] + [0.] + far, list(range(-23, 24))
    table = new.places_of(old)['table']
    for head in range(2):
        z = old.table.detach()[:-3, head].view(27, 27).double().numpy()
        wanted = torch.tensor(RectBivariateSpline(nodes, nodes, z, kx=3, ky=3)(at, at))
        assert torch.allclose(table[:-3, head].view(47, 47).double(), wanted, atol=1e-4)


# Point-BERT's released file

def test_point_berts_released_file(tmp_path):
    """Names as in the code of its authors, and the words of a cloud by its own formulas: features of
    neighbours less one's own beside one's own, a convolution, a group norm, the largest."""
    import torch.nn.functional as F

    from maskedlab.stages.point_dvae import PointDVAE
    torch.manual_seed(0)
    words = PointDVAE(groups=16, words=32, code=16, pointnet=(16, 32, 64), width=32, edges=(32,) * 4,
                      first=16, hidden=32, fine=32)
    r = ml.create_recipe('point_bert', groups=16, dim=32, depth=2, heads=4, contrast_dim=16, queue=64,
                         drop_path=0., tokenizer=words).eval()
    torch.nn.init.normal_(r.mixing.queue)
    r.mixing.place.fill_(24)
    folder = r.save_pretrained(tmp_path, layout='original')
    w = torch.load(folder / 'Point-BERT.pth', weights_only=True)['base_model']
    w = {k.removeprefix('module.'): v for k, v in w.items()}
    shapes = {'transformer_q.encoder.first_conv.0.weight': (16, 3, 1),
              'transformer_k.lm_head.weight': (32, 32),
              'transformer_q.blocks.blocks.1.attn.qkv.weight': (96, 32), 'transformer_q.cls_pos': (1, 1, 32),
              'transformer_q.cls_head.2.bias': (16,), 'transformer_k.reduce_dim.weight': (32, 32),
              'transformer_q.pos_embed.2.weight': (32, 128), 'transformer_k.norm.bias': (32,),
              'dvae.encoder.second_conv.1.running_var': (64,), 'dvae.dgcnn_1.input_trans.weight': (16, 32, 1),
              'dvae.dgcnn_1.layer1.0.weight': (32, 32, 1, 1), 'dvae.dgcnn_2.layer4.1.bias': (32,),
              'dvae.dgcnn_1.layer5.0.weight': (32, 128, 1), 'dvae.codebook': (32, 16),
              'dvae.decoder.mlp.4.weight': (24, 32), 'dvae.decoder.final_conv.6.weight': (3, 32, 1),
              'queue': (16, 64), 'queue_ptr': (1,)}
    assert {k: tuple(w[k].shape) for k in shapes} == shapes
    with pytest.raises(ValueError, match='give heads='):
        ml.load_pretrained(folder)
    again = ml.load_pretrained(folder, groups=16, heads=4, drop_path=0.)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in r.state_dict().items())
    b, g = ml.sample('points', n=3), lambda: torch.Generator().manual_seed(1)
    with torch.no_grad():
        for mode in (True, False):
            a, c = (net.train(mode)(b, generator=g()) for net in (r, again))
            assert a.terms.keys() == c.terms.keys() and torch.equal(a.loss, c.loss)
        u = r.eval().units(b)
        f = F.conv1d(again.tokenizer.embed(u.x).mT, w['dvae.dgcnn_1.input_trans.weight'],
                     w['dvae.dgcnn_1.input_trans.bias'])
        near, seen = torch.cdist(u.pos, u.pos).topk(4, largest=False).indices, []
        for n in range(1, 5):
            x = f.mT[torch.arange(3)[:, None, None], near].permute(0, 3, 1, 2)               # [B, C, G, 4]
            own = f[..., None].expand_as(x)
            x = F.conv2d(torch.cat([x - own, own], 1), w[f'dvae.dgcnn_1.layer{n}.0.weight'])
            norm = [w[f'dvae.dgcnn_1.layer{n}.1.{p}'] for p in ('weight', 'bias')]
            seen.append(f := F.leaky_relu(F.group_norm(x, 4, *norm), .2).amax(-1))
        x = F.conv1d(torch.cat(seen, 1), w['dvae.dgcnn_1.layer5.0.weight'])
        norm = [w[f'dvae.dgcnn_1.layer5.1.{p}'] for p in ('weight', 'bias')]
        logits = F.leaky_relu(F.group_norm(x, 4, *norm), .2)
        assert torch.allclose(logits.mT, again.tokenizer.logits(u), atol=1e-4)
