"""A training step of BERT beside transformers, and masks of words beside its collator."""
from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.tables import Table, timed
from maskedlab.corruptions.replace import mask_keep_random
from maskedlab.data.samples import sample
from maskedlab.data.text import tokenizer
from maskedlab.instruments.measure import middle, ratio
from maskedlab.contract.units import rows
from maskedlab.masks.words import Bernoulli, Slots, Tokens, WholeWords, WordSpans
from maskedlab.formats.pretrained import load_pretrained

THEIRS, OURS = 'transformers, BertForMaskedLM', 'maskedlab'
ROWS, LENGTH = 32, 128


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument('--vocab', type=int, action='append',
                   help='pieces of the network; default: 3000 (the data have as many) and 30522')
    p.add_argument('--only', choices=['step', 'masks'], help='one of the two tables')


def drawn(recipe: Any, n: int, seed: int = 0) -> list[dict[str, Tensor]]:
    "Random batches of prose, padded to their longest row: ids, valid, mask and what the network sees."
    g, out = torch.Generator().manual_seed(seed), []
    for _ in range(n):
        b = sample('text', n=ROWS, generator=g, length=LENGTH)
        longest = int(b['valid'].sum(1).max())
        b = {k: v[:, :longest] for k, v in b.items()}
        made = recipe(b, generator=g)
        out.append(dict(ids=b['ids'], valid=b['valid'], mask=made.mask, seen=made.seen['ids']))
    return out


def network(vocab: int, dim: int, depth: int) -> tuple[Any, Callable[[], Any]]:
    "transformers' network at random weights, and how to make ours of the same ones."
    from transformers import BertConfig, BertForMaskedLM
    torch.manual_seed(0)
    theirs = BertForMaskedLM(BertConfig(vocab_size=vocab, hidden_size=dim, num_hidden_layers=depth,
                                        num_attention_heads=dim // 64,
                                        intermediate_size=4 * dim, hidden_dropout_prob=0.,
                                        attention_probs_dropout_prob=0.)).train()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = lambda: load_pretrained(folder, mask_id=4, special=(0, 2, 3, 4)).train()
        made = [ours() for _ in range(4)]
    return theirs, lambda: made.pop()


def step(net: Any, loss: Callable[[dict[str, Tensor]], Tensor],
         batches: list[dict[str, Tensor]]) -> Callable[[], Any]:
    "One optimiser step on the next of the batches."
    optimiser, turn = torch.optim.AdamW(net.parameters(), 1e-4, fused=True), itertools.cycle(batches)

    def run() -> None:
        loss(next(turn)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return run


def losses(net: Any, unpadded: bool, hidden: bool) -> Callable[[dict[str, Tensor]], Tensor]:
    "Ours, with each of its two savings on or off."
    def loss(b: dict[str, Tensor]) -> Tensor:
        encode = net.encoder if unpadded else lambda ids, valid: net.encoder._encode(ids, ~valid)
        h = encode(b['seen'], b['valid'])
        table = net.encoder.word.weight
        pred = net.head(rows(h, b['mask']), table) if hidden else rows(net.head(h, table), b['mask'])
        return F.cross_entropy(pred, rows(b['ids'], b['mask']))
    return loss


def step_table(vocab: int, n: int, dim: int = 256, depth: int = 4) -> Table:
    "One size of vocabulary."
    theirs, ours = network(vocab, dim, depth)
    kit = ours()
    batches = drawn(kit, n)
    answer = lambda b: theirs(input_ids=b['seen'], attention_mask=b['valid'].long(),
                              labels=b['ids'].masked_fill(~b['mask'], -100)).loss
    with torch.no_grad():
        gap = max(abs(float(answer(b) - losses(kit, True, True)(b))) for b in batches[:2])
    if gap > 1e-4:
        raise ValueError(f"the two networks do not give the same loss (they differ by {gap:.2g}): nothing to "
                         "compare")
    variants = {OURS: (True, True), '  padded, head on hidden pieces': (False, True),
                '  unpadded, head on all places': (True, False),
                '  padded, head on all places': (False, False)}
    runs = {THEIRS: step(theirs, answer, batches)}
    for name, (unpadded, hidden) in variants.items():
        net = kit if name == OURS else ours()
        runs[name] = step(net, losses(net, unpadded, hidden), batches)
    t = timed(runs, n)
    real = sum(int(b['valid'].sum()) for b in batches) / len(batches)
    places = sum(b['valid'].numel() for b in batches) / len(batches)
    unpadding, head = (ratio(t[OURS], t[name]).show(2) for name in list(variants)[1:3])
    out = Table(
        f'text-step-{vocab}', f'A training step of BERT, {dim} x {depth}, {vocab:,} pieces',
        f'Random batches of {ROWS} rows of prose of up to {LENGTH} pieces, each padded to its longest row: '
        f'{real / places:.0%} of the '
        'places hold text. The same weights (the losses agree within 1e-4), float32, no dropout, 15 % of '
        'the pieces hidden; forward, '
        f'backward and AdamW (fused). The kit is {ratio(t[OURS], t[THEIRS]).show(2)} times as fast; '
        f'unpadding alone gives {unpadding}, '
        f'the head on hidden pieces alone {head}.',
        ['network', 'ms a step', 'pieces of real text a second', 'speed of the kit', 'aim'], rounds=n)
    for name in runs:
        m = middle(t[name])
        out.add(name, m.show(0, 1e3), f'{real / m.value:,.0f}', '' if name == OURS
                else ratio(t[OURS], t[name]).show(2),
                1.5 if name == THEIRS else None)
    out.numbers = dict(seconds=t, real=real, places=places, vocab=vocab, dim=dim, depth=depth)
    return out


def masks_table(n: int, ten: int = 10) -> Table:
    "Masks and 80/10/10 at 64 x 128."
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    from maskedlab.recipes.text.bert_mlm import BertMLM
    b, g = sample('text', n=64, length=128), torch.Generator().manual_seed(0)
    names = dict(pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]',
                 mask_token='[MASK]')
    collate = DataCollatorForLanguageModeling(PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **names),
                                              mlm_probability=.15)
    u, special = BertMLM(dim=16, depth=1, heads=1).units(b), b['word'] < 0
    draw = lambda strategy, fate='token': lambda: mask_keep_random(u.x, strategy(u, generator=g), 4, 3000,
                                                                   fate=fate, generator=g)
    theirs = {'without special_tokens_mask': lambda: collate.torch_mask_tokens(b['ids'].clone()),
              'with it': lambda: collate.torch_mask_tokens(b['ids'].clone(), special_tokens_mask=special)}
    kit = {'Tokens, exact counts': draw(Tokens()), 'Bernoulli, counts by chance': draw(Bernoulli()),
           'Slots, exact counts': draw(Slots()),
           'WholeWords': draw(WholeWords()),
           'WordSpans, exact counts, one fate a run': draw(WordSpans(), 'run')}
    t = timed({k: lambda f=f: [f() for _ in range(ten)] for k, f in {**kit, **theirs}.items()}, n, warm=5)
    t = {k: [seconds / ten for seconds in v] for k, v in t.items()}
    out = Table(
        'text-masks', 'Masks of words and 80/10/10, 64 x 128',
        "Milliseconds a batch, ten in a row. Beside transformers' torch_mask_tokens, which lets chance "
        "decide the count; without "
        "special_tokens_mask it asks the tokenizer which pieces are special, row by row. "
        f"It took {' ms and '.join(middle(t[k]).show(2, 1e3) for k in theirs)} ms.",
        ['masks', 'kit (ms)', *(f'times faster, {k}' for k in theirs), 'aim'], rounds=n)
    for name in kit:
        beside = (ratio(t[name], t[k]).show(2) for k in theirs)
        out.add(name, middle(t[name]).show(2, 1e3), *beside, '4 and 1' if 'Tokens' in name else None)
    out.numbers = dict(seconds=t)
    return out


def tables(a: argparse.Namespace) -> list[Table]:
    out = [] if a.only == 'masks' else [step_table(v, a.rounds) for v in a.vocab or (3000, 30522)]
    return out if a.only == 'step' else [*out, masks_table(max(a.rounds, 51) if a.save else a.rounds)]
