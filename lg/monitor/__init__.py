"""What a training shows: one Lightning callback a file, each switched on by its line in the YAML."""

from lg.monitor.compilation import Compilation
from lg.monitor.count_baseline import CountBaseline
from lg.monitor.model_card import ModelCard
from lg.monitor.pattern_sheet import PatternSheet
from lg.monitor.throughput import Throughput

__all__ = ["Compilation", "CountBaseline", "ModelCard", "PatternSheet", "Throughput"]
