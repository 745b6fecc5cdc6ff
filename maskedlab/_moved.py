"""Modules that have moved: their old names work for one more release, with a warning."""
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

from .checks import outside

MOVED: dict[str, str] = {   # old -> new, both inside the package
    'masks.units': 'contract.units', 'masks.parse': 'contract.parse',
    'parts.contract': 'contract.recipe', 'parts.checkpoints': 'contract.saved',
    'parts.teachers': 'stages.teachers', 'recipes.stages': 'stages.shelf',
    'recipes.table': 'contract.create', 'recipes.pretrained': 'formats.pretrained',
    'train.draws': 'train.seeds', 'train.stages': 'train.make_stage', 'uses.probes': 'instruments.probes',
    'claims.core': 'instruments.claim', 'claims.compare': 'instruments.compare',
    'instruments.draws': 'instruments.chance', 'show.words': 'show.views.words',
    'show.clouds': 'show.views.clouds', 'show.spectra': 'show.views.spectra',
    'show.explore': 'show.explorer.page',
    **{f'recipes.{n}': f'stages.{n}' for n in ('image_dvae', 'point_dvae', 'token_adapt', 'vit_teacher')},
    **{f'{room}.{n}': f'{room}.{field}.{n}' for room in ('recipes', 'claims') for field, names in (
        ('image', ('mae', 'simmim', 'beit', 'cae', 'mfm', 'maskalign', 'hybrid_distillation', 'selfie',
                   'seitpp')),
        ('text', ('bert_mlm', 'electra')), ('points', ('point_mae', 'point_bert'))) for n in names},
    **{f'recipes.{n}_layouts': f'formats.{n}'
       for n in ('mae', 'simmim', 'beit', 'cae', 'bert', 'electra', 'point_mae')},
}


class Forward(MetaPathFinder, Loader):
    "Finds a module of an old name at its new place."

    def find_spec(self, name, path=None, target=None):
        package, _, old = name.partition('.')
        return ModuleSpec(name, self) if package == 'maskedlab' and old in MOVED else None

    def create_module(self, spec):
        new = f"maskedlab.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f'{spec.name} is now {new}; the old name goes with the next release',
                      DeprecationWarning, stacklevel=outside())
        module = import_module(new)
        self.kept = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.kept     # the import system has put the old name there


if not any(isinstance(f, Forward) for f in sys.meta_path):
    sys.meta_path.append(Forward())
