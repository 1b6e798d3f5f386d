"""Measures whether fine-tuning made a language model forget what it knew.

This is the Python interface; what stands deeper in the package may change from release to release.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factual_forgetting.bundle.build import BundleConfig, build_bundle
    from factual_forgetting.bundle.manifest import Bundle, load_bundle
    from factual_forgetting.comparison.comparing import compare
    from factual_forgetting.comparison.result import Comparison
    from factual_forgetting.errors import InputError, NotFoundError, PackageError, UserError
    from factual_forgetting.facts.fact import Fact
    from factual_forgetting.facts.sources import load_facts
    from factual_forgetting.protocol.recipe import Protocol, load_protocol
    from factual_forgetting.protocol.run import Run
    from factual_forgetting.protocol.train import finetune
    from factual_forgetting.scoring.api import Score, score
    from factual_forgetting.scoring.callback import ForgettingCallback
    from factual_forgetting.slick.classify import classify
    from factual_forgetting.slick.labelling import SlickConfig, load_labels

__version__ = "0.1.0"
__all__ = [
    "Bundle", "BundleConfig", "Comparison", "Fact", "ForgettingCallback", "InputError",
    "NotFoundError", "PackageError", "Protocol", "Run", "Score", "SlickConfig", "UserError",
    "__version__", "build_bundle", "classify", "compare", "finetune", "load_bundle", "load_facts",
    "load_labels", "load_protocol", "score",
]  # fmt: skip
_PLACES = {
    "bundle.build": ("BundleConfig", "build_bundle"),
    "bundle.manifest": ("Bundle", "load_bundle"),
    "comparison.comparing": ("compare",),
    "comparison.result": ("Comparison",),
    "errors": ("InputError", "NotFoundError", "PackageError", "UserError"),
    "facts.fact": ("Fact",),
    "facts.sources": ("load_facts",),
    "protocol.recipe": ("Protocol", "load_protocol"),
    "protocol.run": ("Run",),
    "protocol.train": ("finetune",),
    "scoring.api": ("Score", "score"),
    "scoring.callback": ("ForgettingCallback",),
    "slick.classify": ("classify",),
    "slick.labelling": ("SlickConfig", "load_labels"),
}


def __getattr__(name: str) -> Any:
    """Loads a part of the interface on first use: the command line must start without it."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
