"""What lm-eval calls: the documents of a split, and the outcome of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.errors import InputError
from factual_forgetting.facts.matching import MATCHER_VERSION, MATCHERS
from factual_forgetting.scoring.judging import judge
from factual_forgetting.scoring.reading import require_room, require_uncut
from factual_forgetting.scoring.styles import STYLES

# Arguments by which other weights answer than those in `pretrained`.
_ELSEWHERE = ("peft", "delta", "lora_local_path", "subfolder", "autogptq")
_TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "decoder")


def load_split(
    ff_split: str,
    ff_style: str,
    ff_bundle: str | None = None,
    ff_bundle_sha256: str | None = None,
    ff_descends: bool = False,
    pretrained: str | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    ff_decoding_ignored: Sequence[str] = (),
    **others: Any,
) -> dict[str, Any]:
    """Loads a split for lm-eval (`custom_dataset`): `{"test": datasets.Dataset}`, a row a fact.

    Args:
        ff_split: Name of the split; from the task's YAML.
        ff_style: Key of `STYLES`; from the task's YAML.
        ff_bundle: Directory, `almanac`, or a dataset on the Hub as `name@commit`; from
            `--metadata`. Without it the embedded bundle, for descendants of its base only.
        ff_bundle_sha256: The hash that the bundle must have, if it matters.
        ff_descends: Declares the checkpoint's descent, whatever its shape or marks say.
        pretrained: The checkpoint, from `--model_args`, like the next two.
        revision: Its revision.
        tokenizer: Its tokenizer, if not its own.
        ff_decoding_ignored: What the checkpoint's files ask of decoding and doesn't get.
        others: The other keys of `--model_args` and `--metadata`.

    Raises:
        UserError: If the bundle isn't the one meant, prompts would be cut, or decoding differs.
    """
    from datasets import Dataset

    require_uncut(others)
    path = local_checkpoint(pretrained, revision)
    if ff_bundle is None and path is None:
        raise InputError(
            "No bundle was given, and without one only checkpoints of the embedded almanac base "
            'are scored. Add --metadata \'{"ff_bundle": "DIR"}\' with the bundle of your base.'
        )
    bundle = load_bundle(locate_bundle(ff_bundle or checkpoint.ALMANAC))
    if ff_bundle_sha256 is not None and ff_bundle_sha256 != bundle.sha256:
        raise InputError(
            f"The bundle in {bundle.path} has the hash {bundle.sha256}, not {ff_bundle_sha256}. "
            "Give the bundle that was meant."
        )
    require_matcher(bundle)
    if path and not ff_descends:
        checkpoint.require_descent(path, bundle.manifest["base"])
    if path and (asked := checkpoint.ignored_settings(path)) != list(ff_decoding_ignored):
        raise InputError(
            f"{path} asks for other decoding than greedy ({', '.join(asked)}), and the bare "
            "lm_eval command does as it says. Score it with factual-forgetting score, which "
            "doesn't, or take that out of its generation_config.json."
        )
    # With an adapter on top, the files in `pretrained` aren't the weights that answer.
    hashed = None if any(others.get(name) for name in _ELSEWHERE) else path
    reads = local_checkpoint(tokenizer, revision) if tokenizer else path
    documents = task_documents(bundle, ff_split, ff_style, hashed, reads)
    style, given = STYLES[ff_style], others.get("max_length") or others.get("max_model_len")
    require_room((row["prompt"] for row in documents), given, style.max_new_tokens, reads)
    return {"test": Dataset.from_list(documents)}


def task_documents(
    bundle: Bundle, split: str, style_name: str, path: Path | None, tokenizer: Path | None
) -> list[dict[str, Any]]:
    """Returns a split's documents: prompt, answers, the base's outcome, and what made them.

    `style_name` is a key of `STYLES`. `path` and `tokenizer` are the directories of the weights
    and of the tokenizer, whose hashes go into each document; None if unknown.
    """
    style = STYLES[style_name]
    made_of = {
        "style": style_name,
        "bundle_sha256": bundle.sha256,
        "weights_sha256": _weights(path) if path else None,
        "tokenizer_sha256": tokenizer_sha256(tokenizer) if tokenizer else None,
    }
    if bundle.matcher != MATCHER_VERSION:
        made_of["matcher"] = bundle.matcher
    return [
        {
            "id": item.fact.id,
            "relation": item.fact.relation,
            "subject": item.fact.subject,
            "question": item.fact.question,
            "prompt": style.prompt(item, bundle),
            "answers": list(item.fact.answers),
            "aliases": list(item.fact.aliases),
            "base_correct": item.base[style.outcome],
            **made_of,
        }
        for item in bundle.splits[split]
    ]


def local_checkpoint(pretrained: str | None, revision: str | None = None) -> Path | None:
    """Returns where a checkpoint lies on this machine, the Hub's cache included, or None."""
    if pretrained is None:
        return None
    if pretrained == checkpoint.ALMANAC or (Path(pretrained) / "config.json").is_file():
        return checkpoint.locate(pretrained)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(pretrained, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def require_matcher(bundle: Bundle) -> None:
    """Raises a UserError where this package lacks the matcher that judged the bundle's base."""
    if bundle.matcher not in MATCHERS:
        raise InputError(
            f"The base's outcomes in {bundle.path} were matched by {bundle.matcher}; this version "
            f"matches by {', '.join(MATCHERS)}. Label again, or install the version that built "
            "the bundle."
        )


def tokenizer_sha256(path: Path) -> str | None:
    """Hashes what a tokenizer does to a text; None without a `tokenizer.json`."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    content = files.read_object(file, ours=False)
    return files.sha256_json([content.get(part) for part in _TOKENIZER_PARTS])


def _weights(path: Path) -> str | None:
    """Hashes what lm-eval loads; None where those are pickles."""
    return _weights_sha256(path, _stamp(path)) if checkpoint.weight_files(path) else None


@lru_cache(maxsize=8)
def _weights_sha256(path: Path, stamp: tuple[Any, ...]) -> str:
    """Every task asks for the hash of the same gigabytes; `stamp` tells them apart."""
    return checkpoint.weights_sha256(path)


def _stamp(path: Path) -> tuple[Any, ...]:
    found = [(file.name, file.stat()) for file in sorted(path.glob("*.safetensors"))]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores one answer; lost and gained compare with the base in the same prompt.

    `doc` is a row of `load_split`, `results` the generated text, alone in a list. `ff_lost` is
    there only where the base was right and `ff_gained` only where it was wrong, so that their
    means are shares of those facts.
    """
    style = STYLES[doc["style"]]
    names, matcher = (doc["answers"], doc["aliases"]), doc.get("matcher", MATCHER_VERSION)
    found = judge(results[0], *names, doc["subject"], chat=style.chat, matcher=matcher)
    base, correct = bool(doc["base_correct"]), float(found.correct)
    return {
        "ff_accuracy": correct,
        "ff_strict": float(found.strict),
        "ff_f1": found.f1,
        "ff_forgetting": float(base) - correct,
        "ff_abstention": float(found.declined),
        "ff_hallucination": float(found.hallucinated),
        **({"ff_lost": 1 - correct} if base else {"ff_gained": correct}),
    }
