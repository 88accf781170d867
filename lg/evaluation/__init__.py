"""What a model can do with its context, measured by what it finds likely; nothing is generated."""

from lg.evaluation.context_use import Difference, losses_by_context, paired
from lg.evaluation.needle import Haystack, Needles, Question, Score, haystack, score
from lg.evaluation.prompts import PackedPrompts, pack

__all__ = [
    "Difference",
    "Haystack",
    "Needles",
    "PackedPrompts",
    "Question",
    "Score",
    "haystack",
    "losses_by_context",
    "pack",
    "paired",
    "score",
]
