"""Scores checkpoints through lm-eval, in lm-eval's own format, with only our tasks indexed."""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.decoding import follow_protocol, tell_ignored
from factual_forgetting.engines.loading import strictly, way_out
from factual_forgetting.engines.merging import merge_adapter
from factual_forgetting.engines.models import found_device, hasten_bf16
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.modelargs import parse_model_args
from factual_forgetting.scoring.reading import require_uncut
from factual_forgetting.scoring.results import asked_sha256
from factual_forgetting.scoring.styles import FEWSHOT, STYLES, TASK
from factual_forgetting.tasks import tasks_dir

_LONGEST = 160  # bytes of a folder's name, which may get a hash
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
    device = found_device(device)
    arguments = _arguments(model, model_args, output, bundle, descends)
    # lm-eval adds the model arguments itself, but not to a task manager that it is given.
    metadata = {
        **({} if model.startswith("local-") else arguments),
        "ff_bundle": str(bundle.path),
        "ff_bundle_sha256": bundle.sha256,
        "ff_descends": descends,
    }
    if ignored := tell_ignored(Path(str(arguments.get("pretrained")))):
        metadata["ff_decoding_ignored"] = ignored
    settings: dict[str, Any] = {
        "model": model, "batch_size": batch_size, "limit": limit, "device": device
    }  # fmt: skip
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
    arguments = checkpoint.safe_arguments(model, parse_model_args(text))
    require_uncut(arguments)
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


def _require_chat_template(arguments: dict[str, Any]) -> None:
    path = Path(str(arguments.get("pretrained", "")))
    config = path / "tokenizer_config.json"
    if not config.is_file() or (path / "chat_template.jinja").is_file():
        return
    if not files.read_object(config, ours=False).get("chat_template"):
        raise InputError(
            f"{path} has no chat template. Score it with --tasks {FEWSHOT}, or give the "
            "checkpoint its chat_template.jinja."
        )


def _evaluate(
    settings: dict[str, Any], arguments: dict[str, Any], metadata: dict[str, Any], output: Path
) -> Path:
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    hasten_bf16()
    tracker, name = EvaluationTracker(output_path=str(output)), settings["model"]
    with _one_line_where_the_model_fails(name):
        where = {key: settings[key] for key in ("batch_size", "device")}
        with strictly():
            lm = get_model(name).create_from_arg_obj(dict(arguments), where)
        follow_protocol(lm)
        results = simple_evaluate(
            **{**settings, "model": lm},
            model_args=dict(arguments),
            log_samples=True,
            evaluation_tracker=tracker,
            task_manager=TaskManager(
                include_path=str(tasks_dir()), include_defaults=False, metadata=metadata
            ),
        )
    results["config"]["model"] = name  # as if lm-eval had made it
    tracker.general_config_tracker.model_source = name
    return _save(tracker, results, output)


def _save(tracker: Any, results: dict[str, Any], output: Path) -> Path:
    """Has lm-eval write apart, and moves what is whole: the results last, which name the samples.

    What a killed command left goes first.
    """
    named, samples = tracker.general_config_tracker, results.pop("samples")
    name = _folder(output, str(named.model_name_sanitized), results)
    apart, written = output / f".lm-eval{files.PARTIAL}", output / name
    with outputs.taken(apart):
        shutil.rmtree(apart / name, ignore_errors=True)
        tracker.output_path, named.model_name_sanitized = str(apart), name
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        whole = _require_whole(apart / name, samples)
        written.mkdir(exist_ok=True)
        _drop_unnamed(written)
        for path in whole:
            path.replace(written / path.name)
        shutil.rmtree(apart)
    return written


def _require_whole(folder: Path, samples: dict[str, Any]) -> list[Path]:
    """Lists what lm-eval wrote, samples first: its own trouble with a disk it only warns of."""
    found = sorted(folder.glob("*"), reverse=True)
    lines = [len(path.read_bytes().splitlines()) for path in found if path.suffix == ".jsonl"]
    told = [path.name.startswith("results_") for path in found]
    if sorted(lines) != sorted(map(len, samples.values())) or not any(told):
        raise InputError(f"lm-eval wrote no whole results to {folder}. Is the disk full?")
    return found


def _drop_unnamed(folder: Path) -> None:
    """Removes samples whose results a killed command didn't come to move."""
    dates = [path.stem.removeprefix("results_") for path in folder.glob("results_*.json")]
    for path in folder.glob("samples_*.jsonl"):
        if not path.stem.endswith(tuple(dates)):
            path.unlink()


def _folder(output: Path, name: str, results: dict[str, Any]) -> str:
    """Returns a folder of these results alone.

    lm-eval names it by the checkpoint, and `a/b` as `a__b`; another one that was asked, or the
    same with other arguments, would share it.
    """
    own, name = asked_sha256(results), files.portable(name)
    if len(name.encode()) > _LONGEST:  # of the parts of a deep path
        end = name.encode()[-_LONGEST:].decode(errors="ignore")
        name = f"{files.sha256_json(name)[:12]}__{end}"
    there = map(files.read_json, (output / name).glob("results_*.json"))
    return name if all(asked_sha256(found) == own for found in there) else f"{name}__{own[:12]}"


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
            f"--model_args and --batch_size. {way_out(error)}"
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
