"""How a server does under load: many clients at once, some of whom go away or send what is no request.

    python benchmarks/serve.py                                        a tiny model, 4 minutes
    python benchmarks/serve.py --model=models/smollm2 --seconds=240   any model that `lg serve` takes

Clients ask for texts of mixed lengths, without sampling. Of each prompt, the first answer is kept: every other one must
be the same, and so must what the model writes after it alone, when the load is over. The pages that are in use then
must be none. The file has a row for each model and device, and keeps those of others.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
from report import device_name, earlier, parser, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lg.attention import Causal, SinkWindow
from lg.models.decoder import Decoder
from lg.models.presets import preset
from lg.models.pretrained.out import save

BROKEN = [b"", b"{", b"[]", b'{"model": 3}', b'{"prompt": "a"}', b"\xff" * 100]


def tiny(folder: Path) -> Path:
    """A model of bytes with random weights, as a folder of transformers."""
    torch.manual_seed(0)
    config, sees = preset("tiny"), [SinkWindow(window=64)] * 3 + [Causal()] * 3
    tokenizer = Tokenizer(
        models.BPE({letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = next(letter for letter, n in tokenizer.get_vocab().items() if n == 0)
    files: dict[str, str | Path] = {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({"eos_token": end}),
    }
    save(folder, Decoder(config, sees).state_dict(), config, sees, 4096, files=files)
    return folder


class Load:
    """Clients, and what they have seen."""

    def __init__(self, url: str, longest: int, num_prompts: int) -> None:
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
        bearer = {"authorization": "Bearer none"}
        self.http = httpx.Client(base_url=url, headers=bearer, timeout=600, limits=httpx.Limits(max_connections=1000))
        self.model = self.client.models.list().data[0].id
        rng = random.Random(0)
        words = ["house", "river", "garden", "letter", "morning", "evening", "sister", "carriage", "nobody", "always"]
        # About four characters a token, but for bytes.
        sizes = [int(longest * share) for share in (0.01, 0.03, 0.1, 0.25, 0.5)]
        self.asked = [
            {
                "model": self.model,
                "prompt": " ".join(rng.choice(words) for _ in range(sizes[n % len(sizes)]))[: sizes[n % len(sizes)]],
                "max_tokens": rng.choice([8, 32, 64, 128]),
                "temperature": 0,
            }
            for n in range(num_prompts)
        ]
        self.texts: dict[int, str] = {}
        self.lock = threading.Lock()
        self.seconds: list[float] = []
        self.first_seconds: list[float] = []
        self.counts = {
            "answers": 0,
            "cancelled": 0,
            "broken": 0,
            "wrong": 0,
            "failed": 0,
            "tokens": 0,
            "prompt_tokens": 0,
        }

    def run(self, seed: int, until: float) -> None:
        """One client, until its time is over."""
        rng = random.Random(seed)
        while time.perf_counter() < until:
            number, kind = rng.randrange(len(self.asked)), rng.random()
            try:
                if kind < 0.1:
                    self.break_off(number)
                elif kind < 0.2:
                    status = self.http.post("/v1/completions", content=rng.choice(BROKEN)).status_code
                    self.count("broken" if status == 400 else "failed")
                else:
                    self.ask(number, keep=True)
            except (openai.APIError, httpx.HTTPError) as error:
                print(repr(error), file=sys.stderr)
                self.count("failed")

    def ask(self, number: int, keep: bool) -> None:
        """One request, streamed; its text is compared with that of others."""
        start, first, text = time.perf_counter(), 0.0, ""
        options: Any = {**self.asked[number], "stream": True, "stream_options": {"include_usage": True}}
        for chunk in self.client.completions.create(**options):
            first = first or time.perf_counter() - start
            text += "".join(choice.text for choice in chunk.choices)
            usage = chunk.usage
        with self.lock:
            if self.texts.setdefault(number, text) != text:
                self.counts["wrong"] += 1
            if keep:
                self.counts["answers"] += 1
                self.counts["tokens"] += usage.completion_tokens
                self.counts["prompt_tokens"] += usage.prompt_tokens
                self.seconds.append(time.perf_counter() - start)
                self.first_seconds.append(first)

    def break_off(self, number: int) -> None:
        """A request whose client goes away after the first piece."""
        with self.http.stream("POST", "/v1/completions", json={**self.asked[number], "stream": True}) as answer:
            next(answer.iter_lines(), None)
        self.count("cancelled")

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def metric(self, name: str) -> int:
        """What the server counts."""
        return int(re.findall(rf"^{name} (\d+)$", self.http.get("/metrics").text, re.MULTILINE)[0])


def measured(load: Load, clients: int, seconds: float) -> dict[str, Any]:
    """Lets the clients run, then asks for every prompt alone."""
    start = time.perf_counter()
    threads = [threading.Thread(target=load.run, args=(seed, start + seconds)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    until = time.perf_counter() + 30
    while load.metric("lg_requests_open") and time.perf_counter() < until:
        time.sleep(0.1)
    leaked = load.metric("lg_kv_pages_in_use")
    for number in sorted(load.texts):
        load.ask(number, keep=False)
    percentiles = {
        f"{name}_p{p}_s": round(statistics.quantiles(of, n=100, method="inclusive")[p - 1], 3)
        for name, of in (("answer", load.seconds), ("first_token", load.first_seconds))
        for p in (50, 99)
    }
    return {
        "model": load.model,
        "clients": clients,
        "seconds": round(took, 1),
        **load.counts,
        "new_tokens_per_s": round(load.counts["tokens"] / took, 1),
        "prompt_tokens_per_s": round(load.counts["prompt_tokens"] / took, 1),
        **percentiles,
        "pages_leaked": leaked,
    }


def main() -> None:
    """Starts a server, loads it, ends it, and writes the figures."""
    made = parser(__doc__)
    made.add_argument("--model", type=Path)
    made.add_argument("--clients", type=int, default=32)
    made.add_argument("--seconds", type=float, default=240)
    made.add_argument("--prompts", type=int, default=40)
    made.add_argument("--max-length", type=int, default=1024)
    made.add_argument("--dtype", default="float32")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or tiny(Path(folder) / "tiny")
        words = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("max-length", "dtype", "device")]
        command = [sys.executable, "-m", "lg", "serve", f"--model={model}", "--port=0", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "LG_API_KEY": "none"})
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            print(said, end="")
            load = Load(re.findall(r"(http://\S+)/v1", said)[0], options.max_length - 128, options.prompts)
            row = {**measured(load, options.clients, options.seconds), "max_length": options.max_length}
            process.send_signal(signal.SIGTERM)
            row["exit_code"] = process.wait(60)
        finally:
            process.kill()
            process.wait()
    row |= {"dtype": options.dtype, "device": device_name(options.device.startswith("cuda"))}
    print(json.dumps(row, indent=1))
    what = "lg serve under load; seconds are of whole answers and of their first piece"
    same = ("model", "device", "dtype")
    others = [one for one in earlier(options.out) if any(one[name] != row[name] for name in same)]
    write(options.out, what, row["device"], ["torch", "starlette", "uvicorn"], [*others, row])
    if row["wrong"] or row["failed"] or row["pages_leaked"] or row["exit_code"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
