import shutil
from pathlib import Path

import pytest

from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"somebody/facts@{COMMIT}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "datasets--somebody--facts" / "snapshots" / COMMIT


def test_a_cached_bundle_is_found_offline(bundle: Bundle, cache: Path) -> None:
    shutil.copytree(bundle.path, cache)
    found = load_bundle(locate_bundle(NAME))
    assert found.sha256 == bundle.sha256
    assert found.splits == bundle.splits


def test_a_changed_cache_is_refused(bundle: Bundle, cache: Path) -> None:
    shutil.copytree(bundle.path, cache)
    (cache / "heldout.jsonl").write_text("")
    with pytest.raises(UserError, match="was changed"):
        load_bundle(locate_bundle(NAME))


def test_what_is_not_cached_is_one_line(cache: Path) -> None:
    with pytest.raises(UserError, match="neither in the cache nor in reach"):
        locate_bundle(NAME)


@pytest.mark.parametrize("name", ["somebody/facts", "somebody/facts@main", f"../facts@{COMMIT}/x"])
def test_only_a_pinned_commit_is_asked_for(name: str, cache: Path) -> None:
    with pytest.raises(UserError, match="holds no bundle"):
        load_bundle(locate_bundle(name))
