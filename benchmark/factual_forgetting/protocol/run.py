"""A run: what decides a checkpoint, and the names of what runs leave in their directories."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
from factual_forgetting.config import Told, parse
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.protocol.recipe import Protocol, protocol_sha256
from factual_forgetting.protocol.settings import MethodSettings

# A run that holds PARTIAL_RUN still has to be finished, or only tidied.
RUN, PARTIAL_RUN = "run.json", "run.partial.json"
LOG = "run.log.json"
CHOSEN, RUNS = "chosen.json", "runs"  # of a sweep
# While it trains: what it is held to later, the best weights so far by step, and a base made whole.
SNAPSHOT, BEST, MERGED = "snapshot", "best", "merged"
_TOLD = {"bundle_sha256", "method", "protocol", "protocol_sha256", "seed", "weights_sha256"}


class _Method(Told):
    name: str
    settings: dict[str, Any]


class _Resolved(Told):
    attention: str | None = None
    batch_size: int | None = None
    dtype: dict[str, str] = Field(default_factory=dict)


class _RunTold(Told):
    """What is read of `run.json`, by whichever version it was written."""

    bundle_sha256: str
    method: _Method
    protocol: Protocol | None
    protocol_sha256: str | None
    seed: int
    weights_sha256: str | None
    steps: Annotated[int, Field(ge=0)]
    environment: dict[str, Any]
    foreign_base: dict[str, Any] | None = None
    earlier_sha256: str | None = None
    resolved: _Resolved = _Resolved()


class Choice(Told):
    """What a sweep chose for an arm: its runs, below the sweep, and the trials that there were."""

    runs: list[Annotated[str, StringConstraints(pattern=r"^[^/.][^/]*(/[^/.][^/]*)*$")]]
    trials: Annotated[int, Field(ge=1)] = 1


def told_by_run(path: Path) -> dict[str, Any] | None:
    """Reads what `finetune` says of a finished run; None if it made nothing in that directory.

    Other programs write a run.json too.

    Raises:
        UserError: If it is of a run, and malformed.
    """
    try:
        if not (path / RUN).is_file():
            return None
        told = files.read_json(path / RUN)
    except (UserError, OSError):
        return None
    if not (isinstance(told, dict) and told.keys() >= _TOLD):
        return None
    parse(_RunTold, told, str(path / RUN))
    return told


def read_chosen(path: Path) -> dict[str, Choice]:
    """Reads what a finished sweep chose, by arm; raises a UserError if that is malformed."""
    told = files.read_object(path / CHOSEN)
    return {arm: parse(Choice, row, f"{path / CHOSEN}, arm {arm}") for arm, row in told.items()}


@dataclass(frozen=True, slots=True)
class Base:
    """Where a base is: the directory of its weights, and of an adapter that belongs on them."""

    path: Path
    adapter: str | None

    def whole(self, folder: Path) -> Path:
        """Returns the directory to train from; with an adapter, of a merge made in `folder`."""
        if self.adapter is None:
            return self.path
        from accelerate import PartialState

        from factual_forgetting.engines.merging import merge_adapter

        with PartialState().main_process_first():
            merged = merge_adapter({"pretrained": str(self.path), "peft": self.adapter}, folder)
        return merged or self.path


def optimizer_steps(bundle: Bundle, protocol: Protocol) -> int:
    """Returns the steps that a protocol trains every method for on a bundle."""
    size = sum(len(bundle.splits[name]) for name in (KNOWN, UNKNOWN))
    return protocol.epochs * ceil(size / protocol.batch_size)


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
        return optimizer_steps(self.bundle, self.protocol)

    def locate_base(self, pretrained: str | None = None, adapter: str | None = None) -> Base:
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
        if expected["weights_sha256"] is None:
            raise InputError(
                f"This bundle's base was asked through --model {expected.get('model')}, and there "
                "are no weights to hold yours against. Give --model_args pretrained=…, and insist "
                "with --allow_foreign_base."
            )
        revision, adapter = expected.get("revision"), adapter or expected.get("adapter")
        base = Base(checkpoint.locate(pretrained, revision), adapter)
        found = checkpoint.identity(pretrained, revision, adapter)
        if found["weights_sha256"] != expected["weights_sha256"]:
            raise _another_base(base, expected)
        return base


def _another_base(base: Base, expected: dict[str, Any]) -> InputError:
    differing = ", ".join(checkpoint.differing_shape(base.path, expected))
    found = f"{base.path} with {base.adapter}" if base.adapter else base.path
    return InputError(
        f"The weights in {found} are not those of the base that this bundle was made for"
        f"{f' ({differing})' if differing else ''}. Build a bundle for this base, give the right "
        "one with --model_args pretrained=… (and peft=…), or insist with --allow_foreign_base."
    )
