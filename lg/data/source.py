"""Where text comes from: a source yields whole documents, however long, always in one order.

A source of one's own is a subclass of :class:`Source`, named in YAML by its dotted path.
"""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from lg.data.packing import KEY as PACKING_KEY
from lg.data.packing import Packing

KEY = "data.init_args.source"
"""The YAML key of the one source that a run has; errors of sources begin with it."""


@dataclass(frozen=True)
class Document:
    """One text that attention may see as a whole.

    Attributes:
        name: what tells it from the source's other documents; alone decides whether it is held out.
        text: its bytes, in whatever encoding the source has (UTF-8 but for rare exceptions).
    """

    name: str
    text: bytes


class Source(ABC):
    """A collection of documents that can be read more than once, from any document on.

    Documents are numbered from 0 in the order of reading. A table's are numbered by row, and a row
    without text is no document, so that numbers may have gaps, but always ascend.
    """

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """Every document from number ``start`` on, in the same order at each call and on each machine.

        A subclass may leave ``start`` out; :meth:`read` then passes over the documents before it.

        Raises:
            ValueError: the source is missing or holds no text.
        """

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every document from number ``start`` on, whether or not ``documents`` takes a start.

        Raises:
            ValueError: as :meth:`documents` does, some of them only on the way.
        """
        with self._speaking():
            takes_start = inspect.signature(self.documents).parameters
            documents = self.documents(start) if takes_start else self.documents()
            if not isinstance(documents, Iterable):
                raise ValueError(f"{type(documents).__name__} is not allowed; documents() must give Documents")
        return self._checked(documents if takes_start else islice(documents, start, None))

    def _checked(self, documents: Iterable[Document]) -> Iterator[Document]:
        with self._speaking():
            for document in documents:
                if not isinstance(document, Document):
                    raise ValueError(f"{type(document).__name__} is not allowed; documents() must give Documents")
                yield document

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Inside it, an error of a subclass that is not lg's own says where in the YAML the source is."""
        try:
            yield
        except ValueError as error:
            if KEY in str(error):
                raise
            raise ValueError(f"{KEY}: {type(self).__name__}: {error}") from error

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Document]]:
        """The documents from number ``start`` on, each after its number.

        Raises:
            ValueError: as :meth:`read` does.
        """
        return enumerate(self.read(start), start)

    @property
    def streamed(self) -> bool:
        """Whether the text is read anew as training goes, instead of tokenized once into a cache."""
        return False

    @property
    def partial(self) -> bool:
        """Whether only some of the tokens of its documents are targets."""
        return False

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change when a document's name or text does.

        By default read off the documents themselves, all of them; a source that knows a quicker way
        to the same end overrides it.

        Raises:
            ValueError: as :meth:`read` does.
        """
        return fingerprint_of(
            value for document in self.read() for value in (document.name.encode(errors="replace"), document.text)
        )

    def parts(self) -> tuple["Part", ...]:
        """The sources that this one is made of; itself alone, unless it is a mixture."""
        return (Part("", self, None),)


@dataclass(frozen=True)
class Part:
    """One of the sources that an epoch is made of.

    Attributes:
        name: what tells it from the other parts; empty where it is alone.
        source: its documents.
        share: of the tokens of an epoch, above 0; None if it has as many as it has.
        key: where in the YAML the source is written.
        packing: how its documents are laid into rows; None if as those of all parts that have none of their own.
        packing_key: where in the YAML the packing is written.
    """

    name: str
    source: Source
    share: float | None
    key: str = KEY
    packing: Packing | None = None
    packing_key: str = PACKING_KEY

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Document]]:
        """As the source's; its errors name this part's place in the YAML.

        Raises:
            ValueError: as the source does.
        """
        with self.placed():
            documents = self.source.numbered(start)
        return self._each(documents)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Inside it, an error of the source names this part's place in the YAML.

        Raises:
            ValueError: the same, so corrected.
        """
        try:
            yield
        except ValueError as error:
            said = str(error)
            # A source does not know where it is written: it says what it would say if it were alone.
            if self.key == KEY or KEY not in said:
                raise
            raise ValueError(said.replace(KEY, self.key)) from error

    def _each(self, documents: Iterator[tuple[int, Document]]) -> Iterator[tuple[int, Document]]:
        with self.placed():
            yield from documents


def fingerprint_of(values: Iterator[bytes]) -> str:
    """32 hexadecimal digits of some strings of bytes, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        # Its length before each: no other strings have the same bytes end to end.
        digest.update(len(value).to_bytes(8, "little"))
        digest.update(value)
    return digest.hexdigest()
