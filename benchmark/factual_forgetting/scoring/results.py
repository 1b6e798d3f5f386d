"""Reads lm-eval's output back: outcomes by fact, scored again from the answers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle, Item
from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.slick.prompts import MAX_NEW_TOKENS, question_prompt

SPLIT_OF_TASK = {
    "factual_forgetting_learning": "known",
    "factual_forgetting_plasticity": "unknown",
    "factual_forgetting_stability": "heldout",
}


@dataclass(frozen=True, slots=True)
class Results:
    """What a checkpoint answered.

    Attributes:
        path: The results file.
        pretrained: The checkpoint as lm-eval was given it; None for other backends.
        answers: Generated text by fact id.
        correct: Outcome by fact id.
        environment: Versions and settings that lm-eval recorded.
    """

    path: Path
    pretrained: str | None
    answers: dict[str, str]
    correct: dict[str, bool]
    environment: dict[str, Any]


def read_results(path: Path, bundle: Bundle) -> Results:
    """Reads the newest results under a path and scores every answer again.

    Args:
        path: A results file of lm-eval, or a directory that holds some.
        bundle: The bundle that they must have been made with.

    Raises:
        UserError: If they were made with `--limit` or without `--log_samples`, belong to
            another bundle, or don't cover exactly the facts of a split.
    """
    results_path = _newest(path)
    results = files.read_json(results_path)
    if results.get("config", {}).get("limit") is not None:
        raise UserError(f"{results_path} was made with --limit. Score again without it.")
    answers: dict[str, str] = {}
    items = {item.fact.id: item for _, item in bundle.items()}
    stamp = results_path.stem.removeprefix("results_")
    tasks = [name for name in results.get("results", {}) if _plain(name) in SPLIT_OF_TASK]
    if not tasks:
        raise UserError(f"{results_path} has no {', '.join(SPLIT_OF_TASK)}. Score again.")
    for task in tasks:
        samples = results_path.with_name(f"samples_{task}_{stamp}.jsonl")
        if not samples.exists():
            raise UserError(f"{samples} is missing. Score again with --log_samples.")
        found = _answers(samples, items, bundle)
        expected = {item.fact.id for item in bundle.splits[SPLIT_OF_TASK[_plain(task)]]}
        if set(found) != expected:
            raise UserError(
                f"{samples} has {len(found)} answers where the bundle has {len(expected)} facts. "
                "It is half-written or of another bundle; score again."
            )
        answers |= found
    correct = {key: is_correct(text, items[key].fact.accepted) for key, text in answers.items()}
    arguments = results["config"].get("model_args") or {}
    pretrained = arguments.get("pretrained") if isinstance(arguments, dict) else None
    return Results(results_path, pretrained, answers, correct, _environment(results))


def _newest(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("results_*.json"), key=lambda file: file.name)
    if not found:
        raise UserError(f"{path} holds no results_*.json of lm-eval. Score a checkpoint first.")
    return found[-1]


def _plain(task: str) -> str:
    """lm-eval 0.5 writes `group::task`."""
    return task.split("::")[-1]


def _answers(path: Path, items: dict[str, Item], bundle: Bundle) -> dict[str, str]:
    found = {}
    for number, row in enumerate(files.read_jsonl(path), start=1):
        try:
            doc, text = row["doc"], row["resps"][0][0]
            prompt, settings = (row["arguments"]["gen_args_0"][key] for key in ("arg_0", "arg_1"))
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{path}, line {number}: not a sample of lm-eval. Score again."
            ) from None
        item = items.get(doc.get("id"))
        if item is None or doc.get("bundle_sha256") != bundle.sha256:
            raise UserError(f"{path} was made with another bundle than {bundle.path}.")
        if prompt != question_prompt(item.fact.question) or not _canonical(settings):
            raise UserError(
                f"{path}, line {number}: asked with another prompt or other generation settings "
                "than the task's. Score again without --gen_kwargs and chat template."
            )
        found[item.fact.id] = str(text)
    return found


def _canonical(settings: dict[str, Any]) -> bool:
    greedy = not settings.get("do_sample") and not settings.get("temperature")
    stops = settings.get("until") == ["\n"]
    return greedy and stops and settings.get("max_gen_toks") == MAX_NEW_TOKENS


def _environment(results: dict[str, Any]) -> dict[str, Any]:
    config = results.get("config", {})
    return {
        "lm_eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
        "model": config.get("model"),
        "dtype": str(config.get("model_dtype")) if config.get("model_dtype") else None,
        "batch_size": str(config.get("batch_size")),
        "device": config.get("device"),
    }
