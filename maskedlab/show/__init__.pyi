# made by tools/stub.py from the table in __init__.py
from .explorer.doors import answer as answer
from .explorer.menus import State as State
from .explorer.page import Page as Page
from .explorer.widget import Explorer as Explorer
from .explorer.widget import serve as serve
from .figures import attention_map as attention_map
from .figures import curve as curve
from .figures import map_of as map_of
from .figures import strip as strip
from .sheets import save_figure as save_figure
from .sheets import sheet as sheet
from .views.base import cividis as cividis
from .views.table import VIEWS as VIEWS
from .views.table import view_of as view_of
__all__: list[str]
