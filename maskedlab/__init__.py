"""See, touch, train and compare masked modeling.

    import maskedlab as ml

    r = ml.create_recipe('mae', pretrained=True)
    b = ml.sample('image', n=8)
    out = r(b, mask=ml.masks.Block(ratio=.5))

Names are loaded when they are first used, so that importing the package costs no more than importing torch."""
from importlib import import_module as _import

__version__ = "0.1.0"

_NAMES = {   # public name -> module
    'list_recipes': 'recipes.table', 'create_recipe': 'recipes.table', 'card': 'recipes.table',
    'Recipe': 'parts.contract', 'Out': 'parts.contract', 'Card': 'parts.contract', 'draw': 'parts.contract',
    'Units': 'masks.units', 'layout': 'masks.units',
    'sample': 'data.samples', 'list_samples': 'data.samples', 'describe': 'data.samples', 'batches': 'data.batches',
    'images': 'data.own', 'load_image': 'data.own', 'encode': 'data.text', 'decode': 'data.text', 'load_points': 'data.points',
    'load_pretrained': 'recipes.pretrained',
    'leak_check': 'instruments.leak', 'coverage_map': 'instruments.coverage', 'count_law': 'instruments.count_law',
    'fit': 'train.loop', 'Trainer': 'train.trainer', 'psnr': 'instruments.baselines',
    'Explorer': 'show.explorer',
    'setting': 'settings', 'settings': 'settings',
}
_ROOMS = ('masks', 'corruptions', 'targets', 'parts', 'recipes', 'instruments', 'data', 'train', 'uses', 'show', 'claims')

__all__ = ['__version__', *_NAMES, *_ROOMS]


def __getattr__(name):
    if name in _NAMES: return getattr(_import(f'maskedlab.{_NAMES[name]}'), name)
    if name in _ROOMS: return _import(f'maskedlab.{name}')
    raise AttributeError(f"maskedlab has no {name!r}; see maskedlab.__all__")


def __dir__(): return sorted(__all__)
