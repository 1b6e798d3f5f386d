"""Scores checkpoints through lm-eval, in lm-eval's own format, with only our tasks indexed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.modelargs import parse_model_args
from factual_forgetting.slick.engines import default_device
from factual_forgetting.tasks import GROUP, tasks_dir


def score(
    bundle: Bundle,
    model: str,
    model_args: str,
    output: Path,
    *,
    batch_size: str = "auto",
    device: str | None = None,
    limit: float | None = None,
) -> Path:
    """Scores one checkpoint on a bundle.

    Args:
        bundle: The bundle of the checkpoint's base.
        model: lm-eval's model class.
        model_args: Its arguments, or the checkpoint's path alone.
        output: Directory for lm-eval's results.
        batch_size: As in lm-eval.
        device: As in lm-eval; by default the GPU where there is one.
        limit: As in lm-eval; such results are for trying out and make no record.

    Returns:
        The directory that lm-eval wrote results and samples to.

    Raises:
        UserError: If the checkpoint doesn't descend from the bundle's base.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    arguments = parse_model_args(model_args)
    metadata: dict[str, Any] = {
        "ff_bundle": str(bundle.path),
        "ff_bundle_sha256": bundle.sha256,
    }
    if "pretrained" in arguments and model in {"hf", "vllm"}:
        path = checkpoint.locate(arguments["pretrained"], arguments.get("revision"))
        checkpoint.require_descent(path, bundle.manifest["base"])
        arguments["pretrained"] = str(path)
        metadata["ff_weights_sha256"] = checkpoint.weights_sha256(path)
    with _quiet_logging():
        tracker = EvaluationTracker(output_path=str(output))
        results = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=[GROUP],
            batch_size=batch_size,
            device=device or default_device(),
            limit=limit,
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
        raise UserError(f"lm-eval wrote no results to {written}. Is the disk full?")
    return written


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
