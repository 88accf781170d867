"""Malformed YAMLs, sources, caches, checkpoints and disks: each ends in one sentence, or in a run that is right.

The cases are those of the folder `fuzz`, which runs by itself, too. Here it runs some of each kind, and all of them
where `LG_FUZZ_REPORT` names the file that their figures are written to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Every case is a fork of a process that has imported all that it needs.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits what its children may write")


def wrong(out: Path, *words: str) -> tuple[int, list[str]]:
    """How many cases there were, and those that ended otherwise than they must."""
    folder = Path(__file__).with_name("fuzz")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, folder, out, *words], capture_output=True, text=True, env=environment)
    assert out.is_file(), done.stderr
    rows = json.loads(out.read_text())["rows"]
    told = [f"{row['case']}: {row['verdict']}" for row in rows if "case" in row]
    return sum(row["cases"] for row in rows if "cases" in row), told + [done.stdout[-5000:]] * bool(told)


@pytest.mark.slow
def test_some_of_every_kind(tmp_path: Path) -> None:
    count, told = wrong(tmp_path / "fuzz.json", "--share=0.02")
    assert count > 50
    assert not told, "\n".join(told)


@pytest.mark.slow
@pytest.mark.skipif("LG_FUZZ_REPORT" not in os.environ, reason="takes a quarter of an hour; LG_FUZZ_REPORT=FILE asks")
def test_more_than_a_thousand(tmp_path: Path) -> None:
    out = Path(os.environ.get("LG_FUZZ_REPORT", tmp_path / "fuzz.json")).absolute()
    count, told = wrong(out)
    assert count > 1000
    assert not told, "\n".join(told)


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    """A run with a rule of its own broken: a traceback, a message without a key, a file left behind."""
    script = tmp_path / "judge.py"
    script.write_text(JUDGED)
    folder = str(Path(__file__).with_name("fuzz"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(Path(__file__).parents[2])])}
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n")[:-1] == [
        "traceback", "names no key ", "refused", "not one message", "exit code 3", "left logs/x.part",
        "half-written logs/a.ckpt", "hang", "ran",
    ], done.stderr  # fmt: skip


JUDGED = """
import sys, time
from pathlib import Path
import torch
import trial

def behave(words):
    exec(words[0])
    return int(words[1])

trial.main = behave
trial.PATIENCE = 3
say = "print({!r}, file=sys.stderr)".format
for number, (code, ends) in enumerate([
    ("1 / 0", 0),
    (say("lg fit: no"), 2),
    (say("lg fit: data.init_args.seed: no"), 2),
    (say("lg fit: data: no\\nlg fit: data: no"), 2),
    ("pass", 3),
    ("Path('logs').mkdir(); Path('logs/x.part').touch()", 0),
    ("Path('logs').mkdir(); Path('logs/a.ckpt').touch()", 0),
    ("time.sleep(60)", 0),
    ("pass", 0),
]):
    code = "import sys, time; from pathlib import Path; " + code
    case = trial.Case("kind", "name", lambda: [code, str(ends)])
    print(trial.attempt(case, Path(sys.argv[1], str(number))).verdict, flush=True)
"""
