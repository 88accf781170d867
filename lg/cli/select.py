"""``lg data select``: keeps the sentences of long documents whose tokens an extended model predicts otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.lengths import tokens_in
from lg.cli.pretrained_part import checkpoint_as, decoder_as
from lg.cli.progress import ProgressLine, progress
from lg.cli.written import file_for

if TYPE_CHECKING:
    from argparse import Namespace

    import torch

    from lg.data.datamodule import TextData
    from lg.data.impactful import Impactful, Scorer
    from lg.models.decoder import Decoder

HELP = """usage: lg data select --config=FILE --base=MODEL --extended=MODEL --out=FILE.jsonl [--OPTION=VALUE ...]

Keeps of each long document the sentences that hold impactful tokens, whose probability changes most from a base model
to one whose context was extended, as LongRecipe does. The documents are those of the configuration's `data`, and the
tokenizer is its, which must be the models' own. A model is a folder of transformers, a GGUF file, or a checkpoint file
of lg. What is kept is a line a document, for the source Jsonl; the file is there when it is whole.

  lg data select --config=books.yaml --base=models/llama --extended=step=00000100.ckpt --out=kept.jsonl

options:
  --length N       tokens of a document from which is chosen: longer ones are cut into such pieces, and what fills none
                   is left out (80K)
  --budget N       tokens that are kept of each, at most (24K)
  --share S        of its tokens, those that are impactful (0.2)
  --window N       tokens that the models read at a time; by default the whole length
  --documents N    documents, or pieces, after which it ends; by default all
  --seed N         of the draw of sentences (0)
  --data.KEY V     any key of the configuration's data
"""


def run(words: list[str]) -> None:
    """Reads, scores, chooses and writes.

    Args:
        words: those after ``lg data select``.

    Raises:
        ValueError: when the input is at fault, or nothing is kept; then nothing is written.
    """
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    options, rest = _options(words)
    for name in ("base", "extended", "out"):
        if not getattr(options, name):
            raise ValueError(f"--{name}: needed (see lg data select --help)")
    out = file_for(options.out, "--out", ".jsonl")
    assert out is not None
    from lg.data.impactful import Impactful

    how = Impactful(
        tokens_in(options.length, "--length"), tokens_in(options.budget, "--budget"),
        _number(options.share, "--share"), int(_number(options.seed, "--seed")),
    )  # fmt: skip
    window = tokens_in(options.window, "--window") if options.window else how.length
    if window < 2:
        raise ValueError(f"--window: {window} is not allowed; it must be at least 2")
    most = int(_number(options.documents, "--documents")) if options.documents else sys.maxsize
    if most < 1:
        raise ValueError(f"--documents: {most} is not allowed; it must be at least 1")
    data = _data(rest)
    with progress("lg data") as line:
        scorers = [_scorer(getattr(options, name), f"--{name}", data, window, line) for name in ("base", "extended")]
        told = _written(out, how, data, scorers[0], scorers[1], most, line)
    print(told)


def _options(words: list[str]) -> tuple[Namespace, list[str]]:
    """Own options, and the words for the data."""
    from lg.cli.bench import Parser

    parser = Parser(prog="lg data select", allow_abbrev=False, add_help=False)
    defaults = {"length": "80K", "budget": "24K", "share": "0.2", "seed": "0"}
    for name in ("base", "extended", "out", "length", "budget", "share", "window", "documents", "seed"):
        parser.add_argument(f"--{name}", default=defaults.get(name))
    return parser.parse_known_args(words)


def _number(word: str, key: str) -> float:
    try:
        return float(word) if key == "--share" else int(word)
    except ValueError as error:
        raise ValueError(f"{key}: {word!r} is no number") from error


def _data(words: list[str]) -> TextData:
    from lg.cli.data_part import read_data
    from lg.data.datamodule import TextData

    data = read_data("data select", words)
    if not isinstance(data, TextData):
        raise ValueError(f"data.class_path: {type(data).__name__} is not allowed; TextData, which has texts, is needed")
    return data


def _scorer(path: str, key: str, data: TextData, window: int, line: ProgressLine) -> Scorer:
    """A model as what scores tokens."""
    import numpy as np
    import torch

    from lg.attention import Documents
    from lg.models.loss import IGNORED

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    line.show(f"reading {Path(path).name}")
    decoder = _decoder(path, key, device)
    if data.vocab_size > decoder.config.vocab_size:
        raise ValueError(
            f"{key}: {path!r} is not allowed; it knows {decoder.config.vocab_size} tokens, and the tokenizer has "
            f"{data.vocab_size} (data.init_args.tokenizer)"
        )

    def score(tokens: np.ndarray[tuple[int], np.dtype[np.integer]]) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
        starts = list(range(0, len(tokens), window))
        ids = torch.from_numpy(np.asarray(tokens, np.int64)).to(device)[None]
        targets = ids.roll(-1, 1)
        targets[0, [start - 1 for start in starts]] = IGNORED
        with torch.no_grad():
            losses = decoder.token_losses(ids, targets, Documents(len(tokens), starts))
        scores = -losses[0].float().roll(1)
        scores[starts] = torch.nan
        return scores.cpu().numpy()

    return score


def _decoder(path: str, key: str, device: torch.device) -> Decoder:
    """The model at a path, on the device; on a GPU in bfloat16."""
    import torch

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if Path(path).suffix == ".ckpt":
        if not Path(path).exists():
            raise ValueError(f"{key}: {path!r} does not exist")
        return checkpoint_as(key, Path(path), dtype, device)
    return decoder_as(key, path, dtype, device)[1]


def _written(
    out: Path, how: Impactful, data: TextData, base: Scorer, extended: Scorer, most: int, line: ProgressLine
) -> str:
    """Writes the file, and says what is in it."""
    from itertools import islice

    from lg.folder import aside

    documents = (document for part in data.source.parts() for _, document in part.numbered())
    count = num_tokens = num_impactful = 0
    try:
        with aside(out) as part, part.open("w", encoding="utf-8") as file:
            for kept in islice(how.select(documents, data.tokenizer, base, extended), most):
                text = kept.text.decode(errors="replace")
                if text:
                    count += 1
                    file.write(json.dumps({"name": kept.name, "text": text}, ensure_ascii=False) + "\n")
                num_tokens += kept.num_tokens
                num_impactful += kept.num_impactful
                line.show(f"choosing sentences: {count} documents, {num_tokens:,} tokens kept")
            if not count:
                raise ValueError(
                    f"--length: {how.length} is not allowed; no document has so many tokens, or no sentence fits "
                    f"--budget, {how.budget}"
                )
    except OSError as error:
        raise ValueError(f"--out: {str(out)!r} cannot be written: {error.strerror}") from error
    return (
        f"{out}  {count:,} documents, {num_tokens:,} of {count * how.length:,} tokens, "
        f"{num_impactful / num_tokens:.0%} of them impactful"
    )
