"""D_train for people with their own trainer."""

from __future__ import annotations

from pathlib import Path

from factual_forgetting import files
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
from factual_forgetting.engines.prompts import question_prompt


def export_training_data(bundle: Bundle, path: Path) -> int:
    """Writes D_Known and D_Unk as prompt/completion pairs, as TRL and Axolotl read them.

    The completion begins with the space that the text rule puts before an answer; the trainer
    appends EOS.

    Args:
        bundle: The bundle.
        path: JSON Lines file to write.

    Returns:
        The number of pairs.
    """
    rows = [
        {
            "prompt": question_prompt(item.fact.question),
            "completion": f" {item.fact.answers[0]}",
            "id": item.fact.id,
            "split": split,
        }
        for split in (KNOWN, UNKNOWN)
        for item in bundle.splits[split]
    ]
    files.write_jsonl(path, rows)
    return len(rows)
