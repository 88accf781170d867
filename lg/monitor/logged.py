"""What a run has logged, read back from its TensorBoard files: of a run that went on in its folder, all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Points = Sequence[tuple[int, float]]
"""Optimizer steps, ascending, and a value at each."""


class Logged:
    """What a run has logged so far.

    Args:
        folder: that its TensorBoard files lie in. What they hold is read once, here.
    """

    def __init__(self, folder: Path) -> None:
        # All scalars, and the last image; nobody asks for the rest.
        sizes = {"scalars": 0, "images": 1, "tensors": 1, "histograms": 1, "compressedHistograms": 1, "audio": 1}
        self._events = EventAccumulator(str(folder), size_guidance=sizes)
        self._events.Reload()

    @property
    def tags(self) -> Sequence[str]:
        """The scalars that are logged."""
        tags: Sequence[str] = self._events.Tags()["scalars"]
        return tags

    def points(self, tag: str) -> Points:
        """The finite values of a scalar; of a step that was run twice, the later one. Empty if it is not logged."""
        if tag not in self.tags:
            return []
        values = {event.step: event.value for event in self._events.Scalars(tag)}
        return [(step, values[step]) for step in sorted(values) if math.isfinite(values[step])]

    def image(self, tag: str) -> bytes | None:
        """The last image of a tag, as a PNG file; None if there is none."""
        if tag not in self._events.Tags()["images"]:
            return None
        content: bytes = self._events.Images(tag)[-1].encoded_image_string
        return content
