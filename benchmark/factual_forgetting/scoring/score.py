"""Scores checkpoints through lm-eval, in lm-eval's own format, with only our tasks indexed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.models import default_device, hasten_bf16
from factual_forgetting.errors import InputError, NotFoundError, PackageError, UserError
from factual_forgetting.modelargs import parse_model_args
from factual_forgetting.scoring.styles import FEWSHOT, STYLES, TASK
from factual_forgetting.tasks import tasks_dir

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LOCAL_MODELS = {"hf", "vllm"}
# Functions of lm-eval's that find the model class and make the model of its arguments.
_LOADING = {"get_model", "create_from_arg_obj"}


def run_lm_eval(
    bundle: Bundle,
    model: str,
    model_args: str,
    output: Path,
    *,
    tasks: Sequence[str] = (TASK,),
    batch_size: str = "auto",
    device: str | None = None,
    limit: float | None = None,
    descends: bool = False,
) -> Path:
    """Scores one checkpoint; returns the directory that lm-eval wrote results and samples to.

    Args:
        bundle: The bundle of the checkpoint's base.
        model: lm-eval's model class.
        model_args: Its arguments, or the checkpoint's path; a LoRA adapter is merged first.
        output: Directory for lm-eval's results.
        tasks: Keys of `STYLES`: how to ask.
        batch_size: As in lm-eval.
        device: As in lm-eval; by default the GPU where there is one.
        limit: As in lm-eval; such results are for trying out and make no record.
        descends: Declares the descent from the bundle's base, whatever shape or marks say.

    Raises:
        UserError: If it doesn't descend from that base, or lm-eval can't load or reach it.
    """
    arguments = _arguments(model, model_args, output, bundle, descends)
    # lm-eval adds the model arguments itself, but not to a task manager that it is given.
    metadata = {
        **{key: arguments[key] for key in ("pretrained",) if key in arguments},
        "ff_bundle": str(bundle.path),
        "ff_bundle_sha256": bundle.sha256,
        "ff_descends": descends,
    }
    settings: dict[str, Any] = {"model": model, "batch_size": batch_size, "limit": limit}
    settings["device"] = device or default_device()
    written = output
    styles = [STYLES[task] for task in tasks]
    if any(style.chat for style in styles):
        _require_chat_template(arguments)
    with _quiet_logging():
        # A chat template would change the other prompts, so chat tasks are a run of their own.
        for chat in (False, True):
            asked = [t for style in styles if style.chat == chat for t in style.tasks(bundle)]
            if asked:
                run = {**settings, "tasks": asked, "apply_chat_template": chat}
                written = _evaluate(run, arguments, metadata, output)
    return written


def _arguments(
    model: str, text: str, output: Path, bundle: Bundle, descends: bool
) -> dict[str, Any]:
    """Resolves the checkpoint: found, merged, and of the bundle's base."""
    arguments = parse_model_args(text)
    if model.startswith("local-"):
        # The server tokenises as its model needs it, BOS included; lm-eval would leave BOS out.
        return {"tokenized_requests": False, "tokenizer_backend": None, **arguments}
    if model not in _LOCAL_MODELS or "pretrained" not in arguments:
        return arguments
    merged = merge_adapter(arguments, output / "merged")
    code = bool(arguments.get("trust_remote_code"))
    path = merged or checkpoint.locate(
        arguments["pretrained"], arguments.get("revision"), code=code
    )
    if not descends:
        checkpoint.require_descent(path, bundle.manifest["base"])
    resolved = {key: arguments[key] for key in arguments if key not in ("peft", "revision")}
    return {**resolved, "pretrained": str(path)}


def merge_adapter(arguments: dict[str, Any], folder: Path) -> Path | None:
    """Merges the adapter that model arguments name, into a directory; None if they name none.

    The sums are done in fp32 and saved in the base's dtype. The merge bears the adapter's name,
    beside those of its siblings, so that the adapters of one run stay checkpoints of one run. One
    that is there already is used again if it was made of the same parts.

    Args:
        arguments: `pretrained=BASE,peft=ADAPTER`, or `pretrained=ADAPTER`, which names its base.
        folder: Where merged checkpoints are kept.

    Raises:
        UserError: If peft is missing, the adapter holds no safetensors, or its base isn't found.
    """
    adapter = Path(str(arguments.get("peft", arguments["pretrained"])))
    if not (adapter / _CONFIG).is_file():
        if "peft" in arguments:
            raise NotFoundError(f"{adapter} holds no {_CONFIG}. Give the directory of an adapter.")
        return None
    if not (adapter / _WEIGHTS).is_file():
        raise NotFoundError(
            f"{adapter} holds no {_WEIGHTS}. Save the adapter with save_pretrained."
        )
    checkpoint.require_whole(adapter)
    if "peft" in arguments:
        base = checkpoint.locate(arguments["pretrained"], arguments.get("revision"))
    else:
        named = files.read_json(adapter / _CONFIG, ours=False)
        base = checkpoint.locate(str(named.get("base_model_name_or_path")), named.get("revision"))
    parts = {
        "base": checkpoint.weights_sha256(base),
        "adapter": files.sha256_file(adapter / _WEIGHTS),
        "config": files.sha256_file(adapter / _CONFIG),
    }
    family = files.sha256_json([parts["base"], str(adapter.resolve().parent)])[:12]
    merged = folder / family / adapter.resolve().name
    made_of = merged / "merge.json"
    if not made_of.is_file() or files.read_json(made_of) != parts:
        _merge(base, adapter, merged)
        files.write_json(made_of, parts)
    return merged


def _merge(base: Path, adapter: Path, merged: Path) -> None:
    try:
        from peft import PeftModel
    except ImportError:
        told = "Scoring a LoRA adapter needs peft. Install it: pip install peft."
        raise PackageError(told) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", use_safetensors=True)
    dtype = model.dtype
    whole = PeftModel.from_pretrained(model.float(), str(adapter)).merge_and_unload().to(dtype)
    owner = adapter if (adapter / "tokenizer_config.json").is_file() else base
    with files.atomic_directory(merged) as beside:
        whole.save_pretrained(beside)
        AutoTokenizer.from_pretrained(owner).save_pretrained(beside)


def _require_chat_template(arguments: dict[str, Any]) -> None:
    path = Path(str(arguments.get("pretrained", "")))
    config = path / "tokenizer_config.json"
    if not config.is_file() or (path / "chat_template.jinja").is_file():
        return
    if not files.read_json(config, ours=False).get("chat_template"):
        raise InputError(
            f"{path} has no chat template. Score it with --tasks {FEWSHOT}, or give the "
            "checkpoint its chat_template.jinja."
        )


def _evaluate(
    settings: dict[str, Any], arguments: dict[str, Any], metadata: dict[str, Any], output: Path
) -> Path:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    hasten_bf16()
    tracker = EvaluationTracker(output_path=str(output))
    with _one_line_where_the_model_fails(settings["model"]):
        results = simple_evaluate(
            **settings,
            model_args=dict(arguments),
            log_samples=True,
            evaluation_tracker=tracker,
            task_manager=TaskManager(
                include_path=str(tasks_dir()), include_defaults=False, metadata=metadata
            ),
        )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    written = output / str(tracker.general_config_tracker.model_name_sanitized)
    if not any(written.glob("results_*.json")):
        raise InputError(f"lm-eval wrote no results to {written}. Is the disk full?")
    return written


@contextmanager
def _one_line_where_the_model_fails(model: str) -> Iterator[None]:
    """Tells mistakes in the model's name and arguments, and a server out of reach, in a line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        passed = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if not (_LOADING & passed or isinstance(error, OSError)):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"The model {model} can't be loaded or reached ({reason}). Check --model, "
            "--model_args, --batch_size and --device."
        ) from None


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keeps lm-eval's progress and errors, and drops its chatter."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
