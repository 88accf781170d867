"""FLOPs on the board are those counted by hand, over the time that was measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_run import Run, TimedWork, document_of_token, fitted
from small_run import SHAPE, Poems, model

from lg.attention import Causal
from lg.data import TextData
from lg.models.block import Attention
from lg.models.config import DecoderConfig
from lg.models.hybrid import HybridLM
from lg.monitor import Work
from lg.monitor.matmul_rate import measured

# By hand, of the run's model: two layers, "local, full".
WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, FFN_WIDTH, VOCAB = 32, 4, 2, 32, 32, 256
BLOCK = 2 * WIDTH * HEADS * HEAD_WIDTH + 2 * WIDTH * KV_HEADS * HEAD_WIDTH + 3 * WIDTH * FFN_WIDTH
WEIGHTS = 2 * BLOCK + WIDTH * VOCAB


def seen(batch: Any, pattern: str) -> torch.Tensor:
    """Which pairs of a batch's tokens some pattern shows: bool [N, N]."""
    document = document_of_token(batch)
    starts = torch.tensor(batch["document_starts"])[document]
    position = torch.arange(len(document)) - starts
    q, k = position[:, None], position
    causal = (k <= q) & (document[:, None] == document)
    return causal & ((q - k < 32) | (k < 4)) if pattern == "local" else causal


def visible(batch: Any) -> int:
    text = ~torch.tensor(batch["document_padding"])[document_of_token(batch)]
    pairs = sum(int(seen(batch, pattern)[text].sum()) for pattern in ("local", "full"))
    return 6 * WEIGHTS * int(text.sum()) + 12 * HEAD_WIDTH * HEADS * pairs


def dense_equivalent(batch: Any) -> int:
    text = ~torch.tensor(batch["document_padding"])[document_of_token(batch)]
    return 6 * WEIGHTS * int(text.sum()) + 2 * 12 * HEAD_WIDTH * HEADS * int(seen(batch, "full")[text].sum())


def executed(batch: Any) -> int:
    """On a processor a window gathers blocks of 64, as many in each row of them; full attention goes by documents."""
    num_tokens = batch["tokens"].numel()
    blocks = seen(batch, "local").view(num_tokens // 64, 64, num_tokens // 64, 64).any(3).any(1)
    local = int(blocks.sum(1).max()) * len(blocks) * 64**2
    full = 0
    for length in document_of_token(batch).bincount().tolist():
        side = -(-length // 128)
        full += side * (side + 1) // 2 * 128**2
    return 6 * WEIGHTS * num_tokens + 14 * HEAD_WIDTH * HEADS * (local + full)


def test_the_shape_is_what_it_is_taken_to_be() -> None:
    config = model().decoder_config
    assert (config.width, config.num_heads, config.num_kv_heads) == (WIDTH, HEADS, KV_HEADS)
    assert (config.head_width, config.ffn_width, config.vocab_size) == (HEAD_WIDTH, FFN_WIDTH, VOCAB)
    matrices = [p.numel() for name, p in model().model.named_parameters() if p.ndim == 2 and "head" not in name]
    # The head is the embedding.
    assert sum(matrices) == WEIGHTS


@pytest.mark.parametrize(
    ("name", "by_hand"), [("visible", visible), ("dense_equivalent", dense_equivalent), ("executed", executed)]
)
def test_work_is_what_is_counted_by_hand(name: str, by_hand: Callable[[Any], int], run: Run) -> None:
    callback = run.callbacks["TimedWork"]
    assert isinstance(callback, TimedWork)
    rates = run.values(f"work/{name}_TFLOP_per_s")
    # Validation after the fifth step drops a measurement.
    for step, steps in {2: [2], 4: [3, 4], 8: [7, 8], 10: [9, 10]}.items():
        flops = sum(by_hand(batch) for n in steps for batch in run.batches[n])
        assert rates[step] * 1e12 * callback.seconds[step] == pytest.approx(flops, rel=1e-5)


def test_utilisation_is_of_the_matmul_rate_that_stands_beside_it(run: Run) -> None:
    visible, matmul = run.values("work/visible_TFLOP_per_s"), run.values("work/matmul_TFLOP_per_s")
    utilisation = run.values("work/mfu_percent")
    assert len(set(matmul.values())) <= 2
    for step in (2, 4, 8, 10):
        assert utilisation[step] == pytest.approx(100 * visible[step] / matmul[step], rel=1e-5)
        assert 0 < utilisation[step] < 100


def test_the_matmul_rate_is_that_of_a_matrix_product() -> None:
    before = torch.get_rng_state()
    rate = measured(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    one = torch.randn(rate.size, rate.size)
    best = 1.0
    for _ in range(50):
        since = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - since)
    # Others use the same processor now and then, so only the order of magnitude is certain.
    assert 0.1 < rate.tflop_per_s * 1e12 / (2 * rate.size**3 / best) < 2
    assert str(rate).endswith(f"TFLOP/s (float32, {rate.size} x {rate.size} matrices)")


def test_it_is_said_what_utilisation_is_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run = fitted(tmp_path, model(), [Work(every=1)], max_steps=2)
    rate = run.values("work/matmul_TFLOP_per_s")[2]
    told = [message for message in caplog.messages if message.startswith("work/mfu_percent is of")]
    # Twice, where training was faster than what was measured first.
    assert 1 <= len(told) <= 2
    assert any(f"{rate:.3g} TFLOP/s (float32" in message for message in told)


def test_rows_of_one_document_each(tmp_path: Path) -> None:
    data = TextData(source=Poems(), row_length=256, document_mask=False)
    callback = TimedWork(every=1)
    run = fitted(tmp_path, model(), [callback], max_steps=3, data=data, accumulate_grad_batches=1)
    for step in (2, 3):
        (batch,) = run.batches[step]
        assert batch["document_starts"] == [0]
        told = run.values("work/visible_TFLOP_per_s")[step] * 1e12 * callback.seconds[step]
        assert told == pytest.approx(visible(batch), rel=1e-5)


@dataclass(frozen=True)
class Spec:
    """A mixer that is no pattern."""

    def build(self, config: DecoderConfig, layer: int) -> Attention:
        return Attention(config, Causal())


def test_it_stays_away_where_nobody_knows_the_cost(tmp_path: Path) -> None:
    other = HybridLM({"other": Spec()}, "2*other", decoder=SHAPE)  # type: ignore[dict-item]
    with pytest.warns(UserWarning, match=r"Work stays away: model\.init_args\.patterns\.other: .* is no attention"):
        run = fitted(tmp_path, other, [Work()], max_steps=2)
    assert not run.tags("work/")
