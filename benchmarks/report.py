"""What every benchmark shares: where figures come from, and the file that they end in."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RESULTS = Path(__file__).parent / "results"


def parser(about: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line: the result file, by default the script's own under results/."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("out", nargs="?", type=Path, default=RESULTS / f"{Path(sys.argv[0]).stem}.json")
    return made


def write(out: Path, what: str, device: str, packages: list[str], rows: list[dict[str, Any]]) -> None:
    """Writes the rows with the device, the packages' versions, the date and the command."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    result = {
        "what": what,
        "device": device,
        "versions": {**versions, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    """The processor's name, as far as the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of the only TensorBoard run below a folder: tag to (step, value) pairs, in order."""
    events = next(folder.rglob("events.out.tfevents.*"))
    board = EventAccumulator(str(events.parent), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
