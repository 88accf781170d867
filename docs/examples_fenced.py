"""Shows the examples of docstrings as code: Markdown would take ``>>>`` for a quotation of a quotation."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

# From a prompt to the next blank line.
_EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*\n?(?:^(?P=indent)\S.*\n?|^(?P=indent) +\S.*\n?)*", re.MULTILINE)


class FencedExamples(Extension):
    """Puts a fence around every example."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Changes an object's docstring, once it is read."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(example: re.Match[str]) -> str:
    return f"{example['indent']}```python\n{example[0].rstrip()}\n{example['indent']}```\n"
