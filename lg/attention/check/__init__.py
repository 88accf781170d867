"""Whether an implementation of attention is right on this machine: checked once in each case, and remembered."""

from lg.attention.check.budget import Yardstick
from lg.attention.check.case import Case, Facts
from lg.attention.check.examine import Verdict, examined
from lg.attention.check.memory import checked, machine, proven, recall, refused

__all__ = ["Case", "Facts", "Verdict", "Yardstick", "checked", "examined", "machine", "proven", "recall", "refused"]
