"""Loads what a stranger's files hold, all of it and nothing else, and runs none of their code.

transformers and peft warn of weights that find no place, and go on with random ones.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from factual_forgetting.errors import InputError, PackageError

_TOLD = 3
# What is changed within is the libraries' own, for the whole process.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def strictly() -> Iterator[None]:
    """Refuses, of all that transformers and peft load within, what the files don't hold wholly.

    Pickles are not read, and nobody is asked whether a checkpoint's code may run: without
    `trust_remote_code` it may not.

    Raises:
        UserError: With the keys that are missing, unexpected or of another shape.
    """
    from transformers import PreTrainedModel, dynamic_module_utils

    with _ONE_AT_A_TIME, ExitStack() as stack:
        # Without time for an answer transformers doesn't ask, and reads no stdin.
        stack.enter_context(patch.object(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0))
        _change(stack, PreTrainedModel, "from_pretrained", _model_loader)
        try:
            from peft import PeftModel
        except ImportError:  # then there are no adapters
            pass
        else:
            _change(stack, PeftModel, "load_adapter", _adapter_loader)
        yield


def _change(
    stack: ExitStack, owner: type, name: str, change: Callable[[Any], Callable[..., Any]]
) -> None:
    own = vars(owner)[name]
    changed = classmethod(change(own.__func__)) if isinstance(own, classmethod) else change(own)
    stack.enter_context(patch.object(owner, name, changed))


def _model_loader(load: Any) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(cls: Any, name: Any, *given: Any, **settings: Any) -> Any:
        told = settings.pop("output_loading_info", False)
        settings["use_safetensors"] = True
        model, info = load(cls, name, *given, output_loading_info=True, **settings)
        _require_all(name, info)
        return (model, info) if told else model

    return loaded


def _adapter_loader(load: Any) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(self: Any, name: Any, *given: Any, **settings: Any) -> Any:
        result = load(self, name, *given, **settings)
        _require_all(name, vars(result) if hasattr(result, "__dict__") else result._asdict())
        return result

    return loaded


def _require_all(name: Any, info: Mapping[str, Any]) -> None:
    """Refuses what was loaded if a key was missing, unexpected, or of another shape."""
    kinds = {
        "missing": info.get("missing_keys") or (),
        "unexpected": info.get("unexpected_keys") or (),
        "of another shape": [key[0] for key in info.get("mismatched_keys") or ()],
    }
    told = [f"{kind}: {_few(keys)}" for kind, keys in kinds.items() if keys]
    if told:
        raise InputError(
            f"The weights in {name} are not those of the model that its config describes "
            f"({'; '.join(told)}). Save them again with save_pretrained of the bare model: not "
            "of one that torch.compile or another wrapper holds."
        )


def _few(keys: Any) -> str:
    names = sorted(map(str, keys))
    rest = len(names) - _TOLD
    return ", ".join(names[:_TOLD]) + (f" and {rest:,} more" if rest > 0 else "")


def way_out(error: BaseException) -> str:
    """Tells what to do about a checkpoint that doesn't load."""
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return (
            "Nothing of a stranger's runs unasked: where you trust it, classify and score take "
            "trust_remote_code=True in --model_args; other commands run no such code."
        )
    return "Check the checkpoint, the dtype and the device."


def load_model(path: Path, **settings: Any) -> Any:
    """Returns the causal language model of a checkpoint directory; see `strictly`.

    Args:
        path: Checkpoint directory.
        settings: Those of transformers' `from_pretrained`.

    Raises:
        UserError: As `strictly`.
    """
    from transformers import AutoModelForCausalLM

    with strictly():
        return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **settings)


def load_adapter(model: Any, adapter: Path) -> Any:
    """Returns a model with a LoRA adapter on it; see `strictly`.

    Raises:
        UserError: As `strictly`, or if peft is missing.
    """
    try:
        from peft import PeftModel
    except ImportError:
        told = "Merging a LoRA adapter needs peft. Install it: pip install peft."
        raise PackageError(told) from None
    with strictly():
        return PeftModel.from_pretrained(model, str(adapter))


def load_tokenizer(path: Path) -> Any:
    """Returns a directory's tokenizer, which brings no code."""
    from transformers import AutoTokenizer

    with strictly():
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
