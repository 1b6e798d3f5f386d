"""What users are told where nothing else of SLiCK's tests tells it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from factual_forgetting.errors import InputError, PackageError
from factual_forgetting.slick.classify import begin
from factual_forgetting.slick.labelling import PARTS, SlickConfig, read_manifest
from factual_forgetting.slick.on_ray import classify_on_ray
from stub import BASE

OPENING = ("auto", "hf", {})


def test_an_unfinished_labelling(tmp_path: Path) -> None:
    (tmp_path / PARTS).mkdir()
    with pytest.raises(InputError, match=r"Run classify again to resume it"):
        read_manifest(tmp_path)


def test_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"beside the exemplars\. Give more facts"):
        begin([], "stub", SlickConfig(), BASE, tmp_path)


def test_ray_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PackageError, match=r"Install factual-forgetting\[ray\]"):
        classify_on_ray([], OPENING, SlickConfig(), BASE, tmp_path, 1)


class LostError(Exception):
    """What Ray says of a worker that died."""


def test_workers_that_keep_dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(given: object) -> None:
        raise LostError("The actor died.")

    worker = SimpleNamespace(name=SimpleNamespace(remote=lambda: None))
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=dict,
        remote=lambda **given: lambda kind: SimpleNamespace(remote=lambda opening: worker),
        get=fail,
        exceptions=SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=LostError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(InputError, match=r"failing \(The actor died\.\)\. Run again to resume"):
        classify_on_ray([], OPENING, SlickConfig(), BASE, tmp_path, 1)
