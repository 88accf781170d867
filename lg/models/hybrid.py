"""HybridLM, the LightningModule: builds the schedule and the decoder from the configuration, and trains it.

Subclass it to change a step; name the subclass in the YAML.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric

from lg.attention import Documents, Pattern, PredicateError
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.part import Held
from lg.attention.schedule import Schedule, layers
from lg.models.adapters import Adapter
from lg.models.advice import tell_no_export, tell_other_patterns, tell_small_theta
from lg.models.auto_memory import auto_memory
from lg.models.batch import Batch, HeldOut
from lg.models.block import MixerSpec, check_evaluated, in_both_modes, seen_in_use
from lg.models.checkpoint import content, differences, from_plain, load, plain, stamp
from lg.models.clipping import clip_by_norm
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder, draw
from lg.models.learning_rate import Cosine, LRSchedule
from lg.models.loss import IGNORED
from lg.models.memory import Memory
from lg.models.parameter_groups import parameter_groups
from lg.models.presets import changed
from lg.models.presets import preset as preset_config
from lg.models.pretrained import open_pretrained
from lg.models.rope_scaling import RopeScaling
from lg.models.wrap import wrap

log = logging.getLogger(__name__)


class HybridLM(pl.LightningModule):
    """A decoder language model whose layers see different parts of the context.

    Args:
        patterns: what a layer may see, by the name that the schedule uses.
        schedule: the name of each layer's pattern, as in "10*local, 12*full, 10*local", or a builder.
        evaluated: for names of patterns, the name of the pattern that such layers have in eval mode instead: when
            validated, exported, loaded by `from_checkpoint`, and wherever a callback looks at what the model says.
        preset: the decoder's shape, by name (`lg.models.presets`); "tiny" by default.
        pretrained: a folder of transformers, a GGUF file or a checkpoint, from which shape and first weights are taken,
            instead of a preset.
        decoder: fields of `DecoderConfig` that differ from the preset, or from what was pretrained.
        rope_scaling: how rotary positions are changed to read further than the preset, or what was pretrained, does.
        adapter: what is trained in place of all weights, as `LoRA`.
        attention: "auto", or the name of one implementation, which then runs or raises.
        learning_rate: the peak of AdamW's learning rate.
        lr_schedule: how it runs over the steps; a cosine after 100 steps of warm-up by default.
        weight_decay: of matrices; norms, biases and embeddings have none.
        betas: AdamW's.
        memory: what is kept for the backward pass, and what is computed again; by default all is kept. "auto" for the
            fastest way that is predicted to fit the device, which is chosen just before the decoder is built.
        compile: compile each block's halves with ``torch.compile``.

    Attributes:
        name: what the decoder's shape is called, and what was changed of it.
        memory: what is kept; where "auto" is asked for, all until `setup`.
        gradient_factor: what the last step's gradients were multiplied by in `on_before_optimizer_step`, for callbacks,
            whose hook of that name runs before.
        write_on: what `predict_step` does with a batch, as `lg.inference.WriteOn`.

    Raises:
        ValueError: naming the value, what is allowed and the YAML key.
    """

    def __init__(
        self,
        patterns: dict[str, Pattern],
        schedule: Schedule | str,
        evaluated: dict[str, str] | None = None,
        preset: str | None = None,
        pretrained: str | None = None,
        decoder: dict[str, Any] | None = None,
        rope_scaling: RopeScaling | None = None,
        adapter: Adapter | None = None,
        attention: str = "auto",
        learning_rate: float = 3e-4,
        lr_schedule: LRSchedule | None = None,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        memory: Memory | str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if attention not in ("auto", *IMPLEMENTATIONS):
            raise ValueError(
                f"model.init_args.attention: {attention!r} is unknown; allowed are auto, {', '.join(IMPLEMENTATIONS)}"
            )
        if isinstance(memory, str) and memory != "auto":
            raise ValueError(
                f"model.init_args.memory: {memory!r} is unknown; allowed are auto, or recompute, offload and tile"
            )
        if not learning_rate > 0:
            raise ValueError(f"model.init_args.learning_rate: {learning_rate} is not allowed; it must be above 0")
        if not weight_decay >= 0:
            raise ValueError(f"model.init_args.weight_decay: {weight_decay} is not allowed; it must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"model.init_args.betas: {betas} is not allowed; both must be at least 0 and below 1")
        if preset is not None and pretrained is not None:
            raise ValueError(
                f"model.init_args.preset: {preset!r} is not allowed beside model.init_args.pretrained, which tells the "
                "shape; it must be null"
            )
        self.pretrained = None if pretrained is None else open_pretrained(pretrained)
        changes = {**(decoder or {}), **({} if rope_scaling is None else {"rope_scaling": rope_scaling})}
        begun = preset_config(preset or "tiny") if self.pretrained is None else self.pretrained.config
        self.decoder_config = changed(begun, changes)
        called = (preset or "tiny") if pretrained is None else Path(pretrained).name
        told = ", ".join(f"{field} {value}" for field, value in changes.items())
        self.name = f"{called} with {told}" if told else called
        self.patterns: Mapping[str, Pattern | MixerSpec] = patterns
        self._check_patterns()
        self.evaluated = evaluated or {}
        check_evaluated(self.evaluated, patterns)
        self.adapter = adapter
        if adapter is not None:
            adapter.check(self.decoder_config)
        self.config = plain(
            patterns=patterns,
            schedule=schedule if isinstance(schedule, str) else schedule.kept(self.decoder_config.num_layers),
            evaluated=evaluated,
            preset=preset,
            # A checkpoint has weights of its own: of what was pretrained it needs the shape.
            decoder=changes if self.pretrained is None else vars(self.decoder_config),
            adapter=adapter,
            attention=attention,
            learning_rate=learning_rate,
            lr_schedule=lr_schedule,
            weight_decay=weight_decay,
            betas=betas,
            memory=memory,
            compile=compile,
        )
        self.schedule = layers(schedule, self.decoder_config.num_layers, list(patterns))
        if self.pretrained is not None:
            tell_other_patterns(self.pretrained, [self.patterns[name] for name in self.evaluated_schedule])
        self.attention = attention
        self.learning_rate = learning_rate
        self.lr_schedule = lr_schedule or Cosine()
        self.weight_decay = weight_decay
        self.betas = betas
        self.asked_memory = memory or Memory()
        self.memory = self.asked_memory if isinstance(self.asked_memory, Memory) else Memory()
        self.compile_blocks = compile
        self.decoder: Decoder | None = None
        self.val_loss = MeanMetric()
        self._causal_up_to: dict[str, int] = {}
        self._told: set[str] = set()
        # Over how many steps the learning rate runs: here, and in the checkpoint that training goes on from.
        self._num_steps: int | None = None
        self._saved_num_steps: int | None = None
        self.gradient_factor = torch.ones(())
        self.write_on: Callable[[Decoder, Any], Any] | None = None

    def _check_patterns(self) -> None:
        """Refuses what cannot be read, or does not fit the decoder, before anything is built."""
        heads = self.decoder_config.num_kv_heads
        for name, pattern in self.patterns.items():
            if not isinstance(pattern, Pattern):
                continue
            key = f"model.init_args.patterns.{name}"
            if not dataclasses.is_dataclass(type(pattern)):
                raise ValueError(
                    f"{key}: {type(pattern).__name__} is no dataclass, so its fields are not known; "
                    "write @dataclass(frozen=True) above the class"
                )
            try:
                fits = pattern.text and pattern.made_for in (None, heads)
            except PredicateError as error:
                raise ValueError(f"{key}: {error}") from error
            if not fits:
                raise ValueError(
                    f"{key}: {pattern} is made for {pattern.made_for} KV heads, but the decoder has {heads} "
                    "(model.init_args.decoder.num_kv_heads)"
                )

    @property
    def evaluated_schedule(self) -> list[str]:
        """The name of each layer's pattern in eval mode."""
        return [self.evaluated.get(name, name) for name in self.schedule]

    @property
    def sees(self) -> tuple[Pattern, ...]:
        """What each layer sees in eval mode.

        Raises:
            ValueError: if a layer does not attend.
        """
        return seen_in_use(self.patterns, self.schedule, self.evaluated)

    @property
    def current_schedule(self) -> list[str]:
        """The name of each layer's pattern in the mode that the module is in."""
        return self.schedule if self.training else self.evaluated_schedule

    def _check_attributes(self, told: Collection[str]) -> None:
        """Refuses a pattern that asks of documents what the data does not tell."""
        for name in dict.fromkeys((*self.schedule, *self.evaluated_schedule)):
            pattern = self.patterns[name]
            missing = set(pattern.attributes) - {"length", *told} if isinstance(pattern, Pattern) else set()
            if missing:
                asked = min(missing)
                raise ValueError(
                    f"model.init_args.patterns.{name}: {pattern} asks for doc.{asked}, which the data does not tell; "
                    f"a batch tells it in document_attributes, TextData only of prefixes (data.init_args.prefix)"
                )

    # Building

    def configure_model(self) -> None:
        """Builds the decoder, once, on the device and in the type that the trainer asks for."""
        if self.decoder is not None:
            return
        names = zip(self.schedule, self.evaluated_schedule, strict=True)
        mixers = [in_both_modes(self.patterns[a], self.patterns[b], self.attention) for a, b in names]
        # A strategy for many devices shards each part before the next one is made.
        place = None if self._trainer is None else getattr(self._trainer.strategy, "place", None)
        self.decoder = Decoder(self.decoder_config, mixers, self.attention, place, self._fill)
        # Its parts follow the module's mode, of which what layers see may hang.
        self.decoder.train(self.training)
        wrap(self.decoder, self.memory, self.compile_blocks)

    def _fill(self, part: torch.nn.Module, name: str, config: DecoderConfig) -> None:
        """Gives a part of the decoder its first weights, and what the adapter adds; then it is placed."""
        fill = draw if self.pretrained is None else self.pretrained.fill
        fill(part, name, config)
        if self.adapter is not None:
            self.adapter.adapt(part, name)

    @property
    def model(self) -> Decoder:
        """The decoder, which the trainer (or `configure_model`) has built."""
        if self.decoder is None:
            self.configure_model()
        assert self.decoder is not None
        return self.decoder

    @property
    def grid(self) -> int:
        """The block that every pattern of the schedule counts in: where documents best begin at a multiple of it."""
        used = [self.patterns[name] for name in dict.fromkeys((*self.schedule, *self.evaluated_schedule))]
        return math.lcm(*(pattern.grid for pattern in used if isinstance(pattern, Pattern)))

    def setup(self, stage: str) -> None:
        """Refuses a tokenizer that has more tokens than the model has embeddings, and data that tells too little.

        Then takes the way to keep activations, where that is to be "auto".
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        told = getattr(datamodule, "document_attributes", None)
        if told is not None:
            self._check_attributes(told)
        vocab_size = getattr(datamodule, "vocab_size", 0)
        if vocab_size > self.decoder_config.vocab_size:
            raise ValueError(
                f"model.init_args.decoder.vocab_size: {self.decoder_config.vocab_size} is not allowed; the tokenizer "
                f"has {vocab_size} tokens, so it must be at least that (data.init_args.tokenizer)"
            )
        if stage == "fit":
            tell_no_export(self.decoder_config)
        if self.pretrained is not None:
            num_positions = getattr(datamodule, "num_positions", getattr(datamodule, "row_length", 0))
            tell_small_theta(self.pretrained, self.decoder_config, num_positions, self.name.partition(" with ")[0])
        # Not in configure_model, where tensors are made on the device and in its precision.
        if self.asked_memory == "auto" and self.decoder is None:
            self.memory = auto_memory(
                self.trainer, self.decoder_config, self.schedule, self.patterns, self.compile_blocks, self.adapter
            )

    def forward(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """Logits [B, L, V] of the token after each of tokens [B, L]; each row is one document unless told otherwise."""
        batch, length = tokens.shape
        rows = documents or Documents(batch * length, range(0, batch * length, length))
        return self.model.logits(tokens, rows)

    # Training

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss in nats, and the number of targets that it sums over."""
        targets, documents = self._targets(batch)
        loss = self.model.loss(batch["tokens"], targets, documents, batch.get("held"), self._positions(batch))
        return loss, (targets != IGNORED).sum()

    def _targets(self, batch: Batch) -> tuple[Tensor, Documents]:
        """What is to be predicted, leaks left out, and where the documents lie."""
        attributes = batch.get("document_attributes", {})
        self._check_attributes(attributes)
        held = batch.get("held")
        length = batch["tokens"].numel() if held is None else held.split.length
        documents = Documents(length, batch["document_starts"], attributes)
        return self._without_leaks(batch["targets"], documents, held), documents

    def _positions(self, batch: Batch) -> Tensor | None:
        """What the batch says, if it does.

        Raises:
            ValueError: if they are fractions that were rounded: Lightning turns all of a batch to the model's type.
        """
        positions = batch.get("positions")
        if positions is not None and positions.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"trainer.precision: {self.trainer.precision!r} is not allowed where positions are fractions "
                "(data.init_args.positions), which it rounds until neighbours are one; bf16-mixed or 32-true is needed"
            )
        return positions

    def _without_leaks(self, targets: Tensor, documents: Documents, held: Held | None = None) -> Tensor:
        """Targets, without those that a pattern shows to the query that must predict them.

        Raises:
            ValueError: if a pattern shows every query what comes next, so that nothing is left to learn.
        """
        length = targets.shape[1] if held is None else documents.length
        for name in dict.fromkeys(self.current_schedule):
            pattern = self.patterns[name]
            if not isinstance(pattern, Pattern) or length <= self._causal_up_to.get(name, 0):
                continue
            heads = self.decoder_config.num_kv_heads
            leaks = pattern.tiles(documents, heads).leaks()
            if not pattern.attributes and not pattern.sees_later(length, heads):
                self._causal_up_to[name] = length
                continue
            # The last token of a document has nothing behind it to see.
            if name not in self._told and int(leaks.sum()) == documents.length - len(documents.starts) > 0:
                raise ValueError(
                    f"model.init_args.patterns.{name}: {pattern} lets every query see later keys, so the next token "
                    "would leak into its own prediction; write `& Causal()` into it, or k <= q into its predicate"
                )
            if name not in self._told and bool(leaks.any()):
                self._told.add(name)
                log.warning(
                    "model.init_args.patterns.%s: %s lets queries see later keys; the targets that would leak, %.0f%% "
                    "of the first batch, are left out of the loss",
                    name,
                    pattern,
                    100 * float(leaks.float().mean()),
                )
            own = leaks if held is None else leaks[held.tokens]
            targets = targets.masked_fill(own.view(targets.shape).to(targets.device), IGNORED)
        return targets

    def on_train_start(self) -> None:
        """Starts counting the first step."""
        if self._saved_num_steps not in (None, self._num_steps):
            log.warning(
                "trainer.max_steps: the checkpoint's learning rate ran over %s steps, now it runs over %s, so it jumps",
                self._saved_num_steps,
                self._num_steps,
            )
        self._step_loss = torch.zeros((), device=self.device)
        self._step_targets = torch.zeros((), device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the summed loss of one micro-batch; `on_before_optimizer_step` divides the gradients."""
        loss, num_targets = self._loss(batch)
        self._step_loss += loss.detach()
        self._step_targets += num_targets
        # Lightning divides by the number of micro-batches; gradients here are of the plain sum.
        return loss * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns gradients of the sum into gradients of the mean over the whole step's targets, over all ranks."""
        reduce = self.trainer.strategy.reduce
        targets = reduce(self._step_targets, reduce_op="sum")
        loss = reduce(self._step_loss, reduce_op="sum") / targets.clamp(min=1)
        # Data parallelism averages gradients over ranks where the sum is wanted.
        self.gradient_factor = self.trainer.world_size / targets.clamp(min=1)
        # Gradients may lie in the host's memory.
        factors = {device: self.gradient_factor.to(device) for device in {p.device for p in self.parameters()}}
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factors[parameter.device])
        self.log("train/loss_nats", loss, prog_bar=True)
        if self._bytes_per_token:
            self.log("train/bits_per_byte", loss / (math.log(2) * self._bytes_per_token))
        self._step_loss.zero_()
        self._step_targets.zero_()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the trainer says, and logs the norm before clipping."""
        by_norm = gradient_clip_algorithm in (None, "norm")
        most = gradient_clip_val if gradient_clip_val is not None and by_norm else math.inf
        self.log("train/grad_norm", clip_by_norm(self.parameters(), most))
        if gradient_clip_val is not None and not by_norm:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW of what is trained, fused where torch can, with the learning rate's schedule stepped at every step."""
        groups = parameter_groups(self, self.learning_rate, self.weight_decay, self.adapter)
        # A fused step unscales by itself, after norms were taken and clipped.
        fused = self.device.type in ("cpu", "cuda", "mps") and self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=fused)
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            raise ValueError(
                "trainer.max_steps: -1 without trainer.max_epochs is not allowed; the learning rate's schedule must "
                "know where training ends"
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.lr_schedule.factor(step, int(num_steps))
        )
        self._num_steps = int(num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> HeldOut:
        """Adds a batch of held-out targets to the mean; callbacks are told the loss of each."""
        targets, documents = self._targets(batch)
        losses = self.model.token_losses(batch["tokens"], targets, documents, batch.get("held"), self._positions(batch))
        counted = targets != IGNORED
        num_targets = counted.sum()
        self.val_loss.update(losses.sum() / num_targets.clamp(min=1), num_targets)
        return {"losses": losses, "counted": counted}

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over all held-out targets."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log("val/loss_nats", loss)
        if self._bytes_per_token:
            self.log("val/bits_per_byte", loss / (math.log(2) * self._bytes_per_token), prog_bar=True)

    @property
    def _bytes_per_token(self) -> float:
        """What turns nats per token into bits per byte; 0 if the data module does not say."""
        return float(getattr(getattr(self.trainer, "datamodule", None), "bytes_per_token", 0.0))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """What `write_on` makes of a batch, which `lg predict` sets, and Python to `lg.inference.WriteOn`."""
        if self.write_on is None:
            raise ValueError("model.write_on: None is not allowed; trainer.predict needs lg.inference.WriteOn there")
        return self.write_on(self.model, batch)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration and the format's version, as plain data."""
        stamp(checkpoint, self.config)
        checkpoint["num_steps"] = self._num_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that this version does not understand."""
        saved = load(checkpoint)
        self._saved_num_steps = checkpoint.get("num_steps")
        # A key that is not there is one that lg did not have yet.
        now = {key: value for key, value in self.config.items() if key in saved}
        changed = [f"{key} was {was!r}, is {value!r}" for key, was, value in differences(saved, now)]
        if changed:
            log.warning("the checkpoint was trained with other values of model.init_args: %s", "; ".join(changed))

    @classmethod
    def from_checkpoint(cls, path: str) -> HybridLM:
        """A model as it was trained, from a file of Lightning's: configuration, weights, nothing else needed.

        It is in eval mode: layers see what `evaluated` says.

        Raises:
            ValueError: if the file is not a checkpoint of lg's, or damaged, or of a later format, or a folder of many
                files.
        """
        if os.path.isdir(path):
            raise ValueError(
                f"{path!r} is a sharded checkpoint, a folder; `lg consolidate {path}` makes one file of it"
            )
        checkpoint = content(path)
        module = cls(**from_plain(load(checkpoint)))
        module.configure_model()
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()

    @property
    def plain_weights(self) -> dict[str, Tensor]:
        """Weights of a decoder without an adapter that computes the same, by the decoder's own names."""
        weights: dict[str, Tensor] = self.model.state_dict()
        return weights if self.adapter is None else self.adapter.merged(weights)
