"""See, touch, train and compare masked modeling.

    import maskedlab as ml

    r = ml.create_recipe('mae', pretrained=True)
    b = ml.sample('image', n=8)
    out = r(b, mask=ml.masks.Block(ratio=.5))

Names are loaded when they are first used, so that importing the package costs no more than importing
torch."""
from importlib import import_module as _import
from importlib.util import find_spec as _find
from typing import TYPE_CHECKING

from . import _moved as _moved

__version__ = "0.1.0"

_NAMES = {   # public name -> module
    'list_recipes': 'contract.catalogue', 'create_recipe': 'contract.create', 'card': 'contract.create',
          'register_recipe': 'contract.create',
    'Recipe': 'contract.recipe', 'Out': 'contract.recipe', 'Card': 'contract.recipe',
          'draw': 'contract.recipe',
    'Units': 'contract.units', 'layout': 'contract.units',
    'sample': 'data.samples', 'list_samples': 'data.samples', 'describe': 'data.samples',
          'batches': 'data.batches',
    'images': 'data.own', 'load_image': 'data.own', 'encode': 'data.text', 'decode': 'data.text',
          'load_points': 'data.points', 'load_text': 'data.text',
    'recordings': 'data.recordings', 'load_wave': 'data.recordings',
    'videos': 'data.films', 'load_video': 'data.films', 'view_pairs': 'data.own_pairs',
    'load_pretrained': 'formats.pretrained',
    'leak_check': 'instruments.leak', 'check_recipe': 'instruments.keeps',
          'coverage_map': 'instruments.coverage', 'count_law': 'instruments.count_law',
    'labelled_images': 'data.labels', 'finetune': 'uses.finetune', 'Classifier': 'uses.finetune',
    'probe': 'instruments.probes', 'labelled': 'instruments.probes',
    'fit': 'train.trainer', 'Trainer': 'train.trainer', 'psnr': 'instruments.baselines',
    'Explorer': 'show.explorer.widget',
    'setting': 'settings', 'settings': 'settings',
}
_ROOMS = ('contract', 'masks', 'corruptions', 'targets', 'parts', 'stages', 'recipes', 'formats',
          'instruments', 'data', 'train', 'uses',
          'show', 'claims', 'course')

if TYPE_CHECKING:         # the same once more, for whoever reads without running
    from .contract.catalogue import list_recipes as list_recipes
    from .contract.create import create_recipe as create_recipe, card as card
    from .contract.create import register_recipe as register_recipe
    from .contract.recipe import Recipe as Recipe, Out as Out, Card as Card, draw as draw
    from .contract.units import Units as Units, layout as layout
    from .data.samples import sample as sample, list_samples as list_samples, describe as describe
    from .data.batches import batches as batches
    from .data.own import images as images, load_image as load_image
    from .data.text import encode as encode, decode as decode, load_text as load_text
    from .data.points import load_points as load_points
    from .data.recordings import recordings as recordings, load_wave as load_wave
    from .data.films import videos as videos, load_video as load_video
    from .data.own_pairs import view_pairs as view_pairs
    from .formats.pretrained import load_pretrained as load_pretrained
    from .instruments.leak import leak_check as leak_check
    from .instruments.keeps import check_recipe as check_recipe
    from .instruments.coverage import coverage_map as coverage_map
    from .instruments.count_law import count_law as count_law
    from .data.labels import labelled_images as labelled_images
    from .uses.finetune import finetune as finetune, Classifier as Classifier
    from .instruments.probes import probe as probe, labelled as labelled
    from .train.trainer import fit as fit, Trainer as Trainer
    from .instruments.baselines import psnr as psnr
    from .show.explorer.widget import Explorer as Explorer
    from .settings import setting as setting, settings as settings
    from . import contract as contract, masks as masks, corruptions as corruptions, targets as targets
    from . import parts as parts, stages as stages
    from . import recipes as recipes, formats as formats, instruments as instruments, data as data
    from . import train as train, uses as uses, show as show, claims as claims, course as course

__all__ = ['__version__', *_NAMES, *_ROOMS]


def __getattr__(name):
    if name in ('Trainer', 'fit'):
        _watch_in_a_notebook()
    if name in _NAMES: return getattr(_import(f'maskedlab.{_NAMES[name]}'), name)
    if name in _ROOMS: return _import(f'maskedlab.{name}')
    raise AttributeError(f"maskedlab has no {name!r}; see maskedlab.__all__")


def _modules_of(room):
    "What a room answers to a name that it does not have yet: the module of that name, imported now."
    def find(name):
        if not name.startswith('_'):
            try:
                return _import(f'{room}.{name}')
            except ModuleNotFoundError as error:
                if error.name != f'{room}.{name}': raise
        raise AttributeError(f'{room} has no {name!r}')
    return find


def _watch_in_a_notebook():
    "A run in a notebook's kernel has a live view, where there are widgets to draw it: it adds itself."
    if _import('maskedlab.train.watch').in_kernel() and _find('ipywidgets'):
        _import('maskedlab.show.training')


def __dir__():
    return sorted(__all__)
