"""What an interference experiment teaches, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

from pydantic import Field

from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, Bundle
from factual_forgetting.config import Config
from factual_forgetting.facts.fact import Fact
from factual_forgetting.mechanism.keys import Keys, Values
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import resolve

SAME, OTHER = "same", "other"
RIGHT, WRONG, ABSTAINED = "1", "0", "a"
# The teacher is the base: a snapshot would have to be trained on other facts in each condition.
_METHODS = {"sft": {}, "self_distillation": {"teacher": "base", "tau": 1.0}}
Taught = Literal["sft", "self_distillation"]


class Condition(Config):
    """What is taught, and how.

    Attributes:
        keys: Kind of the new facts' subjects; `known` gives known facts other answers.
        values: Kind of their answers.
        facts: Number of new facts.
        method: How they are taught.
        seed: Decides keys, values and order.
        mixed: Whether D_Known of all relations is part of every pass.
        passes: Trains for so many passes; None until the settings' plasticity is reached.
    """

    keys: Keys
    values: Values = "real"
    facts: int = Field(gt=0)
    method: Taught = "sft"
    seed: int = 0
    mixed: bool = True
    passes: int | None = None

    @property
    def arm(self) -> str:
        """Its name, whatever the seed."""
        told = "" if self.mixed else "-alone"
        told += f"-{self.passes}passes" if self.passes else ""
        return f"{self.keys}-{self.values}-{self.facts}-{self.method}{told}"

    @property
    def place(self) -> tuple[int, ...]:
        """Sorts tables: the grid of real answers before its variations."""
        kinds = ((Values, self.values), (Taught, self.method), (Keys, self.keys))
        values, method, keys = (get_args(kind).index(name) for kind, name in kinds)
        return (self.passes or 0, not self.mixed, values, self.facts, method, keys, self.seed)


class Settings(Config):
    """What all conditions of an experiment share.

    Attributes:
        relation: That of the new facts.
        protocol: Rate, batch, precision; its number of epochs doesn't count.
        plasticity: Training ends at the first point where so many new facts are right. What was
            trained further serves as well: its points end there too.
        most_passes: Training ends after so many in any case.
    """

    relation: str
    protocol: Protocol
    plasticity: float = Field(gt=0, le=1)
    most_passes: int = Field(gt=0)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One condition on one bundle, which names the base."""

    bundle: Bundle
    condition: Condition
    settings: Settings

    @property
    def name(self) -> str:
        """Its name in paths."""
        return f"{self.bundle.sha256[:8]}-{self.condition.arm}-{self.condition.seed}"

    @property
    def mixed_in(self) -> list[Fact]:
        """The known facts that are part of every pass."""
        return [i.fact for i in self.bundle.splits[KNOWN]] if self.condition.mixed else []

    @property
    def a_pass(self) -> int:
        """Facts in one pass, known ones included."""
        return self.condition.facts + len(self.mixed_in)

    @property
    def steps(self) -> int:
        """Most optimizer steps."""
        passes = self.condition.passes or self.settings.most_passes
        return ceil(passes * (self.a_pass / self.settings.protocol.batch_size))

    @property
    def every(self) -> int:
        """Optimizer steps between two points: half a pass, but at least 4."""
        return max(4, ceil(self.a_pass / self.settings.protocol.batch_size / 2))

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes it from every other."""
        return {
            "bundle_sha256": self.bundle.sha256,
            "condition": self.condition.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
        }

    def run(self) -> Run:
        """Returns it as a run: base, recipe, method and seed."""
        told = self.condition
        settings = resolve(told.method, _METHODS[told.method])
        return Run(self.bundle, self.settings.protocol, told.method, settings, told.seed)


def held_facts(bundle: Bundle, relation: str) -> dict[str, list[Fact]]:
    """Returns D_Held in the bundle's order: of a relation (`same`), and of others (`other`)."""
    held = [item.fact for item in bundle.splits[HELDOUT]]
    return {
        SAME: [fact for fact in held if fact.relation == relation],
        OTHER: [fact for fact in held if fact.relation != relation],
    }
