"""Checkpointing and compiling change memory and speed, never the result."""

import pytest
import torch

from lg.attention import Causal, Documents, Pattern, SinkWindow
from lg.models import block as block_module
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.wrap import wrap

CONFIG = DecoderConfig(2, 32, 4, 2, 8, 48, 61)
PATTERNS: list[Pattern] = [SinkWindow(window=9, sinks=2), Causal()]


def gradients(checkpoint_activations: bool, compile: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG, PATTERNS)
    wrap(decoder, checkpoint_activations, compile)
    tokens = torch.randint(61, (1, 70))
    loss = decoder.loss(tokens, tokens.roll(-1, 1), Documents(70, (0, 33)))
    loss.backward()
    return [loss.detach(), *(p.grad for p in decoder.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("checkpoint_activations", "compile"),
    [
        (True, False),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_stay(checkpoint_activations: bool, compile: bool) -> None:
    plain = gradients(False, False)
    for got, want in zip(gradients(checkpoint_activations, compile), plain, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def test_checkpointing_recomputes_the_halves_and_never_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"attend": 0, "mlp": 0}
    attend = block_module.attend

    def counted(*args: object) -> torch.Tensor:
        calls["attend"] += 1
        return attend(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(block_module, "attend", counted)
    decoder = Decoder(CONFIG, PATTERNS)
    wrap(decoder, checkpoint_activations=True, compile=False)
    for block in decoder.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.update(mlp=calls["mlp"] + 1))
    tokens = torch.randint(61, (1, 40))
    decoder.loss(tokens, tokens, Documents(40)).backward()
    assert calls == {"attend": 2, "mlp": 4}
