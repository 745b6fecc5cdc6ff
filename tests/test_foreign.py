"""What comes from elsewhere: tokenizers, stages and checkpoints are read as they are, left as they were, and
asked about what they do not say.
"""
import time

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import maskedlab as ml
from maskedlab.data.text import encode, load_text, pack, tokenizer


def by_letter(*more):
    "A tokenizer of single letters, which puts nothing around a text."
    found = Tokenizer(models.WordLevel({c: i for i, c in enumerate(['?', *'abcdefgh', *more])}, unk_token='?'))
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
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer().to_str()), pad_token='[PAD]')
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
    keys = {k: v for k, v in {**type(made).sizes['micro']}.items() if isinstance(v, str) and v.count('/') == 3}
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
