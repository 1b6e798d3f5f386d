import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    Weights,
    altered,
    assert_same_bytes,
    curve,
    distance,
    interrupt,
    make_run,
    same,
    train,
    weights,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, REPLAY, VALIDATION, Bundle
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact, stable_hash
from factual_forgetting.protocol import curve as curves
from factual_forgetting.protocol import losses, methods, penalties
from factual_forgetting.protocol import train as protocol_train
from factual_forgetting.protocol import weights as weights_of
from factual_forgetting.protocol.context import Context, Step
from factual_forgetting.protocol.data import IGNORE, Example, TrainingData, encode, seen_order
from factual_forgetting.protocol.recipe import Execution, Protocol
from factual_forgetting.protocol.settings import EWC, L2, SETTINGS, resolve
from factual_forgetting.protocol.train import _divergence_from_base
from small import make_model

SELECTION = "factual_forgetting.protocol.{}.selection_score"
STEPS = 24
Trained = Callable[..., Weights]


@pytest.fixture(scope="session")
def brief(protocol: Protocol) -> Protocol:
    """So many steps; enough for every method to leave SFT's path."""
    return altered(protocol, name="brief", epochs=4, evaluate_every=8, learning_rate=2e-3)


@pytest.fixture(scope="session")
def plain(bundle: Bundle, brief: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return train(make_run(bundle, brief, "sft"), tmp_path_factory.mktemp("plain") / "sft")


@pytest.fixture
def trained(bundle: Bundle, brief: Protocol, tmp_path: Path) -> Trained:
    """Trains a method with settings, in a directory of its name."""

    def trained(method: str, **settings: Any) -> Weights:
        return train(make_run(bundle, brief, method, **settings), tmp_path / method)

    return trained


@pytest.fixture
def model(base: Path) -> Any:
    return load_causal_lm(base, "float32")[0]


def data_of(bundle: Bundle, method: str, **settings: Any) -> TrainingData:
    return methods.METHODS[method].data(bundle, resolve(method, settings))


def ids(facts: Any) -> set[str]:
    return {fact.id for fact in facts}


def split(bundle: Bundle, name: str) -> set[str]:
    return {item.fact.id for item in bundle.splits[name]}


@pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {"sft", "wise_ft", "early_stop"}))
def test_a_method_is_not_sft_under_another_name(
    trained: Trained, plain: Weights, base: Path, method: str, tmp_path: Path
) -> None:
    """By more than a sum in another order is: other bytes alone would prove nothing."""
    if "lora" in method:
        pytest.importorskip("peft")
    other = trained(method)
    assert other.keys() == plain.keys()
    assert distance(other, plain) > distance(plain, weights(base)) / 100
    assert files.read_json(tmp_path / method / "run.json")["steps"] == STEPS


WITHOUT_TERM = {"freeze_self_distillation": "freeze", "lora_self_distillation": "lora"}
WEIGHED = sorted(name for name, kind in SETTINGS.items() if "weight" in kind.model_fields)


@pytest.mark.parametrize("method", WEIGHED)
def test_a_method_is_sft_where_its_term_weighs_nothing(
    trained: Trained, plain: Weights, base: Path, method: str
) -> None:
    """What differs above is the term's doing."""
    if "lora" in method:
        pytest.importorskip("peft")
    held_to = SETTINGS[method].held_to
    settings: dict[str, Any] = {held_to: "base"} if held_to else {}
    light = trained(method, weight=1e-20, **settings)
    if other := WITHOUT_TERM.get(method):
        plain = trained(other)
    assert distance(light, plain) < distance(plain, weights(base)) / 1000


def test_known_only_never_sees_unknown_facts(bundle: Bundle) -> None:
    assert ids(data_of(bundle, "known_only").repeated) == split(bundle, "known")


def test_freezing_leaves_the_rest_bit_equal(trained: Trained, base: Path) -> None:
    frozen = trained("freeze", trainable="attention@1")
    moved = set(frozen) - same(weights(base), frozen)
    assert moved == {name for name in frozen if ".layers.1.self_attn." in name}


def test_freezing_and_distillation_combine(trained: Trained, base: Path) -> None:
    alone = trained("freeze", trainable="ffn")
    both = trained("freeze_self_distillation", trainable="ffn", weight=3)
    moved = set(both) - same(weights(base), both)
    assert moved == {name for name in both if ".mlp." in name}
    assert distance(both, weights(base)) < distance(alone, weights(base))


@pytest.mark.parametrize(("teacher", "opening"), [("base", 0), ("snapshot", 3), ("same_run", 6)])
def test_the_teacher_stays_what_its_file_says(
    trained: Trained, teacher: str, opening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms: list[float] = []
    original = penalties._taught

    def watched(frozen: weights_of.Frozen, step: Step, inputs: Any) -> torch.Tensor:
        taught = original(frozen, step, inputs)
        model, stored = frozen.at(step), weights(frozen.path)
        assert not model.training
        assert all(torch.equal(model.state_dict()[name], stored[name]) for name in stored)
        marked = losses.distilled_positions(inputs["attention_mask"], step.labels, "all")
        kl = losses.distillation(step.logits, taught, marked, 1.0, marked.sum())
        terms.append(kl.item())
        return taught

    monkeypatch.setattr(penalties, "_taught", watched)
    trained("self_distillation", teacher=teacher)
    assert len(terms) == STEPS - opening
    # The student begins as its teacher, then moves away.
    assert abs(terms[0]) < 1e-5
    assert terms[-1] > 1e-4


def test_snapshots_come_after_an_epoch_on_what_they_say(bundle: Bundle) -> None:
    everything = split(bundle, "known") | split(bundle, "unknown")
    for method, key in (("self_distillation", "teacher"), ("l2", "to")):
        assert ids(data_of(bundle, method, **{key: "snapshot"}).first) == split(bundle, "known")
        assert ids(data_of(bundle, method, **{key: "same_run"}).first) == everything
        assert not data_of(bundle, method, **{key: "base"}).first


def test_distillation_settings_change_the_result(
    bundle: Bundle, brief: Protocol, tmp_path: Path
) -> None:
    short = altered(brief, epochs=1)
    variants: list[dict[str, Any]] = [
        {}, {"direction": "reverse"}, {"positions": "answer"}, {"tau": 2.0}, {"weight": 2.0}
    ]  # fmt: skip
    trained = [
        train(make_run(bundle, short, "self_distillation", **settings), tmp_path / str(index))
        for index, settings in enumerate(variants)
    ]
    for index, one in enumerate(trained):
        assert all(same(one, other) != set(one) for other in trained[index + 1 :])


@pytest.mark.parametrize("to", ["base", "snapshot", "same_run"])
def test_l2_holds_the_weights_where_it_says(
    trained: Trained,
    plain: Weights,
    base: Path,
    to: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anchor: Weights = {}
    original = weights_of.Frozen.at

    def watched(self: weights_of.Frozen, step: Step) -> Any:
        model = original(self, step)
        if not anchor:
            anchor.update({n: p.clone() for n, p in model.named_parameters()})
        return model

    monkeypatch.setattr(weights_of.Frozen, "at", watched)
    held = trained("l2", to=to, weight=100.0)
    assert distance(held, anchor) < distance(plain, anchor) / 2
    assert (to == "base") == (same(anchor, weights(base)) == set(anchor))


def test_every_process_takes_part_in_saving_a_snapshot_that_another_has_written_already(
    base: Path, model: Any
) -> None:
    """A process that looked for itself would leave the others waiting for it."""
    saved: list[Path] = []
    step = replace(fake_step(model), save=saved.append)
    weights_of.Frozen(base, snapshot=True).at(step)
    assert saved == [base]


def test_the_pull_is_half_lambda_times_the_squared_distance(context: Context, model: Any) -> None:
    penalty = penalties.l2(context, L2(weight=3.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    count = sum(parameter.numel() for parameter in model.parameters())
    shares = [penalty.term(fake_step(model, share)).item() for share in (0.25, 0.75)]
    assert sum(shares) == pytest.approx(3.0 / 2 * 0.01 * count, rel=1e-4)


@pytest.mark.parametrize("method", ["l2", "ewc"])
def test_the_pull_keeps_no_tensor_of_its_own_and_has_the_gradient_of_its_formula(
    context: Context, model: Any, method: str
) -> None:
    settings = L2(weight=3.0) if method == "l2" else EWC(weight=3.0)
    penalty = getattr(penalties, method)(context, settings)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = context.encode([item.fact for item in context.bundle.splits[REPLAY]])
    ones = {name: torch.ones_like(p) for name, p in start.items()}
    importance = ones if method == "l2" else penalties.diagonal_fisher(model, rows)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        penalty.term(fake_step(model)).backward()
    moved = {parameter.data_ptr() for parameter in model.parameters()}
    weight_sized = [t for t in kept if t.numel() > 1]
    shapes = [p.shape for p in model.parameters()]
    # The parameter itself, its anchor and its importance, all of which are there anyway.
    assert len(weight_sized) == len(shapes) * (2 if method == "l2" else 3)
    assert sum(t.data_ptr() in moved for t in weight_sized) == len(shapes)
    for name, parameter in model.named_parameters():
        expected = 3.0 * importance[name] * (parameter.detach() - start[name])
        assert torch.allclose(parameter.grad, expected, rtol=1e-5, atol=1e-12)


def test_a_pull_on_the_weights_is_computed_once_in_a_step(
    bundle: Bundle,
    brief: Protocol,
    plain: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(bundle, brief, "l2", weight=0.1)
    whole = train(run, tmp_path / "whole")
    shares: list[float] = []
    original = penalties._pull

    def counted(*given: Any) -> Any:
        penalty = original(*given)

        def term(step: Step) -> Any:
            shares.append(step.share)
            return penalty.term(step)

        return replace(penalty, term=term)

    monkeypatch.setattr(penalties, "_pull", counted)
    split = train(run, tmp_path / "split", execution=Execution(device_batch_size=4))
    assert shares
    assert set(shares) == {1.0}
    assert distance(split, whole) < distance(whole, plain) / 100


@pytest.fixture
def context(bundle: Bundle, base: Path, tokenizer: Any, model: Any) -> Context:
    facts = [item.fact for item in bundle.splits["unknown"]]
    return Context(bundle, tokenizer, model, base, base / "none", facts)


def fake_step(model: Any, share: float = 1.0, **values: Any) -> Step:
    empty = torch.zeros((1, 2), dtype=torch.long)
    fields: dict[str, Any] = {
        "inputs": {}, "logits": torch.zeros(1, 2, 3), "labels": empty,
        "facts": empty[0], "answers": empty.sum(), "positions": empty.sum(),
    }  # fmt: skip
    return Step(model=model, share=share, save=lambda path: None, **{**fields, **values})


@pytest.fixture
def replayed(bundle: Bundle, tokenizer: Any) -> list[Example]:
    return encode([item.fact for item in bundle.splits[REPLAY]], tokenizer, None)


def test_fisher_is_the_mean_squared_gradient_on_replay_facts(
    model: Any, replayed: list[Example]
) -> None:
    fisher = penalties.diagonal_fisher(model, replayed)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = torch.zeros_like(fisher[name])
    for row in replayed:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        loss = torch.nn.functional.cross_entropy(
            model(ids).logits[0, :-1], labels[0, 1:], ignore_index=IGNORE, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, [dict(model.named_parameters())[name]])
        expected += gradient**2 / len(replayed)
    assert torch.allclose(fisher[name], expected, rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ewc_holds_important_weights_more_than_others(
    trained: Trained,
    plain: Weights,
    base: Path,
    model: Any,
    replayed: list[Example],
) -> None:
    held, start = trained("ewc", weight=1e5), weights(base)
    ratios = {"high": [0.0, 0.0], "low": [0.0, 0.0]}
    for name, importance in penalties.diagonal_fisher(model, replayed).items():
        high = importance > importance.median()
        for key, chosen in (("high", high), ("low", ~high)):
            for index, moved in enumerate((held, plain)):
                ratios[key][index] += (moved[name] - start[name])[chosen].abs().sum().item()
    assert ratios["high"][0] / ratios["high"][1] < ratios["low"][0] / ratios["low"][1]
    assert distance(held, start) < distance(plain, start)


def test_replay_mixes_in_its_ratio_of_replay_facts(bundle: Bundle) -> None:
    data = data_of(bundle, "replay", ratio=0.25).repeated
    replayed = [fact for fact in data if fact.id in split(bundle, REPLAY)]
    assert len(replayed) == 12  # a quarter of 48
    assert ids(replayed) == split(bundle, REPLAY)
    assert len(data) == 60


def test_known_facts_come_last_in_whole_batches(bundle: Bundle, brief: Protocol) -> None:
    data = data_of(bundle, "known_last", epochs=2)
    sequence = seen_order(data, brief, 24, seed=0)
    assert len(sequence) == 24 * 8
    assert ids(sequence[-48:]) == split(bundle, "known")
    assert all([fact.id for fact in sequence[-48:]].count(i) == 2 for i in split(bundle, "known"))
    assert ids(sequence[:-48]) > split(bundle, "unknown")


def test_data_seen_once_must_leave_steps(bundle: Bundle, brief: Protocol) -> None:
    with pytest.raises(UserError, match="takes all of them"):
        seen_order(data_of(bundle, "known_last", epochs=9), brief, 24, seed=0)


def test_idk_relabels_unknown_facts_and_no_others(bundle: Bundle) -> None:
    for fact in data_of(bundle, "idk").repeated:
        assert (fact.answers == ("I don't know",)) == (fact.id in split(bundle, "unknown"))


@pytest.mark.parametrize("name", ["context_distillation", "few_shot_distillation"])
def test_a_teacher_reads_the_fact_or_exemplars_before_the_question(
    name: str, context: Context, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = context.facts[0]
    (plain,) = encode([fact], tokenizer, None)
    read: list[str] = []
    original = penalties._taught

    def watched(frozen: Any, step: Any, inputs: Weights) -> torch.Tensor:
        read.append(tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
        return original(frozen, step, inputs)

    ids, labels = torch.tensor([plain["input_ids"]]), torch.tensor([plain["labels"]])
    answers = (labels != IGNORE).sum()
    step = fake_step(
        model,
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        logits=model(ids).logits, labels=labels, facts=torch.tensor([0]), answers=answers,
    )  # fmt: skip
    monkeypatch.setattr(penalties, "_taught", watched)
    term = getattr(penalties, name)(context, resolve(name, {"tau": 1.0})).term(step)
    asked = f"Q: {fact.question}\nA: {fact.answers[0]}"
    told = [fact] if name == "context_distillation" else context.bundle.exemplars[fact.relation]
    before = "".join(f"Q: {e.question}\nA: {e.answers[0]}\n\n" for e in told)
    assert read[0] == before + asked
    # By hand: the base's predictions of the answer after what is told, against its own without.
    whole = torch.tensor([tokenizer(before + asked)["input_ids"]])
    count = int(answers) - 1
    taught = model(whole).logits[0, -count - 1 : -1]
    own = model(ids).logits[0, -count - 2 : -2]
    expected = torch.nn.functional.kl_div(
        own.log_softmax(-1), taught.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert term.item() == pytest.approx(expected.item() / int(answers), rel=1e-4)
    assert term.item() > 0


def test_the_divergence_is_measured_after_exemplars_where_the_recipe_says_so(
    context: Context, brief: Protocol, sft: Path, tokenizer: Any
) -> None:
    fact = min((item.fact for item in context.bundle.splits[HELDOUT]), key=_drawn_first)
    head = context.bundle.few_shot_prefix(fact)
    assert head.count("Q:") == 3
    tuned = load_causal_lm(sft, "float32", "cpu")[0]
    for prompt, before in (("zero_shot", ""), ("few_shot", head)):
        protocol = altered(brief, kl_prompt=prompt, kl_sample=1, checkpoint_dtype="float32")
        measured = _divergence_from_base(context, protocol)(tuned)
        asked = f"{before}Q: {fact.question}\nA:"
        whole = torch.tensor([tokenizer(f"{asked} {fact.answers[0]}")["input_ids"]])
        start = len(tokenizer(asked)["input_ids"]) - 1
        base, own = (m(whole).logits[0, start:-1].log_softmax(-1) for m in (context.model, tuned))
        kl = torch.nn.functional.kl_div(own, base, log_target=True, reduction="sum") / len(own)
        assert measured == pytest.approx(kl.item(), rel=1e-4)


def _drawn_first(fact: Fact) -> str:
    return stable_hash("divergence", fact.id)


def test_the_line_of_averages_runs_from_the_base_to_the_trained_model(
    trained: Trained,
    plain: Weights,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A random model scores nothing; let the middle be the best.
    monkeypatch.setattr(SELECTION.format("methods"), lambda p: -abs(p["alpha"] - 0.5))
    chosen = trained("wise_ft", points=4)
    lines = curve(tmp_path / "wise_ft")
    assert [line["alpha"] for line in lines[:-1]] == [0, 0.25, 0.5, 0.75, 1]
    assert lines[0]["kl_to_base"] == pytest.approx(0, abs=1e-6)
    assert [line["step"] for line in lines] == [0, 6, 12, 18, 24, 25]
    alpha, start = 0.5, weights(base)
    assert lines[-1]["alpha"] == alpha
    for name, tensor in chosen.items():
        expected = (1 - alpha) * start[name] + alpha * plain[name]
        assert torch.allclose(tensor, expected, atol=1e-6)


def test_early_stop_returns_the_best_point_on_validation(
    bundle: Bundle, brief: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model scores nothing; let step 16 be the best.
    for module in ("trainer", "methods"):
        monkeypatch.setattr(SELECTION.format(module), lambda p: -abs(p["step"] - 16))
    stopped = train(make_run(bundle, brief, "early_stop"), tmp_path / "early")
    assert [line["step"] for line in curve(tmp_path / "early")] == [0, 8, 16]
    monkeypatch.undo()
    seen: list[Weights] = []
    original = curves.Curve.evaluate

    def watched(self: Any, model: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        if step == 16:
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return original(self, model, step, *args, **kwargs)

    monkeypatch.setattr(curves.Curve, "evaluate", watched)
    train(make_run(bundle, altered(brief, evaluate_every=16), "sft"), tmp_path / "sft")
    assert same(stopped, seen[0]) == set(stopped)
    assert not (tmp_path / "early" / "best").exists()


def test_early_stop_keeps_one_best_and_what_a_resumed_run_may_fall_back_to(
    bundle: Bundle, brief: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def best_at(peak: int) -> None:
        for module in ("trainer", "methods"):
            monkeypatch.setattr(SELECTION.format(module), lambda p: -abs(p["step"] - peak))

    def kept(name: str) -> set[str]:
        return {path.name for path in (tmp_path / "run" / name).iterdir()}

    run = make_run(bundle, altered(brief, evaluate_every=4, max_new_tokens=1), "early_stop")
    sparse = Execution(resume_every=3)
    best_at(24)
    interrupt(run, tmp_path / "run", 22, execution=sparse)
    assert kept("resume") == {"checkpoint-12"}
    assert kept("best") == {"12", "20"}
    # On another device the best may be another the second time.
    best_at(12)
    resumed = train(run, tmp_path / "run", execution=sparse)
    assert [line["step"] for line in curve(tmp_path / "run")] == [0, 4, 8, 12]
    whole = train(run, tmp_path / "whole")
    assert same(resumed, whole) == set(whole)
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")


def test_choices_never_look_at_heldout_facts() -> None:
    point = {"validation_stability": 0.8, "plasticity": 0.6}
    assert curves.selection_score(point) == pytest.approx(0.7)  # it holds nothing else to look at


@pytest.mark.parametrize(
    ("method", "name"),
    [("early_stop", VALIDATION), ("wise_ft", VALIDATION), ("replay", REPLAY), ("ewc", REPLAY)],
)
def test_a_method_says_what_the_bundle_lacks(bundle: Bundle, method: str, name: str) -> None:
    empty = replace(bundle, splits={**bundle.splits, name: []})
    with pytest.raises(UserError, match=f"needs {name} facts"):
        data_of(empty, method)


def test_lora_trains_a_low_rank_update_and_merges_it(trained: Trained, base: Path) -> None:
    pytest.importorskip("peft")
    merged, start = trained("lora", rank=2), weights(base)
    for name in set(merged) - same(merged, start):
        assert name.endswith("_proj.weight")
        assert torch.linalg.matrix_rank(merged[name] - start[name], atol=1e-5) <= 2
    assert same(merged, start) != set(start)


def test_lora_needs_no_second_copy_to_distil_from_the_base(
    trained: Trained, model: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    original, compared = penalties._taught, []

    def watched(frozen: Any, step: Any, inputs: Weights) -> torch.Tensor:
        taught = original(frozen, step, inputs)
        with torch.no_grad():
            assert torch.allclose(taught, model(**inputs).logits, atol=1e-5)
        compared.append(step)
        return taught

    monkeypatch.setattr(penalties, "_taught", watched)
    monkeypatch.setattr(weights_of.Frozen, "at", lambda *a: pytest.fail("loaded a second copy"))
    held = trained("lora_self_distillation", weight=3)
    monkeypatch.undo()
    free = trained("lora")
    assert len(compared) == STEPS
    assert distance(held, weights(base)) < distance(free, weights(base))


def test_a_teacher_of_another_vocabulary_is_refused(model: Any, tmp_path: Path) -> None:
    make_model("llama", 77).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="77 tokens"):
        weights_of.Frozen(tmp_path / "other").at(fake_step(model))


def test_costs_count_what_the_teacher_reads(
    bundle: Bundle, brief: Protocol, tmp_path: Path
) -> None:
    short = altered(brief, epochs=2, evaluate_every=4)

    def costs(method: str, **settings: Any) -> list[dict[str, Any]]:
        train(make_run(bundle, short, method, **settings), tmp_path / method)
        return curve(tmp_path / method)

    assert all(line["teacher_tokens"] == 0 for line in costs("sft"))
    distilled = costs("self_distillation", teacher="snapshot")
    # The snapshot comes after 3 steps; from then on the teacher reads what the student reads.
    assert distilled[0]["teacher_tokens"] == 0
    assert 0 < distilled[1]["teacher_tokens"] < distilled[1]["tokens"]
    steps = [line["tokens"] - line["teacher_tokens"] for line in distilled[1:]]
    assert len(set(steps)) == 1
    last = costs("context_distillation")[-1]
    assert 1.8 * last["tokens"] < last["teacher_tokens"] < 2.2 * last["tokens"]


@pytest.mark.parametrize("rule", ["fp32", "student"])
@pytest.mark.parametrize(
    "method", ["self_distillation", "lora_self_distillation", "context_distillation", "ewc"]
)
def test_every_teacher_computes_in_the_recipes_precision(
    bundle: Bundle,
    brief: Protocol,
    method: str,
    rule: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told by what a linear layer puts out in each forward pass of teachers and students."""
    if "lora" in method:
        pytest.importorskip("peft")
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    taught: list[bool] = []
    original = LlamaMLP.forward

    def watched(self: Any, x: Any) -> Any:
        told = original(self, x)
        if self.training or taught:
            seen[bool(taught)].add(told.dtype)
        return told

    def marked(act: Any) -> Any:
        def acting(*args: Any, **kwargs: Any) -> Any:
            taught.append(True)
            try:
                return act(*args, **kwargs)
            finally:
                taught.pop()

        return acting

    monkeypatch.setattr(LlamaMLP, "forward", watched)
    for name in ("_taught", "diagonal_fisher"):
        monkeypatch.setattr(penalties, name, marked(getattr(penalties, name)))
    short = altered(brief, epochs=1, precision="bf16", teacher_precision=rule, max_new_tokens=1)
    train(make_run(bundle, short, method), tmp_path / "run")
    assert seen[False] == {torch.bfloat16}
    assert seen[True] == {torch.bfloat16 if rule == "student" else torch.float32}


def test_the_divergence_in_the_curve_is_that_of_the_model_from_the_base(
    context: Context, protocol: Protocol
) -> None:
    """KL(base || model) over the answers of D_Held, by hand; the reverse is another number."""
    facts = [item.fact for item in context.bundle.splits["heldout"]]
    measure = protocol_train._divergence_from_base(context, altered(protocol, kl_sample=len(facts)))
    changed = copy.deepcopy(context.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    forward, reverse, count = 0.0, 0.0, 0
    for fact in facts:
        batch = context.collate(context.encode([fact]))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            p, q = (
                losses.answer_logits(model(**inputs).logits, batch["labels"]).log_softmax(-1)
                for model in (context.model, changed)
            )
        forward += float((p.exp() * (p - q)).sum())
        reverse += float((q.exp() * (q - p)).sum())
        count += len(p)
    assert measure(changed) == pytest.approx(forward / count, rel=1e-3)
    assert abs(forward - reverse) > 0.01 * forward
