"""What `lg plan` prints: each way to keep activations with its memory and time, which is taken, and its YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from lg.attention.schedule import written
from lg.cli.figures import figure
from lg.models.footprint import num_parameters
from lg.models.hybrid import HybridLM
from lg.models.memory import Memory
from lg.models.planned import Choice, Planned


def table(model: HybridLM, planned: Planned, choices: Sequence[Choice], best: Choice | None, name: str) -> str:
    """One line a choice; then the taken one's step, part by part, and the lines of YAML that ask for it.

    Args:
        model: what is trained.
        planned: how.
        choices: the ways to keep activations.
        best: which of them is taken; None if none fits.
        name: the device's.
    """
    lines = [
        *_head(model, planned, name),
        "",
        "                            GiB on the device that holds most",
        "  recompute offload  tile   weights  grads  optim  activ   exch   work    peak  fits   step, s  tokens/s"
        "  longest batch",
    ]
    for choice in choices:
        mark = ">" if choice is best else " "
        lines.append(f"{mark} {_line(planned, choice)}{_note(model, choice, best)}")
    lines += ["", *(_nothing_fits(choices) if best is None else _taken(model, best))]
    return "\n".join([*lines, "", *_NOTES])


def _head(model: HybridLM, planned: Planned, name: str) -> list[str]:
    how, config = planned.run, planned.config
    strategy = f"HybridStrategy, {how.context} sharing a sequence" if how.sharded else "no sharding"
    if how.weights_in_host:
        away = planned.choice(Memory()).footprint.host
        strategy += f", weights and optimizer in the host's memory ({_gib(away)} GiB a device)"
    step = f", {how.num_batches} batches a step" if how.num_batches > 1 else ""
    lines = [
        f"{model.name}: {written(model.schedule)}",
        f"{config.num_layers} layers, width {config.width}, {num_parameters(config) / 1e9:.3g} billion weights; "
        f"{how.num_devices} x {name}, {how.precision_name}, {strategy}",
        f"{planned.rows} x {planned.row_length:,} tokens a batch, {planned.num_tokens:,} on a device{step}; "
        f"tensors may fill {_gib(planned.limit)} GiB",
    ]
    if how.context > 1:
        lines.append(f"attention of the busiest device: {planned.imbalance:.2f} of the mean")
    return lines


def _line(planned: Planned, choice: Choice) -> str:
    memory, held, time = choice.memory, choice.footprint, choice.time.total
    tile = "-" if memory.tile is None else f"{memory.tile:,}"
    parts = (held.gradients, held.optimizer, held.activations, held.exchange, held.working)
    rate = planned.num_tokens * planned.run.num_batches / time
    return (
        f"{memory.recompute:<9} {'yes' if memory.offload else '-':<7} {tile:>5}   {_gib(held.parameters):>7} "
        f"{' '.join(f'{_gib(part):>6}' for part in parts)} {_gib(held.peak):>7}  {'yes' if choice.fits else 'no':<4} "
        f"{figure(time):>9} {figure(rate):>9} {choice.longest:>14,}"
    )


def _note(model: HybridLM, choice: Choice, best: Choice | None) -> str:
    if model.asked_memory == "auto":
        return "   auto takes this" if choice is best else ""
    return "   as configured" if choice.memory == model.asked_memory else ""


def _taken(model: HybridLM, best: Choice) -> list[str]:
    parts = {part: seconds for part, seconds in asdict(best.time).items() if seconds > 0}
    told = ", ".join(f"{part} {figure(seconds)}" for part, seconds in parts.items())
    lines = [f"the fastest that fits takes {figure(best.time.total)} s a step: {told}"]
    if model.asked_memory == "auto":
        return [*lines, "memory: auto takes it, on such a device and where the host's memory suffices"]
    if model.asked_memory == best.memory:
        return [*lines, "that is how it is configured"]
    return [*lines, "", *_yaml(best.memory)]


def _yaml(memory: Memory) -> list[str]:
    tile = "null" if memory.tile is None else str(memory.tile)
    return [
        "model:",
        "  init_args:",
        "    memory:",
        f"      recompute: {memory.recompute}",
        f"      offload: {str(memory.offload).lower()}",
        f"      tile: {tile}",
    ]


def _nothing_fits(choices: Sequence[Choice]) -> list[str]:
    least = min(choices, key=lambda choice: choice.footprint.peak)
    longest = max(choice.longest for choice in choices)
    batch = f"the longest batch that fits is of {longest:,} tokens" if longest else "not even 128 tokens a device fit"
    return [f"nothing fits: at least {_gib(least.footprint.peak)} GiB are needed; {batch}"]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


_NOTES = (
    "Exact: weights, grads, optim; activ, where halves are not compiled (with FlashAttention there is a little less).",
    "Estimated: exch, work and all times; of the rates only attention's were measured, on an H100. Grads come as activ",
    "goes, so the peak has the larger of the two; both, where several batches make a step. Tokens/s are of one device.",
)
