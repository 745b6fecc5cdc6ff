"""MaskGIT beside its card: the rate, the class in front, the loss, and digits made of nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from given import g, stir
from torch import nn
from torch.testing import assert_close

import maskedlab as ml
from maskedlab.contract.create import SHIPPED
from maskedlab.recipes.image.maskgit import MaskGIT, by_picture
from maskedlab.stages.shelf import find_stage, stage
from maskedlab.uses.decode import decode


class Greys(nn.Module):
    """Eight words: the mean grey of a cell of four pixels."""

    words, stride, channels = 8, 4, 1

    def ids(self, image):
        return (F.avg_pool2d(image.mean(1), 4) * 7.999).long()

    def decode(self, ids):
        return ((ids + 0.5) / 8)[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    return stir(MaskGIT(28, 4, 1, 32, 2, 4, classes=10, tokenizer=Greys()))


@pytest.fixture(scope='module')
def digits():
    return ml.sample('digits', n=64)


def test_each_picture_has_a_rate_of_its_own_by_the_cosine(small, digits):
    b = {k: v.repeat(20, *[1] * (v.ndim - 1)) for k, v in digits.items()}
    hidden = small(b, generator=g()).mask.flatten(1).sum(1)
    assert hidden.min() >= 1 and hidden.max() == 49 and len(hidden.unique()) > 40
    # ceil(49 cos(pi r / 2)) <= k where r >= 2 / pi acos(k / 49)
    for k in (10, 25, 40):
        assert abs(float((hidden <= k).float().mean()) - (1 - 2 / math.pi * math.acos(k / 49))) < 0.04


def test_the_loss_is_a_mean_over_pictures_of_smoothed_cross_entropies(small, digits):
    out, told = small(digits, generator=g()), []
    for i in range(64):
        m = out.mask[i]
        pred = out.pred[out.mask.nonzero()[:, 0] == i]
        told.append(F.cross_entropy(pred, small.units(digits).x[i][m], label_smoothing=0.1))
    assert_close(out.loss, torch.stack(told).mean())
    assert by_picture(torch.zeros(0), torch.zeros(2, 3, 3).bool()) == 0


def test_logits_of_what_is_not_hidden_get_no_gradient(small, digits):
    u = small.units(digits)
    mask = small(digits, generator=g()).mask
    h = small.encoder(small.read(digits, u, mask))[:, 1:]
    logits = small.named(h)
    logits.retain_grad()
    F.cross_entropy(logits.unflatten(1, u.shape)[mask], u.x[mask]).backward()
    assert (logits.grad.unflatten(1, u.shape)[~mask] == 0).all()
    with torch.no_grad():
        assert_close(small(digits, mask, generator=g()).pred, logits.unflatten(1, u.shape)[mask])


def test_hidden_words_are_one_word_more_and_the_class_stands_in_front(small, digits):
    u = small.units(digits)
    read = small.read(digits, u, u.all())
    assert (read[:, 1:] == small.mask_id).all() and small.mask_id == 8 + 10 + 1
    assert torch.equal(read[:, 0], 8 + digits['label'])
    assert (small.read({'image': digits['image']}, u, u.none())[:, 0] == 18).all()
    small.train()
    left = torch.cat([small.read(digits, u, u.none(), g(i))[:, 0] for i in range(40)]) == 18
    small.eval()
    assert abs(float(left.float().mean()) - 0.1) < 0.02


def test_the_head_is_tied_to_the_words_and_names_no_class(small):
    h = torch.randn(3, 32, generator=g())
    with torch.no_grad():
        t = small.head
        by_hand = t.norm(F.gelu(t.dense(h))) @ small.encoder.word.weight[:8].T + t.bias
        assert_close(small.named(h), by_hand)


def test_any_size_of_picture_is_read_and_given_back(small):
    large = {'image': torch.rand(2, 1, 56, 56, generator=g())}
    assert small.units(large).shape == (7, 7)
    made = decode(small, large, steps=3, generator=g())
    assert made.batch['image'].shape == (2, 1, 56, 56) and made.batch['ids'].shape == (2, 7, 7)


@pytest.mark.parametrize('batch, said', [
    (dict(ids=torch.zeros(2, 7, 8).long()), r'int64 \[B, 7, 7\], got torch.int64 \[2, 7, 8\]'),
    (dict(ids=torch.zeros(2, 7, 7)), 'got torch.float32'),
    (dict(ids=[[1]]), 'ids is a list'),
    (dict(ids=torch.full((2, 7, 7), 8)), 'run from 8 to 8, the codebook has words 0 to 7'),
    (dict(ids=torch.zeros(2, 7, 7).long(), label=torch.tensor([0, 10])), 'from 0 to 9'),
    (dict(ids=torch.zeros(2, 7, 7).long(), label=torch.tensor([0])), r'label must be int64 \[2\]'),
    (dict(image=torch.zeros(2, 3, 28, 28)), '3 channels, the recipe takes 1')])
def test_bad_input_is_one_sentence(small, batch, said):
    with pytest.raises((ValueError, TypeError), match=said) as e:
        small(batch)
    assert len(str(e.value)) <= 200


# -------------------------------------------------------------------------------- the weights that ship
@pytest.fixture(scope='module')
def shipped():
    return ml.create_recipe('maskgit', size='digits', pretrained=True).eval()


def test_they_are_the_stage_that_their_command_makes(shipped):
    assert find_stage('maskgit/digits/digits/0') == SHIPPED / 'maskgit-digits'
    assert not stage('maskgit/digits/digits/0').missing


def test_they_name_held_out_words_and_the_class_helps(shipped):
    b = ml.sample('digits', n=200, split='test')
    with torch.no_grad():
        told, alone = (shipped(x, generator=g()) for x in (b, {'image': b['image']}))
        u = shipped.units(b)
    right = (told.pred.argmax(-1) == told.target).float().mean()
    assert right > 0.5 > 2 * (u.x == u.x.flatten().mode().values).float().mean()
    assert told.loss < alone.loss - 0.05


def test_digits_of_nothing_are_told_apart_in_many_rounds_and_better_guided(shipped):
    real = ml.sample('digits', n=2000)
    label = torch.arange(100) % 10
    b = dict(ids=torch.zeros(100, 7, 7).long(), label=label)

    def as_told(**how):
        """By the nearest real digit, pixel by pixel."""
        x = decode(shipped, b, generator=g(), **how).batch['image'].flatten(1)
        nearest = torch.cdist(x, real['image'].flatten(1)).argmin(1)
        return float((real['label'][nearest] == label).float().mean())
    one, many, guided = as_told(steps=1), as_told(steps=8), as_told(steps=8, guidance=2.0)
    assert one < many - 0.05 and guided > 0.9 and guided >= many
