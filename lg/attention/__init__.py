"""What a layer sees, and how its attention is computed."""

from lg.attention.attend import attend
from lg.attention.documents import Documents
from lg.attention.pattern import And, Or, Pattern
from lg.attention.patterns import Causal, SinkWindow, Strided, Window
from lg.attention.tiles import Tiles, TileTable

__all__ = [
    "And",
    "Causal",
    "Documents",
    "Or",
    "Pattern",
    "SinkWindow",
    "Strided",
    "TileTable",
    "Tiles",
    "Window",
    "attend",
]
