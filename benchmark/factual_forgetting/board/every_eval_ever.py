"""Records in the form of every_eval_ever (schema 0.3.0, https://evalevalai.com)."""

from __future__ import annotations

import calendar
import hashlib
import json
import time
import uuid
from typing import Any

from factual_forgetting import files
from factual_forgetting.board.exports import Exported, Reported, texts
from factual_forgetting.board.record import Outcome, answered
from factual_forgetting.board.tables import ASKED
from factual_forgetting.bundle.manifest import Item
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.protocol.curve import METRIC_OF_SPLIT
from factual_forgetting.scoring.styles import STYLES, TASK

_SCHEMA, _COLLECTION, _US = "0.3.0", "factual-forgetting", "factual-forgetting"


def every_eval_ever(told: Exported) -> dict[str, bytes]:
    """Returns the files of a record by their path: every fact's answer, if it has them, and a log.

    Both are named after the record, so that the same record is the same file again.
    """
    named = hashlib.sha256(f"every_eval_ever {told.record.id}".encode()).digest()
    path = f"data/{_COLLECTION}/{told.model}/{uuid.UUID(bytes=named[:16], version=4)}"
    found, log = {}, _log(told)
    if answered(told.outcomes):
        beside, rows = f"{path}_samples.jsonl", _samples(told)
        # Escaped: their reader takes what separates lines in Unicode for the end of one.
        lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
        found[beside] = "".join(lines).encode()
        log["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": beside,
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(found[beside]).hexdigest(),
            "total_rows": len(rows),
        }
    found[f"{path}.json"] = (files.dumps(log, indent=2) + "\n").encode()
    return found


def _evaluation_id(told: Exported) -> str:
    return f"{_COLLECTION}/{told.model}/{told.record.id}"


def _log(told: Exported) -> dict[str, Any]:
    record = told.record
    made = dict(record.environment.packages)
    recorded = calendar.timegm(time.strptime(record.recorded, "%Y-%m-%dT%H:%M:%SZ"))
    return {
        "schema_version": _SCHEMA,
        "evaluation_id": _evaluation_id(told),
        "retrieved_timestamp": str(recorded),
        "source_metadata": {
            "source_name": "leaderboard of factual-forgetting",
            "source_type": "evaluation_run",
            "source_organization_name": record.submitter,
            "evaluator_relationship": _relationship(told),
            "additional_details": texts(
                {"record": record.id, "level": record.level, "note": record.note}
            ),
        },
        "eval_library": {
            "name": _US,
            "version": made.pop(_US, "unknown"),
            "additional_details": made,
        },
        "model_info": _model(told),
        "evaluation_results": [_result(told, score) for score in told.scores],
    }


def _relationship(told: Exported) -> str:
    """Who scored: the model's maker, somebody else, or nobody says."""
    record = told.record
    if record.level != "self-reported":
        return "third_party"
    return "first_party" if told.model.split("/")[0].lower() == record.submitter else "other"


def _model(told: Exported) -> dict[str, Any]:
    record, base, protocol = told.record, told.record.base, told.record.protocol
    public = "open_weights" if record.repository else "unknown"
    return {
        "name": f"{base.pretrained}, {told.method}",
        "id": told.model,
        "additional_details": texts(
            {
                "deployment_type": "self_deployed" if record.weights_sha256 else "unknown",
                "model_availability": public,
                "weights_sha256": record.weights_sha256,
                "base": base.pretrained,
                "base_revision": base.revision,
                "base_weights_sha256": base.weights_sha256,
                "method": record.method.name,
                "method_settings": record.method.settings,
                "protocol": protocol and protocol.name,
                "protocol_sha256": protocol and protocol.sha256,
                "seed": record.seed,
                "track": record.track,
                "trials": record.trials,
                "trained_on_d_train": record.trained,
                "trained_on": record.training_data.description,
                "heldout_in_training": record.training_data.heldout,
                "url": record.url,
            }
        ),
    }


def _result(told: Exported, score: Reported) -> dict[str, Any]:
    measure, record = score.measure, told.record
    interval = {"lower": score.low, "upper": score.high, "confidence_level": 0.95}
    return {
        "evaluation_result_id": f"{_evaluation_id(told)}/{score.name}",
        "evaluation_name": f"{record.style}_{score.name}",
        "source_data": _source(told, measure.split),
        "metric_config": {
            "evaluation_description": measure.told,
            "metric_id": f"{record.style}.{score.name}",
            "metric_name": measure.title,
            "metric_unit": "proportion",
            "lower_is_better": measure.falls,
            "score_type": "continuous",
            "min_score": measure.lowest,
            "max_score": 1.0,
        },
        "score_details": {
            "score": score.value,
            "uncertainty": {
                "confidence_interval": {**interval, "method": measure.interval},
                "num_samples": score.n,
            },
        },
        "generation_config": {
            "generation_args": {
                "temperature": 0.0,
                "max_tokens": STYLES[record.style].max_new_tokens,
                "prompt_template": ("" if record.style == TASK else "{exemplars}")
                + question_prompt("{question}"),
            },
            "additional_details": texts(
                {
                    "asked": ASKED[record.style],
                    "matcher": record.matcher_version,
                    "dtype": record.environment.dtype,
                    "device": record.environment.device,
                    "batch_size": record.environment.scoring_batch_size,
                }
            ),
        },
    }


def _source(told: Exported, split: str) -> dict[str, Any]:
    repository, _, commit = (told.dataset or "").partition("@")
    kind = {"source_type": "hf_dataset", "hf_repo": repository} if repository else {}
    details = {"bundle_sha256": told.bundle.sha256, "split": split, "revision": commit or None}
    return {
        "dataset_name": told.title,
        "source_type": "other",
        **kind,
        "additional_details": texts(details),
    }


def _samples(told: Exported) -> list[dict[str, Any]]:
    """One row a fact, under the score that is its own; splits without a score have none."""
    measured = {score.name for score in told.scores}
    items = {item.fact.id: item for _, item in told.bundle.items()}
    return [
        _sample(told, one, items[one.id])
        for one in told.outcomes
        if METRIC_OF_SPLIT[one.split] in measured
    ]


def _sample(told: Exported, one: Outcome, item: Item) -> dict[str, Any]:
    name, answer = METRIC_OF_SPLIT[one.split], one.answer or ""
    raw, reference = item.fact.question, [*item.fact.answers, *item.fact.aliases]
    asked = files.sha256_json({"raw": raw, "reference": reference})
    return {
        "schema_version": _SCHEMA,
        "evaluation_id": _evaluation_id(told),
        "model_id": told.model,
        "evaluation_name": f"{told.record.style}_{name}",
        "evaluation_result_id": f"{_evaluation_id(told)}/{name}",
        "sample_id": one.id,
        "sample_hash": asked,
        "interaction_type": "single_turn",
        "input": {
            "raw": raw,
            "formatted": STYLES[told.record.style].prompt(item, told.bundle),
            "reference": reference,
        },
        "output": {"raw": [answer]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": answer.strip(),
                "extraction_method": told.record.matcher_version,
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": float(one.final), "is_correct": one.final},
        "metadata": {"relation": one.relation, "split": one.split},
    }
