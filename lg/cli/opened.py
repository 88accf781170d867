"""A model that is to write, and its tokenizer: found by one path, whatever it is the path of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lg.cli.pretrained_part import checkpoint_as, decoder_as, is_checkpoint
from lg.cli.tokenizer_files import json_object

if TYPE_CHECKING:
    import torch

    from lg.cli.tokenizer_files import Found
    from lg.data import Tokenizer
    from lg.data.marked import Mark, Plain
    from lg.data.templates import Template
    from lg.models.decoder import Decoder

KEY = "--model"
_ANSWER = "<answer>"  # words that no template puts between marks itself
_KINDS = "a checkpoint, a folder of transformers or a GGUF file is needed"


@dataclass
class Spelling:
    """What text is to a model.

    Attributes:
        tokenizer: of its text.
        ends: ids that end what it writes.
        beginning: ids that every text begins with.
        template: how it is spoken with; None if it is not known.
    """

    tokenizer: Tokenizer
    ends: frozenset[int]
    beginning: tuple[int, ...] = ()
    template: Template | None = None

    def __post_init__(self) -> None:
        """Finds what ends an answer."""
        if self.template is None:
            return
        from lg.data.marked import Mark

        try:
            pieces, place = self._answered([("user", "a")])
            ends = [piece[0] for piece in pieces[place:] if isinstance(piece, Mark) and piece.counted]
            self.ends |= {self.tokenizer.special(mark) for mark in ends}
        except ValueError:
            # A template that cannot be used hinders conversations alone; `apply` tells why.
            return

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text, with those that it begins with."""
        own = self.tokenizer.encode(text.encode(errors="replace") if isinstance(text, str) else text)
        return [*self.beginning, *map(int, own)]

    def decode(self, ids: Sequence[int]) -> bytes:
        """The text of some ids; those that pad a model's vocabulary have none."""
        return self.tokenizer.decode([one for one in ids if one < self.tokenizer.vocab_size])

    def apply(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """The ids of a conversation, roles and what they say, up to where the next answer begins.

        Raises:
            ValueError: there is no template, or it does not allow such turns.
        """
        from lg.data.marked import Marked

        pieces, place = self._answered(turns)
        ids, _ = Marked.of("prompt", pieces[:place]).encoded(self.tokenizer)
        return [int(one) for one in ids]

    def _answered(self, turns: Sequence[tuple[str, str]]) -> tuple[list[Plain | Mark], int]:
        """A conversation with an answer behind it, in pieces, and the number of the piece that is the answer."""
        if self.template is None:
            raise ValueError("the model has no chat template; one in tokenizer_config.json is needed")
        from lg.data.templates import ANSWERING, Message

        pieces = self.template.render([*(Message(*turn) for turn in turns), Message(ANSWERING, _ANSWER)])
        for place in reversed(range(len(pieces))):
            if pieces[place][0] == _ANSWER:
                return pieces, place
        raise ValueError("the model's chat template leaves out what is answered")


@dataclass(frozen=True)
class Opened:
    """A model that is to write.

    Attributes:
        decoder: in eval mode.
        longest: positions that it was made for; None if it does not say.
        spelling: what text is to it; None if no tokenizer was found.
    """

    decoder: Decoder
    longest: int | None
    spelling: Spelling | None

    def speaking(self, path: str) -> Spelling:
        """What text is to a model that was read from ``path``.

        Raises:
            ValueError: if no tokenizer was found, or it has ids that the model has not.
        """
        return speaking(self.spelling, path, self.decoder.config.vocab_size)


def opened(path: str, tokenizer: str | None, dtype: torch.dtype, device: torch.device) -> Opened:
    """Reads a model.

    Args:
        path: a checkpoint, a folder of transformers or a GGUF file.
        tokenizer: as `spelled`.
        dtype: of the weights.
        device: where they lie.

    Raises:
        ValueError: naming the option that is at fault.
    """
    given = Path(path).expanduser()
    if not path or not given.exists():
        raise ValueError(f"{KEY}: {path!r} does not exist; {_KINDS}")
    if given.is_file() and given.suffix in (".json", ".safetensors"):
        raise ValueError(f"{KEY}: {given.name!r} is a file of a folder of transformers; the folder is needed")
    if tokenizer is not None:
        # It is quickly known whether it is one.
        spelled(path, tokenizer, None)
    if is_checkpoint(given):
        return Opened(checkpoint_as(KEY, given, dtype, device), None, spelled(path, tokenizer, None))
    said, decoder = decoder_as(KEY, given, dtype, device)
    return Opened(decoder, said.longest, spelled(path, tokenizer, said.marks))


def spelled(path: str, tokenizer: str | None, marks: Any) -> Spelling | None:
    """What text is to a model; None if no tokenizer is found.

    Args:
        path: the model's.
        tokenizer: a tokenizer.json, a folder that has one, or "bytes"; by default that of the model, or of the
            checkpoint's run.
        marks: special tokens by the keys of the model's config.json; None of a checkpoint.

    Raises:
        ValueError: if the one that is named is none, or the model's cannot be read.
    """
    from lg.cli.tokenizer_files import named, of_model

    given = Path(path).expanduser()
    if tokenizer == "bytes":
        return _of_bytes()
    found = of_model(given) if tokenizer is None else named(tokenizer)
    if found is not None:
        return _spelling(found, marks)
    return _of_bytes() if is_checkpoint(given) and _run_reads_bytes(given) else None


def speaking(found: Spelling | None, path: str, vocab_size: int) -> Spelling:
    """What text is to a model that was read from ``path`` and knows so many tokens.

    Raises:
        ValueError: if no tokenizer was found, or it has ids that the model has not.
    """
    if found is None:
        raise ValueError(f"--tokenizer: needed; none was found beside {path!r}")
    size = found.tokenizer.vocab_size
    if size > vocab_size:
        raise ValueError(
            f"--tokenizer: it has ids up to {size - 1}, and the model 0 to {vocab_size - 1}; another tokenizer is "
            "needed"
        )
    # A generation_config.json may name ids that the model has not.
    found.ends = frozenset(one for one in found.ends if 0 <= one < vocab_size)
    return found


def _of_bytes() -> Spelling:
    from lg.data import Bytes

    return Spelling(Bytes(), frozenset({Bytes().end}))


def _run_reads_bytes(checkpoint: Path) -> bool:
    """Whether the run that wrote a checkpoint was trained on bytes."""
    import yaml

    from lg.cli.tokenizer_files import config_above

    config = config_above(checkpoint)
    if config is None:
        return False
    args = (yaml.safe_load(config.read_text(encoding="utf-8")).get("data") or {}).get("init_args") or {}
    # Null stands for them, where data have a tokenizer.
    kind = (args.get("tokenizer") or {"class_path": "Bytes"}) if "tokenizer" in args else {}
    return str(kind.get("class_path")).rpartition(".")[2] == "Bytes"


def _spelling(found: Found, marks: Any) -> Spelling:
    """A tokenizer that was found, and what its folder says of texts and conversations.

    Args:
        found: its files.
        marks: special tokens by the keys of the model's config.json; None of a checkpoint, whose training put none
            before a text.
    """
    from lg.data import TokenizerFile
    from lg.data.templates import ChatML, Jinja, Llama3

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for called, content in found.files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, folder / called)
            else:
                (folder / called).write_text(content, encoding="utf-8")
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"--tokenizer: {found.whence} has no tokenizer.json; one is needed")
        config, generation = (json_object(folder / f"{of}_config.json") for of in ("tokenizer", "generation"))
        ends = {*_ids(found.marks), *_ids(marks or {}), *_ids(generation)}
        end = config.get("eos_token")
        end = end.get("content") if isinstance(end, dict) else end
        try:
            tokenizer = TokenizerFile(str(file), end if isinstance(end, str) else _spelled(file, ends))
        except ValueError as error:
            raise ValueError(f"--tokenizer: {str(error).replace(str(file), found.whence)}") from error
        template: Template | None = None
        if "chat_template" in config or (folder / "chat_template.jinja").is_file():
            template = Jinja(name)
            template.fingerprint()  # it is read while it is there
        else:
            for mark, kind in (("<|im_start|>", ChatML), ("<|start_header_id|>", Llama3)):
                template = template or (kind() if _has(tokenizer, mark) else None)
        beginning = () if marks is None else _beginning(file)
    return Spelling(tokenizer, frozenset(ends | {tokenizer.end}), beginning, template)


def _beginning(file: Path) -> tuple[int, ...]:
    """The ids that a tokenizer.json puts before a text."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a").ids
    at = next(at for at in range(len(ids)) if ids[at : at + len(bare)] == bare)
    return tuple(ids[:at])


def _has(tokenizer: Tokenizer, mark: str) -> bool:
    try:
        tokenizer.special(mark)
    except ValueError:
        return False
    return True


def _ids(told: Any) -> list[int]:
    ends = told.get("eos_token_id")
    return [] if ends is None else list(ends) if isinstance(ends, list) else [ends]


def _spelled(file: Path, ids: set[int]) -> str | None:
    """One of some special tokens, as the tokenizer.json spells it."""
    added = json_object(file).get("added_tokens", [])
    return next((one["content"] for one in added if one["id"] in ids), None)
