"""What a probe has measured so far, one unit after another, so that one that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Notebook:
    """Units by name, each plain data; what is measured once is not measured again.

    Args:
        known: units of an earlier run of the same settings.
        keep: called with all units after each new one.
        tell: called with the name of a unit that is about to be measured, or with a part of it.
    """

    def __init__(
        self,
        known: Mapping[str, Any] | None = None,
        keep: Callable[[Mapping[str, Any]], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._units = dict(known or {})
        self._keep = keep or _nothing
        self.tell = tell or _nothing

    @property
    def units(self) -> Mapping[str, Any]:
        """All that is known."""
        return self._units

    def put(self, name: str, value: Any) -> None:
        """Writes a unit down, in place of the one of this name."""
        self._units[name] = value
        self._keep(self._units)


def _nothing(_: object) -> None:
    """Keeps nothing and says nothing."""
