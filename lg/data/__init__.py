"""From sources of text to packed rows of tokens; stands alone, nothing of lg is imported here."""

from lg.data.count_model import CountModel
from lg.data.datamodule import TextData
from lg.data.packing import IGNORED, Batch, PackedRows, Row, collate, pack
from lg.data.source import Document, Folder, HuggingFace, Source, Stdlib
from lg.data.tokenizer import Bytes, Tokenizer, TokenizerFile

__all__ = [
    "IGNORED",
    "Batch",
    "Bytes",
    "CountModel",
    "Document",
    "Folder",
    "HuggingFace",
    "PackedRows",
    "Row",
    "Source",
    "Stdlib",
    "TextData",
    "Tokenizer",
    "TokenizerFile",
    "collate",
    "pack",
]
