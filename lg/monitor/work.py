"""How much arithmetic training does a second: what is useful, what is run, and what the device could do."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lg.attention import Documents, Pattern
from lg.attention.attend import chosen
from lg.attention.impl import Implementation
from lg.models.batch_cost import BatchCost, BatchCosts
from lg.models.cost import scheduled
from lg.models.hybrid import HybridLM
from lg.models.wrap import recomputed_weights
from lg.monitor.matmul_rate import measured
from lg.monitor.steps import TimedCallback
from lg.monitor.tally import copies, num_tokens, text_tokens

# By the part of Lightning's names before the dash; what it has beside these computes in bfloat16 or less.
_DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}


class Work(TimedCallback):
    """Logs the work of training, forward and backward, as rates of one device.

    - ``work/visible_TFLOP_per_s`` is useful work: six operations for each weight (the embedding's look-up left out, the
      head counted; four for one that an adapter freezes) and token of text, and attention on exactly the pairs of query
      and key that each layer sees in the batch's documents; padding is not useful.
    - ``work/executed_TFLOP_per_s`` is what runs: padding too, attention's tiles whole, as the implementation takes
      them, and what the backward pass computes again.
    - ``work/dense_equivalent_TFLOP_per_s`` is the useful work of full causal attention within each document in every
      layer, done in the same time: what a model without a pattern would have to reach to be as fast.
    - ``work/mfu_percent`` is visible work as a share of ``work/matmul_TFLOP_per_s``, the rate of a large square matrix
      product in the training's precision, measured on each device when training starts. It is no data sheet's.

    Time is as in `Throughput`. Norms, activations, rotation, softmax and the optimizer are not counted
    (`lg.models.batch_cost`). Counting a batch of 131,072 tokens takes the host 10 ms, 75 ms with `Strided`, while a GPU
    computes; a composition that has no formula may take it most of a second.

    Stays away, and says so, where a layer has no pattern.

    Args:
        every: optimizer steps in one measurement; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._costs: BatchCosts | None = None
        self._matmul_rate = 0.0
        self._measured_again = False
        self._dtype = torch.float32
        self._done = (0, 0, 0)
        self._last: tuple[object, BatchCost] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the device; half a second."""
        super().on_train_start(trainer, pl_module)
        self._costs = self._last = None
        if not isinstance(pl_module, HybridLM):
            return
        self._dtype = dtype = _DTYPES.get(str(trainer.precision).split("-")[0], torch.bfloat16)
        try:
            self._costs = _costs(pl_module, dtype)
        except ValueError as reason:
            rank_zero_warn(f"Work stays away: {reason}")
            return
        self._matmul_rate, self._measured_again = 0.0, False
        self._measure(trainer, pl_module, dtype)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, dtype: torch.dtype) -> None:
        """Measures the devices, on every rank; what was measured faster before stays."""
        rate = measured(pl_module.device, dtype)
        mean = torch.tensor(rate.tflop_per_s, device=pl_module.device)
        self._matmul_rate = max(self._matmul_rate, float(trainer.strategy.reduce(mean, reduce_op="mean")))
        rank_zero_info(f"work/mfu_percent is of {rate}, which a matrix product reaches here, measured")

    def count(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Counts the batch's work, on the host, while a GPU computes."""
        if self._costs is None or not self.is_measuring:
            return
        cost = self._cost(self._costs, batch)
        visible, executed, dense = self._done
        self._done = (visible + cost.visible, executed + cost.executed, dense + cost.dense_equivalent)

    def _cost(self, costs: BatchCosts, batch: Any) -> BatchCost:
        documents = Documents(num_tokens(batch), batch["document_starts"], batch.get("document_attributes", {}))
        padded = batch.get("document_padding", [False] * len(documents.starts))
        asked = documents, padded, documents.length - text_tokens(batch)
        # Rows of one document each are all alike.
        if self._last is None or self._last[0] != asked:
            self._last = asked, costs.of(*asked)
        return self._last[1]

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Work counts from here."""
        self._done = (0, 0, 0)

    def measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float, num_steps: int) -> None:
        """Logs all rates."""
        if self._costs is None:
            return
        own = torch.tensor([flops / seconds / 1e12 for flops in self._done], device=trainer.strategy.root_device)
        # Ranks that share a batch share its work.
        rates = trainer.strategy.reduce(own, reduce_op="mean") / copies(trainer)
        visible, executed, dense = rates.tolist()
        if executed > self._matmul_rate and not self._measured_again:
            # Little is faster than a large product: the device was busy otherwise when it was measured.
            self._measured_again = True
            self._measure(trainer, pl_module, self._dtype)
        pl_module.log("work/visible_TFLOP_per_s", visible)
        pl_module.log("work/executed_TFLOP_per_s", executed)
        pl_module.log("work/dense_equivalent_TFLOP_per_s", dense)
        pl_module.log("work/matmul_TFLOP_per_s", self._matmul_rate)
        pl_module.log("work/mfu_percent", 100 * visible / self._matmul_rate)


def _costs(module: HybridLM, dtype: torch.dtype) -> BatchCosts:
    """What counts the module's batches, for attention in ``dtype``."""
    config, patterns = module.decoder_config, scheduled(module.schedule, module.patterns)
    known: dict[tuple[Pattern, bool, int], Implementation] = {}

    def implementation(pattern: Pattern, documents: Documents) -> Implementation:
        # The choice hangs on types and shapes, and on whether there are several documents: it is asked for once.
        case = pattern, len(documents.starts) > 1, documents.length
        if case not in known:
            # One token in the place of all: of the values nothing is read.
            one = torch.empty(config.head_width, dtype=dtype, device=module.device)
            q, k, v = (
                one.expand(1, heads, documents.length, -1).detach().requires_grad_()
                for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
            )
            with torch.enable_grad():
                known[case] = chosen(q, k, v, pattern.tiles(documents, config.num_kv_heads), module.attention)
        return known[case]

    return BatchCosts(
        config,
        [patterns[name] for name in module.schedule],
        implementation,
        recomputed_weights(config, module.memory, module.compile_blocks),
        module.memory.recompute == "blocks",
        None if module.adapter is None else module.adapter.counted(config),
    )
