"""From sources of text to packed rows of tokens; stands alone, nothing of lg is imported here."""

from lg.data.assets import Fetched
from lg.data.cache import cached
from lg.data.corpus import Corpus
from lg.data.count_model import CountModel
from lg.data.datamodule import TextData
from lg.data.files import Folder, Repositories, Stdlib
from lg.data.hub import HuggingFace
from lg.data.loader import Loader
from lg.data.mixture import Mixture, Upsample
from lg.data.packed import PackedRows, pack
from lg.data.packing import BestFit, Cut, Packed, Packing
from lg.data.random_tokens import RandomTokens
from lg.data.rows import IGNORED, Batch, Row, RowShape, collate
from lg.data.shards import data_axis, of_every_rank
from lg.data.source import Document, Source
from lg.data.tables import Jsonl, Parquet
from lg.data.tokenizer import Bytes, Tokenizer, TokenizerFile

__all__ = [
    "IGNORED",
    "Batch",
    "BestFit",
    "Bytes",
    "Corpus",
    "CountModel",
    "Cut",
    "Document",
    "Fetched",
    "Folder",
    "HuggingFace",
    "Jsonl",
    "Loader",
    "Mixture",
    "Packed",
    "PackedRows",
    "Packing",
    "Parquet",
    "RandomTokens",
    "Repositories",
    "Row",
    "RowShape",
    "Source",
    "Stdlib",
    "TextData",
    "Tokenizer",
    "TokenizerFile",
    "Upsample",
    "cached",
    "collate",
    "data_axis",
    "of_every_rank",
    "pack",
]
