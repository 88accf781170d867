"""``memory: auto``: the fastest way to keep activations of those that are predicted to fit the device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import lightning.pytorch as pl

from lg.models.adapters import Adapter
from lg.models.config import DecoderConfig
from lg.models.devices import DEVICES
from lg.models.memory import Memory
from lg.models.planned import Choice, Planned, plannable, taken
from lg.models.running import own_device, planned_run

log = logging.getLogger(__name__)


def auto_memory(
    trainer: pl.Trainer,
    config: DecoderConfig,
    schedule: Sequence[str],
    patterns: Mapping[str, object],
    compile: bool,
    adapter: Adapter | None = None,
) -> Memory:
    """How the decoder that the trainer is about to train keeps activations; all ranks take the same.

    What was taken, and why, is logged once. All is kept on a CPU, where nothing is trained, and where no plan can be
    made; why not, is logged on a GPU.

    Args:
        trainer: its processes have met.
        config: the decoder's shape.
        schedule: the name of each layer's pattern.
        patterns: these, by name.
        compile: whether blocks are compiled.
        adapter: what is trained in place of all weights.
    """
    # Rates that are somewhat like those of a GPU do: they only put the ways in order.
    on = own_device(trainer, unknown=DEVICES["A100"]) if trainer.training else None
    if on is None:
        log.debug("model.init_args.memory: auto keeps all activations, since it trains on no GPU")
        return Memory()
    try:
        planned = planned_run(trainer, config, plannable(schedule, patterns), compile, on, adapter)
    except ValueError as reason:
        if trainer.is_global_zero:
            log.info("model.init_args.memory: auto keeps all activations, since no plan can be made: %s", reason)
        return Memory()
    level, memory, why = choose(planned)
    if trainer.is_global_zero:
        log.log(level, "model.init_args.memory: auto takes %s", why)
    # Kinds of devices may differ, and with them what is fastest.
    agreed: Memory = trainer.strategy.broadcast(memory)
    return agreed


def choose(planned: Planned) -> tuple[int, Memory, str]:
    """The level to log at, the way that is taken, and why, beginning with its name.

    Where nothing fits it is the one that needs least.
    """
    choices = planned.choices()
    best = taken(choices)
    limit = _gib(planned.limit)
    if best is None:
        affordable = [choice for choice in choices if _fits_the_host(planned, choice)] or choices
        least = min(affordable, key=lambda choice: choice.footprint.peak)
        most = max(choice.longest for choice in choices)
        longest = f"the longest batch that would fit is of {most:,} tokens" if most else "no batch would fit"
        away = replace(planned, run=replace(planned.run, weights_in_host=True))
        if planned.run.sharded and not planned.run.weights_in_host and taken(away.choices()) is not None:
            longest += "; trainer.strategy.init_args.offload_weights: true is predicted to make it fit"
        why = (
            f"{named(least.memory)}, which needs least, but is predicted to need {_gib(least.footprint.peak)} GiB of "
            f"the {limit} that tensors may fill{_host_beside(planned, least)}; {longest}"
        )
        return logging.WARNING, least.memory, why
    why = f"{named(best.memory)}: predicted peak {_gib(best.footprint.peak)} of the {limit} GiB that tensors may fill"
    faster = [choice for choice in choices if choice.time.total < best.time.total]
    if faster:
        after = max(faster, key=lambda choice: (choice.time.total, -choice.footprint.peak))
        place = "" if _fits_the_host(planned, after) else " of the host's memory"
        need = after.footprint.host if place else after.footprint.peak
        why += f"; the next faster, {named(after.memory)}, would need {_gib(need)} GiB{place}"
    return logging.INFO, best.memory, why


def named(memory: Memory) -> str:
    """The way as YAML has it, in braces.

    >>> named(Memory("halves", tile=8192))
    '{recompute: halves, offload: false, tile: 8192}'
    """
    tile = "null" if memory.tile is None else memory.tile
    return f"{{recompute: {memory.recompute}, offload: {str(memory.offload).lower()}, tile: {tile}}}"


def _fits_the_host(planned: Planned, choice: Choice) -> bool:
    return planned.host_limit is None or choice.footprint.host <= planned.host_limit


def _host_beside(planned: Planned, choice: Choice) -> str:
    if planned.host_limit is None or _fits_the_host(planned, choice):
        return ""
    return f", and {_gib(choice.footprint.host)} of the host's memory, of which there are {_gib(planned.host_limit)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
