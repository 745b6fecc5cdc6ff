# made by tools/stub.py from the table in __init__.py
from collections.abc import Callable
from typing import Any

from .contract.catalogue import list_recipes as list_recipes
from .contract.create import card as card
from .contract.create import create_recipe as create_recipe
from .contract.create import register_recipe as register_recipe
from .contract.recipe import Card as Card
from .contract.recipe import Out as Out
from .contract.recipe import Recipe as Recipe
from .contract.recipe import draw as draw
from .contract.units import Units as Units
from .contract.units import layout as layout
from .data.batches import batches as batches
from .data.films import load_video as load_video
from .data.films import videos as videos
from .data.labels import labelled_images as labelled_images
from .data.own import images as images
from .data.own import load_image as load_image
from .data.own_pairs import view_pairs as view_pairs
from .data.points import load_points as load_points
from .data.recordings import load_wave as load_wave
from .data.recordings import recordings as recordings
from .data.samples import describe as describe
from .data.samples import list_samples as list_samples
from .data.samples import sample as sample
from .data.text import decode as decode
from .data.text import encode as encode
from .data.text import load_text as load_text
from .formats.pretrained import load_pretrained as load_pretrained
from .instruments.baselines import psnr as psnr
from .instruments.count_law import count_law as count_law
from .instruments.coverage import coverage_map as coverage_map
from .instruments.keeps import check_recipe as check_recipe
from .instruments.leak import leak_check as leak_check
from .instruments.probes import labelled as labelled
from .instruments.probes import probe as probe
from .settings import setting as setting
from .settings import settings as settings
from .show.explorer.widget import Explorer as Explorer
from .train.trainer import Trainer as Trainer
from .train.trainer import fit as fit
from .uses.finetune import Classifier as Classifier
from .uses.finetune import finetune as finetune
from . import contract as contract
from . import masks as masks
from . import corruptions as corruptions
from . import targets as targets
from . import parts as parts
from . import stages as stages
from . import recipes as recipes
from . import formats as formats
from . import instruments as instruments
from . import data as data
from . import train as train
from . import uses as uses
from . import show as show
from . import claims as claims
from . import course as course

__version__: str
_NAMES: dict[str, str]
_ROOMS: tuple[str, ...]
def _modules_of(room: str) -> Callable[[str], Any]: ...
__all__: list[str]
