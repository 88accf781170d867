"""From sources of text to packed rows of tokens; stands alone, nothing of lg is imported here."""

from lg.data.assets import Fetched
from lg.data.cache import cached
from lg.data.chat import Chat
from lg.data.corpus import Corpus
from lg.data.count_model import CountModel
from lg.data.datamodule import TextData
from lg.data.files import Folder, Repositories, Stdlib
from lg.data.hub import HuggingFace
from lg.data.loader import Loader
from lg.data.mixture import Mixture, Upsample
from lg.data.packed import PackedRows, pack
from lg.data.packing import BestFit, Chunks, Cut, Packed, Packing, Whole
from lg.data.planted import Planted
from lg.data.positions import E2LLM, LongRecipe, PoSE, Positions, Sentences
from lg.data.random_tokens import RandomTokens
from lg.data.rows import IGNORED, Batch, Row, RowShape, collate
from lg.data.shards import data_axis, of_every_rank
from lg.data.source import Document, Source
from lg.data.tables import Jsonl, Parquet
from lg.data.templates import ChatML, Jinja, Llama3, Template
from lg.data.tokenizer import Bytes, Tokenizer, TokenizerFile

__all__ = [
    "E2LLM",
    "IGNORED",
    "Batch",
    "BestFit",
    "Bytes",
    "Chat",
    "ChatML",
    "Chunks",
    "Corpus",
    "CountModel",
    "Cut",
    "Document",
    "Fetched",
    "Folder",
    "HuggingFace",
    "Jinja",
    "Jsonl",
    "Llama3",
    "Loader",
    "LongRecipe",
    "Mixture",
    "Packed",
    "PackedRows",
    "Packing",
    "Parquet",
    "Planted",
    "PoSE",
    "Positions",
    "RandomTokens",
    "Repositories",
    "Row",
    "RowShape",
    "Sentences",
    "Source",
    "Stdlib",
    "Template",
    "TextData",
    "Tokenizer",
    "TokenizerFile",
    "Upsample",
    "Whole",
    "cached",
    "collate",
    "data_axis",
    "of_every_rank",
    "pack",
]
