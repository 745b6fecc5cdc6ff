"""See, touch, train and compare masked modeling.

    import maskedlab as ml

    r = ml.create_recipe('mae', pretrained=True)
    b = ml.sample('image', n=8)
    out = r(b, mask=ml.masks.Block(ratio=.5))

Names are loaded when they are first used, so that importing the package costs no more than importing
torch. Type checkers and editors read the same names in __init__.pyi, which tools/stub.py writes."""
from importlib import import_module as _import
from importlib.util import find_spec as _find
from pkgutil import iter_modules as _within
from sys import modules as _loaded

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

__all__ = ['__version__', *_NAMES, *_ROOMS]


def __getattr__(name):
    if name in ('Trainer', 'fit'):
        _watch_in_a_notebook()
    if name in _NAMES:      # with a docstring that says what the comments in the source do
        found = getattr(_import(f'maskedlab.{_NAMES[name]}'), name)
        return _import('maskedlab.told').with_help(found, name)
    if name in _ROOMS: return _import(f'maskedlab.{name}')
    raise AttributeError(f"maskedlab has no {name!r}; see maskedlab.__all__")


def _modules_of(room):
    """What a room answers to a name that it does not have yet: the module of that name, imported now. It
    lists these modules among its names from the beginning."""
    module = _loaded[room]
    inner = lambda: [found.name for found in _within(module.__path__)]
    named = lambda: (*vars(module), *getattr(module, '__all__', ()), *inner())
    module.__dir__ = lambda: sorted({name for name in named() if not name.startswith('_')})

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
