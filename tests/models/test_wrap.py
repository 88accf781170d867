"""Checkpointing and compiling change memory and speed, never the result."""

import re
import weakref
from typing import Any

import pytest
import torch

from lg.attention import Causal, Documents, Pattern, SinkWindow
from lg.models import block as block_module
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.memory import Memory
from lg.models.offload import Offload
from lg.models.wrap import wrap

CONFIG = DecoderConfig(2, 32, 4, 2, 8, 48, 61)
PATTERNS: list[Pattern] = [SinkWindow(window=9, sinks=2), Causal()]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gradients(memory: Memory, compile: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG, PATTERNS).to(DEVICE)
    wrap(decoder, memory, compile)
    tokens = torch.randint(61, (1, 70), device=DEVICE)
    loss = decoder.loss(tokens, tokens.roll(-1, 1), Documents(70, (0, 33)))
    loss.backward()
    return [loss.detach(), *(p.grad for p in decoder.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("memory", "compile"),
    [
        (Memory("halves"), False),
        (Memory("blocks"), False),
        (Memory("nothing", tile=16), False),
        (Memory("halves", offload=True, tile=16), False),
        (Memory("blocks", offload=True, tile=16), False),
        pytest.param(Memory(), True, marks=pytest.mark.slow),
        pytest.param(Memory("halves"), True, marks=pytest.mark.slow),
        pytest.param(Memory("blocks", offload=True, tile=16), True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_gradients_stay(memory: Memory, compile: bool) -> None:
    plain = gradients(Memory())
    for got, want in zip(gradients(memory, compile), plain, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("memory", "attends", "mlps"),
    [
        (Memory(), 2, 2),
        (Memory("halves"), 2, 4),
        (Memory("blocks"), 4, 4),
        (Memory("nothing", tile=20), 2, 8),
        (Memory("halves", tile=20), 2, 8),
    ],
    ids=str,
)
def test_only_what_is_asked_for_is_computed_again(
    monkeypatch: pytest.MonkeyPatch, memory: Memory, attends: int, mlps: int
) -> None:
    calls = {"attend": 0, "mlp": 0}
    attend = block_module.attend

    def counted(*args: object) -> torch.Tensor:
        calls["attend"] += 1
        return attend(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(block_module, "attend", counted)
    decoder = Decoder(CONFIG, PATTERNS)
    wrap(decoder, memory, compile=False)
    for block in decoder.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.update(mlp=calls["mlp"] + 1))
    tokens = torch.randint(61, (1, 40))
    decoder.loss(tokens, tokens, Documents(40)).backward()
    assert calls == {"attend": attends, "mlp": mlps}


def kept(memory: Memory) -> int:
    """Bytes that autograd keeps of a forward pass, weights and tokens excepted; each storage once."""
    torch.manual_seed(0)
    decoder = Decoder(CONFIG, PATTERNS)
    wrap(decoder, memory, compile=False)
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    tokens, storages = torch.randint(61, (1, 640)), {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if x.is_floating_point() and storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (x, storage.nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        decoder.loss(tokens, tokens, Documents(640))
    return sum(size for _, size in storages.values())


def test_what_is_computed_again_is_not_kept() -> None:
    nothing, halves, blocks = (kept(Memory(name)) for name in ("nothing", "halves", "blocks"))
    assert blocks < 0.6 * halves < 0.6 * nothing
    assert kept(Memory("nothing", tile=64)) < 0.75 * nothing


def test_what_is_sent_away_is_not_kept_here() -> None:
    """Autograd keeps the hook with what it packed; the hook must not keep the stream."""
    x = torch.ones(4)
    kept, pack = weakref.ref(x), Offload().of(x).pack_hook
    del x
    assert callable(pack) and kept() is None


@pytest.mark.gpu
def test_what_waits_in_the_hosts_memory_takes_none_of_the_device() -> None:
    def most(memory: Memory) -> int:
        torch.manual_seed(0)
        config = DecoderConfig(16, 64, 2, 1, 16, 64, 61)
        decoder = Decoder(config, [SinkWindow(window=64)] * 16).cuda()
        wrap(decoder, memory, compile=False)
        tokens = torch.randint(61, (1, 65536), device="cuda")
        before = torch.cuda.memory_allocated()
        loss = decoder.loss(tokens, tokens, Documents(65536))
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        loss.backward()
        return held

    stream = 65536 * 64 * 4
    assert most(Memory("blocks")) - most(Memory("blocks", offload=True)) > 14 * stream


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"recompute": "all"}, "memory.recompute: 'all' is unknown; allowed are nothing, halves, blocks"),
        ({"offload": True}, "memory.offload: true is not allowed where nothing is computed again"),
        ({"tile": 0}, "memory.tile: 0 is not allowed; it must be at least 1, or null"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Memory(**arguments)
