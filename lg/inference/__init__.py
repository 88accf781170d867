"""Running a decoder token by token, with a cache that keeps only what a later query may see."""

from lg.inference.cache import Cache
from lg.inference.runner import Runner
from lg.inference.state import Piece

__all__ = ["Cache", "Piece", "Runner"]
