"""Bodies that give maps, whatever network of timm they are: one recipe stands for all that use them."""
import pytest
import torch
from given import g

from maskedlab.masks.disc import Disc
from maskedlab.recipes.image.mfm import MFM


@pytest.fixture
def batch():
    return dict(image=torch.rand(3, 3, 32, 32, generator=g(1)))


@pytest.mark.parametrize('name, stride, cells, dim', [
    ('test_resnet', 8, 16, 96), ('resnet18', None, 1, 512), ('test_convnext', None, 1, 64),
    ('test_vit2', None, 4, 64),
    ('mobilenetv3_small_050', None, 1, 1024), ('coat_lite_tiny', None, 1, 320)])
def test_any_body_of_timm(name, stride, cells, dim, batch):
    r = MFM(encoder=name, stride=stride, strategy=Disc(3), image=32).eval()
    out = r(batch, generator=g())
    assert r.features(batch, pool=False).shape == (3, cells, dim) == (3, cells, r.encoder.dim)
    assert r.fill(batch, out)['image'].shape == (3, 3, 32, 32)
    assert (r.attention is None) == (name != 'test_vit2')
    twice = {k: v.repeat(2, 1, 1, 1) for k, v in batch.items()}
    r.train()(twice, generator=g()).loss.backward()
    assert all(p.grad is not None for p in r.parameters())


@pytest.mark.parametrize('name, dim', [
    ('mobilenetv3_small_100', 1024),                                           # wider than its `num_features`
    # a row or tokens at the end, but a map inside
    ('vgg11', 512), ('resmlp_12_224', 384), ('test_byobnet', 256),
    ('swin_tiny_patch4_window7_224', 768)])                                         # made for one size
@pytest.mark.parametrize('image', [32, 64])
def test_the_head_fits_the_map(name, dim, image):
    luck = torch.get_rng_state()
    with torch.device('meta'):
        r = MFM(encoder=name, image=image)
        assert r.predict(r.encoder.maps(torch.rand(2, 3, image, image))).shape == (
            2, 3, image, image) and r.encoder.dim == dim
    # trials do not move the random numbers of the first weights
    assert torch.equal(torch.get_rng_state(), luck)


@pytest.mark.parametrize('name, size', [('inception_v3', 64), ('efficientformer_l1', 64),
                                        ('crossvit_9_240', 224)])
def test_a_body_without_maps_is_refused_when_it_is_created(name, size):
    with pytest.raises(ValueError, match=f'{name} gives no maps') as error:
        MFM(encoder=name, image=size)
    assert len(str(error.value)) <= 200


def test_a_body_made_for_one_size_says_so_before_it_computes():
    with torch.device('meta'):
        r = MFM(encoder='swin_tiny_patch4_window7_224', image=(64, 96))
    r.encoder.maps = None
    assert r.units(dict(image=torch.rand(1, 3, 64, 96))).shape == (64, 96)
    for H, W, words in ((64, 64, 'image=64,'), (96, 64, 'image=(96, 64)')):
        with pytest.raises(ValueError) as error:
            r(dict(image=torch.rand(1, 3, H, W)))
        assert words in str(error.value) and len(str(error.value)) <= 200
