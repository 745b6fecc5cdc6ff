"""What many tests need: generators, a plain batch, networks with no zeros, masks with unequal counts."""
from torch.utils.data import Dataset

from maskedlab.instruments.keeps import all_of, g, ragged, same, stir
from maskedlab.instruments.keeps import some_samples as plain

__all__ = ['all_of', 'g', 'plain', 'ragged', 'same', 'stir', 'choosing_at_both_ends', 'Listed',
           'own_tokenizer']


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
