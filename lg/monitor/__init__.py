"""What a training shows: one Lightning callback a file, each switched on by its line in the YAML."""

from lg.monitor.checkpoints import Checkpoints
from lg.monitor.compilation import Compilation
from lg.monitor.count_baseline import CountBaseline
from lg.monitor.data_wait import DataWait
from lg.monitor.exchange import Exchange
from lg.monitor.finite import Finite
from lg.monitor.gradient_norms import GradientNorms
from lg.monitor.loss_by_position import LossByPosition
from lg.monitor.memory import Memory
from lg.monitor.model_card import ModelCard
from lg.monitor.needle import Needle
from lg.monitor.padding import Padding
from lg.monitor.pattern_sheet import PatternSheet
from lg.monitor.predicted import Predicted
from lg.monitor.run_card import RunCard
from lg.monitor.summary import Summary
from lg.monitor.text_samples import TextSamples
from lg.monitor.throughput import Throughput
from lg.monitor.work import Work

__all__ = [
    "Checkpoints",
    "Compilation",
    "CountBaseline",
    "DataWait",
    "Exchange",
    "Finite",
    "GradientNorms",
    "LossByPosition",
    "Memory",
    "ModelCard",
    "Needle",
    "Padding",
    "PatternSheet",
    "Predicted",
    "RunCard",
    "Summary",
    "TextSamples",
    "Throughput",
    "Work",
]
