"""Texts on the board are those that the model reads and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import data, logged, model, text, trainer

from lg.attention import Causal, PrefixLM
from lg.data import BestFit, Bytes, RowShape, collate
from lg.data.rows import Piece
from lg.monitor import TextSamples
from lg.monitor.held_out import longest_document
from lg.monitor.text_samples import likeliest, packed_row


def row_text(*documents: tuple[int, bytes], length: int = 1000) -> str:
    """A row of documents at places, each with its end, as it is shown."""
    pieces = []
    for place, content in documents:
        ids = Bytes().encode(content + b"\0")
        pieces.append(Piece(place, len(ids), ids))
    return packed_row(collate([RowShape(length).row(pieces)]), Bytes())


def test_documents_and_padding_stand_apart() -> None:
    shown = row_text((0, b"first\nof two"), (16, "zw\u00f6lf".encode()), length=32)
    # 13 and 7 tokens with their ends; 3 before the second to align it, and 9 after it.
    assert shown == (
        "32 tokens, of which 12 are padding (37.5%)\n\n"
        "**document, tokens 0 to 12**\n\n    first\n    of two[0x00]\n\n"
        "**padding, tokens 13 to 15**\n\n"
        "**document, tokens 16 to 22**\n\n    zw\u00f6lf[0x00]\n\n"
        "**padding, tokens 23 to 31**"
    )


def test_long_documents_are_cut_in_the_middle_and_many_are_counted() -> None:
    shown = row_text((0, b"a" * 300 + b"b" * 300))
    assert "a" * 240 + "\n    [... 241 tokens ...]\n    " + "b" * 119 + "[0x00]" in shown
    many = row_text(*((10 * n, b"x" * 9) for n in range(20)), length=200)
    assert many.count("**document") == 8 and many.endswith("and 12 more")


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert "\ufffd" in row_text((0, b"\xff\xfe`|*\x1b[31m"), length=16)


def test_it_writes_the_likeliest_token_each_time() -> None:
    module = model(patterns={"local": Causal(), "full": Causal()})
    module.configure_model()
    prompt = torch.randint(1, 256, (10,))
    written = likeliest(module.eval(), prompt, 6)
    tokens = prompt[None]
    with torch.no_grad():
        for _ in range(6):
            tokens = torch.cat([tokens, module(tokens)[:, -1:].argmax(-1)], 1)
    assert written.tolist() == tokens[0, 10:].tolist()


def test_the_first_row_is_shown_once_and_a_continuation_at_each_validation(tmp_path: Path) -> None:
    source = data(packing=BestFit(), row_length=512)
    run = trainer(tmp_path, [TextSamples(prompt_tokens=40, new_tokens=8)])
    run.fit(model(), source)
    events = logged(run)
    (row,) = text(events, "samples/training_row")
    assert row.startswith("512 tokens, of which") and "the quick brown fox" in row
    shown = text(events, "samples/continuation")
    assert len(shown) == 2
    document = source.tokenizer.decode(longest_document(source).numpy()).decode()
    assert f"**held-out text, 40 tokens**\n\n    {document[:40]}\n" in shown[-1]
    assert shown[-1].endswith(f"**what stands there, 8 tokens**\n\n    {document[40:48]}")


def test_prefixes_are_none_in_prompts(tmp_path: Path) -> None:
    run = trainer(tmp_path, [TextSamples(prompt_tokens=8, new_tokens=2)], max_steps=2)
    run.fit(model(patterns={"local": PrefixLM(), "full": Causal()}), data(prefix=0.5))
    assert len(text(logged(run), "samples/continuation")) == 1


@pytest.mark.parametrize("name", ["prompt_tokens", "new_tokens"])
def test_numbers_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.callbacks\.TextSamples\.{name}: 0"):
        TextSamples(**{name: 0})
