"""What lm-eval calls: the documents of a split, and the outcome of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import is_correct, normalise
from factual_forgetting.slick.labelling import ZERO_SHOT
from factual_forgetting.slick.prompts import question_prompt

_ABSTENTIONS = frozenset(
    normalise(text)
    for text in (
        "I don't know",
        "I do not know",
        "don't know",
        "I'm not sure",
        "I am not sure",
        "not sure",
        "unknown",
        "no answer",
        "I have no idea",
    )
)


def load_split(
    ff_split: str,
    ff_bundle: str | None = None,
    ff_bundle_sha256: str | None = None,
    pretrained: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Loads a split of a bundle for lm-eval (`custom_dataset`).

    Args:
        ff_split: Name of the split; from the task's YAML.
        ff_bundle: Directory of the bundle, or `almanac`; from `--metadata`. Without it the
            embedded bundle is used, for descendants of the embedded base only.
        ff_bundle_sha256: The hash that the bundle must have, if it matters.
        pretrained: The checkpoint, from `--model_args`.

    Returns:
        `{"test": datasets.Dataset}` with one row a fact.

    Raises:
        UserError: If the bundle was changed or isn't the expected one, or the checkpoint
            doesn't descend from its base.
    """
    from datasets import Dataset

    if ff_bundle is None and not _is_local(pretrained):
        raise UserError(
            "No bundle was given, and without one only checkpoints of the embedded almanac base "
            'are scored. Add --metadata \'{"ff_bundle": "DIR"}\' with the bundle of your base.'
        )
    bundle = load_bundle(locate_bundle(ff_bundle or checkpoint.ALMANAC))
    if ff_bundle_sha256 is not None and ff_bundle_sha256 != bundle.sha256:
        raise UserError(
            f"The bundle in {bundle.path} has the hash {bundle.sha256}, not {ff_bundle_sha256}. "
            "Give the bundle that was meant."
        )
    if _is_local(pretrained):
        checkpoint.require_descent(checkpoint.locate(str(pretrained)), bundle.manifest["base"])
    rows = [
        {
            "id": item.fact.id,
            "relation": item.fact.relation,
            "question": item.fact.question,
            "answers": list(item.fact.accepted),
            "prompt": question_prompt(item.fact.question),
            "base_correct": item.base[ZERO_SHOT],
            "bundle_sha256": bundle.sha256,
        }
        for item in bundle.splits[ff_split]
    ]
    return {"test": Dataset.from_list(rows)}


def _is_local(pretrained: str | None) -> bool:
    return pretrained is not None and (Path(pretrained) / "config.json").is_file()


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores one answer; lost and gained compare with the base in the same prompt.

    Args:
        doc: A row of `load_split`.
        results: The generated text, alone in a list.

    Returns:
        Metrics by name. `ff_lost` is there only where the base was right and `ff_gained` only
        where it was wrong, so that their means are shares of those facts.
    """
    correct = is_correct(results[0], doc["answers"])
    base = bool(doc["base_correct"])
    return {
        "ff_accuracy": float(correct),
        "ff_forgetting": float(base) - float(correct),
        "ff_hallucination": float(not correct and not abstains(results[0])),
        **({"ff_lost": float(not correct)} if base else {"ff_gained": float(correct)}),
    }


def abstains(text: str) -> bool:
    """Tells whether an answer declines to answer; an empty one does."""
    given = normalise(text.strip())
    return not given or given in _ABSTENTIONS
