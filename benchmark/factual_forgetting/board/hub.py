"""Records for the model's repository on the Hub: results of a benchmark, and a model card."""

from __future__ import annotations

import re
from typing import Any

import yaml
from tabulate import tabulate

from factual_forgetting.board.exports import Exported, Reported
from factual_forgetting.board.remake import remake_commands
from factual_forgetting.board.tables import ASKED, LEGEND, SEEN
from factual_forgetting.errors import InputError, PackageError

CARD = "README.md"
_NAMED = re.compile(r"[\w.-]+/[\w.-]+")
_NEVER = "\n\nS@P90 isn't known: no curve of this record has a plasticity of .90."


def eval_results(told: Exported) -> dict[str, bytes]:
    """Returns a record as `.eval_results/*.yaml`, which the Hub shows beside the model.

    Raises:
        UserError: If its bundle lies in no dataset of the Hub, by whose name results are known.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        raise PackageError(
            "This huggingface_hub is too old. Install a newer one: pip install -U huggingface_hub."
        ) from None
    record = told.record
    if told.dataset is None:
        raise InputError(
            f"The record {record.id} is of a bundle that lies in no dataset of the Hub. Put it in "
            "one, and give --bundle OWNER/DATASET@COMMIT."
        )
    dataset, _, commit = told.dataset.partition("@")
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=score.name,
            value=score.value,
            dataset_revision=commit,
            date=record.recorded,
            notes=_notes(told, score),
        )
        for score in told.scores
    ]
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return {f"{told.model}/.eval_results/{record.id}.yaml": text.encode()}


def _notes(told: Exported, score: Reported) -> str:
    record = told.record
    protocol = record.protocol.name if record.protocol else "none"
    return (
        f"95 % interval [{score.low:.4f}, {score.high:.4f}], n = {score.n} facts; "
        f"method {told.method}, protocol {protocol}; asked "
        f"{ASKED[record.style]}; {record.level}; "
        f"factual-forgetting record {record.id}, bundle {record.bundle_sha256[:12]}"
    )


def model_card(told: Exported) -> dict[str, bytes]:
    """Returns a record as the card of its model, which says how the numbers are to be read."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    base = told.record.base.pretrained or ""
    dataset, _, commit = (told.dataset or "").partition("@")
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Closed-book questions",
            dataset_type=dataset or "factual-forgetting",
            dataset_name=told.title,
            dataset_revision=commit or None,
            metric_type=score.name,
            metric_name=score.measure.title,
            metric_value=score.value,
        )
        for score in told.scores
    ]
    data = ModelCardData(
        base_model=base if _NAMED.fullmatch(base) else None,
        datasets=[dataset] if dataset else None,
        eval_results=results,
        model_name=told.model,
        tags=["factual-forgetting"],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_card_text(told)}")
    return {f"{told.model}/{CARD}": f"{str(card).rstrip()}\n".encode()}


def _card_text(told: Exported) -> str:
    rows = [
        (s.measure.title, f"{s.value:.3f}", f"[{s.low:.3f}, {s.high:.3f}]", str(s.n))
        for s in told.scores
    ]
    names = ("", "value", "95 % interval", "facts")
    table = tabulate(rows, names, tablefmt="github", disable_numparse=True)
    told_of = {score.measure.title: score.measure.told for score in told.scores}
    missing = "" if "stability_at_p90" in {s.name for s in told.scores} else _NEVER
    parts = [
        f"# {_code(told.model)}",
        "What fine-tuning taught this model, and what it cost of what its base knew, measured "
        "with factual-forgetting.",
        table + missing,
        "\n".join(f"- {title}: {what}" for title, what in told_of.items()),
        "## What it is",
        "\n".join(f"- {name}: {_code(value)}" for name, value in _facts_of(told)),
        *([f"Told in <{told.record.url}>"] if told.record.url else []),
        "## How far to trust this",
        f"{LEGEND['Level']} This record is {told.record.level}. Its numbers are of this bundle "
        "alone, and don't compare with those of another one.",
        "## Make it again",
        _block("\n".join(remake_commands(told.record))),
    ]
    return "\n\n".join(parts)


def _facts_of(told: Exported) -> list[tuple[str, Any]]:
    record, protocol = told.record, told.record.protocol
    known = {
        "Base": record.base.pretrained,
        "Method": told.method,
        "Protocol": f"{protocol.name} {protocol.sha256}" if protocol else None,
        "Asked": ASKED[record.style],
        "Facts of D_train": SEEN[record.trained],
        "Trained on": record.training_data.description,
        "Facts of D_Held in training, as declared": record.training_data.heldout,
        "Bundle": f"{told.title} {record.bundle_sha256}",
        "Weights": record.weights_sha256,
        "Record": record.id,
        "Submitted by": record.submitter,
        "Note": record.note,
    }
    return [(name, value) for name, value in known.items() if value is not None]


def _fence(text: str, least: int) -> str:
    """Backticks that the text doesn't hold so many of in a row."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _code(value: object) -> str:
    """Strangers' text, in which nothing is markup."""
    fence = _fence(text := str(value), 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(text: str) -> str:
    fence = _fence(text, 3)
    return f"{fence}bash\n{text}\n{fence}"
