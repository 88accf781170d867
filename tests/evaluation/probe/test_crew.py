"""Units that several processes share give what one process alone does, and what goes wrong is told once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lg.attention import SinkWindow
from lg.evaluation import Haystack
from lg.evaluation.probe import Crew, Greedy, Needle, Notebook, OneIn, Probe
from lg.models.decoder import Decoder

Make = Callable[..., Decoder]
LOCAL = SinkWindow(window=32, sinks=2)

TROUBLE = """
import multiprocessing, os, signal, time
from dataclasses import dataclass
import torch
from lg.evaluation.probe import Unit

@dataclass(frozen=True)
class Trouble(Unit):
    number: int
    how: str

    @property
    def name(self):
        return f"{self.how} {self.number}"

    def measure(self, decoder, local):
        if multiprocessing.parent_process() is None:
            # Not before the other process has taken a unit, too.
            time.sleep(0.3)
            return "well"
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.how == "refuses":
            raise ValueError("--window: too wide")
        if self.how == "waits":
            time.sleep(600)
        raise KeyError("a bug")
"""
Trouble = Callable[[int, str], Any]


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """Units that are measured in this process, and fail in another, which can import them too."""
    (tmp_path / "lg_trouble.py").write_text(TROUBLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return __import__("lg_trouble").Trouble  # type: ignore[no-any-return]


def test_two_processes_find_what_one_does(make: Make, hay: Haystack, tmp_path: Path) -> None:
    decoder = make("previous", "find", "idle", "say")
    torch.save(decoder, tmp_path / "decoder.pt")
    measures = OneIn(Needle(hay)), Greedy(Needle(hay), most=2, candidates=3)
    alone = Probe(decoder, LOCAL)
    with Crew(["cpu"], partial(torch.load, tmp_path / "decoder.pt", weights_only=False), LOCAL) as crew:
        shared = Probe(decoder, LOCAL, Notebook(), crew)
        assert [measure.run(shared) for measure in measures] == [measure.run(alone) for measure in measures]
    assert shared.notebook.units == alone.notebook.units
    assert crew._workers[0]._process.exitcode == -signal.SIGKILL


def test_what_goes_wrong_elsewhere_ends_all(make: Make, trouble: Trouble) -> None:
    decoder = make("idle")
    with Crew(["cpu"], partial(torch.nn.Linear, 1, 1, True), LOCAL) as crew:
        for how, kind, says in (
            (
                "memory",
                ValueError,
                "--length: too much for the memory of cpu, which ran out as 'memory 0' was measured",
            ),
            ("refuses", ValueError, r"^--window: too wide$"),
            ("bug", RuntimeError, r"(?s)'bug 0' failed on cpu, in another process:.*KeyError: 'a bug'"),
            ("dies", ValueError, r"--devices: the process on cpu died \(SIGKILL\) as it measured 'dies 0'"),
        ):
            notebook = Notebook()
            with pytest.raises(kind, match=says):
                Probe(decoder, LOCAL, notebook, crew).measured([trouble(n, how) for n in range(2)])
            # What was measured well is kept.
            assert notebook.units == {f"{how} 1": "well"}


def test_a_model_that_cannot_be_built_elsewhere(make: Make, trouble: Trouble) -> None:
    with (
        Crew(["cpu"], partial(torch.load, "missing.pt"), LOCAL) as crew,
        pytest.raises(RuntimeError, match=r"(?s)failed on cpu, in another process:.*missing.pt"),
    ):
        Probe(make("idle"), LOCAL, crew=crew).measured([trouble(n, "any") for n in range(2)])


def test_ctrl_c_ends_the_others_at_once(make: Make, trouble: Trouble) -> None:
    def stop(name: str) -> None:
        if name.endswith("1"):
            raise KeyboardInterrupt

    with Crew(["cpu"], partial(torch.nn.Linear, 1, 1, True), LOCAL) as crew:
        with pytest.raises(KeyboardInterrupt):
            Probe(make("idle"), LOCAL, Notebook(tell=stop), crew).measured([trouble(n, "waits") for n in range(2)])
        assert not crew._workers[0]._process.is_alive()
