"""Running a decoder token by token, with a cache that keeps only what a later query may see."""

from lg.inference.cache import Cache
from lg.inference.compiled import compiled
from lg.inference.generate import Written, generate, stream
from lg.inference.runner import Runner
from lg.inference.sampling import Sampling
from lg.inference.scheduler import Event, Request, Scheduler
from lg.inference.state import Piece
from lg.inference.text import Text, Tokenizer
from lg.inference.write_on import Continued, WriteOn

__all__ = [
    "Cache", "Continued", "Event", "Piece", "Request", "Runner", "Sampling", "Scheduler", "Text", "Tokenizer",
    "WriteOn", "Written", "compiled", "generate", "stream",
]  # fmt: skip
