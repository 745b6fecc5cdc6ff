"""Where to mask: strategies, and the units that they are called on."""
from .. import _modules_of
from ..contract.parse import parse
from ..contract.strategy import Inverse, Range, Strategy, Union, controls, hide
from ..contract.units import Units, layout, mean, place, repeat_to, rows, spread
from .ball import Ball
from .block import Block
from .disc import Disc, paired
from .guided import Guided, GuidedSpan, GuidedSteps
from .patterns import Checkerboard, Frames, Grid, Painted, Tube
from .schedules import Coin, Cosine, HalfCosine, Linear, Normal, Stepwise, Uniform
from .span import Span
from .static import Static
from .strategies import Random, create_strategy, list_strategies
from .streams import Streams
from .views import Disjoint, Independent
from .words import Bernoulli, Slots, Tokens, WholeWords, WordSpans

__all__ = ['Ball', 'Bernoulli', 'Block', 'Checkerboard', 'Coin', 'Cosine', 'Disc', 'Disjoint', 'Frames',
           'Grid', 'Guided', 'GuidedSpan', 'GuidedSteps', 'HalfCosine', 'Independent', 'Inverse',
           'Linear', 'Normal', 'Painted', 'Random', 'Range', 'Slots', 'Span', 'Static', 'Stepwise',
           'Strategy', 'Streams', 'Tokens', 'Tube', 'Uniform', 'Union', 'Units', 'WholeWords', 'WordSpans',
           'controls', 'create_strategy', 'hide', 'layout', 'list_strategies', 'mean', 'paired', 'parse',
           'place', 'repeat_to', 'rows', 'spread']
__getattr__ = _modules_of(__name__)
