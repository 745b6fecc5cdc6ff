"""Tutorials 3 and 4 keep what they promise (that they run, solved, and fail with a wrong result: test_tutorials.py)."""
import re
from pathlib import Path

import nbformat
import pytest
from test_tutorials import lesson


ROOT = Path(__file__).resolve().parent.parent


def lines(source):
    return sum(bool(line.split('#')[0].strip()) for line in source.split('\n'))


def counted():
    return [c.source for c in lesson('build_it').cells if c.cell_type == 'code' and c.source.startswith('# 60 lines')]


def test_a_masked_autoencoder_in_sixty_lines_of_plain_pytorch():
    assert len(counted()) == 4 and sum(map(lines, counted())) <= 60
    used = re.findall(r'^\s*(?:from|import) (\w+)', '\n'.join(counted()), re.M)
    assert set(used) == {'torch'}
    assert max(len(line) for cell in counted() for line in cell.split('\n')) <= 120          # no line is three lines


def test_the_full_run_promises_one_and_a_half_decibels():
    source = '\n'.join(c.source for c in lesson('build_it').cells if c.cell_type == 'code')
    steps = int(re.search(r'steps = budget\((\d+), \d+\)', source)[1])
    assert re.search(rf'promise = 1\.5 \* steps / {steps}\b', source) and 'assert reached >= promise' in source
    assert '< 1e-6' in source


@pytest.mark.parametrize('mask', ['random', 'rows'])
def test_its_loss_is_the_kits_to_six_decimals(mask):
    import torch

    import maskedlab as ml
    space = {}
    for cell in counted():
        exec(cell, space)
    names = next(c.source for c in lesson('build_it').cells if 'def kit_name' in c.source)
    exec(names.split('\nkit = ')[0], space)
    torch.manual_seed(3)
    sizes = dict(dim=64, depth=2, heads=2)
    ours = space['MaskedAutoencoder'](**sizes, narrow=32, shallow=1, few=2)
    kit = ml.create_recipe('mae', **sizes, decoder_dim=32, decoder_depth=1, decoder_heads=2, norm_pix=False)
    kit.load_state_dict({space['kit_name'](k): v for k, v in ours.state_dict().items()})
    b = ml.sample('image', n=6)
    m = torch.rand(6, 64).argsort(1) < 48 if mask == 'random' else (torch.arange(64) < 40).expand(6, 64)
    x = space['patches_of'](b['image'])
    loss = ((ours(x, m) - x) ** 2)[m].mean()
    theirs = kit(b, mask=m.view(6, 8, 8)).loss
    assert abs(loss.item() - theirs.item()) < 1e-6
    a, c = torch.autograd.grad(loss, ours.hole)[0], torch.autograd.grad(theirs, kit.mask_token)[0]
    assert torch.allclose(a.flatten(), c.flatten(), atol=1e-6)


def test_the_plan_of_a_lesson_covers_ninety_minutes_and_asks_what_the_tutorials_ask():
    text = (ROOT / 'tutorials' / 'TEACHING.md').read_text(encoding='utf-8')
    minutes = [int(m) for m in re.findall(r'^\| (\d+) \|', text, re.M)]
    assert minutes == sorted(minutes) and minutes[0] == 0 and 80 < minutes[-1] < 90
    spans = [(int(a), int(b)) for a, b in re.findall(r'^### .*\(minutes (\d+) to (\d+)\)', text, re.M)]
    assert spans[:2] == [(0, 25), (25, 45)] and len(spans) == 4
    for path in sorted((ROOT / 'tutorials').glob('*.ipynb')):
        assert nbformat.read(path, 4).cells[0].source.split('\n')[0].removeprefix('# ').split(' why')[0] in text, path.name
