"""Lost or hidden: asks a checkpoint again for the facts that it lost."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, Bundle, Item
from factual_forgetting.engines.engine import Group, Query
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.engines.prompts import MAX_NEW_TOKENS, exemplar_prefix, question_prompt
from factual_forgetting.engines.tree import UnsupportedModelError
from factual_forgetting.errors import InputError
from factual_forgetting.facts.account import by_relation
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.scoring.metrics import accuracy
from factual_forgetting.scoring.report import LOST, Report
from factual_forgetting.scoring.statistics import row_of
from factual_forgetting.scoring.styles import FEWSHOT, STYLES
from factual_forgetting.slick.labelling import FRESH, Category

ANATOMY_RUNS, _SHOTS = 20, 3
ERASED, SUPPRESSED, FORMAT = "erased", "suppressed", "format"
KINDS = (ERASED, SUPPRESSED, FORMAT)
_CHANCES = ("rank_scored", "rank_fresh", "probability_scored", "probability_fresh")
_BATCH = 8


def anatomy(bundle: Bundle, report: Report, *, device: str | None = None) -> dict[str, Any]:
    """Splits the facts of D_Held that a checkpoint lost by what few-shot prompts bring back.

    Each is asked in the base's fresh configuration and in 20 configurations of 3 exemplars
    drawn from D_Known of its relation, which give its SLiCK label under the checkpoint itself
    (Gekhman et al. 2024; greedy runs). *Format*: the fresh prompt brings it back, or all 20
    do. *Suppressed*: some do. *Erased*: none does.

    The checkpoint must lie on this machine; `device` None takes the GPU where there is one.

    Returns:
        Counts by kind and by label; the share that the fresh prompt brings back, and that of
        the same facts that the base has right there; rank and probability of the gold by
        kind, in the prompt that was scored and in the fresh one; one row a fact.

    Raises:
        UserError: If the checkpoint isn't on this machine, or isn't the one that was scored.
    """
    path = _scored_checkpoint(report)
    lost = [c.item for c in report.transitions if c.kind == LOST and c.split == HELDOUT]
    if not lost:
        return {"checkpoint": report.summary["checkpoint"], "lost": 0, "facts": []}
    model, tokenizer = load_causal_lm(path, device=device)
    try:
        outcomes = _ask(bundle, lost, PrefixEngine(model, tokenizer))
    except UnsupportedModelError as error:
        raise InputError(f"--anatomy can't ask {path}: {error}. Leave it out.") from None
    fresh, scored = STYLES[FEWSHOT], STYLES[report.results.style]
    # A chat template isn't rebuilt here; its question and exemplars are the fresh prompt's.
    styles = {"scored": fresh if scored.chat else scored, "fresh": fresh}
    chances = {
        name: _chances(model, tokenizer, lost, [style.prompt(item, bundle) for item in lost])
        for name, style in styles.items()
    }
    rows = [
        _row(item.fact, outcomes[item.fact.id], {name: found[n] for name, found in chances.items()})
        for n, item in enumerate(lost)
    ]
    return {"checkpoint": report.summary["checkpoint"], **_summary(rows, lost), "facts": rows}


def _scored_checkpoint(report: Report) -> Path:
    path = Path(report.results.pretrained or "")
    if not report.results.pretrained or not path.is_dir():
        raise InputError(
            f"{report.results.name} is no directory here; --anatomy loads the checkpoint itself. "
            "Score its directory with --model hf."
        )
    if checkpoint.weights_sha256(path) != report.results.weights_sha256:
        raise InputError(
            f"The weights in {path} aren't those that were scored. Score again, or leave out "
            "--anatomy."
        )
    return path


def _ask(bundle: Bundle, lost: Sequence[Item], engine: PrefixEngine) -> dict[str, str]:
    """Returns outcomes by fact id, one character a run: the fresh one, then the 20."""
    facts_of = by_relation(item.fact for item in lost)
    outcomes = {item.fact.id: "" for item in lost}
    for relation, facts in tqdm(facts_of.items(), desc="anatomy", unit="relation"):
        queries = [Query(question_prompt(fact.question), fact.accepted) for fact in facts]
        runs = [bundle.exemplars[relation], *_configurations(bundle, relation)]
        groups = [Group(exemplar_prefix(exemplars), queries) for exemplars in runs]
        for answers in engine.answer(groups, MAX_NEW_TOKENS, verdict_only=True):
            for fact, answer in zip(facts, answers, strict=True):
                outcomes[fact.id] += "01"[is_correct(answer.text, fact.accepted, bundle.matcher)]
    return outcomes


def _configurations(bundle: Bundle, relation: str) -> Iterator[list[Fact]]:
    """Draws exemplars from D_Known, whose subjects D_Held doesn't share."""
    pool = [item.fact for item in bundle.splits[KNOWN] if item.fact.relation == relation]
    if len(pool) < _SHOTS:
        raise InputError(
            f"D_Known has {len(pool)} facts of {relation}; a configuration takes {_SHOTS}. "
            "--anatomy needs a larger bundle."
        )
    rng = random.Random(f"anatomy-{relation}")
    for _ in range(ANATOMY_RUNS):
        yield rng.sample(pool, _SHOTS)


def _chances(
    model: Any, tokenizer: Any, items: Sequence[Item], prompts: Sequence[str]
) -> list[tuple[int, float]]:
    """Returns rank and probability of the likeliest accepted answer of each fact.

    The rank is the worst of the answer's tokens, each given those before it: 1 means that
    greedy decoding begins with the answer. The probability is the product over its tokens.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    pairs = [
        (index, *_continuation(tokenizer, prompt, answer))
        for index, (item, prompt) in enumerate(zip(items, prompts, strict=True))
        for answer in item.fact.accepted
    ]
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for start in range(0, len(pairs), _BATCH):
        chunk = pairs[start : start + _BATCH]
        ids = [torch.tensor(tokens, device=model.device) for _, tokens, _ in chunk]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        with torch.inference_mode():
            padded = pad_sequence(ids, batch_first=True)
            logits = model(input_ids=padded, attention_mask=mask).logits
        for (index, _, begin), tokens, scores in zip(chunk, ids, logits, strict=True):
            found[index].append(_chance(scores[begin - 1 : len(tokens) - 1], tokens[begin:]))
    return [max(found[index], key=itemgetter(1)) for index in range(len(items))]


def _chance(logits: Any, answer: Any) -> tuple[int, float]:
    scores = logits.float().log_softmax(-1)
    gold = scores.gather(1, answer.unsqueeze(1))
    return 1 + int((scores > gold).sum(1).max()), float(gold.sum().exp())


def _continuation(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Tokens of prompt and answer, jointly, and where the answer begins."""
    head: list[int] = tokenizer(prompt)["input_ids"]
    ids: list[int] = tokenizer(f"{prompt} {answer}")["input_ids"]
    begin = next((i for i, token in enumerate(head) if ids[i : i + 1] != [token]), len(head))
    return ids, begin


def _row(fact: Fact, outcomes: str, chances: dict[str, tuple[int, float]]) -> dict[str, Any]:
    fresh, runs = outcomes[0] == "1", outcomes[1:]
    label = Category.of(runs)
    known = fresh or label == Category.HIGHLY_KNOWN
    kind = FORMAT if known else SUPPRESSED if "1" in runs else ERASED
    return {
        "id": fact.id,
        "relation": fact.relation,
        "question": fact.question,
        "gold": fact.answers[0],
        "kind": kind,
        "label": label,
        "correct": runs,
        "brought_back": fresh,
        **{f"rank_{name}": rank for name, (rank, _) in chances.items()},
        **{f"probability_{name}": chance for name, (_, chance) in chances.items()},
    }


def _summary(rows: Sequence[dict[str, Any]], lost: Sequence[Item]) -> dict[str, Any]:
    kinds, labels = (Counter(row[key] for row in rows) for key in ("kind", "label"))
    return {
        "lost": len(rows),
        "kinds": {kind: kinds[kind] for kind in KINDS},
        "labels": {label: labels[label] for label in Category},
        "brought_back": row_of(accuracy(lost, {row["id"]: row["brought_back"] for row in rows})),
        "base_in_fresh": sum(item.base[FRESH] for item in lost) / len(lost),
        "gold": {
            kind: {
                key: float(median(row[key] for row in rows if row["kind"] == kind))
                for key in _CHANCES
            }
            for kind in KINDS
            if kinds[kind]
        },
    }
