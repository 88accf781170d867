"""Verdicts are remembered by machine, version and case; what has failed is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import case
from torch import Tensor
from wrong import Altered

from lg.attention import Documents, Pattern, SinkWindow, Tiles, Window
from lg.attention.check import Case, Facts, Verdict, checked, machine, memory, proven, recall, refused
from lg.attention.check.budget import Yardstick
from lg.attention.check.examine import BrokenDevice
from lg.attention.impl import gather

PASSED = Verdict(None, False, {"output": 0.5, "dq": 0.5, "dk": 0.5, "dv": 1.0}, ("output",), 1.5)
WRONG = Verdict("it failed the check of its gradients", True, {"output": 0.5, "dq": None}, (), 1.5)
RAISED = Verdict("the check of its gradients ended in RuntimeError: no", False, {}, (), 1.5)


def asked(pattern: Pattern, **others: Any) -> tuple[Tensor, Tensor, Tensor, Tiles]:
    """What `attend` is handed where it meets this case."""
    on = case(pattern, **others).facts
    tiles = pattern.tiles(Documents(300, (0, 100) if on.packed else (0,)), on.heads_kv)
    shapes = [(1, heads, 300, on.width) for heads in (on.heads_kv * on.groups, on.heads_kv, on.heads_kv)]
    q, k, v = (torch.zeros(shape, dtype=on.dtype) for shape in shapes)
    return q, k, v, tiles


def anew() -> None:
    """As a new process begins."""
    memory._shelf.cache_clear()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("verdict", [PASSED, WRONG, RAISED])
def test_what_is_remembered_is_recalled(verdict: Verdict, cache: Path) -> None:
    memory.remember("mine", case(Window(9)), verdict)
    for _ in range(2):
        assert recall("mine", case(Window(9))) == verdict
        assert recall("other", case(Window(9))) is None
        assert recall("mine", case(Window(10))) is None
        assert recall("mine", case(Window(9), chunk=True)) is None
        assert recall("mine", case(Window(9), width=32)) is None
        anew()
    (path,) = files(cache)
    content = json.loads(path.read_text())
    assert content["case"] == "Window(window=9), head width 16, float32, packed documents"
    assert content["machine"] == machine(torch.device("cpu"))
    assert path.parent.name == "mine-16-float32"


def test_a_case_is_what_the_pattern_says_and_what_it_meets() -> None:
    q, k, _, tiles = asked(SinkWindow(9, sinks=0), packed=False)
    assert Facts.of(q, k, tiles) == case(Window(9), packed=False).facts
    memory.remember("mine", case(SinkWindow(9, sinks=0)), PASSED)
    assert recall("mine", case(SinkWindow(9, sinks=0))) == PASSED


def test_nothing_is_refused_before_anything_is_checked() -> None:
    assert refused("mine", *asked(Window(9))) is None


def test_what_failed_is_refused_with_the_command_that_checks_anew(caplog: pytest.LogCaptureFixture) -> None:
    memory.remember("mine", case(Window(9)), RAISED)
    for _ in range(3):
        refusal = refused("mine", *asked(Window(9)))
    assert refusal == f"{RAISED.failure}; `lg check --config FILE --again` checks anew"
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        "attention by mine of `(k <= q) & (q - k < 9)`, head width 16, torch.float32, is not used: " + refusal
    ]
    # An error says nothing of other cases.
    assert refused("mine", *asked(Window(10))) is None
    memory.remember("mine", case(Window(9)), PASSED)
    assert refused("mine", *asked(Window(9))) is None


def test_wrong_results_in_one_case_are_distrusted_in_all_of_that_width_and_type_until_checked() -> None:
    memory.remember("mine", case(Window(9)), WRONG)
    anew()
    assert refused("mine", *asked(Window(10))) == (
        "of Window(window=9), head width 16, float32, packed documents: it failed the check of its gradients; whether "
        "it is right here, `lg check --config FILE` finds out"
    )
    memory.remember("mine", case(Window(10)), PASSED)
    assert refused("mine", *asked(Window(10))) is None
    # `lg check` lets all tokens ask; some of them are computed as all are.
    q, k, v, tiles = asked(Window(10))
    some = Tiles(tiles.pattern, tiles.documents, k.shape[1], (100, 300))
    assert refused("mine", q[:, :, 100:], k, v, some) is None
    memory.remember("mine", case(Window(10), chunk=True), WRONG)
    assert "it failed the check" in str(refused("mine", q[:, :, 100:], k, v, some))
    assert refused("mine", *asked(Window(9), width=32)) is None
    assert refused("mine", *asked(Window(9), dtype=torch.bfloat16)) is None
    assert refused("other", *asked(Window(9))) is None


def test_a_case_is_proven_once() -> None:
    counted = Altered()
    state = torch.get_rng_state()
    for _ in range(2):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert proven("counted", counted, case(Window(50))) is None
        launches = counted.launches
        anew()
    assert launches == counted.launches > 8
    assert torch.equal(torch.get_rng_state(), state)
    assert proven("counted", counted, case(Window(51))) is None
    assert counted.launches > launches


def test_wrong_results_elsewhere_do_not_keep_a_case_from_its_proof() -> None:
    memory.remember("mine", case(Window(9)), WRONG)
    assert proven("mine", gather, case(Window(10))) is None


def test_a_machine_or_version_of_its_own(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    memory.remember("mine", case(Window(9)), WRONG)
    here = dict(machine(torch.device("cpu")))
    assert len(here["lg.attention"]) == 24 and here["torch"] == torch.__version__
    for key in ("torch", "triton", "flash-attn-4", "lg.attention", "device", "capability"):
        monkeypatch.setattr(memory, "machine", lambda device, key=key: {**here, key: "another"})
        memory._folder_in.cache_clear()
        assert recall("mine", case(Window(9))) is None
        assert refused("mine", *asked(Window(9))) is None


def test_a_relative_cache_is_that_of_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LG_CACHE", "cache")
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    memory.remember("mine", case(Window(9)), WRONG)
    monkeypatch.chdir(folders[1])
    assert recall("mine", case(Window(9))) is None
    memory.remember("mine", case(Window(9)), PASSED)
    for folder in folders:
        assert len(files(folder)) == 1
    monkeypatch.chdir(folders[0])
    assert recall("mine", case(Window(9))) == WRONG


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"failure": null}', "\udcff"])
def test_a_damaged_file_is_as_none(damage: str, cache: Path) -> None:
    memory.remember("mine", case(Window(9)), WRONG)
    (path,) = files(cache)
    path.write_text(damage, encoding="utf-8", errors="surrogateescape")
    anew()
    assert recall("mine", case(Window(9))) is None
    memory.remember("mine", case(Window(9)), PASSED)
    anew()
    assert recall("mine", case(Window(9))) == PASSED


def test_many_that_write_at_once_do_no_harm(cache: Path) -> None:
    cases = [case(Window(1 + number % 5)) for number in range(40)]
    threads = [threading.Thread(target=memory.remember, args=("mine", each, PASSED)) for each in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    anew()
    assert [recall("mine", each) for each in cases] == [PASSED] * 40
    assert len(files(cache)) == 5


def test_a_cache_that_cannot_be_written(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=r"^LG_CACHE: '.*' cannot be written: .*; a folder on a disk with room is"):
        checked("mine", gather, case(Window(9)), Yardstick.of(case(Window(9))))
    # A run goes on; this process remembers.
    counted = Altered()
    assert proven("counted", counted, case(Window(9))) is None
    launches = counted.launches
    assert proven("counted", counted, case(Window(9))) is None
    assert counted.launches == launches
    assert "the check of attention by counted is not remembered: LG_CACHE: " in caplog.text


def test_what_ends_the_device_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr("lg.attention.check.examine._is_alive", lambda device: False)
    on: Case = case(Window(9))
    with pytest.raises(BrokenDevice, match=r"^attention by mine of Window\(window=9\), .* illegal memory access"):
        proven("mine", Altered("output", fails), on)
    anew()
    assert "illegal memory access" in str(refused("mine", *asked(Window(9))))


def test_the_next_process_starts_without_the_check(cache: Path) -> None:
    assert proven("gather", gather, case(Window(50))) is None
    code = (
        "import torch; from lg.attention import Window; from lg.attention.check import Case, Facts, proven; "
        "from lg.attention.impl import gather; cpu = torch.device('cpu'); "
        "facts = Facts(2, 2, 16, torch.float32, cpu, True, False); gather.run = None; "
        "print(proven('gather', gather, Case(Window(50), facts)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n", done.stderr


def test_a_compiled_graph_holds_the_answer() -> None:
    memory.remember("wrong", case(Window(9)), WRONG)
    q, k, v, tiles = asked(Window(9))

    @torch.compile(backend="eager", fullgraph=True)
    def chosen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q * 2 if refused("right", q, k, v, tiles) else (q * 3 if refused("wrong", q, k, v, tiles) else q)

    q = q + 1
    assert torch.equal(chosen(q, k, v), q * 3)
