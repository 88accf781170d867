"""A hybrid that begins with what was pretrained: its weights, its shape, and what is told where it sees other keys."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lg.attention import Causal, Documents, SinkWindow, Window
from lg.data import RandomTokens
from lg.models.hybrid import HybridLM
from lg.models.rope_scaling import YaRN

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
PATTERNS: dict[str, Any] = {"local": SinkWindow(window=20, sinks=2), "full": Causal()}


def saved(path: Path, family: str = "llama", **told: Any) -> Any:
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **told)).eval()
    model.save_pretrained(path)
    return model


def test_all_full_layers_compute_as_transformers_does(tmp_path: Path) -> None:
    model = saved(tmp_path / "it")
    module = HybridLM(PATTERNS, "3*full", pretrained=str(tmp_path / "it"))
    tokens = torch.randint(300, (1, 50))
    with torch.no_grad():
        torch.testing.assert_close(module(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_checkpoint_needs_the_folder_no_more(tmp_path: Path) -> None:
    saved(tmp_path / "it", "smollm3", rope_parameters={"rope_type": "default", "rope_theta": 3e4})
    module = HybridLM(PATTERNS, "local, full, local", pretrained=str(tmp_path / "it"), rope_scaling=YaRN(4.0, 32))
    assert module.decoder_config.rope_scaling == YaRN(4.0, 32)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, RandomTokens(64))
    trainer.save_checkpoint(tmp_path / "step.ckpt")
    (tmp_path / "it" / "config.json").unlink()
    back = HybridLM.from_checkpoint(str(tmp_path / "step.ckpt"))
    assert back.decoder_config == module.decoder_config and back.pretrained is None
    tokens, documents = torch.randint(300, (1, 50)), Documents(50)
    with torch.no_grad():
        assert torch.equal(back.model.logits(tokens, documents), module.model.logits(tokens, documents))


def test_layers_that_will_see_something_else_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    saved(tmp_path / "it", "ministral", head_dim=8, sliding_window=16, layer_types=kinds)
    with caplog.at_level(logging.WARNING, "lg"):
        HybridLM({"near": Window(window=16), "full": Causal()}, "near, full, near", pretrained=str(tmp_path / "it"))
        assert not caplog.records
        HybridLM({"near": Window(window=16), "full": Causal()}, "near, 2*full", pretrained=str(tmp_path / "it"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "model.init_args.schedule: layers 2 see other keys than as they were pretrained, Window(window=16)"
    )


def test_a_preset_beside_it_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "it")
    with pytest.raises(ValueError, match=r"model.init_args.preset: 'tiny' is not allowed beside model.init_args.pre"):
        HybridLM(PATTERNS, "3*full", preset="tiny", pretrained=str(tmp_path / "it"))
    with pytest.raises(ValueError, match=r"has no config.json; a folder of transformers is needed"):
        HybridLM(PATTERNS, "3*full", pretrained=str(tmp_path / "nowhere"))
