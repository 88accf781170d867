"""Files of lg's own: the folder of what it can make or fetch again, and how a file comes to stand whole anywhere."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where tokens, texts of ``lg data fetch`` and verdicts of ``lg check`` are kept.

    ``$LG_CACHE``, else ``$XDG_CACHE_HOME/lg``, else ``~/.cache/lg``; nothing is made.

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


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, under a name that no other run has; at the end it gets the name ``path``.

    Whoever reads meanwhile, or writes it too, never meets half of it; where writing fails, what was there is as it was.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
