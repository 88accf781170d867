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


def earlier(out: Path, failed: bool = False) -> list[dict[str, Any]]:
    """The rows that a call before this one has written; those that failed only if they are to stay."""
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.exists() else []
    return [row for row in rows if failed or "error" not in row]


def installed(*names: str) -> list[str]:
    """Those of some packages that are there."""
    there = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    return [name for name in names if name in there]


def complaint(printed: str) -> str:
    """What a process that has failed says at last, without the path of this checkout."""
    lines = printed.strip().splitlines()
    return lines[-1].replace(f"{Path(__file__).parents[1]}/", "")[:500] if lines else ""


def device_name(is_gpu: bool) -> str:
    """The GPU's name, or else the processor's."""
    import torch

    return str(torch.cuda.get_device_name()) if is_gpu else processor()


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
