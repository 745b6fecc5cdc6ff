"""The attentive probe: for every recipe, by its tokens."""
import pytest
import torch

import maskedlab as ml
from maskedlab.instruments.probes import AttentiveHead, attentive_probe, features


@pytest.mark.filterwarnings('ignore:the stage')
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
