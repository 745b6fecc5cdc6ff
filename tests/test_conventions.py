"""The converters of masks against the libraries that they are for."""
import pytest
import torch

import maskedlab as ml
from maskedlab.masks.conventions import (
    CONVENTIONS,
    from_keep,
    from_labels,
    from_noise,
    from_removed,
    to_keep,
    to_labels,
    to_noise,
    to_removed,
    to_visible,
)


def masks(shape=(4, 4), batch=3, ratio=.75, seed=0):
    return ml.masks.Random(ratio)(ml.layout(shape, batch=batch),
                                  generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', CONVENTIONS)
@pytest.mark.parametrize('shape', [(4, 4), (3, 5), (1, 7)])
@pytest.mark.parametrize('ratio', [0., .3, .75, 1.])
def test_there_and_back(name, shape, ratio):
    c = CONVENTIONS[name]
    m = masks(shape, ratio=ratio)
    assert torch.equal(c.back(c.to(m), shape), m)


def test_the_noise_of_vitmae_gives_it_our_mask():
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTMAEConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=32, image_size=32,
                                       patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=1,
                                       decoder_num_attention_heads=2,
                                       decoder_intermediate_size=32, mask_ratio=.75)
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(config).eval()
    m = masks()
    with torch.no_grad():
        out = model(torch.rand(3, 3, 32, 32), noise=to_noise(m))
    assert torch.equal(out.mask, to_removed(m))
    assert torch.equal(from_removed(out.mask, (4, 4)), m)
    assert torch.equal(from_noise(to_noise(m), 12, (4, 4)), m)


def test_bool_masked_pos_hides_from_a_transformers_model_what_it_hides_here():
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                    intermediate_size=32, image_size=32,
                                    patch_size=8, encoder_stride=8)
    torch.manual_seed(0)
    model = transformers.ViTForMaskedImageModeling(config).eval()
    m = masks()
    x, other = torch.rand(2, 3, 3, 32, 32)
    where = ml.contract.units.repeat_to(m, (32, 32))[:, None]
    given = CONVENTIONS['bool_masked_pos'].to(m)
    with torch.no_grad():
        answer = model(x, bool_masked_pos=given).reconstruction
        hidden_changed = model(torch.where(where, other, x), bool_masked_pos=given).reconstruction
        visible_changed = model(torch.where(where, x, other), bool_masked_pos=given).reconstruction
    assert torch.allclose(answer, hidden_changed, atol=1e-6)
    assert not torch.allclose(answer, visible_changed, atol=1e-3)


def test_labels_ask_a_language_model_for_the_hidden_words_alone():
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    ids = torch.randint(5, 50, (3, 12))
    m = masks((12,), ratio=.25)
    with torch.no_grad():
        out = model(ids.masked_fill(m, 4), labels=to_labels(m, ids))
    expected = torch.nn.functional.cross_entropy(out.logits[m], ids[m])
    assert torch.allclose(out.loss, expected)
    assert torch.equal(from_labels(to_labels(m, ids)), m)


def test_an_attention_mask_keeps_a_language_model_from_reading_what_is_hidden():
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    ids = torch.randint(5, 50, (3, 12))
    m = masks((12,), ratio=.25)
    with torch.no_grad():
        a, b = (model(x, attention_mask=to_visible(m)).last_hidden_state
                for x in (ids, ids.masked_fill(m, 7)))
    assert torch.allclose(a[~m], b[~m], atol=1e-6)


def test_indices_are_those_of_timm():
    layers = pytest.importorskip('timm.layers')
    torch.manual_seed(0)
    drop = layers.PatchDropoutWithIndices(.75, num_prefix_tokens=1).train()
    tokens, keep = drop(torch.arange(17.).view(1, 17, 1).expand(3, -1, -1))
    m = from_keep(keep, (4, 4))
    assert m.flatten(1).sum(1).tolist() == [12, 12, 12]
    assert torch.equal(to_keep(m), keep.sort(1).values)                     # no class token in timm's indices
    # but there is one among its tokens
    assert torch.equal(to_keep(m, prefix=1), tokens[:, 1:, 0].long().sort(1).values)


def test_bad_input_is_one_sentence():
    m = masks()
    ragged = m.clone()
    ragged[0] = False
    for call, error in ((lambda: to_removed(m.float()), TypeError),
                        (lambda: to_keep(ragged), ValueError), (lambda: to_noise(ragged), ValueError),
                        (lambda: from_keep(m, (4, 4)), TypeError),
                        (lambda: from_keep(torch.tensor([[16]]), (4, 4)), ValueError),
                        (lambda: from_removed(to_removed(m), (3, 4)), ValueError),
                        (lambda: to_labels(m, torch.zeros(3, 4)), ValueError),
                        (lambda: CONVENTIONS['active'].to(m.flatten(1)), ValueError)):
        with pytest.raises(error) as e:
            call()
        assert len(str(e.value)) <= 200 and '\n' not in str(e.value)


@pytest.mark.parametrize('name, kind', [('mae', 'image'), ('bert_mlm', 'text'), ('hicmae', 'voiced'),
                                        ('point_mae', 'points'), ('dmjd', 'image')])
def test_units_and_what_comes_back_say_themselves_in_a_line(name, kind):
    r, b = ml.create_recipe(name), ml.sample(kind, n=2)
    out, u = r(b), r.units(b)
    for thing in (out, u):
        said = repr(thing)
        assert '\n' not in said and len(said) < 300 and 'tensor(' not in said
        assert all(word in thing._repr_html_() for word in ('<table>', 'hidden'))
    assert f'hidden {int(out.mask.sum())} of {out.mask.numel()}' in repr(out)
    assert f'samples {len(u)}' in repr(u) and f'of {u.count}' in repr(u)
