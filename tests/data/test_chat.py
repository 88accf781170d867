"""Conversations become documents whose answers alone are targets, from the table through the cache to the batch."""

import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser

from lg.data import (
    IGNORED,
    Bytes,
    Chat,
    ChatML,
    Document,
    HuggingFace,
    Jinja,
    Jsonl,
    Llama3,
    Mixture,
    Parquet,
    Source,
    Stdlib,
    Template,
    TextData,
    Whole,
    cached,
)  # fmt: skip
from lg.data.corpus import Corpus
from lg.data.marked import Mark, Marked, Plain
from lg.data.tables import Table

KEYS = r"^data\.init_args\.source\.init_args\."


class Marking(Bytes):
    """Bytes with one id for every mark: 1."""

    def special(self, token: str) -> int:
        return 1


def conversation(number: int) -> list[dict[str, str]]:
    asked, answered = (
        {"role": "user", "content": f"q{number}"},
        {"role": "assistant", "content": "A" * (number % 5 + 1)},
    )
    return [asked, answered, asked, answered]


def jsonl(folder: Path, rows: Sequence[Any]) -> Jsonl:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return Jsonl(str(path), column="messages")


def test_rows_are_conversations(tmp_path: Path) -> None:
    asked_only = conversation(0)[:1]
    rows = [conversation(0), None, asked_only, [], conversation(3)]
    chat = Chat(jsonl(tmp_path, rows))
    assert [number for number, _ in chat.numbered()] == [0, 4]
    assert [document.name for document in chat.documents(1)] == ["4"]
    (first, _) = chat.documents()
    assert first.text.startswith(b"<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n")
    pq.write_table(pa.table({"messages": rows}), tmp_path / "chats.parquet")
    assert list(Chat(Parquet(str(tmp_path / "chats.parquet"), column="messages")).documents()) == list(chat.documents())
    other = Chat(chat.rows, Llama3())
    assert len({chat.fingerprint(), other.fingerprint(), chat.rows.fingerprint()}) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("text", r"rows\.init_args\.path: .*, line 2: messages of type str are not allowed"),
        ([{"role": "user"}], r"rows\.init_args\.path: .*, line 2: message 0 is not allowed; it must have a `role` and"),
        (["user"], r"rows\.init_args\.path: .*, line 2: message 0 is not allowed"),
        ([{"role": "a\nb", "content": ""}], r"rows\.init_args\.path: .*line 2: the role 'a\\nb' of message 0"),
    ],
)
def test_what_is_no_conversation(row: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=KEYS + said):
        list(Chat(jsonl(tmp_path, [conversation(0), row])).documents())


NOTED = "{% for m in messages %}{{ m.content }}{{ m.note }}{% endfor %}{{ tools }}{{ documents }}"


def noted(folder: Path) -> Jinja:
    (folder / "chat_template.jinja").write_text(NOTED)
    return Jinja(str(folder))


@pytest.mark.parametrize("template", [None, Llama3()])
def test_what_own_templates_cannot_say(template: Template | None, tmp_path: Path) -> None:
    asked, answered = conversation(0)[:2]
    name = "ChatML" if template is None else "Llama3"
    nothing = [asked, {**answered, "tool_calls": [], "name": None, "note": ""}]
    (first,) = Chat(jsonl(tmp_path, [nothing]), template).documents()
    assert first == next(Chat(jsonl(tmp_path, [[asked, answered]]), template).documents())
    with pytest.raises(
        ValueError,
        match=KEYS
        + rf"rows\.init_args\.path: .*, line 2: `note` of message 1 is not allowed, for .* {name} has no words",
    ):
        list(Chat(jsonl(tmp_path, [nothing, [asked, {**answered, "note": "n"}]]), template).documents())


def test_null_is_empty_content_of_a_message_that_has_something_else_to_say(tmp_path: Path) -> None:
    said = conversation(0)
    with_note, without = [[said[0], {"role": "assistant", **content, "note": "n"}] for content in ({"content": ""}, {})]
    template = noted(tmp_path)
    (wanted,) = Chat(jsonl(tmp_path, [with_note]), template).documents()
    for row in (without, [said[0], {**without[1], "content": None}]):
        assert list(Chat(jsonl(tmp_path, [row]), template).documents()) == [wanted]
    for nothing in ({}, {"note": None}, {"note": []}):
        row = [said[0], {"role": "assistant", "content": None, **nothing}]
        with pytest.raises(ValueError, match="message 1 is not allowed; it must have a `role` and a `content`"):
            list(Chat(jsonl(tmp_path, [row]), template).documents())


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize("kind", ["Jsonl", "Parquet", "HuggingFace"])
def test_what_stands_beside_the_messages(kind: str, name: str, tmp_path: Path) -> None:
    value = [{"name": "look"}]
    said = conversation(1)[:2]
    # Others' columns are nobody's; rows without an answer, and the first file, have nothing.
    rows: list[dict[str, Any]] = [{"messages": said[:1], name: value, "id": 0}, {"messages": said, name: None, "id": 1}]
    rows += [{"messages": said, name: value, "id": number} for number in range(2, 5)]
    bare: list[dict[str, Any]] = [{"messages": said, "id": 0}]
    table: Table
    if kind == "Parquet":
        files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
        for file, content in zip(files, (bare, rows, bare), strict=True):
            pq.write_table(pa.Table.from_pylist(content), file)
        table = Parquet(files, column="messages")
    else:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in [*bare, *rows, {**bare[0], name: None}]))
        if kind == "Jsonl":
            table = Jsonl(str(file), column="messages")
        else:
            table = HuggingFace("json", data_files=str(file), column="messages")
    found = dict(Chat(table, noted(tmp_path)).numbered())
    without = b"q1AANoneNone"
    with_it = without[:4] + (b"[{'name': 'look'}]None" if name == "tools" else b"None[{'name': 'look'}]")
    want = {0: without, 2: without, 3: with_it, 4: with_it, 5: with_it, 6: without}
    assert {number: document.text for number, document in found.items()} == want
    assert dict(Chat(table, noted(tmp_path)).numbered(4)) == {n: document for n, document in found.items() if n >= 4}
    with pytest.raises(
        ValueError, match=KEYS + rf"rows\.init_args\.path: .*: `{name}` beside the messages is not allowed"
    ):
        list(Chat(table).documents())


def test_keys_of_messages_are_handed_on(tmp_path: Path) -> None:
    row = [{"role": "user", "content": "q", "note": {"a": [1]}}, {"role": "assistant", "content": "", "note": "n"}]
    (document,) = Chat(jsonl(tmp_path, [row]), noted(tmp_path)).documents()
    assert document.text == b"q{'a': [1]}nNoneNone"
    lists = {"role": ["user", "assistant"], "content": ["q", "a"], "note": ["m", "n"], "name": None}
    (document,) = Chat(jsonl(tmp_path, [lists]), noted(tmp_path)).documents()
    assert document.text == b"qmanNoneNone"
    pq.write_table(pa.table({"messages": [row[1:]], "when": [0]}), tmp_path / "chats.parquet")
    (document,) = Chat(Parquet(str(tmp_path / "chats.parquet"), column="messages"), noted(tmp_path)).documents()
    assert document.text == b"nNoneNone"


def test_tables_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=KEYS + r"rows: no conversation of Jsonl has a message of the role 'assistant'"
    ):
        Chat(jsonl(tmp_path, [conversation(0)[:1]])).documents()
    rows = Jsonl(jsonl(tmp_path, [conversation(0)]).path)
    with pytest.raises(ValueError, match=KEYS + r"rows\.init_args\.column: 'text' is not a key of"):
        Chat(rows).documents()
    pq.write_table(pa.table({"messages": [conversation(0)]}), tmp_path / "chats.parquet")
    with pytest.raises(ValueError, match=KEYS + r"rows\.init_args\.column: 'text' is not a column; .* has 'messages'"):
        Chat(Parquet(str(tmp_path / "chats.parquet"))).documents()
    with pytest.raises(ValueError, match=KEYS + r"rows\.init_args\.streaming: true is not allowed"):
        Chat(Jsonl(rows.path, streaming=True))
    streamed = Jsonl(rows.path, streaming=True)
    with pytest.raises(ValueError, match=KEYS + r"sources\.a: it has targets of its own choice, which is not allowed"):
        Mixture({"a": Chat(rows), "b": streamed}, {"a": 1, "b": 1})


def test_the_cache_keeps_what_counts(tmp_path: Path) -> None:
    chat = Chat(jsonl(tmp_path, [conversation(number) for number in range(40)]))
    memory = Corpus.of(chat.documents(), Marking())
    assert memory.counted is not None
    for corpus in (
        cached(chat, Marking(), str(tmp_path / "cache"), processes=1),
        cached(chat, Marking(), str(tmp_path / "cache"), processes=1),
        pickle.loads(pickle.dumps(memory)),
    ):
        assert (corpus.tokens == memory.tokens).all()
        assert (corpus.counted == memory.counted).all()
    other = cached(Stdlib(), Bytes(), processes=1)
    assert other.counted is None


def test_a_corpus_of_both_kinds() -> None:
    marked = Marked.of("m", [Mark("<s>"), Plain("ab"), Plain("cd", True), Mark("</s>", True)])
    corpus = Corpus.of([Document("x", b"xy"), marked], Marking())
    assert corpus.tokens.tolist() == [*b"xy", 0, 1, *b"abcd", 1, 0]
    assert corpus.counted is not None
    assert corpus.counted.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("document_mask", [True, False])
def test_batches_have_answers_as_targets(document_mask: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [conversation(number) for number in range(60)]
    rows[7] = [{"role": "user", "content": "long" * 100}, *conversation(7)]
    mixed = Mixture({"chat": Chat(jsonl(tmp_path, rows))}, packings={"chat": Whole()})
    with caplog.at_level(logging.INFO):
        data = TextData(
            mixed, Marking(), row_length=256, document_mask=document_mask, align=1, cache=str(tmp_path / "cache")
        )
        data.setup()
    assert "leaves out 1 of 60 documents" in caplog.text
    for index in range(len(data.train_rows)):
        row = data.train_rows[index]
        tokens, targets = row["tokens"].numpy(), row["targets"].numpy()
        counted = targets != IGNORED
        assert (targets[counted] == np.roll(tokens, -1)[counted]).all()
        # Runs of A, each with the mark that ends its turn; nothing else.
        assert set(targets[counted]) == {ord("A"), 1}
        assert counted.sum() == (tokens == ord("A")).sum() + 2 * (tokens == 0)[: -row["num_padding"] or None].sum()


def test_templates_are_written_in_yaml(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    rows = {"class_path": "Jsonl", "init_args": {"path": "chats.jsonl", "column": "messages"}}
    template = {"class_path": "ChatML", "init_args": {"system": "Be brief."}}
    given = {"class_path": "Chat", "init_args": {"rows": rows, "template": template}}
    parsed = parser.instantiate_classes(parser.parse_args([f"--source={json.dumps(given)}"]))
    assert parsed.source == Chat(Jsonl("chats.jsonl", "messages"), ChatML("Be brief."))
