"""What a layer sees, and how its attention is computed."""

from lg.attention.attend import attend
from lg.attention.compose import And, Not, Or, PerHead
from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.patterns import (
    Causal,
    Chunked,
    Dilated,
    GlobalTokens,
    PrefixLM,
    ShiftedGroups,
    SinkWindow,
    Strided,
    Window,
)
from lg.attention.reading import PredicateError
from lg.attention.retention import Kept
from lg.attention.routed import Routed
from lg.attention.tiles import Tiles, TileTable

__all__ = [
    "And",
    "Causal",
    "Chunked",
    "Dilated",
    "Documents",
    "GlobalTokens",
    "Kept",
    "Not",
    "Or",
    "Pattern",
    "PerHead",
    "PredicateError",
    "PrefixLM",
    "Routed",
    "ShiftedGroups",
    "SinkWindow",
    "Strided",
    "TileTable",
    "Tiles",
    "Window",
    "attend",
]
