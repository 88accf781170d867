"""Lets the tests of this folder import the examples of patterns."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))
