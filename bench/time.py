"""A training step of VideoMAE and of wav2vec 2.0 beside transformers."""
from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.tables import HERE, Table, timed
from maskedlab.formats.pretrained import load_pretrained
from maskedlab.instruments.measure import middle, peak_memory, ratio
from maskedlab.masks.patterns import Tube
from maskedlab.masks.span import Span

KIT, THEIRS, APART = 'maskedlab', 'transformers', 'transformers, distractors drawn beforehand'
COLOURS = dict(mean=(.485, .456, .406), std=(.229, .224, .225))
Loss = Callable[[int], Tensor]


def clips(dim: int = 384, depth: int = 12, image: int = 224, frames: int = 16, batch: int = 2,
          ) -> dict[str, tuple[nn.Module, Loss]]:
    "The same network twice, with the loss of the i-th mask; 224 pixels, cubes of 2 x 16 x 16, 90 % hidden."
    from transformers import VideoMAEConfig, VideoMAEForPreTraining
    torch.manual_seed(0)
    theirs = VideoMAEForPreTraining(VideoMAEConfig(
        image_size=image, num_frames=frames, hidden_size=dim, num_hidden_layers=depth,
        num_attention_heads=dim // 64, intermediate_size=4 * dim, decoder_hidden_size=dim // 2,
        decoder_num_hidden_layers=4, decoder_num_attention_heads=dim // 128,
        decoder_intermediate_size=2 * dim, use_mean_pooling=False))
    kit = again(theirs, **COLOURS)
    video = torch.rand(batch, 3, frames, image, image, generator=torch.Generator().manual_seed(0))
    pixels = kit.cut.colours(video).transpose(1, 2).contiguous()
    masks = [Tube(.9)(kit.units({'video': video}), generator=torch.Generator().manual_seed(i))
             for i in range(8)]
    return {KIT: (kit, lambda i: kit({'video': video}, mask=masks[i % 8]).loss),
            THEIRS: (theirs, lambda i: theirs(pixels, bool_masked_pos=masks[i % 8].flatten(1)).loss)}


def speech(dim: int = 384, depth: int = 6, channels: int = 256, seconds: float = 4., batch: int = 4,
           ) -> dict[str, tuple[nn.Module, Loss]]:
    "The same network twice, at 16 kHz; the public code draws its distractors where it makes its batches."
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices
    torch.manual_seed(0)
    none = ('hidden', 'attention', 'activation', 'feat_proj', 'feat_quantizer', 'final')
    theirs = Wav2Vec2ForPreTraining(Wav2Vec2Config(
        hidden_size=dim, num_hidden_layers=depth, num_attention_heads=dim // 64, intermediate_size=4 * dim,
        conv_dim=(channels,) * 7, codevector_dim=128, proj_codevector_dim=128, layerdrop=0.,
        **{f'{k}_dropout': 0. for k in none}))
    kit = again(theirs, rate=16000, penalty=0.)
    wave = torch.randn(batch, round(16000 * seconds), generator=torch.Generator().manual_seed(0))
    masks = [Span(.65, 10, 2, True)(kit.units({'wave': wave}), generator=torch.Generator().manual_seed(i))
             for i in range(8)]
    draw = lambda m: torch.from_numpy(_sample_negative_indices(m.shape, 100, m.numpy()))
    before = [draw(m) for m in masks]

    def loss(i: int, others: Tensor) -> Tensor:
        m = masks[i % 8]
        return theirs(wave, mask_time_indices=m, sampled_negative_indices=others).loss / m.sum()
    return {KIT: (kit, lambda i: kit({'wave': wave}, mask=masks[i % 8]).loss),
            THEIRS: (theirs, lambda i: loss(i, draw(masks[i % 8]))),
            APART: (theirs, lambda i: loss(i, before[i % 8]))}


def again(theirs: Any, **given: Any) -> Any:
    "The kit's recipe with the weights of a network of transformers."
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_pretrained(folder, **given).train()


def step(network: nn.Module, loss: Loss) -> Callable[[], None]:
    "Forward, backward and AdamW, on the next of the masks."
    optimiser, turn = torch.optim.AdamW(network.parameters(), 1e-4, fused=True), iter(range(10 ** 9))

    def run() -> None:
        loss(next(turn)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return run


def memory(kind: str, name: str, options: dict[str, int], runs: int) -> float:
    "Median peak of fresh processes in bytes, less that of their imports, and of the second network."
    imports = (f'import torch; torch.set_num_threads({torch.get_num_threads()})\n'
               f'from bench.time import {kind}, step\nnets = {kind}(**{options!r})\n'
               f'nets = {{{name!r}: nets[{name!r}]}}')
    work = f'run = step(*nets[{name!r}])\nfor _ in range(3): run()'
    return statistics.median(peak_memory(imports, work, HERE.parent) for _ in range(runs))


TABLES = {
    'clips': (clips, 'VideoMAE, 384 x 12', 'Clips of 16 frames of 224 pixels, cubes of 2 x 16 x 16 pixels, '
              'encoder 384 x 12, decoder 192 x 4, tubes, 90 % hidden, two clips a step'),
    'speech': (speech, 'wav2vec 2.0, 384 x 6', 'Four recordings of four seconds at 16 kHz, seven '
               'convolutions of 256, encoder 384 x 6, 100 distractors')}


def table(kind: str, n: int, runs: int = 3, **options: int) -> Table:
    "One kind of data."
    make, title, about = TABLES[kind]
    nets = make(**options)
    t = timed({k: step(*v) for k, v in nets.items()}, n, warm=2)
    peak = {k: memory(kind, k, options, runs) for k in nets} if runs else {}
    beside = '; '.join(f'{ratio(t[KIT], t[k]).show(3)} times as fast as {k}' for k in nets if k != KIT)
    out = Table(
        f'time-{kind}', f'A training step of {title}', f'{about}. The same weights and the same masks, '
        f'float32, no dropout; forward, backward and AdamW (fused). The kit is {beside}.',
        ['implementation', 'ms a step', 'speed of the kit', 'aim', 'peak memory (MB)'], rounds=n)
    for k in nets:
        out.add(k, middle(t[k]).show(0, 1e3), '' if k == KIT else ratio(t[KIT], t[k]).show(3),
                '' if k == KIT else 1, f'{peak[k] / 2**20:,.0f}' if peak else '')
    out.numbers = dict(seconds=t, peak=peak, options=options)
    return out


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--only', choices=list(TABLES), help='one of the two tables')
    p.add_argument('--memory', type=int, default=3, metavar='RUNS',
                   help='processes in which memory is measured; 0: none')


def tables(a: argparse.Namespace) -> list[Table]:
    return [table(kind, a.rounds, a.memory) for kind in ([a.only] if a.only else TABLES)]
