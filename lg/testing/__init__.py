"""Tests for what users write: a pattern of your own needs no more than `check_pattern`."""

from lg.testing.patterns import PatternReport, check_pattern
from lg.testing.ranks import RankFailed, run_ranks

__all__ = ["PatternReport", "RankFailed", "check_pattern", "run_ranks"]
