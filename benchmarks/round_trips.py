"""Models of every family, from transformers into lg, under every kind of schedule, and back: how far logits are apart.

    python benchmarks/round_trips.py [OUT.json]

Real classes of transformers with random weights, in float32. Each is saved, opened by lg, and its logits are compared.
Then its layers get a schedule, lg exports it, transformers loads that folder, and logits are compared again: of the
whole text, and with transformers' cache, a part of the text at once and then token by token.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import parser, processor, write
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lg.attention import Causal, Documents, Pattern, PerHead, SinkWindow, Strided, Window
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save

LENGTH, AT_ONCE, LAYERS = 400, 300, 6
SHAPE: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": LAYERS,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.15,
}  # fmt: skip
_SLIDES = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "ministral": _SLIDES,
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
}
WINDOW, SINKS = Window(window=64), SinkWindow(window=60, sinks=4)
# What outer layers see; the two in the middle are full.
SCHEDULES: dict[str, Pattern | None] = {
    "its own": None,
    "full": Causal(),
    "window": WINDOW,
    "sinks and window": SINKS,
    "strided blocks": Strided(block=16, local_blocks=4, stride=8),
    "one KV head full": PerHead((SINKS, Causal()), (0, 1)),
}


def saved(family: str, folder: Path) -> Any:
    """A model of transformers with random weights, norms and biases included, in a folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1.0 if "norm" in name else 0.0, 0.15)
    model.save_pretrained(folder)
    return model


def by_cache(model: Any, tokens: Tensor) -> Tensor:
    """Logits [1, L, V], with a cache."""
    first = model(tokens[:, :AT_ONCE], use_cache=True)
    steps, cache = [first.logits], first.past_key_values
    for n in range(AT_ONCE, LENGTH):
        steps.append(model(tokens[:, n : n + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(steps, 1)


@torch.no_grad()
def rows(family: str, folder: Path) -> list[dict[str, Any]]:
    """Of one family, under each schedule."""
    tokens = torch.randint(SHAPE["vocab_size"], (1, LENGTH), generator=torch.Generator().manual_seed(1))
    model = saved(family, folder / "in")
    opened, found = open_pretrained(folder / "in"), []
    imported = opened.decoder().eval().logits(tokens, Documents(LENGTH))
    came = float((imported - model(tokens).logits).abs().max())
    for name, outer in SCHEDULES.items():
        middle = range(LAYERS // 2 - 1, LAYERS // 2 + 1)
        sees = list(opened.sees)
        if outer is not None:
            sees = [Causal() if layer in middle else outer for layer in range(LAYERS)]
        decoder = Decoder(opened.config, sees, fill=opened.fill).eval()
        want, out = decoder.logits(tokens, Documents(LENGTH)), folder / name.replace(" ", "_")
        save(out, decoder.state_dict(), opened.config, sees, SHAPE["max_position_embeddings"])
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float32).eval()
        found.append(
            {
                "family": family,
                "schedule": name,
                "class": type(loaded).__name__,
                "in": came,
                "out": float((loaded(tokens).logits - want).abs().max()),
                "out_cached": float((by_cache(loaded, tokens) - want).abs().max()),
                "largest_logit": float(want.abs().max()),
            }
        )
    return found


def main() -> None:
    """Writes the file."""
    out, told = parser(__doc__).parse_args().out, []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            told += rows(family, Path(folder))
        print("\n".join(json.dumps(row) for row in told[-len(SCHEDULES) :]), flush=True)
        write(out, "largest differences of logits, float32", processor(), ["torch", "transformers"], told)


if __name__ == "__main__":
    main()
