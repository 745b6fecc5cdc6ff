"""Figures, and the explorer. Names are loaded when they are first used."""
from importlib import import_module as _import

from maskedlab import _modules_of

_NAMES = {   # public name -> module
    'strip': 'figures', 'attention_map': 'figures', 'map_of': 'figures', 'curve': 'figures',
    'sheet': 'sheets', 'save_figure': 'sheets',
    'Explorer': 'explorer.widget', 'serve': 'explorer.widget',
    'Page': 'explorer.page', 'State': 'explorer.menus', 'answer': 'explorer.doors',
    'VIEWS': 'views.table', 'view_of': 'views.table', 'cividis': 'views.base',
}

__all__ = list(_NAMES)
_module = _modules_of(__name__)


def __getattr__(name):
    if name in _NAMES: return getattr(_import(f'maskedlab.show.{_NAMES[name]}'), name)
    return _module(name)
