"""Where what a page names can be looked up: https addresses, and nothing that a stranger wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from factual_forgetting.board.bundles import official, sources
from factual_forgetting.board.form import UNSTATED, Record, place, slug
from factual_forgetting.errors import InputError

_HUB = "https://huggingface.co"
_PART = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_DATASET = re.compile(rf"({_PART}/{_PART})@([0-9a-f]{{40}})", re.ASCII)
_HOME = re.compile(r"https://[\w.-]+(:\d+)?(/[\w.~%-]+)*", re.ASCII)


@dataclass(frozen=True)
class Links:
    """The addresses of a board.

    Attributes:
        home: Of the folder that holds records and bundles, without a slash at its end; None where
            they aren't published.
        facts: Where the facts of official bundles are, by hash, as `sources` says it.
        names: Names of official bundles by hash.
    """

    home: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, records: Path, home: str | None) -> Links:
        """Finds what the bundles beside a folder of records say.

        Raises:
            UserError: If `home` is no https address.
        """
        if home is not None and not _HOME.fullmatch(home := home.rstrip("/")):
            raise InputError(f"--home is an https address, without ? and #, not {home}.")
        bundles = records.parent / "bundles"
        if not bundles.is_dir():
            return cls(home)
        names = {sha256: str(one.name) for sha256, one in official(bundles).items()}
        return cls(home, sources(bundles), names)

    def base(self, name: str | None) -> str | None:
        """Returns the address of a model of the Hub, which `owner/name` is taken for."""
        return f"{_HUB}/{name}" if name and _REPOSITORY.fullmatch(name) else None

    def bundle(self, sha256: str) -> str | None:
        """Returns the address of an official bundle's facts, or of its manifest."""
        if there := _DATASET.fullmatch(self.facts.get(sha256, "")):
            return f"{_HUB}/datasets/{there[1]}/tree/{there[2]}"
        name = self.names.get(sha256)
        return f"{self.home}/bundles/{name}" if self.home and name else None

    def submitter(self, name: str) -> str | None:
        """Returns the address of somebody where the records are: it is by that name they submit."""
        if self.home is None or name == UNSTATED:
            return None
        return f"https://{urlsplit(self.home).netloc}/{name}"

    def records(self, base: str | None, sha256: str, method: str) -> str | None:
        """Returns the address of the records of a method."""
        folder = f"{slug(base or 'base')}/{sha256[:12]}/{slug(method)}"
        return f"{self.home}/records/{folder}" if self.home else None

    def of_record(self, record: Record) -> dict[str, str | None]:
        """Returns the addresses of what a record's provenance names, by their name there."""
        path = place(record.model_dump(mode="json"))
        return {
            "record": f"{self.home}/records/{path}" if self.home else None,
            "submitter": self.submitter(record.submitter),
            "base": self.base(record.base.pretrained),
            "bundle": self.bundle(record.bundle_sha256),
            "told in": record.url,
            "repository": self.base(record.repository),
        }
