"""Where lg keeps what it can make or fetch again: tokens, texts of ``lg data fetch``, verdicts of ``lg check``."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LG_CACHE``, else ``$XDG_CACHE_HOME/lg``, else ``~/.cache/lg``; nothing is made.

    ``LG_CACHE`` may begin with ``~``. As its specification says, an ``XDG_CACHE_HOME`` that is not absolute does not
    count.

    Raises:
        ValueError: ``LG_CACHE`` begins with the home of a user whom there is not.
    """
    if own := os.environ.get("LG_CACHE"):
        try:
            return Path(own).expanduser().absolute()
        except RuntimeError as error:
            raise ValueError(f"LG_CACHE: {own!r} is no folder ({error}); one is needed") from error
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "lg"
