"""At least one instance of every pattern that comes with lg, at sizes that meet tile edges every way."""

from lg.attention import Causal, Pattern, SinkWindow, Strided, Window

PATTERNS: list[Pattern] = [
    Causal(),
    Window(window=1),
    Window(window=100),
    SinkWindow(window=100, sinks=7),
    SinkWindow(window=130, sinks=0),
    SinkWindow(window=64, sinks=200),
    Strided(block=64, local_blocks=2, stride=4),
    Strided(block=16, local_blocks=3, stride=5, head_step=2, offset=1),
    Strided(block=100, local_blocks=1, stride=3),
    Strided(block=64, local_blocks=1, stride=1, head_step=0),
]
COMPOSED: list[Pattern] = [Causal() & Window(30), Window(50) | SinkWindow(window=3, sinks=9)]
