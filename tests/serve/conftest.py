"""A tiny model behind a real port, and what it writes without one."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from lg.attention import Causal, SinkWindow
from lg.inference import Request, Runner, Sampling, Scheduler, Text
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.serve.app import Settings
from lg.serve.server import Server

sys.path.insert(0, str(Path(__file__).parent))

from behind_port import MAX_LENGTH, Port, Spoken


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=256, num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_width=16, ffn_width=64
    )
    made = Decoder(config, [SinkWindow(window=64, sinks=4), Causal()]).double().eval()
    # Far apart, so that greedy writing does not repeat itself at once.
    with torch.no_grad():
        for weight in made.parameters():
            weight *= 3 if weight.ndim > 1 else 1
    return made


@pytest.fixture(scope="session")
def solo(decoder: Decoder) -> Callable[..., str]:
    """What the model writes after a prompt that is alone."""

    def write(prompt: bytes, most: int, sampling: Sampling | None = None, stop: Sequence[str] = ()) -> str:
        scheduler = Scheduler(Runner(decoder, MAX_LENGTH))
        tokens = torch.tensor(list(prompt), dtype=torch.int64)
        scheduler.submit(Request(tokens, most, sampling or Sampling(), Spoken.ends))
        text, said = Text(Spoken(), stop), ""
        while not scheduler.idle:
            said += "".join(
                text.add(one.token) for one in scheduler.step() if one.token is not None and one.finish != "stop"
            )
        return said + text.end()

    return write


@pytest.fixture(scope="session")
def serving(decoder: Decoder) -> Callable[..., AbstractContextManager[Port]]:
    @contextmanager
    def serve(
        slots: int = 4,
        queue: int = 64,
        capacity: int | None = None,
        settings: Settings | None = None,
        grace_s: float = 5,
    ) -> Iterator[Port]:
        scheduler = Scheduler(Runner(decoder, MAX_LENGTH, slots, capacity), chunk=64)
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(scheduler, Spoken(), settings or Settings("tiny"), listener, queue, grace_s)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                server.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        port = Port(server, f"http://127.0.0.1:{listener.getsockname()[1]}", thread)
        try:
            yield port
        finally:
            server.end()
            port.close()
            thread.join(20)
            assert not thread.is_alive()
            if failures and server.engine.failure is None:
                raise failures[0]

    return serve


@pytest.fixture(scope="module")
def port(serving: Callable[..., AbstractContextManager[Port]]) -> Iterator[Port]:
    with serving() as running:
        yield running
        assert running.num_pages == 0
