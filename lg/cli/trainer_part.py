"""Reads from a configuration, without a Trainer, on how many devices and in which precision it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lg.cli.configuration import Config
from lg.cli.trouble import Refused
from lg.models.footprint import PRECISIONS
from lg.models.planned import Training
from lg.parallel.mesh import check_sizes

# Other words that the trainer has for them.
_SAME = {"32": "32-true", "bf16": "bf16-mixed"}
_STRATEGY = "HybridStrategy"


def training(unread: Config, devices: str, context: str, precision: str) -> Training:
    """What the configuration says, and the options instead, where they are not empty.

    Args:
        unread: sections of the configuration besides the model.
        devices: how many in all.
        context: how many share a sequence.
        precision: the trainer's word.

    Raises:
        Refused: naming the key, if it is not told or cannot be planned.
        ValueError: if the devices do not divide into the strategy's sizes.
    """
    section = unread.get("trainer")
    trainer: Mapping[str, Any] = section if isinstance(section, dict) else {}
    strategy, arguments = _strategy(trainer.get("strategy", "auto"))
    if devices:
        num_devices, nodes = _number(devices, "devices"), 1
    else:
        nodes = _number(trainer.get("num_nodes", 1), "trainer.num_nodes")
        num_devices = _devices(trainer.get("devices", "auto"))
    share = context or arguments.get("context_parallel_size", 1)
    context_size = _number(share, "context" if context else "trainer.strategy.init_args.context_parallel_size")
    replicas = _number(arguments.get("data_replicate_size", 1), "trainer.strategy.init_args.data_replicate_size")
    check_sizes(num_devices, nodes, context_size, replicas)
    told = str(precision or trainer.get("precision") or "32-true")
    name = _SAME.get(told, told)
    if name not in PRECISIONS:
        key = "precision" if precision else "trainer.precision"
        raise Refused(f"{key}: {told!r} cannot be planned; allowed: {', '.join(PRECISIONS)}")
    batches = _number(trainer.get("accumulate_grad_batches", 1), "trainer.accumulate_grad_batches")
    # In a mixed precision one device alone would train with autocast, which keeps other activations.
    sharded = strategy == _STRATEGY or num_devices * nodes > 1 or name == "bf16-mixed"
    in_host = arguments.get("offload_weights", False)
    if not isinstance(in_host, bool):
        raise Refused(
            f"trainer.strategy.init_args.offload_weights: {in_host!r} is not allowed; it must be true or false"
        )
    groups = _number(arguments.get("exchange_groups", 1), "trainer.strategy.init_args.exchange_groups")
    return Training(num_devices * nodes, context_size, replicas, name, batches, sharded, in_host, groups)


def _strategy(told: Any) -> tuple[str, Mapping[str, Any]]:
    """Its class's name, and its arguments; "auto" stands for the one that a plan takes."""
    path = told.get("class_path") if isinstance(told, dict) else told
    name = str(path).rpartition(".")[2]
    if name not in ("auto", _STRATEGY):
        raise Refused(f"trainer.strategy: {path!r} cannot be planned; allowed: auto, lg.parallel.{_STRATEGY}")
    arguments = told.get("init_args") if isinstance(told, dict) else None
    return name, arguments if isinstance(arguments, dict) else {}


def _devices(told: Any) -> int:
    if isinstance(told, list) and told:
        return len(told)
    if told in ("auto", "-1", -1):
        raise Refused(f"trainer.devices: {told!r} depends on the machine; a plan needs a number, as in --devices 4")
    return _number(told, "trainer.devices")


def _number(told: Any, key: str) -> int:
    number = int(told) if isinstance(told, str) and told.isdecimal() else told
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise Refused(f"{key}: {told!r} is not allowed; it must be an integer of at least 1")
    return number
