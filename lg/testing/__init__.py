"""Tests for what users write: a pattern of your own needs no more than `check_pattern`."""

from lg.testing.patterns import PatternReport, check_pattern

__all__ = ["PatternReport", "check_pattern"]
