"""Kills real runs at random moments and shows that what they go on to is what they would have been, to the bit.

For each kind of source one run is left alone. Another of the same configuration is killed again and again, by SIGTERM
or by `kill -9` in turns, wherever it happens to be (reading, training, validating, saving), and started again with
`--ckpt_path last`, until it ends. Both loss curves, training and validation, are read back from TensorBoard's files.

    python benchmarks/resume.py                        # 20 kills for each kind of source
    python benchmarks/resume.py /tmp/resume.json --kinds folder --kills 3
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from report import parser, processor, scalars, write
from tqdm import tqdm

TAGS = ("train/loss_nats", "train/grad_norm", "val/loss_nats")
TEXTS = [f"document {n}: " + "abcdefgh "[n % 7 :] * (n % 23 + 2) for n in range(120)]


def sources(folder: Path) -> dict[str, Any]:
    """Every kind of source, as YAML says it; the texts are written below a folder."""
    import datasets

    (folder / "files").mkdir()
    for n, text in enumerate(TEXTS):
        (folder / "files" / f"{n}.txt").write_text(text)
        (folder / "repositories" / f"r{n // 2}").mkdir(exist_ok=True, parents=True)
        (folder / "repositories" / f"r{n // 2}" / f"{n}.py").write_text(text)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(str(folder / "texts.parquet"))
    files = {"class_path": "Folder", "init_args": {"path": str(folder / "files")}}
    lines = {"class_path": "Jsonl", "init_args": {"path": str(folder / "texts.jsonl")}}
    table = {"class_path": "Parquet", "init_args": {"path": str(folder / "texts.parquet")}}
    hub = {
        "class_path": "HuggingFace",
        "init_args": {"path": "parquet", "data_files": str(folder / "texts.parquet")},
    }
    repositories = {"class_path": "Repositories", "init_args": {"path": str(folder / "repositories")}}
    streams = {
        name: {**source, "init_args": {**source["init_args"], "streaming": True}}
        for name, source in (("jsonl", lines), ("parquet", table), ("hugging_face", hub))
    }

    def mixed(other: Any) -> Any:
        parts = {"files": files, "lines": other}
        return {"class_path": "Mixture", "init_args": {"sources": parts, "shares": {"files": 1.0, "lines": 2.0}}}

    return {
        "stdlib": {"class_path": "Stdlib"},
        "folder": files,
        "repositories": repositories,
        "jsonl": lines,
        "parquet": table,
        "hugging_face": hub,
        "mixture": mixed(lines),
        "jsonl, streamed": streams["jsonl"],
        "parquet, streamed": streams["parquet"],
        "hugging_face, streamed": streams["hugging_face"],
        "mixture, streamed": mixed(streams["jsonl"]),
    }


def configuration(source: Any, logs: Path, steps: int) -> dict[str, Any]:
    """A small hybrid, two micro-batches a step, two workers."""
    return {
        "seed_everything": 0,
        "weights_only": True,
        "model": {
            "class_path": "HybridLM",
            "init_args": {
                "patterns": {"local": {"class_path": "SinkWindow", "init_args": {"window": 16}}, "full": "Causal"},
                "schedule": "local, full",
                "decoder": {"num_layers": 2, "width": 32, "num_heads": 2, "num_kv_heads": 1},
            },
        },
        "data": {
            "class_path": "TextData",
            "init_args": {
                "source": source, "row_length": 256, "batch_size": 1, "held_out": 0.1, "held_out_rows": 4,
                "packing": "BestFit", "align": 16, "num_workers": 2, "block": 16,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": steps, "accumulate_grad_batches": 2, "val_check_interval": 20,
            "check_val_every_n_epoch": None, "limit_val_batches": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
            "gradient_clip_val": 1.0, "enable_progress_bar": False, "enable_model_summary": False,
            "logger": {
                "class_path": "TensorBoardLogger",
                "init_args": {"save_dir": str(logs), "name": "run", "default_hp_metric": False},
            },
            "callbacks": [{"class_path": "Checkpoints", "init_args": {"every": 3}}, {"class_path": "Throughput"}],
        },
    }  # fmt: skip


def curves(logs: Path) -> dict[str, dict[int, float]]:
    """Each tag's values by step, over all files of the last run: one killed before it saved anything began anew."""
    last = max((logs / "run").iterdir(), key=lambda version: int(version.name.split("_")[1]))
    board = scalars(last)
    return {tag: dict(board[tag]) for tag in TAGS}


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """`lg fit`, going on from the last checkpoint, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "lg", "fit", "--config", str(config), "--ckpt_path", "last"]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def finished(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a run that nobody kills."""
    if process.wait(600):
        raise SystemExit(f"a run that was not killed failed:\n{log.read_text()[-3000:]}")


def killed(config: Path, logs: Path, log: Path, kills: int, draw: random.Random) -> list[dict[str, Any]]:
    """Runs until the end, killed so many times on the way; says how and where."""
    done: list[dict[str, Any]] = []
    while len(done) < kills:
        already = log.stat().st_size if log.exists() else 0
        process = start(config, log)
        # From when it begins to train; a process that is killed before loses nothing.
        while process.poll() is None and b"begins training" not in log.read_bytes()[already:]:
            time.sleep(0.02)
        how = draw.choice((signal.SIGTERM, signal.SIGKILL))
        try:
            process.wait(draw.uniform(0.0, 1.5))
        except subprocess.TimeoutExpired:
            process.send_signal(how)
        code = process.wait(120)
        if code not in (0, 143, -9, -15):
            raise SystemExit(f"a killed run ended with {code}:\n{log.read_text()[-3000:]}")
        if code == 0:
            break
        saved = max((int(path.stem.split("=")[1]) for path in logs.rglob("step=*.ckpt")), default=0)
        done.append({"signal": how.name, "exit": code, "checkpoint_at": saved})
    finished(start(config, log), log)
    return done


def main() -> None:
    """Runs all kinds and writes the report."""
    made = parser(__doc__)
    made.add_argument("--kinds", nargs="*", default=[], help="only these")
    made.add_argument("--kills", type=int, default=20, help="of each kind's run")
    made.add_argument("--steps", type=int, default=400)
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LG_CACHE"] = folder + "/cache"
        known = sources(Path(folder))
        for kind in tqdm(options.kinds or known):
            draw = random.Random(f"{options.seed} {kind}")
            logs = {name: Path(folder, "runs", kind.replace(", ", "_"), name) for name in ("alone", "killed")}
            for place in logs.values():
                place.mkdir(parents=True)
                config = configuration(known[kind], place, options.steps)
                place.with_suffix(".yaml").write_text(yaml.safe_dump(config))
            out = {name: place.with_suffix(".log") for name, place in logs.items()}
            finished(start(logs["alone"].with_suffix(".yaml"), out["alone"]), out["alone"])
            kills = killed(logs["killed"].with_suffix(".yaml"), logs["killed"], out["killed"], options.kills, draw)
            whole, other = curves(logs["alone"]), curves(logs["killed"])
            assert len(whole["train/loss_nats"]) == options.steps, len(whole["train/loss_nats"])
            differing = sum(
                whole[tag].get(step) != other[tag].get(step) for tag in TAGS for step in whole[tag] | other[tag]
            )
            rows.append(
                {
                    "kind": kind,
                    "kills": len(kills),
                    "of them SIGKILL": sum(kill["exit"] == -9 for kill in kills),
                    "points compared": sum(len(whole[tag]) for tag in TAGS),
                    "points that differ": differing,
                    "last checkpoint before each kill": [kill["checkpoint_at"] for kill in kills],
                }
            )
            tqdm.write(json.dumps(rows[-1]))
            write(
                options.out,
                "runs killed at random moments and resumed, against runs left alone: points of the loss curves",
                f"{processor()}, {os.cpu_count()} cores",
                ["torch", "lightning", "datasets"],
                rows,
            )
    if any(row["points that differ"] for row in rows):
        raise SystemExit("some points differ")


if __name__ == "__main__":
    main()
