"""LoRA trains what it adds and nothing else, on any number of processes, and goes home merged or in peft's format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lg.attention import Causal, ShiftedGroups
from lg.data import data_axis
from lg.models.adapters import LoRA, LoRALinear
from lg.models.footprint import PRECISIONS, Setup, footprint, num_parameters
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Constant
from lg.models.memory import Memory
from lg.models.presets import preset
from lg.models.pretrained.adapter import save_adapter
from lg.models.pretrained.out import save
from lg.monitor.model_card import card
from lg.parallel import HybridStrategy
from lg.parallel.shard import patterns
from lg.testing import run_ranks

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8,
    "ffn_width": 48, "tied_embeddings": False,
}  # fmt: skip
GROUPS = {"groups": ShiftedGroups(group=32, num_kv_heads=2), "full": Causal()}
LONG = LoRA(rank=4, alpha=8, also_train=("embedding", "norm"))


def options(**changes: Any) -> dict[str, Any]:
    return {
        "patterns": GROUPS, "schedule": "2*groups", "evaluated": {"groups": "full"}, "decoder": SHAPE,
        "adapter": LoRA(rank=4, alpha=8), "learning_rate": 1e-2, "lr_schedule": Constant(warmup=0), **changes,
    }  # fmt: skip


class Batches(pl.LightningDataModule):
    """Eight packed batches, of which each rank that reads its own has every so manieth."""

    def __init__(self, length: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        rows = torch.randint(64, (8, 1, length + 1), generator=generator)
        self.rows = [
            {"tokens": row[:, :-1], "targets": row[:, 1:], "document_starts": [0, 20 + n]} for n, row in enumerate(rows)
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        num_shards, shard = data_axis(self.trainer)
        return DataLoader(self.rows[shard::num_shards], batch_size=None)

    val_dataloader = train_dataloader


class Watched(HybridLM):
    """Keeps gradients, and what layers see in each mode."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.gradients = {name: whole(p.grad) for name, p in self.named_parameters() if p.grad is not None}
        self.seen = {"training": patterns(self.model)}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.seen["evaluated"] = patterns(self.model)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def trainer(folder: Path | None = None, **changes: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu", "devices": 1, "max_steps": 2, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "gradient_clip_val": 0.05,
            "use_distributed_sampler": False, "num_sanity_val_steps": 0, "default_root_dir": folder, **changes,
        }
    )  # fmt: skip


CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "long": {"adapter": LONG},
    "tied, ratio": {
        "adapter": dataclasses.replace(LONG, learning_rate_ratio=8.0),
        "decoder": {**SHAPE, "tied_embeddings": True, "qkv_bias": True, "qk_norm": True},
    },
    "blocks": {"adapter": dataclasses.replace(LONG, targets=("v_proj", "up_proj", "down_proj")),
               "memory": Memory(recompute="blocks")},
    "context": {"adapter": LONG, "memory": Memory(recompute="halves")},
}  # fmt: skip
RANKS = ("lora", "tied, ratio", "context")


def trained(name: str, devices: int, seed: int = 0) -> dict[str, Any]:
    context = name == "context"
    torch.manual_seed(seed)
    module = Watched(**options(**CASES[name]))
    strategy: Any = HybridStrategy(2 if context else 1) if devices > 1 else "auto"
    # One process takes as many batches a step as two.
    accumulate = 1 if devices > 1 or context else 2
    runs = trainer(
        devices=devices, strategy=strategy, accumulate_grad_batches=accumulate, val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None, limit_val_batches=2 * accumulate,
    )  # fmt: skip
    runs.fit(module, datamodule=Batches(520 if context else 64))
    return {
        "last": {key: whole(p) for key, p in module.named_parameters()},
        "gradients": module.gradients,
        "seen": module.seen,
        "logged": {tag: float(value) for tag, value in runs.callback_metrics.items()},
    }


def all_trained(rank: int) -> dict[str, Any]:
    return {name: trained(name, 2, seed=rank) for name in RANKS}


def test_two_processes_train_as_one() -> None:
    ranks = run_ranks(all_trained, 2)
    for name in RANKS:
        one = trained(name, 1)
        for many in (rank[name] for rank in ranks):
            torch.testing.assert_close(many["gradients"], one["gradients"], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(many["last"], one["last"], rtol=1e-3, atol=1e-4)
            assert many["seen"] == one["seen"] == {"training": [GROUPS["groups"]] * 2, "evaluated": [Causal()] * 2}
            for tag in ("train/loss_nats", "train/grad_norm", "val/loss_nats"):
                assert many["logged"][tag] == pytest.approx(one["logged"][tag], rel=1e-5), (name, tag)


@pytest.mark.parametrize("name", [name for name in CASES if name != "context"])
def test_only_what_is_told_trains(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = HybridLM(**options(**CASES[name]))
    module.configure_model()
    before = {key: whole(p) for key, p in module.named_parameters()}
    runs = trainer(tmp_path, limit_val_batches=0)
    runs.fit(module, datamodule=Batches())
    changed = {key.removeprefix("decoder.") for key, p in module.named_parameters() if not torch.equal(p, before[key])}
    assert module.adapter is not None
    lora: Any = module.adapter
    added = {key.removeprefix("decoder.") for key in before if ".lora_" in key}
    assert len(added) == 2 * 2 * len(lora.targets)
    whole_ones = {key.removeprefix("decoder.") for key in before if "norm" in key} if lora.also_train else set()
    assert changed == added | whole_ones | ({"embedding.weight"} if lora.also_train else set())
    # The optimizer keeps nothing of the others, and counts tell as much.
    kept = [p for group in runs.optimizers[0].param_groups for p in group["params"]]
    num_trained = sum(p.numel() for p in kept)
    counted = lora.counted(module.decoder_config)
    assert num_trained == counted.trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert sum(p.numel() for p in module.parameters()) == num_parameters(module.decoder_config) + counted.added
    assert f"  trained    {num_trained:>15,}" in card(module)


def test_b_learns_faster_by_the_ratio(tmp_path: Path) -> None:
    adapter = dataclasses.replace(LONG, learning_rate_ratio=16.0)
    module = HybridLM(**options(adapter=adapter, lr_schedule=Constant(warmup=4)))
    runs = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    runs.fit(module, datamodule=Batches())
    names = {id(p): name for name, p in module.named_parameters()}
    for group in runs.optimizers[0].param_groups:
        for p in group["params"]:
            assert group["initial_lr"] == pytest.approx(0.16 if names[id(p)].endswith("lora_b") else 0.01)
            assert group["lr"] / group["initial_lr"] == pytest.approx(runs.optimizers[0].param_groups[0]["lr"] / 0.01)
            assert (group["weight_decay"] > 0) == (".lora_" in names[id(p)])


def test_training_begins_with_the_model_as_it_is_and_merged_weights_compute_the_same() -> None:
    torch.manual_seed(0)
    plain, adapted = HybridLM(**options(adapter=None)), HybridLM(**options(adapter=LONG))
    tokens = torch.randint(64, (1, 40))
    plain.model.load_state_dict(adapted.plain_weights)
    torch.testing.assert_close(plain(tokens), adapted(tokens))
    randomised(adapted)
    assert not torch.allclose(plain(tokens), adapted(tokens), atol=1e-2)
    plain.model.load_state_dict(adapted.plain_weights)
    torch.testing.assert_close(plain(tokens), adapted(tokens), rtol=1e-4, atol=1e-5)
    bf16 = LONG.merged({key: w.bfloat16() for key, w in adapted.model.state_dict().items()})
    assert {w.dtype for w in bf16.values()} == {torch.bfloat16}


def test_dropout_is_of_training_only() -> None:
    layer = LoRALinear(torch.nn.Linear(8, 8), rank=2, scale=1.0, dropout=0.5)
    torch.nn.init.ones_(layer.lora_b)
    x = torch.randn(4, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(
        layer(x), torch.nn.functional.linear(x, layer.weight + layer.lora_b @ layer.lora_a, layer.bias)
    )


def randomised(module: HybridLM) -> None:
    """What training would have changed, changed."""
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.3)


def test_layers_see_what_the_mode_says() -> None:
    torch.manual_seed(0)
    module, groups, full = (
        HybridLM(**options(evaluated=evaluated, schedule=schedule))
        for evaluated, schedule in (({"groups": "full"}, "2*groups"), ({}, "2*groups"), ({}, "2*full"))
    )
    for other in (groups, full):
        other.model.load_state_dict(module.model.state_dict())
    tokens = torch.randint(64, (1, 100))
    assert torch.equal(module(tokens), groups(tokens)) and patterns(module.model) == [GROUPS["groups"]] * 2
    assert not torch.allclose(groups(tokens), full(tokens))
    module.eval()
    assert torch.equal(module(tokens), full(tokens)) and patterns(module.model) == [Causal()] * 2
    assert module.current_schedule == ["full"] * 2 and module.train().current_schedule == ["groups"] * 2
    assert module.grid == 32
    # Also where a module is in eval mode before it has a decoder.
    fresh = HybridLM(**options()).eval()
    assert patterns(fresh.model) == [Causal()] * 2
    assert "; full in evaluation: Causal()" in card(module)


def test_a_checkpoint_knows_adapter_and_patterns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = HybridLM(**options(adapter=LONG))
    runs = trainer(tmp_path, limit_val_batches=0)
    runs.fit(module, datamodule=Batches())
    runs.save_checkpoint(tmp_path / "step.ckpt")
    again = HybridLM.from_checkpoint(str(tmp_path / "step.ckpt"))
    assert (again.adapter, again.evaluated, again.training) == (LONG, {"groups": "full"}, False)
    tokens = torch.randint(64, (1, 100))
    torch.testing.assert_close(again(tokens), module.eval()(tokens))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("tied", [False, True])
def test_peft_computes_the_same(tied: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from lg.cli import main

    torch.manual_seed(0)
    adapter = LoRA(rank=4, alpha=6, targets=("q_proj", "o_proj", "down_proj"), also_train=("embedding", "norm"))
    module = HybridLM(**options(adapter=adapter, decoder={**SHAPE, "tied_embeddings": tied, "qk_norm": True}))
    base = module.plain_weights
    save(tmp_path / "base", base, module.decoder_config, [Causal()] * 2, 128)
    runs = trainer(tmp_path, max_steps=0)
    runs.fit(module, datamodule=Batches())
    randomised(module)
    runs.save_checkpoint(tmp_path / "step.ckpt")
    words = ["export", str(tmp_path / "step.ckpt")]
    assert main([*words, str(tmp_path / "adapter"), "--adapter", f"--base={tmp_path / 'base'}"]) == 0
    assert main([*words, str(tmp_path / "merged"), "--positions=128"]) == 0
    tokens = torch.randint(64, (1, 50))
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    with torch.no_grad():
        want = module.eval()(tokens)
        for model in (adapted, merged):
            torch.testing.assert_close(model(tokens).logits, want, rtol=1e-4, atol=1e-4)
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(tmp_path / "base")


def test_what_is_trained_is_planned_for() -> None:
    config = preset("llama-2-7b")
    long = LoRA(also_train=("embedding", "norm"))
    kinds = PRECISIONS["bf16-true"]
    whole_model, adapted = (
        footprint(Setup(config, Memory("halves"), kinds, 32768, num_shards=8, adapted=adapted))
        for adapted in (None, long.counted(config))
    )
    assert adapted.optimizer == 2 * adapted.gradients < whole_model.optimizer / 40
    assert adapted.parameters == pytest.approx(whole_model.parameters, rel=2e-3)
    assert adapted.peak < whole_model.peak


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, r"adapter\.init_args\.rank: 0 is not allowed; it must be at least 1"),
        ({"alpha": 0}, r"init_args\.alpha: 0 is not allowed"),
        ({"dropout": 1.0}, r"init_args\.dropout: 1\.0 is not allowed; it must be at least 0 and below 1"),
        ({"learning_rate_ratio": -1}, r"init_args\.learning_rate_ratio: -1 is not allowed"),
        ({"targets": ["query"]}, r"init_args\.targets: 'query' is unknown; allowed are q_proj, k_proj"),
        ({"targets": []}, r"init_args\.targets: \[\] is not allowed"),
        ({"also_train": ["norms"]}, r"init_args\.also_train: 'norms' is unknown; allowed are embedding, norm, head"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoRA(**given)


def test_names_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    tied = {**SHAPE, "tied_embeddings": True}
    with pytest.raises(ValueError, match=r"also_train: 'head' is not allowed without 'embedding'"):
        HybridLM(**options(adapter=LoRA(also_train=("head",)), decoder=tied))
    with pytest.raises(
        ValueError, match=r"model\.init_args\.evaluated: 'group' is no pattern; allowed are groups, full"
    ):
        HybridLM(**options(evaluated={"group": "full"}))
    with pytest.raises(ValueError, match=r"model\.init_args\.evaluated\.groups: 'all' is no pattern"):
        HybridLM(**options(evaluated={"groups": "all"}))
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"there' exists"):
        save_adapter(tmp_path / "there", {}, HybridLM(**options()).decoder_config, LONG, None)
