"""Runs the cases, and says which of them did not end as every case must.

python tests/cli/fuzz fuzz.json                      # all, a quarter of an hour
python tests/cli/fuzz fuzz.json --share 0.05         # a twentieth of each kind
python tests/cli/fuzz fuzz.json --only "YAML text: deep"    # those whose names begin so
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

# This process forks: a pool of threads that has worked would be missing in its children.
import torch

torch.set_num_threads(1)

from good import config, fit
from trial import Case, attempt

from lg.cli import main

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from report import parser, processor, write

FAMILIES = (
    "yaml_text",
    "yaml_values",
    "yaml_classes",
    "broken_sources",
    "broken_caches",
    "broken_checkpoints",
    "disks",
)


def chosen(share: float, only: str) -> list[Case]:
    """Some cases of each kind, evenly spread."""
    found: list[Case] = []
    for family in FAMILIES:
        named = importlib.import_module(family).cases()
        cases = [case for case in named if f"{case.kind}: {case.name}".startswith(only)]
        wanted = max(1, round(share * len(cases))) if cases else 0
        found += [cases[number * len(cases) // wanted] for number in range(wanted)]
    return found


def warm_up(folder: Path) -> None:
    """Imports what any case may need, here and once."""
    for module in ("datasets", "datasets.io.text", "datasets.io.parquet", "pyarrow.parquet", "tokenizers"):
        importlib.import_module(module)
    importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    # As for the `lg` command, a user's modules are those of the working directory.
    sys.path.insert(0, "")
    folder.mkdir()
    here = os.getcwd()
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*fit(config()), "--print_config"]) == 0
    os.chdir(here)


def run() -> int:
    """Runs the chosen cases, and writes how many of each kind ended how; 1 if one did not end as it must."""
    words = parser(__doc__)
    words.add_argument("--share", type=float, default=1.0, help="of the cases of each kind")
    words.add_argument("--only", default="", help="how the names of the cases begin")
    given = words.parse_args()
    # Python 3.12 and newer warn of threads; those that pyarrow brings no child uses.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    top = Path(tempfile.mkdtemp(prefix="fuzz-"))
    top.chmod(0o755)  # for cases that give up the superuser's rights
    counts: dict[str, Counter[str]] = {}
    wrong, slowest, began = [], 0.0, time.monotonic()
    try:
        warm_up(top / "warm")
        for number, case in enumerate(chosen(given.share, given.only)):
            outcome = attempt(case, top / str(number))
            shutil.rmtree(top / str(number), ignore_errors=True)
            slowest = max(slowest, outcome.seconds)
            counts.setdefault(case.kind, Counter())[outcome.verdict if outcome.is_right else "wrong"] += 1
            if not outcome.is_right:
                wrong.append({"case": f"{case.kind}: {case.name}", "verdict": outcome.verdict})
                print(f"{case.kind}: {case.name}: {outcome.verdict} ({outcome.seconds:.1f} s)\n{outcome.said}\n")
                sys.stdout.flush()
    finally:
        shutil.rmtree(top, ignore_errors=True)
    rows = [
        {"kind": kind, "cases": sum(found.values()), **{how: found[how] for how in ("refused", "ran", "wrong")}}
        for kind, found in counts.items()
    ]
    for row in rows:
        print(row)
    print(f"{time.monotonic() - began:.0f} s, the slowest case {slowest:.1f} s, {len(wrong)} wrong")
    what = "malformed inputs of lg fit, each in a process of its own: how many ended how"
    write(given.out, what, processor(), ["torch", "lightning", "jsonargparse", "datasets", "pyarrow"], [*rows, *wrong])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run())
