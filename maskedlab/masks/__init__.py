"""Where to mask: strategies, and the units that they are called on."""
from .ball import Ball
from .block import Block
from .disc import Disc, paired
from .guided import Guided
from .parse import parse
from .patterns import Checkerboard, Grid, Painted, Tube
from .schedules import Coin, Cosine, Linear, Normal, Uniform
from .span import Span
from .static import Static
from .strategies import Inverse, Random, Range, Strategy, Union, controls, create_strategy, hide, list_strategies
from .units import Units, layout, mean, place, repeat_to, rows, spread
from .words import Bernoulli, Slots, Tokens, WholeWords, WordSpans

__all__ = ['Ball', 'Bernoulli', 'Block', 'Checkerboard', 'Coin', 'Cosine', 'Disc', 'Grid', 'Guided', 'Inverse', 'Linear', 'Normal',
           'Painted', 'Random', 'Range', 'Slots', 'Span', 'Static', 'Strategy', 'Tokens', 'Tube', 'Uniform', 'Union', 'Units', 'WholeWords',
           'WordSpans', 'controls', 'create_strategy', 'hide', 'layout', 'list_strategies', 'mean', 'paired', 'parse', 'place',
           'repeat_to', 'rows', 'spread']
