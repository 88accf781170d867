"""Which layers must see everything: sets that `lg probe` proposes, trained beside others at equal data and tokens.

    lg import smollm2 models/smollm2
    lg data fetch austen shakespeare faq essays bible milton
    lg probe --model=models/smollm2 --data=stdlib,austen --length=4K --out=probe.json
    python benchmarks/measured_schedule.py [OUT.json] --scores probe.json [--minutes 9] [--seeds 1] [--toy]

Each set is trained by `lg fit` with measured_schedule.yaml, in a process of its own, one on every GPU that there is, or
so many as `--together` says. Rows tell needles (exact, at five depths), what context is worth on texts that no run has
read, the loss, and what is written after RULER's questions, if `--ruler` names a folder of them (ruler.py). The file is
written after each row. At SIGTERM or Ctrl-C trainings save and end; a second call goes on with them, in `--runs`.
"""

from __future__ import annotations

import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ruler
import torch
from report import complaint, earlier, parser, processor, write

from lg.attention import Causal, SinkWindow
from lg.attention.schedule import Measured, written
from lg.data import Fetched, TokenizerFile
from lg.evaluation import Needles, haystack, losses_by_context, paired, score
from lg.evaluation.probe import per_head
from lg.evaluation.probe.texts import pieces
from lg.models.checkpoint import plain
from lg.models.hybrid import HybridLM

HERE = Path(__file__).parent
LAYERS = 30
SIZES = (4, 2, 3, 6)
BEST = "needle_greedy"
# What measured_schedule.yaml calls "local".
LOCAL = SinkWindow(window=1984, sinks=64)
LENGTHS, CONTEXTS, TARGETS, PIECES, SAMPLES = (4096, 8192, 16384, 32768), (4096, 31744), 1024, 48, 6


class Case(NamedTuple):
    """One training.

    Attributes:
        name: where the set is from.
        schedule: the layers.
        seed: of the training.
        patterns: options that name more patterns.
    """

    name: str
    schedule: str
    seed: int
    patterns: tuple[str, ...] = ()


def cases(scores: Path, seeds: int) -> Iterator[Case]:
    """The most wanted first: of the first seed also what only has to be ranked, of the others the main rows."""
    measures: dict[str, Any] = json.loads(scores.read_text())["measures"]
    best, *others = sorted(measures, key=lambda name: name != BEST)
    for seed in range(seeds):
        yield Case("full", f"{LAYERS}*full", seed)
        yield Case("middle 12", "9*local, 12*full, 9*local", seed)
        yield Case("sparse only", f"{LAYERS}*local", seed)
        for size in SIZES if seed == 0 else SIZES[:2]:
            if proposes(measures[best], size):
                yield by_measure(scores, best, size, seed)
            drawn = random.Random(f"{seed} {size}").sample(range(LAYERS), size)
            yield Case(f"random, {size}", written(["full" if n in drawn else "local" for n in range(LAYERS)]), seed)
        if seed == 0:
            if "gates" in measures:
                yield from (by_heads(measures["gates"]["heads"], size, seed) for size in SIZES[:2])
            wanted = [name for name in others if proposes(measures[name], SIZES[0])]
            yield from (by_measure(scores, measure, SIZES[0], seed) for measure in wanted)


def proposes(measure: dict[str, Any], size: int) -> bool:
    """Whether a measure has a set of so many layers."""
    return len(measure["sets"]) >= size and measure["sets"][size - 1] is not None


def by_measure(scores: Path, measure: str, size: int, seed: int) -> Case:
    """The layers that a measure proposes."""
    chosen = Measured(str(scores), full_layers=size, measure=measure).layers(LAYERS)
    return Case(f"{measure}, {size}", written(chosen), seed)


def by_heads(gates: list[list[float]], size: int, seed: int) -> Case:
    """As many full KV heads as so many layers have, wherever the gates are highest."""
    plan = per_head(gates, size * len(gates[0]), Causal(), LOCAL)
    told = {name: said for name, said in plain(**plan.patterns).items() if name not in ("full", "local")}
    options = tuple(f"--model.patterns.{name}={json.dumps(said)}" for name, said in told.items())
    return Case(f"heads of gates, {size}", plan.schedule, seed, options)


class Processes:
    """Those that run, so that all can be ended."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        # A signal may come while another is heard.
        self._lock = threading.RLock()
        self.ended = False

    def run(self, words: list[str], folder: Path, gpu: int | None) -> str | None:
        """Runs Python in a folder, to its end: what it complains of, or None."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        }
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        with self._lock:
            if self.ended:
                return "ended before it began"
            one = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Ctrl-C comes by `end` alone, once.
                start_new_session=True,
            )
            self._running.add(one)
        printed, errors = one.communicate()
        with self._lock:
            self._running.remove(one)
        return complaint(errors or printed) or f"exit code {one.returncode}" if one.returncode else None

    def end(self, *_: object) -> None:
        """Tells all to save and end; none begins after."""
        with self._lock:
            self.ended = True
            for one in self._running:
                one.terminate()


def trained(
    case: Case, folder: Path, options: list[str], how: list[str], gpu: int | None, processes: Processes
) -> dict[str, Any] | None:
    """Trains and measures one case, in processes of its own; None if they were ended before."""
    told = {"name": case.name, "schedule": case.schedule, "seed": case.seed}
    out, fitted = folder / "row.json", folder / "fitted"
    seconds = {}
    words = ["-m", "lg", "fit", f"--config={HERE / 'measured_schedule.yaml'}", f"--model.schedule={case.schedule}"]
    words += [*case.patterns, f"--seed_everything={case.seed}", f"--data.seed={case.seed}", *options]
    if any(folder.rglob("*.ckpt")):
        words.append("--ckpt_path=last")
    for step, command in (("fit", words), ("measure", [__file__, str(out), "--measure", str(folder), *how])):
        if step == "fit" and fitted.exists():
            continue
        began = time.perf_counter()
        failure = processes.run(command, folder, gpu)
        if processes.ended and failure:
            return None
        if failure:
            return {**told, "error": failure}
        seconds[step] = round(time.perf_counter() - began, 1)
        fitted.touch()
    return {**told, **json.loads(out.read_text()), "seconds": seconds}


def measure(out: Path, folder: Path, toy: bool, questions: Path | None) -> None:
    """What the run in a folder has come to."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = max(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    decoder = HybridLM.from_checkpoint(str(checkpoint)).to(device).model
    lengths, contexts, targets, count, samples = LENGTHS, CONTEXTS, TARGETS, PIECES, SAMPLES
    if toy:
        lengths, contexts, targets, count, samples = (256, 512), (128, 384), 64, 3, 1
    tokenizer = TokenizerFile(str(folder / "models" / "smollm2" / "tokenizer.json"))
    texts = pieces([Fetched("bible"), Fetched("milton")], tokenizer, max(contexts) + targets, count)
    grid = Needles(lengths, samples=samples)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        told = score(decoder, haystack(grid, tokenizer, texts[0]))
        losses = losses_by_context(decoder, texts, targets, contexts)
    gain = paired(losses[:, 0], losses[:, 1])
    if questions is not None:
        answered = ruler.scores(decoder.to(torch.bfloat16 if device == "cuda" else torch.float32), tokenizer, questions)
    out.write_text(
        json.dumps(
            {
                "needle_exact": dict(zip(map(str, lengths), told.exact.mean(0).tolist(), strict=True)),
                "needle_gain_nats": dict(zip(map(str, lengths), told.gain.mean(0).tolist(), strict=True)),
                "loss_nats": dict(zip(map(str, contexts), losses.mean(0).tolist(), strict=True)),
                "context_gain_nats": {"mean": -gain.mean, "low": -gain.high, "high": -gain.low},
                **({} if questions is None else {"ruler": answered}),
            }
        )
    )


def main() -> None:
    """Trains what the file lacks, one case a GPU at a time, and writes it after each row."""
    command = parser(__doc__)
    command.add_argument("--models", type=Path, default=Path("models"))
    command.add_argument("--scores", type=Path, default=Path("probe.json"), help="of lg probe")
    command.add_argument("--seeds", type=int, default=1)
    command.add_argument("--only", help="cases whose names begin so")
    command.add_argument("--ruler", type=Path, help="a folder of questions, by ruler.py")
    command.add_argument("--together", type=int, default=1, help="trainings on a GPU at a time")
    command.add_argument(
        "--runs", type=Path, default=Path("logs/measured_schedule"), help="trainings until they are measured"
    )
    command.add_argument("--minutes", type=float, default=9.0, help="nothing is begun after so long")
    command.add_argument("--toy", action="store_true", help="short rows and one step, to see that it works")
    command.add_argument("--measure", type=Path, help="no use by hand")
    args = command.parse_args()
    if args.measure:
        measure(args.out, args.measure, args.toy, args.ruler)
        return
    begun = time.perf_counter()
    gpus = torch.cuda.device_count()
    options = [] if gpus else ["--trainer.precision=32-true", "--model.compile=false"]
    if args.toy:
        options += ["--data.row_length=512", "--trainer.max_steps=1", "--trainer.accumulate_grad_batches=1"]
        options += ["--trainer.limit_val_batches=1", "--data.source.sources.planted.init_args.size=1200"]
    how = [*(["--toy"] if args.toy else []), *([f"--ruler={args.ruler.resolve()}"] if args.ruler else [])]
    rows = earlier(args.out)
    done = {(row["schedule"], row["seed"]) for row in rows}
    waiting: queue.Queue[Case] = queue.Queue()
    for case in cases(args.scores, args.seeds):
        if (case.schedule, case.seed) not in done and case.name.startswith(args.only or ""):
            done.add((case.schedule, case.seed))
            waiting.put(case)
    device = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else processor()
    writing, processes = threading.Lock(), Processes()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, processes.end)

    def work(gpu: int | None) -> None:
        while time.perf_counter() - begun < 60 * args.minutes and not processes.ended:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                return
            folder = args.runs / re.sub("[^a-z0-9]+", "_", f"{case.name} {case.seed}")
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "models").exists():
                (folder / "models").symlink_to(args.models.resolve())
            row = trained(case, folder.resolve(), options, how, gpu, processes)
            if row is None:
                return
            shutil.rmtree(folder)
            with writing:
                rows.append(row)
                print(f"{time.perf_counter() - begun:4.0f} s  {json.dumps(row)}", flush=True)
                packages = ["torch", "triton", "lightning"]
                write(args.out, "sets of full layers of SmolLM2 135M, trained at equal data", device, packages, rows)

    places = [gpu for gpu in (range(gpus) if gpus else [None]) for _ in range(args.together)]
    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if left := waiting.qsize():
        print(f"not begun: {left}")


if __name__ == "__main__":
    main()
