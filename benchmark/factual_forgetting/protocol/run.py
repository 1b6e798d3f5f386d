"""A run: what decides a checkpoint, and the names of what runs leave in their directories."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
from factual_forgetting.errors import InputError
from factual_forgetting.protocol.recipe import Protocol, protocol_sha256
from factual_forgetting.protocol.settings import MethodSettings

RUN = "run.json"
LOG = "run.log.json"
CHOSEN = "chosen.json"  # of a sweep
# While it trains: what it is held to later, and the best weights so far, by step.
SNAPSHOT, BEST = "snapshot", "best"


@dataclass(frozen=True, slots=True)
class Run:
    """What decides a checkpoint.

    Attributes:
        bundle: The bundle to train on; it names the base.
        protocol: The recipe.
        method: Key of `settings.SETTINGS`.
        settings: The method's validated settings.
        seed: Decides the order of the facts, and the start of what is new.
        foreign_base: Identity of the base where it isn't the bundle's own; None otherwise.
    """

    bundle: Bundle
    protocol: Protocol
    method: str
    settings: MethodSettings
    seed: int
    foreign_base: dict[str, Any] | None = None

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes this run from every other."""
        return {
            "bundle_sha256": self.bundle.sha256,
            "base": self.bundle.manifest["base"],
            "foreign_base": self.foreign_base,
            "method": {"name": self.method, "settings": self.settings.model_dump(mode="json")},
            "protocol": self.protocol.model_dump(mode="json"),
            "protocol_sha256": protocol_sha256(self.protocol),
            "seed": self.seed,
        }

    def steps(self) -> int:
        """Returns its optimizer steps: those of every method under this protocol and bundle."""
        size = sum(len(self.bundle.splits[name]) for name in (KNOWN, UNKNOWN))
        return self.protocol.epochs * ceil(size / self.protocol.batch_size)

    def locate_base(self, pretrained: str | None = None) -> Path:
        """Finds the base that it starts from, in `pretrained` or where the bundle says.

        Raises:
            UserError: If it isn't found, or isn't the one that the run names.
        """
        expected = self.foreign_base or self.bundle.manifest["base"]
        pretrained = pretrained or expected["pretrained"]
        if pretrained is None:
            raise InputError(
                "The bundle doesn't say where its base is. Give --model_args pretrained=…"
            )
        base = checkpoint.locate(pretrained, expected.get("revision"))
        if checkpoint.weights_sha256(base) == expected["weights_sha256"]:
            return base
        found, named = checkpoint.shape(base), expected["shape"].items()
        differing = ", ".join(f"{k} {found[k]} instead of {v}" for k, v in named if found[k] != v)
        raise InputError(
            f"The weights in {base} are not those of the base that this bundle was made for"
            f"{f' ({differing})' if differing else ''}. Build a bundle for this base, give the "
            "right one with --model_args pretrained=…, or insist with --allow_foreign_base."
        )
