"""From bytes of text to token ids and back: bytes as they are, or any ``tokenizer.json``."""

import hashlib
import inspect
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tokenizers

_STEADY = {"lg", *sys.stdlib_module_names}  # their code is not part of a tokenizer: lg's has a version in the cache

Ids = npt.NDArray[np.integer[Any]]
"""Token ids, shape [N], of any integer type."""


class Tokenizer(ABC):
    """Turns a document's bytes into token ids, without any id that the text does not hold.

    What it gives depends on the text alone. It can be pickled: several processes tokenise a large source.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids: every id, ``end`` included, is below it."""

    @property
    @abstractmethod
    def end(self) -> int:
        """The id that packing puts after each document."""

    @abstractmethod
    def encode(self, text: bytes) -> Ids:
        """The ids of a document, shape [N]; neither ``end`` nor any other mark is added."""

    def encode_joined(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The ids of some texts end to end, and of each id the index of the text in which it ends, both [N].

        Here no id reaches from one text into the next; a tokenizer that tells where its ids end overrides it, and gives
        those that the texts have as one.
        """
        ids = [np.asarray(self.encode(text)) for text in texts]
        which = np.repeat(np.arange(len(ids)), [len(of_text) for of_text in ids])
        return np.concatenate([np.zeros(0, np.uint8), *ids]), which

    def special(self, token: str) -> int:
        """The id of a special token, which no text is encoded to.

        Raises:
            ValueError: there is none of that name, as by default.
        """
        raise ValueError(
            f"data.init_args.tokenizer: {type(self).__name__} has no special token {token!r}, which the template of "
            "the conversations puts between them; a tokenizer that has it, or another template, is needed"
        )

    @abstractmethod
    def decode(self, ids: Ids | Sequence[int]) -> bytes:
        """The text of some ids: the inverse of ``encode`` as far as the vocabulary allows."""

    def fingerprint(self) -> str:
        """What tells this tokenizer from any that gives other ids: tokens are kept on disk under it.

        Of the pickled tokenizer and, if its class or one of its bases is not lg's own, of the source of the file that
        defines it. Code that this file imports is not seen: if that changes, so should the result of an override.

        Raises:
            ValueError: the tokenizer cannot be pickled.
        """
        digest = hashlib.blake2b(digest_size=16)
        for kind in type(self).__mro__:
            if kind.__module__.partition(".")[0] not in _STEADY:
                digest.update(f"{kind.__module__}.{kind.__qualname__}\n{_source(kind)}\n".encode())
        try:
            digest.update(pickle.dumps(self, protocol=4))
        except Exception as error:  # pickle raises whatever a class raises
            raise ValueError(
                f"data.init_args.tokenizer: {type(self).__name__} cannot be pickled: {error}; one that can be, or that "
                "has a fingerprint() of its own, is needed"
            ) from error
        return digest.hexdigest()


class Bytes(Tokenizer):
    """256 ids, each the byte itself; NUL, which text does not contain, ends a document."""

    @property
    def vocab_size(self) -> int:
        """256."""
        return 256

    @property
    def end(self) -> int:
        """0, the NUL byte."""
        return 0

    def encode(self, text: bytes) -> Ids:
        """The bytes as uint8, shape [N]; a view that cannot be written to, not a copy."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, ids: Ids | Sequence[int]) -> bytes:
        """The ids as bytes; those beyond, which pad a model's vocabulary, have none."""
        listed = np.asarray(ids)
        return listed[listed < 256].astype(np.uint8).tobytes()


class TokenizerFile(Tokenizer):
    """Any tokenizer that Hugging Face's ``tokenizers`` library keeps as a ``tokenizer.json``.

    The text is read as UTF-8, bytes that are not being replaced by U+FFFD. A special token that
    is spelled out in a document is tokenized as ordinary text, so it cannot end that document.

    Args:
        path: the ``tokenizer.json``; ``~`` is understood.
        end: the token that ends a document; by default the first of ``USUAL_ENDS`` that the
            vocabulary has.

    Raises:
        ValueError: no such file, not a tokenizer, no such ``end``, or no ``tokenizers`` library.
    """

    USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>")

    def __init__(self, path: str, end: str | None = None) -> None:
        self._tokenizer = _settled(_load(path))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._vocab_size = max(vocabulary.values()) + 1  # ids may have gaps: not their number
        candidates = self.USUAL_ENDS if end is None else (end,)
        ends = [vocabulary[token] for token in candidates if token in vocabulary]
        if not ends:
            raise ValueError(
                f"data.init_args.tokenizer.init_args.end: {end!r} is not allowed; {path!r} has no "
                f"token {' or '.join(candidates)}, and a token of its vocabulary must end documents"
            )
        self._end = ends[0]

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, added tokens counted."""
        return self._vocab_size

    @property
    def end(self) -> int:
        """The id of the token that ends a document."""
        return self._end

    def encode(self, text: bytes) -> Ids:
        """The ids as int32, shape [N]."""
        encoding = self._tokenizer.encode(text.decode("utf-8", errors="replace"), add_special_tokens=False)
        return np.asarray(encoding.ids, dtype=np.int32)

    def encode_joined(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The ids as int32 of the texts as one, and of each the index of the text in which it ends."""
        pieces = [text.decode("utf-8", errors="replace") for text in texts]
        encoding = self._tokenizer.encode("".join(pieces), add_special_tokens=False)
        ends = np.cumsum([len(piece) for piece in pieces])
        last = np.array([end for _, end in encoding.offsets], np.int64)
        return np.asarray(encoding.ids, dtype=np.int32), np.searchsorted(ends, last)

    def special(self, token: str) -> int:
        """The id of a special token of the file."""
        found = self._tokenizer.token_to_id(token)
        return super().special(token) if found is None else int(found)

    def decode(self, ids: Ids | Sequence[int]) -> bytes:
        """The text in UTF-8, special tokens spelled out."""
        integers = np.asarray(ids).tolist()
        return self._tokenizer.decode(integers, skip_special_tokens=False).encode()

    def fingerprint(self) -> str:
        """Also of the library's version: another one may read the same file in another way."""
        import tokenizers

        return f"{super().fingerprint()}-{tokenizers.__version__}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import tokenizers

        self.__dict__.update(state)
        self._tokenizer = _settled(tokenizers.Tokenizer.from_str(state["_tokenizer"]))


def _load(path: str) -> "tokenizers.Tokenizer":
    key = "data.init_args.tokenizer"
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{key}: TokenizerFile needs the `tokenizers` library, which is not installed; "
            "`pip install 'lg[hf]'` brings it, or use the tokenizer Bytes"
        ) from error
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{key}.init_args.path: {path!r} is not a file; a tokenizer.json is needed")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{key}.init_args.path: {path!r} is not a tokenizer.json: {error}") from error


def _settled(tokenizer: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Without what a file may ask for and training must not have: padding, cutting, special tokens in the text."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _source(kind: type) -> str:
    """The source of the file that defines a class, or of the class alone, or nothing, as far as it can be read."""
    for thing in (sys.modules.get(kind.__module__), kind):
        try:
            return inspect.getsource(cast(Any, thing))
        except (OSError, TypeError):
            continue
    return ""
