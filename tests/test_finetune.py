"""Fine-tuning changes the encoder, and only it: which blocks may be skipped, whose table is whose."""

import pytest
import torch
from PIL import Image

import maskedlab as ml
from maskedlab.parts.transformer import PreNorm, Skips
from maskedlab.data.labels import labelled_images
from maskedlab.instruments.probes import probe
from maskedlab.uses.finetune import Classifier, blocks_run, depth_groups, finetune, ramp


def labelled(name):
    r = ml.create_recipe(name, size='micro')
    b = ml.sample(r.card.modality.split()[0], n=6)
    return r, {**b, 'label': torch.arange(6) % 2}


@pytest.mark.usefixtures('samples')
# selfie makes a stage anew, hicmae has two encoders
@pytest.mark.parametrize('name', [n for n in ml.list_recipes() if n not in ('selfie', 'hicmae')])
def test_stochastic_depth_ramps_over_the_blocks_of_the_encoder_and_no_others(name):
    r, b = labelled(name)
    encoder = getattr(r, 'student', r).encoder
    blocks = list(getattr(encoder, 'net', encoder).blocks)
    assert blocks_run(r, b) == blocks
    others = {m: m.drop_path for m in r.modules() if isinstance(m, Skips) and m not in blocks}
    finetune(r, b, b, steps=1, batch=2, drop_path=.3)
    assert [m.drop_path for m in blocks] == pytest.approx(torch.linspace(0, .3, len(blocks)).tolist())
    assert {m: m.drop_path for m in others} == others


@pytest.mark.parametrize('name', ['bert_mlm', 'point_mae'])
def test_samples_skip_blocks_in_training_for_text_and_points_too(name):
    r, b = labelled(name)
    ramp(blocks_run(r, b), .9)
    with torch.no_grad():
        assert not torch.equal(r.train().features(b), r.features(b))
        assert torch.equal(r.eval().features(b), r.features(b))


def test_a_network_of_timm_skips_its_blocks():
    r = ml.create_recipe('mae', encoder='vit_tiny_patch16_224', decoder_dim=16, decoder_depth=1,
                         decoder_heads=2)
    blocks = blocks_run(r, dict(image=torch.rand(2, 3, 32, 32)))
    assert blocks == list(r.encoder.net.blocks)
    ramp(blocks, .2)
    assert [m.drop_path1.drop_prob for m in blocks] == pytest.approx(torch.linspace(0, .2, 12).tolist())


@pytest.mark.parametrize('name', ['simmim', 'beit'])
def test_the_shared_table_is_copied_into_every_block(name):
    r, b = labelled(name)
    torch.nn.init.normal_(r.encoder.rel_pos_bias.table)
    table, before = r.encoder.rel_pos_bias.table.detach().clone(), r.eval().features(b)
    blocks = len(r.encoder.blocks)
    r.before_finetuning()
    assert torch.equal(r.features(b), before)
    tables = {n: p for n, p in r.named_parameters() if n.endswith('table')}
    assert list(tables) == [f'encoder.blocks.{i}.rel_pos_bias.table' for i in range(blocks)]
    assert all(torch.equal(p, table) for p in tables.values())
    model = Classifier(r, 2, before.shape[1])
    rate = {id(p): g['lr'] for g in depth_groups(model, 1., .5, 0.) for p in g['params']}
    assert [rate[id(p)] for p in tables.values()] == [.5 ** (blocks - i) for i in range(blocks)]
    finetune(r, b, b, steps=2, batch=4, lr=.1)
    tables = [p.detach() for n, p in r.named_parameters() if n.endswith('table')]
    assert not torch.equal(tables[0], tables[1])


def test_a_block_alone_skips_nothing_and_a_rate_is_the_share_that_does():
    torch.manual_seed(0)
    block, x = PreNorm(8, 2), torch.randn(4000, 1, 8)
    ramp([PreNorm(8, 2), block], .4)
    with torch.no_grad():
        block.attn.proj.weight.zero_(), block.attn.proj.bias.zero_()
        moved = (block.train()(x) != x).any(-1).float().mean()
    assert abs(float(moved) - .6) < .04


# ---------------------------------------------------------------- a classifier of one's own pictures

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two classes that a glance tells apart, twelve pictures each."
    root, g = tmp_path_factory.mktemp('own'), torch.Generator().manual_seed(0)
    for name, at in (('dark', .2), ('light', .8)):
        (root / name).mkdir()
        for i in range(12):
            x = (at + .1 * torch.randn(40, 50, 3, generator=g)).clamp(0, 1) * 255
            Image.fromarray(x.byte().numpy()).save(root / name / f'{i}.png')
    return root


@pytest.mark.parametrize('name', ['mae', 'selfie', 'maskalign'])
def test_a_classifier_is_made_kept_and_asked(name, folder, tmp_path):
    torch.manual_seed(0)
    r = ml.create_recipe(name, size='micro')
    train, test, classes = labelled_images(folder, size=64)
    model = finetune(r, train, test, steps=12, batch=8, lr=5e-3, classes=classes, augment=True)
    assert classes == ['dark', 'light'] and model.accuracy == 1.
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert again.classes == classes and again.accuracy == 1.
    assert torch.equal(again(test), model(test))
    said = again.ask(test)
    assert [next(iter(p)) for p in said] == [classes[i] for i in test['label']]
    if name != 'selfie':            # which has a stage more than in pre-training
        assert ml.create_recipe(str(tmp_path)).card.title == r.card.title


def test_bytes_are_read_as_floats_are(folder):
    r = ml.create_recipe('mae', size='micro', pretrained=True)
    train, test, _ = labelled_images(folder, size=64)
    as_float = [{**b, 'image': b['image'].float() / 255} for b in (train, test)]
    assert probe(r, train, test) == probe(r, *as_float)
    assert probe('raw', train, test)['linear'] == 1.
