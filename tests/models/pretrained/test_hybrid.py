"""A hybrid that begins with what was pretrained: its weights, its shape, and what is told where it sees other keys."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lg.attention import Causal, Documents, ShiftedGroups, SinkWindow, Window
from lg.cli.pretrained_part import checkpoint_as, decoder_as
from lg.data import RandomTokens
from lg.models.adapters import LoRA
from lg.models.block import Attention, Mixer
from lg.models.config import DecoderConfig
from lg.models.hybrid import HybridLM
from lg.models.pretrained import open_pretrained
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


def kept(module: HybridLM, path: Path) -> Path:
    checkpoint: dict[str, Any] = {"state_dict": module.model.state_dict(prefix="decoder.")}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


SHAPE = {"num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8, "vocab_size": 300}
GROUPS: dict[str, Any] = {"groups": ShiftedGroups(group=16, num_kv_heads=2), "near": Window(window=8), "full": Causal()}


def test_a_checkpoint_is_the_model_that_was_validated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = HybridLM(GROUPS, "groups, near", {"groups": "full"}, decoder=SHAPE)
    module.model.train()
    path = kept(module, tmp_path / "step.ckpt")
    assert open_pretrained(path).sees == module.sees == (Causal(), Window(window=8))
    tokens, documents, cpu = torch.randint(300, (1, 64)), Documents(64), torch.device("cpu")
    with torch.no_grad():
        training = module.train().model.logits(tokens, documents)
        want = module.eval().model.logits(tokens, documents)
        for decoder in (
            decoder_as("--model", path, torch.float32, cpu)[1],
            checkpoint_as("--model", path, torch.float32, cpu),
        ):
            assert torch.equal(decoder.logits(tokens, documents), want)
    assert not torch.allclose(training, want)
    # What goes on to be trained by a configuration sees what that says, in either mode; where they differ, it is told.
    with caplog.at_level(logging.WARNING, "lg"):
        again = HybridLM(GROUPS, "groups, near", {"groups": "full"}, pretrained=str(path))
        assert [block.mixer.pattern for block in again.model.train().blocks] == [GROUPS["groups"], GROUPS["near"]]
        assert "other keys" not in caplog.text
        HybridLM(GROUPS, "2*groups", {"groups": "full"}, pretrained=str(path))
    assert "layers 1 see other keys than as they were pretrained, Window(window=8)" in caplog.text


@dataclass(frozen=True)
class Same:
    """The spec of a layer that no pattern describes."""

    def build(self, config: DecoderConfig, layer: int) -> Mixer:
        return Attention(config, Causal())


def test_a_layer_that_no_pattern_describes_is_refused_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    patterns = {"same": Same(), "full": Causal()}
    path = kept(HybridLM(patterns, "full, same", decoder=SHAPE), tmp_path / "step.ckpt")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"pretrained: .*step.ckpt: model.init_args.patterns.same: Same\(\) is no pattern"
    ):
        open_pretrained(path)
    # To write on it is as good as another; no layer is lost beside an adapter either.
    for adapter in (None, LoRA(rank=2)):
        module = HybridLM(patterns, "full, same", decoder=SHAPE, adapter=adapter)  # type: ignore[arg-type]
        for parameter in module.model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        decoder = checkpoint_as("--model", kept(module, path), torch.float32, torch.device("cpu"))
        tokens = torch.randint(300, (1, 20))
        with torch.no_grad():
            want = module.eval().model.logits(tokens, Documents(20))
            torch.testing.assert_close(decoder.logits(tokens, Documents(20)), want, rtol=1e-4, atol=1e-4)


def test_a_preset_beside_it_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "it")
    with pytest.raises(ValueError, match=r"model.init_args.preset: 'tiny' is not allowed beside model.init_args.pre"):
        HybridLM(PATTERNS, "3*full", preset="tiny", pretrained=str(tmp_path / "it"))
    with pytest.raises(ValueError, match=r"has no config.json; a folder of transformers is needed"):
        HybridLM(PATTERNS, "3*full", pretrained=str(tmp_path / "nowhere"))
