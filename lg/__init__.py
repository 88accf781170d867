"""lg trains hybrid decoders: language models whose layers see different parts of a long context."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lg.inference import generate as generate

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is imported when it is asked for, since it takes torch: `lg.generate`."""
    if name == "generate":
        from lg.inference import generate

        return generate
    raise AttributeError(f"module 'lg' has no attribute {name!r}")
