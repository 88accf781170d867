"""Whether lg writes what transformers writes: SmolLM2 135M on real text, token for token.

    lg import smollm2 models/smollm2
    lg data fetch austen
    python benchmarks/exactness.py [OUT.json] [--prompt 6144] [--new 500]

In float32 the likeliest tokens after a long prompt are written by lg, from its pages, and by transformers' generate, by
the model as it is and by a hybrid, which transformers loads from lg's export. In bfloat16 both read the float32 model's
text token by token after the prompt, and each token's log-probability is held against float32's.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import device_name, parser, write
from torch import Tensor
from transformers import AutoModelForCausalLM

from lg.attention import Causal, Documents, Pattern, SinkWindow
from lg.cli.kept_as import formats_of
from lg.data import Fetched, TokenizerFile
from lg.evaluation.probe.texts import pieces
from lg.inference import Runner, generate
from lg.inference.formats import Format
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save

HYBRID = [SinkWindow(window=512, sinks=64)] * 10 + [Causal()] * 10 + [SinkWindow(window=512, sinks=64)] * 10
# What keys and values are kept as.
KEPT = ("bfloat16", "int8", "int8_int4", "int4")


def likeliest(model: Any, prompt: Tensor, count: int) -> list[int]:
    """What transformers' generate writes."""
    told = model.generate(
        prompt[None], attention_mask=torch.ones_like(prompt[None]), do_sample=False, min_new_tokens=count,
        max_new_tokens=count, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    written: list[int] = told[0, len(prompt) :].tolist()
    return written


def beside(decoder: Decoder, model: Any, prompt: Tensor, count: int) -> tuple[dict[str, Any], list[int]]:
    """How many tokens agree before the first that does not, and what the two logits there leave between them."""
    begun = time.perf_counter()
    ours = generate(decoder, [prompt], count)[0].tokens
    seconds = time.perf_counter() - begun
    theirs = likeliest(model, prompt, count)
    equal = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
    row: dict[str, Any] = {"new_tokens": count, "equal": equal, "lg_s": round(seconds, 1)}
    if equal < count:
        text = torch.cat((prompt, torch.tensor(ours[:equal], device=prompt.device)))
        with torch.no_grad():
            best = decoder.logits(text[None], Documents(len(text)))[0, -1].topk(2).values
        row["gap_of_logits"] = float(best[0] - best[1])
    return row, ours


def of_text(decoder: Decoder, text: Tensor, begin: int, forms: tuple[Format, Format]) -> Tensor:
    """Log-probabilities of a text's tokens from ``begin`` on, each read from the cache: float32 [tokens]."""
    runner = Runner(decoder, len(text), formats=forms)
    slot, told = runner.open(len(text)) or 0, []
    logits = runner.read(text[:begin], [(slot, begin)])
    for at in range(begin, len(text)):
        told.append(logits[0].float().log_softmax(-1)[text[at]])
        logits = runner.read(text[at : at + 1], [(slot, 1)])
    return torch.stack(told).cpu()


@torch.no_grad()
def by_transformers(model: Any, text: Tensor, begin: int) -> Tensor:
    """The same by transformers, with its cache."""
    answer, told = model(text[None, :begin], use_cache=True, logits_to_keep=1), []
    for at in range(begin, len(text)):
        told.append(answer.logits[0, -1].float().log_softmax(-1)[text[at]])
        answer = model(text[None, at : at + 1], past_key_values=answer.past_key_values, use_cache=True)
    return torch.stack(told).cpu()


def error(told: Tensor, true: Tensor) -> dict[str, float]:
    """How far log-probabilities are from those of float32."""
    off = (told - true).abs()
    return {"mean_nats": float(off.mean()), "most_nats": float(off.max())}


def main() -> None:
    """Writes and compares."""
    line = parser(__doc__)
    line.add_argument("--models", type=Path, default=Path("models"))
    line.add_argument("--prompt", type=int, default=6144)
    line.add_argument("--new", type=int, default=500)
    args = line.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = device_name(device.type == "cuda")
    path, rows = args.models / "smollm2", []
    (prompt,) = pieces([Fetched("austen")], TokenizerFile(str(path / "tokenizer.json")), args.prompt, 1)
    prompt = prompt.to(device)

    def add(case: str, **told: Any) -> None:
        rows.append({"case": case, "prompt": args.prompt, **told})
        print(json.dumps(rows[-1]), flush=True)
        write(args.out, "SmolLM2 135M written by lg and by transformers", on, ["torch", "transformers"], rows)

    def theirs(folder: Path, dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype).to(device).eval()

    opened, text = open_pretrained(path), prompt
    all_sees: dict[str, list[Pattern]] = {"full": [Causal()] * 30, "hybrid": HYBRID}
    with tempfile.TemporaryDirectory() as folder:
        for name, sees in all_sees.items():
            out = Path(folder, name)
            decoder = Decoder(opened.config, sees, fill=opened.fill).to(device).eval()
            save(out, decoder.state_dict(), opened.config, sees, 8192)
            row, written = beside(decoder, theirs(out, torch.float32), prompt, args.new)
            add(f"{name}, float32", **row)
            text = torch.cat((prompt, torch.tensor(written, device=device)))
            true = of_text(decoder, text, len(prompt), formats_of("float32", torch.float32))
            decoder = decoder.to(torch.bfloat16)
            for kept in KEPT:
                told = of_text(decoder, text, len(prompt), formats_of(kept, torch.bfloat16))
                add(f"{name}, bfloat16, kept as {kept}", **error(told, true))
            off = error(by_transformers(theirs(out, torch.bfloat16), text, len(prompt)), true)
            add(f"{name}, bfloat16, transformers", **off)
            del decoder


if __name__ == "__main__":
    main()
