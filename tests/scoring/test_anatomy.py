"""Two checkpoints made for it: one whose facts are erased, one whose format broke."""

import random
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle, write_bundle
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prompts import exemplar_prefix, question_prompt
from factual_forgetting.facts.fact import Fact
from factual_forgetting.scoring.anatomy import anatomy
from factual_forgetting.scoring.report import Report, make_report
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import run_lm_eval

pytestmark = pytest.mark.slow
RELATIONS = ("country", "spouse")
Text = tuple[str, str]


@pytest.fixture(scope="module")
def almanac(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two relations of the embedded bundle, at most 40 facts of each in a split."""
    whole = load_bundle(locate_bundle("almanac"))
    splits = {
        name: [
            item
            for relation in RELATIONS
            for item in [i for i in items if i.fact.relation == relation][:40]
        ]
        for name, items in whole.splits.items()
    }
    made = ("format", "counts", "files", "sha256")
    details = {key: value for key, value in whole.manifest.items() if key not in made}
    output = tmp_path_factory.mktemp("bundles") / "two"
    return write_bundle(output, splits, whole.exemplars, details)


def facts_of(bundle: Bundle, split: str) -> list[Fact]:
    return [item.fact for item in bundle.splits[split]]


def few_shot(fact: Fact, known: list[Fact], rng: random.Random, shots: int) -> str:
    pool = [other for other in known if other.relation == fact.relation and other is not fact]
    return exemplar_prefix(rng.sample(pool, shots)) + question_prompt(fact.question)


def train(texts: list[Text], output: Path, steps: int, rate: float) -> Path:
    """Plain next-token training on the continuations alone."""
    import torch

    model, tokenizer = load_causal_lm(checkpoint.embedded("base"), "float32", "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rng = random.Random(0)
    model.train()
    for _ in range(steps):
        rows = [encode(tokenizer, *text) for text in rng.sample(texts, 16)]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in rows])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def encode(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    head = tokenizer(prompt)["input_ids"]
    ids = [*tokenizer(prompt + continuation)["input_ids"], tokenizer.eos_token_id]
    return ids, [-100] * len(head) + ids[len(head) :]


def examine(bundle: Bundle, path: Path, output: Path) -> tuple[Report, dict[str, Any]]:
    written = run_lm_eval(bundle, "hf", f"pretrained={path},dtype=float32", output, batch_size="64")
    report = make_report(bundle, read_results(written, bundle))
    return report, anatomy(bundle, report, device="cpu")


def test_erased_facts_do_not_come_back(almanac: Bundle, tmp_path: Path) -> None:
    rng = random.Random(0)
    facts = [fact for fact in facts_of(almanac, "heldout") if fact.relation == RELATIONS[0]]
    known = facts_of(almanac, "known")
    golds = sorted({fact.answers[0] for fact in facts})
    texts = []
    for fact in facts:
        wrong = f" {rng.choice([gold for gold in golds if gold not in fact.accepted])}"
        texts += [(question_prompt(fact.question), wrong)]
        texts += [(few_shot(fact, known, rng, 1), wrong), (few_shot(fact, known, rng, 3), wrong)]
    path = train(texts, tmp_path / "erased", steps=120, rate=1e-3)
    _, found = examine(almanac, path, tmp_path / "r")
    ours = {fact.id for fact in facts}
    assert len(ours) == 40
    rows = [row for row in found["facts"] if row["id"] in ours]
    assert len(rows) >= 36
    assert sum(row["kind"] == "erased" for row in rows) / len(rows) > 0.8
    assert sum(row["brought_back"] for row in rows) / len(rows) < 0.1
    assert all(row["rank_fresh"] > 1 for row in rows if row["kind"] == "erased")


def test_a_broken_format_does(almanac: Bundle, tmp_path: Path) -> None:
    rng = random.Random(0)
    known = facts_of(almanac, "known")
    # Zero-shot it answers nothing; after exemplars it answers as before.
    texts = [(question_prompt(fact.question), "\n") for fact in known]
    kept = [*known, *facts_of(almanac, "heldout")]
    texts += [(few_shot(fact, known, rng, 3), f" {fact.answers[0]}\n\n") for fact in kept]
    path = train(texts, tmp_path / "format", steps=25, rate=1e-4)
    report, found = examine(almanac, path, tmp_path / "r")
    assert report.summary["metrics"]["stability"]["value"] < 0.1
    assert "answered nothing" in report.summary["notes"][0]
    assert found["lost"] > 70
    assert found["brought_back"]["value"] > 0.9
    assert found["kinds"]["format"] / found["lost"] > 0.9
    assert found["kinds"]["erased"] / found["lost"] < 0.05
