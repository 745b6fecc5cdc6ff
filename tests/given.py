"""What many tests need: generators, a plain batch, networks with no zeros, masks with unequal counts."""
import torch
from torch.utils.data import Dataset

import maskedlab as ml


def g(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def plain(recipe, n=3, **more):
    """`n` embedded samples of what a recipe takes, at the rate that it was made for."""
    reading = getattr(getattr(recipe, 'cut', None), 'reading', {})
    return ml.sample(recipe.card.modality.split()[0], n=n, **{**reading, **more})


def stir(net, by=.05):
    """Move every parameter, and evaluate: at the start many are zero, which would hide a mistake."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g(7)) * by)
    return net.eval()


def ragged(u):
    """A mask whose counts differ: one unit of the first sample, a few of the second, every third
    of the others."""
    mask = u.none().flatten(1)
    mask[0, 1] = mask[1, 1:5] = True
    mask[2:, 1::3] = True
    return mask.view(u.free.shape) & u.free


def same(a, b):
    """Equal, NaN included."""
    return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def all_of(x):
    """Predictions or content, of several streams as one line of numbers."""
    return torch.cat([v.flatten() for v in x.values()]) if isinstance(x, dict) else x


def choosing_at_both_ends(make, batch):
    """The gradient of what chooses words, at the first temperature of a run and at the last."""
    found = []
    for progress in (0.0, 1.0):
        r = make().train()
        r(batch, generator=g(), progress=progress).terms['contrast'].backward()
        found.append(r.quantiser.choose.weight.grad)
    return found


class Listed(Dataset):
    """A list as a data set."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def own_tokenizer(texts, size=200):
    """Word pieces that are not the kit's, learned from these texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    own = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    own.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special))
    return own
