"""One page on a run, with pictures, written when it ends, however it ends."""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL.Image import Image

from lg.attention.schedule import written
from lg.data import data_axis
from lg.folder import aside
from lg.models.hybrid import HybridLM
from lg.monitor.board import board
from lg.monitor.chart import BLUE, ORANGE, Axis, Line, lines, round_ticks
from lg.monitor.held_out import text_data
from lg.monitor.logged import Logged, Points
from lg.monitor.run_card import git, versions

_MOST_POINTS = 400


class Summary(pl.Callback):
    """Writes ``summary.md`` and its pictures into the run's log folder when training ends or is interrupted.

    It tells what ran, the held-out loss, tokens, speed, memory and padding, and shows what other callbacks have drawn,
    as far as they are switched on: figures are read back from the run's TensorBoard files. Stays away, and says so,
    without a TensorBoardLogger.
    """

    def __init__(self) -> None:
        self._began: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to tell."""
        self._began = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells of a finished run."""
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tells of a run that was cut short."""
        self._write(trainer, pl_module, f"cut short ({type(exception).__name__})")

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, end: str) -> None:
        if self._began is None or not trainer.is_global_zero:
            return
        minutes, self._began = (time.monotonic() - self._began) / 60, None
        writer = board(trainer)
        if writer is None:
            rank_zero_warn("Summary stays away: it tells what a TensorBoardLogger has written, and there is none")
            return
        path = Path(writer.log_dir, "summary.md")
        run = f"{end} after {trainer.global_step:,} steps, {minutes:,.1f} minutes since it was last started"
        try:
            writer.flush()
            logged = Logged(path.parent)
            shown = {picture: content for picture in _PICTURES if (content := picture.of(logged)) is not None}
            for picture, content in shown.items():
                _put(path.with_name(picture.file), content)
            rows = [("run", run), *_what_ran(trainer, module), *_figures(logged)]
            _put(path, _page(f"{path.parent.parent.name}, {path.parent.name}", rows, list(shown)).encode())
        except OSError as error:
            # Weights are saved by now; and whatever else ended the run must not be hidden.
            rank_zero_warn(f"Summary: {str(path)!r} cannot be written: {error.strerror}")
            return
        rank_zero_info(f"summary: {path}")


def loss_curve(train: Points, held_out: Points) -> Image | None:
    """The losses in nats over the steps; None where nothing is logged. Long curves are thinned out."""
    named = {"training": (train, BLUE), "held out": (held_out, ORANGE)}
    drawn = [
        Line(name, [*points[:: 1 + len(points) // _MOST_POINTS], points[-1]], colour)
        for name, (points, colour) in named.items()
        if points
    ]
    if not drawn:
        return None
    last = max(line.points[-1][0] for line in drawn)
    ticks = [tick for tick in round_ticks(0, max(last, 1)) if tick[0] <= last]
    return lines(drawn, Axis("optimizer steps", ticks), "nats", "Loss")


# What is told


def _last(points: Points) -> float:
    return points[-1][1]


def _median(points: Points) -> float:
    return statistics.median(value for _, value in points)


def _most(points: Points) -> float:
    return max(value for _, value in points)


@dataclass(frozen=True)
class _Figure:
    """A scalar, and how its values are told in one."""

    name: str
    tag: str
    form: str
    of: Callable[[Points], float]


_FIGURES = (
    _Figure("held-out bits per byte", "val/bits_per_byte", "{:.4f} at the end", _last),
    _Figure("counting bytes, for comparison", "val/count_model_bits_per_byte", "{:.4f} bits per byte", _last),
    _Figure("needle, gain", "needle/gain_nats", "{:.4f} nats a token", _last),
    _Figure("needle, accuracy", "needle/accuracy_percent", "{:.0f}% of the answers' tokens", _last),
    _Figure("tokens", "data/tokens", "{:,.0f}", _last),
    _Figure("speed", "speed/tokens_per_s", "{:,.0f} tokens/s (median)", _median),
    _Figure("visible work", "work/visible_TFLOP_per_s", "{:.3g} TFLOP/s a device (median)", _median),
    _Figure("MFU", "work/mfu_percent", "{:.1f}% of the measured matmul rate (median)", _median),
    _Figure("waiting for data", "data/wait_percent", "{:.1f}% of the time (median)", _median),
    _Figure("padding", "data/padding_percent", "{:.1f}% of the rows (median)", _median),
    _Figure("memory, device", "memory/peak_GiB", "{:.2f} GiB at most", _most),
    _Figure("memory, process", "memory/resident_GiB", "{:.2f} GiB at most", _most),
)


def _figures(logged: Logged) -> list[tuple[str, str]]:
    rows = []
    held_out = logged.points("val/loss_nats")
    if held_out:
        step, best = min(held_out, key=lambda point: point[1])
        # Lightning logs what it finds after the first step as of step 0.
        least = f"least {best:.4f} after {step + 1:,} steps"
        rows.append(("held-out loss", f"{_last(held_out):.4f} nats at the end; {least}"))
    for figure in _FIGURES:
        points = logged.points(figure.tag)
        if points:
            rows.append((figure.name, figure.form.format(figure.of(points))))
    return rows


def _what_ran(trainer: pl.Trainer, module: pl.LightningModule) -> list[tuple[str, str]]:
    rows = []
    if isinstance(module, HybridLM):
        used = dict.fromkeys(module.schedule)
        rows.append(("schedule", written(module.schedule)))
        rows.append(("patterns", "; ".join(f"{name}: {module.patterns[name]}" for name in used)))
        if module.evaluated:
            rows.append(("in evaluation", "; ".join(f"{name}: {other}" for name, other in module.evaluated.items())))
        shape = module.decoder_config
        rows.append(("decoder", f"{shape.num_layers} layers of width {shape.width}, vocabulary {shape.vocab_size:,}"))
    told = f"{sum(p.numel() for p in module.parameters()):,}"
    if isinstance(module, HybridLM) and module.adapter is not None:
        told += f", {sum(p.numel() for p in module.parameters() if p.requires_grad):,} of them trained"
    rows.append(("parameters", told))
    data = text_data(trainer)
    if data is not None:
        kinds = ", ".join(type(part).__name__ for part in (data.tokenizer, data.packing))
        rows.append(("data", f"{data.source}, {kinds}"))
        num_shards, _ = data_axis(trainer)
        sizes = data.batch_size, data.row_length, trainer.accumulate_grad_batches, num_shards
        told = "{} rows of {:,} tokens, {} micro-batches, {} data ranks".format(*sizes)
        rows.append(("step", f"{told}: {math.prod(sizes):,} tokens"))
    found = versions(module.device)
    rows.append(("device", f"{found['device']}, {trainer.precision}"))
    rows.append(("versions", ", ".join(f"{name} {found[name]}" for name in ("lg", "python", "torch", "lightning"))))
    state = git(Path.cwd())
    changed = "" if state.get("changed files", "none") == "none" else ", with changes"
    rows.append(("commit", state["commit"] + changed))
    return rows


# What is shown


@dataclass(frozen=True)
class _Picture:
    """A picture of the page."""

    file: str
    caption: str
    of: Callable[[Logged], bytes | None]


def _png(image: Image | None) -> bytes | None:
    if image is None:
        return None
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


_PICTURES = (
    _Picture(
        "summary_loss.png",
        "Loss over training.",
        lambda logged: _png(loss_curve(logged.points("train/loss_nats"), logged.points("val/loss_nats"))),
    ),
    _Picture(
        "summary_loss_by_position.png",
        "Held-out loss by position in the document.",
        lambda logged: logged.image("loss_by_position/over_training"),
    ),
    _Picture(
        "summary_loss_difference.png",
        "The same, less that of the first bucket.",
        lambda logged: logged.image("loss_by_position/difference_over_training"),
    ),
    _Picture("summary_needle.png", "What a needle gains.", lambda logged: logged.image("needle/gain")),
    _Picture("summary_patterns.png", "What each layer sees.", lambda logged: logged.image("model/patterns")),
)


def _page(name: str, rows: Sequence[tuple[str, str]], shown: Sequence[_Picture]) -> str:
    # A bar would end the cell.
    told = "\n".join(f"| {what} | {value.replace('|', '&#124;')} |" for what, value in rows)
    pictures = [f"![{picture.caption}]({picture.file})" for picture in shown]
    return f"# {name}\n\n| | |\n|---|---|\n{told}\n\n" + "\n".join(pictures) + "\n"


def _put(path: Path, content: bytes) -> None:
    with aside(path) as part:
        part.write_bytes(content)
