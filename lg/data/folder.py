"""Where lg keeps what it can make or fetch again: tokens, and the texts of ``lg data fetch``."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LG_CACHE``, else ``$XDG_CACHE_HOME/lg``, else ``~/.cache/lg``; nothing is made.

    ``~`` is understood. As its specification says, an ``XDG_CACHE_HOME`` that is not absolute does not count.
    """
    if own := os.environ.get("LG_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "lg"
