"""The attentive probe: for every recipe, by its tokens."""
import pytest
import torch
from given import stir

import maskedlab as ml
from maskedlab.instruments.probes import AttentiveHead, attentive_probe, features, layers_of


@pytest.mark.filterwarnings('ignore:the stage')
@pytest.mark.usefixtures('samples')
@pytest.mark.parametrize('name', ml.list_recipes())
def test_every_recipe_has_tokens_to_look_at(name):
    r = ml.create_recipe(name)
    if r.features is None:
        pytest.skip('gives no features')
    batch = {k: v for k, v in ml.sample(r.card.modality.split()[0], n=6).items() if torch.is_tensor(v)}
    x = features(r, batch, pool=False)
    assert x.ndim == 3 and len(x) == 6 and x.isfinite().all()
    batch['label'] = torch.tensor([0, 1, 2] * 2)
    assert 0 <= attentive_probe(r, batch, batch, steps=2) <= 1


def test_nothing_of_the_network_changes():
    r = ml.create_recipe('mae').train()
    before = {k: v.clone() for k, v in r.state_dict().items()}
    batch = {**ml.sample('image', n=6), 'label': torch.tensor([0, 1] * 3)}
    attentive_probe(r, batch, batch, steps=3)
    assert r.training and all(torch.equal(v, before[k]) for k, v in r.state_dict().items())
    assert all(p.grad is None for p in r.parameters())


def test_one_query_and_a_norm_without_scale():
    torch.manual_seed(0)
    head = AttentiveHead(24, 5)
    assert head.query.shape == (1, 1, 24) and not list(head.norm.parameters())
    x = torch.randn(3, 7, 24)
    perm = torch.randperm(7)
    head.eval()
    assert torch.allclose(head(x, None), head(x[:, perm], None), atol=1e-6)          # no positions
    x[:, 5:] = 1e3
    pad = torch.zeros(3, 7, dtype=torch.bool)
    pad[:, 5:] = True
    assert torch.allclose(head(x, pad), head(x[:, :5], None), atol=1e-5)


def test_every_block_of_a_convnet_can_be_read():
    """Means over the cells of the last map: each layer has as many tokens, and the last is `features`."""
    torch.manual_seed(0)
    r = stir(ml.create_recipe('spark', size='digits'))
    b = ml.sample('digits', n=6)
    found, maps = layers_of(r, b, size=4), r.encoder.maps(r.cut.colours(b['image']))
    assert [x.mean.shape[1] for x in found] == [32, 32, 64, 64] and {x.tokens.shape[1] for x in found} == {49}
    for layer, m in ((found[1], maps[0]), (found[3], maps[1])):
        assert torch.allclose(layer.mean, m.mean((2, 3)).detach(), atol=1e-5)
    cell = maps[0][:, :, 2:4, 6:8].mean((2, 3)).detach()                # row 1, column 3 of 7
    assert torch.allclose(found[1].tokens[:, 1 * 7 + 3], cell, atol=1e-5)
