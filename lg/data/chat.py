"""Conversations as documents, whose answers alone are targets."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from lg.data.marked import Mark, Marked, Plain
from lg.data.source import KEY, Document, Part, Source, fingerprint_of
from lg.data.tables import KEYS, Jsonl, Table
from lg.data.templates import ANSWERING, ChatML, Message, Template

_ROLE = re.compile(r"\w+")
_BESIDE = ("tools", "documents")  # what a template may write of a row that is no message


@dataclass(frozen=True)
class Chat(Source):
    """Conversations, one a row of a table; what the assistant says, and the token that ends it, is what is learned.

    A row holds a list of messages, each with its ``role`` and its ``content``. One without an answer is no document, as
    a row without text is none. Special tokens that are spelled out in a message are text. Other keys of a message, and
    the row's ``tools`` and ``documents``, are a ``Jinja`` template's to write; other templates refuse them.

    Args:
        rows: the table, its ``column`` that of the messages: ``Jsonl``, ``Parquet`` or ``HuggingFace``, not streamed.
        template: how a conversation is written; ``null`` is ``ChatML``.

    Raises:
        ValueError: the table is streamed.
    """

    rows: Table
    template: Template | None = None

    def __post_init__(self) -> None:
        if self.rows.streamed:
            raise ValueError(
                f"{KEYS}.rows.init_args.streaming: true is not allowed for conversations, which are tokenized into the "
                "cache; false is needed"
            )

    @property
    def partial(self) -> bool:
        """True: only answers are targets."""
        return True

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One document a conversation, named by the row's number.

        Raises:
            ValueError: the table is missing or damaged, what it holds is no conversation, or none has an answer.
        """
        return (document for _, document in self.numbered(start))

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Document]]:
        found = self._conversations(start)
        first = next(found, None)
        if first is None and start == 0:
            raise ValueError(
                f"{KEYS}.rows: no conversation of {type(self.rows).__name__} has a message of the role {ANSWERING!r}; "
                "at least one is needed"
            )
        return chain([] if first is None else [first], found)

    def fingerprint(self) -> str:
        """Of the table's and the template's."""
        with self._table().placed():
            rows = self.rows.fingerprint()
        return fingerprint_of(iter([b"chat 2", rows.encode(), self._template.fingerprint().encode()]))

    @property
    def _template(self) -> Template:
        return ChatML() if self.template is None else self.template

    def _conversations(self, start: int) -> Iterator[tuple[int, Document]]:
        for number, value, beside, place in self._cells(start):
            messages = _messages(value, place)
            if any(message.role == ANSWERING and (message.content or message.more) for message in messages):
                yield number, Marked.of(str(number), self._rendered(messages, beside, place))

    def _cells(self, start: int) -> Iterator[tuple[int, object, dict[str, object], str]]:
        table = self._table()
        with table.placed():
            for number, value, beside, place in _rows(self.rows, start):
                yield number, value, beside, place.replace(KEY, table.key)

    def _rendered(self, messages: list[Message], beside: dict[str, object], place: str) -> list[Plain | Mark]:
        try:
            return self._template.render_row(messages, beside)
        except ValueError as error:
            if KEY in str(error):
                raise
            raise ValueError(f"{place}: {error}") from error

    def _table(self) -> Part:
        # A table tells where it would be written if it were the source.
        return Part("", self.rows, None, f"{KEYS}.rows")


@dataclass(frozen=True)
class _Lines(Jsonl):
    """Of each line the column, and what stands beside it."""

    def _value(self, line: str, place: str) -> object:
        value = super()._value(line, place)
        row = json.loads(line) if any(f'"{name}"' in line for name in _BESIDE) else {}
        return value, {name: row[name] for name in _BESIDE if row.get(name) is not None and name != self.column}


def _rows(table: Table, start: int) -> Iterator[tuple[int, object, dict[str, object], str]]:
    """As `Table.cells`, with what stands beside the column."""
    if type(table) is Jsonl:
        for number, both, place in _Lines(table.path, table.column).cells(start):
            value, beside = both if isinstance(both, tuple) else (None, {})
            yield number, value, beside, place
        return
    names: list[str] = []
    columns: dict[str, Iterator[tuple[int, object, str]]] = {}

    def check(column: str, features: Mapping[str, object], what: str) -> None:
        _check(column, features, what)
        found = [name for name in _BESIDE if name in features and name != column]
        if found != names:  # files of one table may differ
            names[:] = found
            columns.clear()

    for number, value, place in table.cells(start, check):
        for name in names:
            if name not in columns:
                # Files before this one may lack it.
                columns[name] = replace(table, column=name).cells(number, lambda *_: None)  # type: ignore[type-var]
        yield number, value, {name: next(columns[name])[1] for name in names}, place


def _check(column: str, features: Mapping[str, object], table: str) -> None:
    if column not in features:
        names = ", ".join(map(repr, list(features)[:8]))
        raise ValueError(f"{KEYS}.column: {column!r} is not a column; {table!r} has {names}")


def _messages(value: object, place: str) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, dict):  # of lists, as `datasets` has kept lists of objects
        columns = {name: column for name, column in value.items() if column is not None}
        lists = [column for column in columns.values() if isinstance(column, list)]
        if {"role", "content"} <= set(columns) and len(lists) == len(columns) and len({*map(len, lists)}) == 1:
            value = [dict(zip(columns, each, strict=True)) for each in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise ValueError(f"{place}: messages of type {type(value).__name__} are not allowed; a list of them is needed")
    return [_message(each, number, place) for number, each in enumerate(value)]


def _message(value: object, number: int, place: str) -> Message:
    more = dict(value) if isinstance(value, dict) else {}
    role, content = more.pop("role", None), more.pop("content", None)
    if content is None and any(each is not None and each not in ("", [], {}) for each in more.values()):
        content = ""  # as OpenAI's format has it of a message that only calls tools
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{place}: message {number} is not allowed; it must have a `role` and a `content`, both text")
    if not _ROLE.fullmatch(role):
        raise ValueError(f"{place}: the role {role!r} of message {number} is not allowed; it must be one word")
    return Message(role, content, {name: each for name, each in more.items() if each is not None})
