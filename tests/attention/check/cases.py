"""Cases to check on a CPU."""

from typing import Any

import torch

from lg.attention import Pattern
from lg.attention.check import Case, Facts


def case(pattern: Pattern, **others: Any) -> Case:
    """A packed one in float32, or as the others say."""
    facts = Facts(pattern.made_for or 2, 2, 16, torch.float32, torch.device("cpu"), packed=True, chunk=False)
    return Case(pattern, facts._replace(**others))
