"""What stops a run is told in one sentence with its key, and faults of lg's own stay tracebacks."""

from __future__ import annotations

import errno
import threading

import pytest
import torch

from lg.attention import Window
from lg.cli import commands, main
from lg.cli.trouble import Refused, refusals_told, troubles_told
from lg.monitor.finite import NotFinite

GIVEN = {"model": {"init_args": {"patterns": {"near": {"class_path": "Window", "init_args": {"window": 8}}}}}}


def test_a_full_disk() -> None:
    told = r"trainer: .*'logs/x': No space left on device; .*trainer\.logger\.init_args"
    with pytest.raises(Refused, match=told), troubles_told({}):
        raise OSError(errno.ENOSPC, "No space left on device", "logs/x")


def test_too_little_memory() -> None:
    with pytest.raises(Refused, match=r"data\.init_args\.row_length.*memory cannot hold"), troubles_told({}):
        torch.empty(2**60)


def test_a_device_without_memory() -> None:
    told = r"Tried to allocate 2.*; smaller numbers are needed, or model\.init_args\.memory, of which `lg plan` tells"
    with pytest.raises(Refused, match=told), troubles_told({}):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_loss_that_is_no_number() -> None:
    with pytest.raises(Refused, match=r"^trainer\.callbacks\.Finite: the loss of step 3 is nan$"), troubles_told({}):
        raise NotFinite("trainer.callbacks.Finite: the loss of step 3 is nan")


def test_a_fault_of_lgs_own_stays_what_it_is() -> None:
    with pytest.raises(KeyError), troubles_told({}):
        {}["a fault"]


def test_the_class_that_refuses_is_found_in_the_configuration() -> None:
    with pytest.raises(Refused, match=r"^model.init_args.patterns.near: TypeError: .*widow"), refusals_told(GIVEN):
        Window(widow=3)  # type: ignore[call-arg]


def test_other_threads_are_heard_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    hook = threading.excepthook
    with troubles_told({}):
        assert threading.excepthook is not hook
    assert threading.excepthook is hook


def test_names_are_all_told_and_a_value_that_fills_pages_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ", ".join(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(500))

    def refuse(args: list[str]) -> None:
        raise Refused(f"--key: {'x' * 5000!r} is not allowed; missing: {names}")

    monkeypatch.setattr(commands, "run", refuse)
    assert main(["fit"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(f"xxx' is not allowed; missing: {names}")
    assert len(told) < len(names) + 500
