"""What is exported, transformers loads and computes alike, with a cache and without; and it comes back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lg.attention import Causal, Documents, Pattern, Window
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save
from lg.models.rope_scaling import NTK, DynamicNTK, Linear, Llama3, YaRN

N = 60
CONFIG = DecoderConfig(4, 48, 6, 2, 8, 80, 97, rope_theta=5e4, norm_eps=1e-5)
FULL: list[Pattern] = [Causal()] * 4
HYBRID: list[Pattern] = [Window(window=9), Causal(), Causal(), Window(window=9)]
SHAPES: dict[str, tuple[DecoderConfig, list[Pattern], str]] = {
    "llama": (CONFIG, FULL, "llama"),
    "llama, wide heads, tied": (replace(CONFIG, head_width=16, tied_embeddings=True), FULL, "llama"),
    "llama, yarn": (replace(CONFIG, rope_scaling=YaRN(4.0, 16)), FULL, "llama"),
    "llama, llama3": (replace(CONFIG, rope_scaling=Llama3(8.0, 16)), FULL, "llama"),
    "llama, ntk": (replace(CONFIG, rope_scaling=NTK(4.0)), FULL, "llama"),
    "llama, linear": (replace(CONFIG, rope_scaling=Linear(8.0)), FULL, "llama"),
    "windows": (CONFIG, HYBRID, "ministral"),
    "qwen2": (replace(CONFIG, qkv_bias=True), FULL, "qwen2"),
    "qwen2, windows": (replace(CONFIG, qkv_bias=True), HYBRID, "qwen2"),
    "qwen3": (replace(CONFIG, qk_norm=True, head_width=16), FULL, "qwen3"),
    "qwen3, windows": (replace(CONFIG, qk_norm=True, head_width=16), HYBRID, "qwen3"),
    "smollm3": (replace(CONFIG, no_rope_layers=(1, 3)), FULL, "smollm3"),
    "smollm3, windows": (replace(CONFIG, no_rope_layers=(1, 2)), HYBRID, "smollm3"),
}


def made(config: DecoderConfig, sees: list[Pattern]) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config, sees, "dense")
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return decoder


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    config, sees, family = SHAPES[name]
    decoder = made(config, sees)
    save(tmp_path / "out", decoder.state_dict(), config, sees, longest=64)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert (model.config.model_type, model.dtype) == (family, torch.float32)
    tokens = torch.randint(97, (1, N), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = decoder.logits(tokens, Documents(N))
        whole = model(tokens).logits
        first = model(tokens[:, :40], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for n in range(40, N):
            steps.append(model(tokens[:, n : n + 1], past_key_values=cache, use_cache=True).logits)
    close = {"rtol": 1e-4, "atol": 1e-4 * float(want.abs().max())}
    torch.testing.assert_close(whole, want, **close)
    torch.testing.assert_close(torch.cat(steps, 1), want, **close)


@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    config, sees, _ = SHAPES[name]
    decoder = made(config, sees)
    save(tmp_path / "out", decoder.state_dict(), config, sees, longest=64, shard_bytes=20_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    found = open_pretrained(tmp_path / "out")
    scaling = config.rope_scaling
    if isinstance(scaling, YaRN):
        # The file tells the scale itself.
        scaling = replace(scaling, scale=scaling.attention_factor)
    wanted = replace(config, rope_scaling=scaling)
    if isinstance(scaling, NTK):  # it comes back as the base that it stands for
        wanted = replace(config, rope_scaling=None, rope_theta=5e4 * 4 ** (8 / 6))
    assert found.config == wanted
    assert list(found.sees) == sees
    back = found.decoder().state_dict()
    assert back.keys() == decoder.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in decoder.state_dict().items())


@pytest.mark.parametrize(
    ("config", "sees", "said"),
    [
        (replace(CONFIG, qk_norm=True, qkv_bias=True), FULL, "no class that has at once what qwen2 and qwen3 have"),
        (replace(CONFIG, qkv_bias=True, head_width=16), FULL, "head_width: 16 is not allowed for qwen2"),
        (replace(CONFIG, rope_scaling=DynamicNTK(2.0, 64)), FULL, "cannot be exported"),
    ],
)
def test_what_transformers_cannot_say_is_refused(
    config: DecoderConfig, sees: list[Pattern], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        save(tmp_path / "out", made(config, sees).state_dict(), config, sees, longest=64)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists; a folder that does not is needed"):
        save(tmp_path, made(CONFIG, FULL).state_dict(), CONFIG, FULL, longest=64)
    assert not list(tmp_path.iterdir())


def test_types_are_told(tmp_path: Path) -> None:
    save(tmp_path / "out", made(CONFIG, FULL).bfloat16().state_dict(), CONFIG, FULL, longest=64)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
