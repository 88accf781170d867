"""Many devices as one: weights sharded over them, and sequences cut among them by what each layer sees."""

from lg.parallel.strategy import HybridStrategy

__all__ = ["HybridStrategy"]
