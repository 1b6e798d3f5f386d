"""Finds the lm-eval task files in a checkout or an installed wheel, and registers them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from factual_forgetting.errors import NotFoundError, PackageError, UserError

GROUP = "factual_forgetting"


def tasks_dir() -> Path:
    """Returns the directory to give to lm-eval as `--include_path`.

    Raises:
        UserError: If the installation lacks it.
    """
    package = Path(__file__).parent
    for candidate in (package / "tasks", package.parents[1] / "tasks"):
        if (candidate / GROUP).is_dir():
            return candidate
    raise NotFoundError("The task files are missing. Install the package again.")


def registered_dir() -> Path:
    """Returns where `register` puts the task files: among lm-eval's own.

    Raises:
        UserError: If lm-eval isn't installed.
    """
    # find_spec doesn't import lm_eval, which takes seconds.
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise PackageError("lm-eval is not installed. Install it: pip install lm_eval.")
    return Path(spec.origin).parent / "tasks" / GROUP


def register() -> Path:
    """Copies the task files into lm-eval, so that it finds them without `--include_path`."""
    target = registered_dir()
    shutil.copytree(tasks_dir() / GROUP, target, dirs_exist_ok=True)
    return target


def unregister() -> Path:
    """Removes what `register` copied.

    Raises:
        UserError: If nothing is registered.
    """
    target = registered_dir()
    if not target.is_dir():
        raise UserError("The tasks are not registered with lm-eval. There is nothing to remove.")
    shutil.rmtree(target)
    return target
