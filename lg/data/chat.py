"""Conversations as documents, whose answers alone are targets."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from lg.data.marked import Mark, Marked, Plain
from lg.data.source import KEY, Document, Part, Source, fingerprint_of
from lg.data.tables import KEYS, Table
from lg.data.templates import ANSWERING, ChatML, Message, Template

_ROLE = re.compile(r"\w+")


@dataclass(frozen=True)
class Chat(Source):
    """Conversations, one a row of a table; what the assistant says, and the token that ends it, is what is learned.

    A row holds a list of messages, each with its ``role`` and its ``content``. One without an answer is no document, as
    a row without text is none. Special tokens that are spelled out in a message are text.

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
        return fingerprint_of(iter([b"chat", rows.encode(), self._template.fingerprint().encode()]))

    @property
    def _template(self) -> Template:
        return ChatML() if self.template is None else self.template

    def _conversations(self, start: int) -> Iterator[tuple[int, Document]]:
        for number, value, place in self._cells(start):
            messages = _messages(value, place)
            if any(message.role == ANSWERING and message.content for message in messages):
                yield number, Marked.of(str(number), self._rendered(messages, place))

    def _cells(self, start: int) -> Iterator[tuple[int, object, str]]:
        table = self._table()
        with table.placed():
            for number, value, place in self.rows.cells(start, _check):
                yield number, value, place.replace(KEY, table.key)

    def _rendered(self, messages: list[Message], place: str) -> list[Plain | Mark]:
        try:
            return self._template.render(messages)
        except ValueError as error:
            if KEY in str(error):
                raise
            raise ValueError(f"{place}: {error}") from error

    def _table(self) -> Part:
        # A table tells where it would be written if it were the source.
        return Part("", self.rows, None, f"{KEYS}.rows")


def _check(column: str, features: Mapping[str, object], table: str) -> None:
    if column not in features:
        names = ", ".join(map(repr, list(features)[:8]))
        raise ValueError(f"{KEYS}.column: {column!r} is not a column; {table!r} has {names}")


def _messages(value: object, place: str) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, dict):  # of lists, as `datasets` has kept lists of objects
        columns = [value.get(name) for name in Message._fields]
        if all(isinstance(column, list) for column in columns):
            value = [dict(zip(Message._fields, each, strict=False)) for each in zip(*columns, strict=False)]
    if not isinstance(value, list):
        raise ValueError(f"{place}: messages of type {type(value).__name__} are not allowed; a list of them is needed")
    return [_message(each, number, place) for number, each in enumerate(value)]


def _message(value: object, number: int, place: str) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{place}: message {number} is not allowed; it must have a `role` and a `content`, both text")
    if not _ROLE.fullmatch(role):
        raise ValueError(f"{place}: the role {role!r} of message {number} is not allowed; it must be one word")
    return Message(role, content)
