"""How fast each implementation of attention is on this machine, and whether they agree: what `lg bench` measures."""

from lg.attention.bench.case import PATTERNS, Case, mixed
from lg.attention.bench.measure import as_in_training, measured
from lg.attention.bench.row import Row
from lg.attention.bench.timing import Times, times

__all__ = ["PATTERNS", "Case", "Row", "Times", "as_in_training", "measured", "mixed", "times"]
