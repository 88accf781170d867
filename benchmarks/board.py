"""Reads a run's figures back from its TensorBoard files."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of the only run below a folder: tag to (step, value) pairs, in order."""
    events = next(folder.rglob("events.out.tfevents.*"))
    board = EventAccumulator(str(events.parent), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
