"""What LoRA has trained as a folder of the library ``peft``: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lg.models.adapters import LoRA
from lg.models.config import DecoderConfig
from lg.models.pretrained.weights import names

_ROOT = "base_model.model."


def save_adapter(
    path: str | Path, weights: Mapping[str, Tensor], config: DecoderConfig, lora: LoRA, base: str | None
) -> None:
    """Writes a folder which ``peft.PeftModel.from_pretrained`` puts onto the model that training began with.

    It is whole or not there. Neither rotary positions nor what layers see is in it: the model must have them.

    Args:
        path: the folder, which must not exist.
        weights: the adapted decoder's, by its own names, in the type that is to be written.
        config: its shape.
        lora: its adapter.
        base: what the model is called that it is for: a folder, or a name of a hub.

    Raises:
        ValueError: if the folder exists or cannot be written.
    """
    from safetensors.torch import save_file

    out = Path(path)
    if out.exists():
        raise ValueError(f"{str(out)!r} exists; a folder that does not is needed")
    tensors = dict(_tensors(weights, config, lora))
    whole = {name.split(".")[-2] for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))}
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted(set(lora.targets)), "modules_to_save": sorted(whole) or None,
    }  # fmt: skip
    aside = out.with_name(f".{uuid.uuid4().hex}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            aside / "adapter_model.safetensors",
            {"format": "pt"},
        )
        (aside / "adapter_config.json").write_text(json.dumps(told, indent=2) + "\n")
        aside.rename(out)
    except OSError as error:
        raise ValueError(f"{str(out)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tensors(weights: Mapping[str, Tensor], config: DecoderConfig, lora: LoRA) -> Iterator[tuple[str, Tensor]]:
    """What is trained, under peft's names."""
    for own, theirs in names(config).items():
        layer = own.removesuffix(".weight")
        if f"{layer}.lora_a" in weights:
            for one, other in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                yield f"{_ROOT}{theirs.removesuffix('weight')}{other}.weight", weights[f"{layer}.{one}"]
        elif ("norm" if layer.endswith("norm") else layer) in lora.also_train:
            yield f"{_ROOT}{theirs}", weights[own]
    # peft puts a copy in the place of the embedding, and a tied head would keep the old one.
    if config.tied_embeddings and "embedding" in lora.also_train:
        yield f"{_ROOT}lm_head.weight", weights["embedding.weight"].clone()
