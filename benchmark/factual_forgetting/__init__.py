"""Measures whether fine-tuning made a language model forget what it knew."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factual_forgetting.scoring.api import Score as Score
    from factual_forgetting.scoring.api import score as score

__version__ = "0.1.0"
__all__ = ["Score", "__version__", "score"]


def __getattr__(name: str) -> Any:
    """Loads the Python interface on first use: the command line must start without it."""
    if name in ("Score", "score"):
        from factual_forgetting.scoring import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
