"""See, touch, train and compare masked modeling.

    import maskedlab as ml

    r = ml.create_recipe('mae', pretrained=True)
    b = ml.sample('image', n=8)
    out = r(b, mask=ml.masks.Block(ratio=.5))

Names are loaded when they are first used, so that importing the package costs no more than importing
torch."""
from importlib import import_module as _import
from importlib.util import find_spec as _find

from . import _moved as _moved

__version__ = "0.1.0"

_NAMES = {   # public name -> module
    'list_recipes': 'contract.catalogue', 'create_recipe': 'contract.create', 'card': 'contract.create',
    'Recipe': 'contract.recipe', 'Out': 'contract.recipe', 'Card': 'contract.recipe',
          'draw': 'contract.recipe',
    'Units': 'contract.units', 'layout': 'contract.units',
    'sample': 'data.samples', 'list_samples': 'data.samples', 'describe': 'data.samples',
          'batches': 'data.batches',
    'images': 'data.own', 'load_image': 'data.own', 'encode': 'data.text', 'decode': 'data.text',
          'load_points': 'data.points',
    'load_pretrained': 'formats.pretrained',
    'leak_check': 'instruments.leak', 'coverage_map': 'instruments.coverage',
          'count_law': 'instruments.count_law',
    'fit': 'train.trainer', 'Trainer': 'train.trainer', 'psnr': 'instruments.baselines',
    'Explorer': 'show.explorer.widget',
    'setting': 'settings', 'settings': 'settings',
}
_ROOMS = ('contract', 'masks', 'corruptions', 'targets', 'parts', 'stages', 'recipes', 'formats',
          'instruments', 'data', 'train', 'uses',
          'show', 'claims', 'course')

__all__ = ['__version__', *_NAMES, *_ROOMS]


def __getattr__(name):
    if name in ('Trainer', 'fit'):
        _watch_in_a_notebook()
    if name in _NAMES: return getattr(_import(f'maskedlab.{_NAMES[name]}'), name)
    if name in _ROOMS: return _import(f'maskedlab.{name}')
    raise AttributeError(f"maskedlab has no {name!r}; see maskedlab.__all__")


def _watch_in_a_notebook():
    "A run in a notebook's kernel has a live view, where there are widgets to draw it: it adds itself."
    if _import('maskedlab.train.watch').in_kernel() and _find('ipywidgets'):
        _import('maskedlab.show.training')


def __dir__():
    return sorted(__all__)
