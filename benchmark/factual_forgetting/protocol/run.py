"""A run: what decides a checkpoint, and the names of what it leaves in its directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
from factual_forgetting.protocol import data as schedule
from factual_forgetting.protocol.config import Protocol, protocol_sha256
from factual_forgetting.protocol.settings import MethodSettings

RUN = "run.json"
LOG = "run.log.json"


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
        return schedule.total_steps(self.protocol, size)
