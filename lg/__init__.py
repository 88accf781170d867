"""lg trains hybrid decoders: language models whose layers see different parts of a long context."""

__version__ = "0.1.0"
