"""The Lightning strategy that trains a hybrid decoder on many devices: weights sharded, sequences too."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from lg.attention import Documents, Pattern
from lg.parallel.batch import check_alike, own_part
from lg.parallel.checkpoint import folder_writer, load_whole
from lg.parallel.launcher import (
    Launcher,
    how_ended,
    is_started_by_launcher,
    seconds_left,
    was_started_by_launcher,
)
from lg.parallel.mesh import Meshes, build_meshes, check_sizes
from lg.parallel.pulse import Pulse, start_pulse
from lg.parallel.shard import Policy, Shardable, patterns, shard, shard_part, to_device, unsharded
from lg.parallel.share import Share, share
from lg.parallel.watch import GRACE_S, ORDERLY_S, Watch, end_process


class HybridStrategy(ModelParallelStrategy):
    """Trains one decoder on all devices of a run, on one host or several (FSDP2).

    Every device holds a part of the weights, of their gradients and of the optimizer's state, and gathers a layer's
    weights just before it computes. With a ``context_parallel_size`` above 1 so many devices share a sequence, too:
    each has a part of its tokens, and a layer fetches only what its pattern lets these tokens see.

    Weights begin as on one device with the same seed, and gradients are those of the mean over all targets of a step,
    wherever they lie. Under ``trainer.precision: bf16-mixed`` weights are gathered, and activations kept, in bfloat16;
    weights themselves, and the sum of gradients over devices, are float32.

    Args:
        context_parallel_size: devices that share a sequence.
        data_replicate_size: groups of devices of which each holds all weights; hosts, where the network between them
            is slow.
        timeout_s: seconds until a collective that not all ranks have joined ends the run; a little before, a rank
            whose process is stopped, or whose host is gone, is named.
        offload_weights: whether weights, their gradients and the optimizer's state wait in the host's memory, where the
            optimizer works; a last resort, since it is slow. Results stay the same.
        exchange_groups: groups of KV heads that travel one after the other, each while the one before it computes,
            where devices share a sequence and a layer fetches much, as a full one does. With more of them fewer keys
            are there at once, and attention's output twice. Heads that see different keys travel together.

    Attributes:
        explain: what a failure ends with, besides its cause, as "the last good checkpoint is ..."; `Checkpoints` sets
            it.

    Raises:
        ValueError: by the `Trainer` that takes it, if the run's processes do not divide into these sizes, or there are
            no groups.
    """

    def __init__(
        self,
        context_parallel_size: int = 1,
        data_replicate_size: int = 1,
        timeout_s: float = 1800.0,
        offload_weights: bool = False,
        exchange_groups: int = 1,
    ) -> None:
        super().__init__(timeout=timedelta(seconds=timeout_s))
        self.context_parallel_size = context_parallel_size
        self.data_replicate_size = data_replicate_size
        self.offload_weights = offload_weights
        self.exchange_groups = exchange_groups
        self._meshes: Meshes | None = None
        self._data_checked = False
        self._is_accumulating = False
        self._settle: Callable[[], None] | None = None
        self._saving: Future[None] | None = None
        self._save_group: dist.ProcessGroup | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._watch: Watch | None = None
        self._own_end: Watch | None = None
        self._pulse: Pulse | None = None
        self._late: Watch | None = None
        self._stopped: int | None = None
        self._is_told = False
        self._has_failed = False
        self.explain: Callable[[], str] = str

    @property
    def meshes(self) -> Meshes:
        """The axes of the run; known once processes have met."""
        assert self._meshes is not None
        return self._meshes

    @property
    def decoder(self) -> nn.Module:
        """What is sharded.

        Raises:
            ValueError: if the module has none.
        """
        decoder = getattr(self.lightning_module, "decoder", None)
        if not isinstance(decoder, nn.Module):
            raise ValueError(
                f"trainer.strategy: {type(self).__name__} is not allowed with {type(self.lightning_module).__name__}, "
                "which has no `decoder` to shard once `configure_model` has run; a HybridLM is needed"
            )
        return decoder

    # Setting up

    def _configure_launcher(self) -> None:
        # Before any process is started. Not in the constructor, where jsonargparse would lose what is said.
        check_sizes(
            self.num_processes,
            self.num_nodes,
            self.context_parallel_size,
            self.data_replicate_size,
            self.exchange_groups,
        )
        super()._configure_launcher()
        if self._launcher is not None:
            assert self.cluster_environment is not None
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Lets the processes meet, and lays the meshes on them."""
        self._has_failed = False
        if isinstance(self._launcher, Launcher) or is_started_by_launcher():
            self._watch = Watch(self._lost, self._end)
            self._watch.start()
        self._setup_distributed()
        self._meshes = build_meshes(
            self.root_device.type, self.world_size, self.context_parallel_size, self.data_replicate_size
        )
        if self.world_size > 1:
            assert self.cluster_environment is not None and self._timeout is not None
            self._pulse = start_pulse(
                self.global_rank,
                self.world_size,
                self.cluster_environment.main_address,
                self._timeout.total_seconds(),
                self.broadcast,
                self.meshes.num_collectives,
            )
            self._late = Watch(self._missing, self._end)
            self._late.start()
        # Lightning reads the axis called "data_parallel" from it, and a module's configure_model may.
        self._device_mesh = self._meshes.data
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Weights are drawn on the device, as without a strategy: those of one seed are the same ones."""
        with self.root_device, self.precision_plugin.tensor_init_context():
            yield

    def place(self, part: nn.Module) -> None:
        """Shards a part of the decoder as soon as `configure_model` has made it, before it makes the next one.

        On all ranks, which take the weights of rank 0. A decoder of which no part was placed is sharded in `setup`, and
        must fit on a device whole until then.
        """
        shard_part(part, self.meshes, self._policy)

    @property
    def precision_plugin(self) -> Precision:
        """How numbers are held; in a mixed precision FSDP casts, and not autocast."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        mixed = isinstance(precision_plugin, MixedPrecision)
        self._precision_plugin = CastByFSDP() if mixed else precision_plugin

    def setup(self, trainer: pl.Trainer) -> None:
        """Shards what `configure_model` has built and not placed, then makes the optimizer."""
        module, decoder = self.lightning_module, self.decoder
        assert module is not None
        self.model_to_device()
        shard(decoder, self.meshes, self._policy, self.exchange_groups)
        for parameter in unsharded(module, decoder):
            dist.broadcast(parameter.detach(), 0)
        # Tensors made in inference mode could not be trained on, and FSDP keeps those that it gathers into.
        loops = trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)

    def model_to_device(self) -> None:
        """Moves to the device what computes there; shards that wait in the host's memory stay."""
        module = self.lightning_module
        assert module is not None
        if self.offload_weights:
            to_device(module, self.decoder, self.root_device)
        else:
            module.to(self.root_device)

    @property
    def _policy(self) -> Policy:
        return Policy(_types(self.precision_plugin), self.offload_weights)

    # Batches

    def share(self, documents: Documents, layers: Sequence[Pattern], num_kv_heads: int) -> Share:
        """What a device has of a batch with such documents, for whoever has most."""
        return share(documents, layers, num_kv_heads, self.context_parallel_size)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Moves this rank's part of the batch to its device; all of it, unless a sequence lies on several."""
        if self.context_parallel_size == 1:
            return super().batch_to_device(batch, device, dataloader_idx)
        context = self.meshes.data["context_parallel"]
        if not self._data_checked:
            check_alike(batch, context.get_group(), self.root_device)
            self._data_checked = True
        num_kv_heads = cast(Shardable, self.decoder).config.num_kv_heads
        own, held = own_part(
            batch, patterns(self.decoder), num_kv_heads, self.context_parallel_size, context.get_local_rank()
        )
        moved: dict[str, Any] = super().batch_to_device(own, device, dataloader_idx)
        # After the move, which takes named tuples apart.
        return {**moved, "held": held}

    # Gradients

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Around a micro-batch that is not the step's last: gradients are added up where they are, and not sent."""
        decoder = cast(FSDPModule, self.decoder)
        decoder.set_requires_gradient_sync(False)
        self._is_accumulating = True
        try:
            yield
        finally:
            decoder.set_requires_gradient_sync(True)
            self._is_accumulating = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Takes the mean over ranks of what FSDP does not: gradients of weights beside the decoder."""
        super().post_backward(closure_loss)
        if self._is_accumulating:
            return
        assert self.lightning_module is not None
        for parameter in unsharded(self.lightning_module, self.decoder):
            if parameter.grad is None:  # here, but perhaps not on the others, which would wait for this rank
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.world_size

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all ranks [ranks, ...]; without gradients not by way of functions that torch retires."""
        if sync_grads:
            return super().all_gather(tensor, group, sync_grads)
        own = tensor.detach().contiguous()
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, own, group=group)
        return torch.stack(everyone)

    # Failures

    def on_exception(self, exception: BaseException) -> None:
        """Sees to it that a process that has failed ends: the others wait for it, and its own end may wait for them."""
        super().on_exception(exception)
        self._has_failed = True
        if self.world_size > 1:
            said = " ".join(str(exception).split()) or type(exception).__name__
            self._own_end = Watch(lambda: (f"{type(exception).__name__}: {said[:300]}", ORDERLY_S), self._end)
            self._own_end.start()

    def lost(self) -> list[str]:
        """Which processes of this host are known to be gone, and how: "rank 1 was ended by SIGKILL"."""
        first = self.global_rank - self.local_rank
        if isinstance(self._launcher, Launcher):
            return [how_ended(first + rank, code) for rank, code in self._launcher.ended()]
        if self.is_watching and not is_started_by_launcher():
            return [f"rank {first}, which had started rank {self.global_rank}, is gone"]
        return []

    @property
    def is_watching(self) -> bool:
        """Whether this process has started others of its host, or one of them it, so that it knows if they are gone."""
        return self._watch is not None

    @property
    def is_speaker(self) -> bool:
        """Whether this process tells what all notice; those that another one here has started leave it to that one.

        Where that one is gone, to the first of them.
        """
        return not is_started_by_launcher() and (not was_started_by_launcher() or self.local_rank == 1)

    def is_first_to_tell(self) -> bool:
        """Whether no other rank has told what went wrong; to be asked once, by whoever is about to."""
        return self._pulse is None or self._pulse.is_first_to_tell()

    def told(self) -> None:
        """What went wrong is told: nothing more is to be said, and no other process to be waited for."""
        self._is_told = True
        if isinstance(self._launcher, Launcher):
            self._launcher.end_all()
        Watch(lambda: ("", GRACE_S), self._end).start()

    def _lost(self) -> tuple[str, float] | None:
        """What `Watch` asks for."""
        codes = [code for _, code in self._launcher.ended()] if isinstance(self._launcher, Launcher) else []
        lost = self.lost()
        return ("; ".join(lost) if self.is_speaker else "", seconds_left(codes)) if lost else None

    def _missing(self) -> tuple[str, float] | None:
        """What `Watch` asks for: ranks that are waited for."""
        missing = None if self._pulse is None else self._pulse.missing()
        # A process that has failed tells by itself.
        if self._pulse is None or missing is None or self._has_failed or self._is_told:
            return None
        if self._pulse.speaker(missing) != self.global_rank:
            # Not before that one: it would be told of instead.
            return "", GRACE_S + self._pulse.apart_s
        if self.global_rank - self.local_rank in missing.ranks and is_started_by_launcher():
            self._stopped = os.getppid()
        return missing.clause, 0.0

    def _end(self, said: str) -> None:
        """Ends this process, from another thread than the one that waits."""
        is_silent = self._is_told or not said or not self.is_first_to_tell()
        if isinstance(self._launcher, Launcher):
            self._launcher.end_all()
        if self._stopped is not None:
            # It is what the shell waits for, and would never end by itself.
            os.kill(self._stopped, signal.SIGKILL)
        end_process("" if is_silent else f"lg: rank {self.global_rank}: {said}; {self.explain()}")

    # Checkpoints: folders, to which each rank adds a file; a folder fits any number of ranks

    @contextmanager
    def in_background(self, settle: Callable[[], None]) -> Iterator[None]:
        """What is saved inside is copied, and written while training goes on; on all ranks.

        Args:
            settle: what rank 0 does once all ranks have written, on another thread.
        """
        self._settle = settle
        try:
            yield
        finally:
            self._settle = None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Each rank writes its part into the folder; waits for that, unless it is `in_background`.

        Raises:
            OSError: on all ranks, if one could not write; also of a save before, which was in the background.
        """
        if storage_options is not None or not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        self.wait_for_save()
        path = Path(self.broadcast(filepath))
        if self._save_group is None:
            # Of its own: what two threads send by one would be mixed up.
            self._save_group = dist.new_group(backend="gloo", timeout=self._timeout)
        write = folder_writer(path, checkpoint, self._save_group, self._settle or _nothing, self.offload_weights)
        self._saving = self._thread.submit(write)
        if self._settle is None:
            self.wait_for_save()

    def wait_for_save(self) -> None:
        """Until what is saved in the background is written.

        Raises:
            OSError: if it could not be.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def teardown(self) -> None:
        """Lets a save end first, also where an error ended training."""
        try:
            self.wait_for_save()
        finally:
            self._thread.shutdown()
            super().teardown()
        for watch in (self._own_end, *(() if self._has_failed else (self._watch, self._late, self._pulse))):
            if watch is not None:
                watch.stop()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Gives each rank its part of a checkpoint; also of one in a single file, which one device has saved."""
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_file():
            return super().load_checkpoint(path, weights_only)
        module = self.lightning_module
        assert module is not None
        return load_whole(path, module, self.optimizers, module.strict_loading, bool(weights_only))


class CastByFSDP(Precision):
    """Lightning's plugin for bf16-mixed, without autocast: FSDP gathers weights in bfloat16 and casts what goes in.

    Autocast would keep the stream between layers in float32: twice the memory, for sums that no kernel reads so.
    """

    precision = "bf16-mixed"


def _nothing() -> None:
    """What is to be done after a save that somebody waits for."""


def _types(precision: Precision) -> MixedPrecisionPolicy:
    """In which types weights are gathered and gradients reduced: never summed over ranks in less than float32."""
    if precision.precision == CastByFSDP.precision:
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy(reduce_dtype=torch.float32)
