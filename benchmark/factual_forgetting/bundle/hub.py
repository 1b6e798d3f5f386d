"""Bundles published as datasets on the Hub, at a pinned commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from factual_forgetting.errors import InputError

_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
_FILES = ["manifest.json", "*.jsonl", "*.md"]


def fetch_bundle(name: str) -> Path | None:
    """Returns the directory of a bundle on the Hub, from the cache if it is there.

    Args:
        name: `owner/dataset@commit`, the commit as 40 hexadecimal digits: a branch would let
            the facts change under a published number.

    Returns:
        The directory; None if the name is none of a bundle on the Hub.

    Raises:
        UserError: If it is neither in the cache nor in reach.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "repo_id": match["repository"],
        "repo_type": "dataset",
        "revision": match["commit"],
        "allow_patterns": _FILES,
    }
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))
        if (cached / "manifest.json").is_file():
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(**wanted))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The bundle {name} is neither in the cache nor in reach ({reason}). Check the name, "
            "or download the dataset where there is a network and give its directory."
        ) from None
