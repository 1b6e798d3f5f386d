"""The callback: training goes on as if nobody had asked, and what it says can be read again."""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification
from transformers import TrainerCallback as Plain
from watched import make_trainer, watched

from factual_forgetting import ForgettingCallback, checkpoint, files
from factual_forgetting.board.making import Declared, make_record
from factual_forgetting.board.record import load_record
from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.errors import InputError, NotFoundError
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.curve import CURVE, OUTCOMES
from factual_forgetting.protocol.live import undisturbed
from factual_forgetting.protocol.run import RUN
from factual_forgetting.scoring import callback as callbacks
from factual_forgetting.scoring.frontier import find_runs, frontier
from factual_forgetting.scoring.statistics import Estimate
from factual_forgetting.scoring.watch import Watch
from processes import FSDP, environment


def points(output: Path) -> list[dict[str, Any]]:
    return list(files.read_jsonl(output / CURVE))


def told(trainer: Any, key: str = "ff/stability") -> list[int]:
    return [row["step"] for row in trainer.state.log_history if key in row]


def losses(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def dropping(base: Path, *, adapter: bool) -> Any:
    """A model whose passes in training are drawn at random, partly frozen."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32", attention_dropout=0.2)
    model.config.use_cache = False
    if not adapter:
        model.get_input_embeddings().requires_grad_(False)
        return model
    settings = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"]}
    return get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))


def state_of(model: Any) -> tuple[Any, ...]:
    modes = [module.training for module in model.modules()]
    grads = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return modes, grads, model.config.use_cache, [sorted(vars(m)) for m in model.modules()]


@pytest.mark.parametrize("adapter", [False, True])
def test_training_is_the_same_with_the_callback(
    bundle: Bundle, base: Path, tmp_path: Path, adapter: bool
) -> None:
    found, states = [], []
    for asks in (False, True):
        torch.manual_seed(0)
        settings = {"gradient_checkpointing": True, "bf16": adapter}
        model = dropping(base, adapter=adapter)
        trainer = make_trainer(base, bundle, tmp_path / str(asks), model, **settings)
        if asks:
            off = {"adapter_off": adapter}
            trainer.add_callback(ForgettingCallback(trainer, bundle, every=1, limit=4, **off))
        trainer.train()
        found.append((losses(trainer), [p.detach().clone() for p in model.parameters()]))
        states.append(state_of(model))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))
    assert states[0] == states[1]
    assert told(trainer) == list(range(7))


def test_modes_random_states_and_the_wrapped_pass_come_back(base: Path) -> None:
    model = dropping(base, adapter=False).train()
    model.model.layers[0].eval()
    model.forward = lambda **_: pytest.fail("asked under autocast")
    before, own = state_of(model), vars(model)["forward"]
    draws = [random.random, np.random.random, lambda: torch.rand(1).item()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = [draw() for draw in draws]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        model(input_ids=torch.tensor([[5, 6]]))
        assert [draw() for draw in draws] == expected
    assert [draw() for draw in draws] == expected
    assert (state_of(model), vars(model)["forward"]) == (before, own)


def test_a_bundle_gives_a_curve_that_frontier_and_record_read(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    trainer = watched(base, bundle, output)
    assert [point["step"] for point in points(output)] == [0, 2, 4, 6]
    with pytest.raises(NotFoundError, match="save_model"):
        make_record(output, bundle, tmp_path / "records", Declared(submitter="me"))
    trainer.save_model()
    path = make_record(
        output, bundle, tmp_path / "records", Declared(submitter="me", heldout="excluded")
    )
    record, outcomes = load_record(path)
    assert (record.method.name, record.track, record.protocol) == ("own", "open", None)
    assert record.weights_sha256 == checkpoint.weights_sha256(output)
    assert record.environment.training_batch_size == "8"
    assert len(outcomes[0].curve) == 4
    # A sampled point asks four facts of a split, the first and the last all.
    asked = np.array([[mark != "-" for mark in row.curve] for row in outcomes])
    sizes = [len(bundle.splits[name]) for name in ("known", "unknown", HELDOUT)]
    assert asked.sum(0).tolist() == [sum(sizes), 12, 12, sum(sizes)]
    row = frontier(find_runs([output], bundle), bundle)[0]
    assert (row["method"], row["protocol"], row["seeds"]) == ("own", "own", [42])
    assert row["stability"]["mean"] == points(output)[-1]["stability"]
    # Trained again without saving: the weights there are those of another training.
    watched(base, bundle, output, learning_rate=1e-4)
    with pytest.raises(NotFoundError, match="save_model"):
        make_record(output, bundle, tmp_path / "records", Declared(submitter="me"))


def test_a_killed_training_ends_in_the_same_bytes(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    class Killer(Plain):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 3}
    watched(base, bundle, tmp_path / "whole", **saving)
    trainer = make_trainer(base, bundle, tmp_path / "killed", **saving)
    trainer.add_callback(ForgettingCallback(trainer, bundle, every=2, limit=4))
    trainer.add_callback(Killer())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [point["step"] for point in points(tmp_path / "killed")] == [0, 2, 4]
    trainer = make_trainer(base, bundle, tmp_path / "killed", **saving)
    trainer.add_callback(ForgettingCallback(trainer, bundle, every=2, limit=4))
    trainer.train(resume_from_checkpoint=True)
    for name in (CURVE, OUTCOMES):
        one, other = (tmp_path / folder / name for folder in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()
    (tmp_path / "killed" / CURVE).unlink()
    with pytest.raises(InputError, match="what the model knew before"):
        trainer.train(resume_from_checkpoint=True)


def test_the_best_model_at_the_end_ends_the_curve(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer = make_trainer(base, bundle, tmp_path, **saving, **best, greater_is_better=True)
    trainer.add_callback(ForgettingCallback(trainer, bundle, every=2))
    trainer.train()
    assert trainer.state.best_global_step == 3
    assert [point["step"] for point in points(tmp_path)] == [0, 2, 3]


@pytest.mark.parametrize("sharding", [{}, FSDP], ids=["whole", "sharded"])
def test_processes_share_the_questions(
    bundle: Bundle, base: Path, tmp_path: Path, sharding: dict[str, str]
) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).with_name("watched.py"))
    given = [*launch, script, str(base), str(bundle.path), str(tmp_path / "two")]
    subprocess.run([sys.executable, *given], env={**environment(), **sharding}, check=True)
    watched(base, bundle, tmp_path / "one")
    alone, together = (points(tmp_path / name) for name in ("one", "two"))
    assert together[0] == alone[0]
    assert [point["step"] for point in together] == [0, 2, 4, 6]
    told = files.read_json(tmp_path / "two" / "run.json")["resolved"]["distributed"]
    assert told == ("FSDP" if sharding else "MULTI_CPU")
    assert together[-1]["task_learning"] == pytest.approx(alone[-1]["task_learning"], abs=0.1)


@pytest.fixture(scope="module")
def almanac() -> Path:
    return checkpoint.locate("almanac")


@pytest.fixture
def easy() -> list[Fact]:
    """Facts of the embedded world, without relations."""
    found = [fact for fact in world() if fact.relation == "country"][:150]
    return [Fact.make("", f.subject, f.question, f.answers) for f in found]


def test_facts_that_the_model_knows_are_asked_few_shot(
    easy: list[Fact], bundle: Bundle, almanac: Path, tmp_path: Path, capsys: Any
) -> None:
    trainer = make_trainer(almanac, bundle, tmp_path, learning_rate=3e-4)
    trainer.add_callback(ForgettingCallback(trainer, easy, every=2, limit=20, full_every=4))
    trainer.train()
    rows = list(files.read_jsonl(tmp_path / OUTCOMES))
    asked = 150 - 6 * 3
    assert f"forgetting: {len(rows)} of {asked} facts are known" in capsys.readouterr().err
    assert 0 < len(rows) < asked
    counts = np.array([[mark != "-" for mark in row["correct"]] for row in rows]).sum(0)
    assert counts.tolist() == [len(rows), 20, len(rows), len(rows)]
    assert told(trainer) == told(trainer, "ff/lost") == [0, 2, 4, 6]
    assert not told(trainer, "ff/plasticity")
    rows = [row for row in trainer.state.log_history if "ff/lost" in row]
    assert rows[0]["ff/lost"] == 0
    assert rows[-1]["ff/lost_low"] < rows[-1]["ff/lost"] < rows[-1]["ff/lost_high"]


def test_training_stops_when_the_interval_clears_the_bound(
    bundle: Bundle, almanac: Path, easy: list[Fact], tmp_path: Path
) -> None:
    trainer = make_trainer(almanac, bundle, tmp_path, max_steps=40, learning_rate=5e-3)
    given = {"every": 2, "limit": 30, "stop_if": "lost>0.2"}
    trainer.add_callback(ForgettingCallback(trainer, easy, **given))
    trainer.train()
    steps = told(trainer)
    assert steps[-1] == steps[-2] == trainer.state.global_step < 40  # a sample, then all facts
    assert [r["ff/lost_low"] for r in trainer.state.log_history if "ff/lost" in r][-1] > 0.2
    assert len(points(tmp_path)) == len(set(steps))


def test_a_sample_alone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(self: Watch, point: dict[str, Any]) -> dict[str, Estimate]:
        value = 0.1 if point["final"] else 0.9
        return {"lost": Estimate(value, value, value, 9)}

    def evaluate(self: Watch, model: Any, step: int, loss: Any, *, final: bool) -> Any:
        self.points = [{"step": step, "final": final}]

    monkeypatch.setattr(Watch, "estimates", estimate)
    monkeypatch.setattr(Watch, "evaluate", evaluate)
    asking = ForgettingCallback(None, [], every=1, stop_if="lost>0.5")
    asking._watch = object.__new__(Watch)
    monkeypatch.setattr(asking, "_log", lambda *_: None)
    monkeypatch.setattr(callbacks, "undisturbed", lambda _: nullcontext())
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(global_step=1, max_steps=9, log_history=[])
    asking.on_step_end(None, state, control, model=torch.nn.Linear(1, 1))
    assert asking._watch.points == [{"step": 1, "final": True}]
    assert not control.should_training_stop


def test_a_callback_made_before_its_trainer_reaches_the_trackers(
    bundle: Bundle, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []

    class Tracker(Plain):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(logs)

    monkeypatch.setattr(callbacks, "get_reporting_integration_callbacks", lambda _: [Tracker])
    asking = ForgettingCallback(None, bundle, every=3, limit=None)
    trainer = make_trainer(base, bundle, tmp_path)
    asking.on_init_end(
        trainer.args, None, None, model=trainer.model, processing_class=trainer.processing_class
    )  # as a Trainer does with callbacks=[asking]
    trainer.add_callback(asking)
    trainer.train()
    assert told(trainer) == [0, 3, 6]
    assert len(losses(trainer)) == 6
    assert [row["ff/stability"] for row in seen] == [p["stability"] for p in points(tmp_path)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_if": "forgotten>0.1"}, "is no threshold"),
        ({"stop_if": "lost>5"}, "a share from 0 to 1"),
        ({"every": 0}, "key 'every'"),
        ({"limit": -1}, "key 'limit'"),
        ({"method": "My Method"}, "key 'method'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ForgettingCallback(None, [], **options)


def test_what_cannot_be_asked_is_refused_before_training(
    bundle: Bundle, base: Path, easy: list[Fact], almanac: Path, tmp_path: Path, tokenizer: Any
) -> None:
    trainer = make_trainer(base, bundle, tmp_path)
    trainer.add_callback(ForgettingCallback(trainer, easy))
    with pytest.raises(InputError, match="knows none of these facts"):
        trainer.train()
    trainer = make_trainer(base, bundle, tmp_path)
    with pytest.raises(InputError, match="no adapter"):
        ForgettingCallback(trainer, bundle, adapter_off=True)
    trainer.processing_class = None
    with pytest.raises(InputError, match="tokenizer=AutoTokenizer"):
        ForgettingCallback(trainer, bundle)
    ForgettingCallback(trainer, bundle, tokenizer=tokenizer)
    with pytest.raises(InputError, match="these aren't its weights"):
        ForgettingCallback(make_trainer(almanac, bundle, tmp_path), bundle)
    tiny = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    trainer.model = BertForSequenceClassification(tiny)
    with pytest.raises(InputError, match="generates no text"):
        ForgettingCallback(trainer, bundle, tokenizer=tokenizer)


def test_a_run_of_finetune_is_left_alone(
    bundle: Bundle, base: Path, sft: Path, tmp_path: Path
) -> None:
    shutil.copy(sft / RUN, tmp_path)
    with pytest.raises(InputError, match="run of finetune"):
        watched(base, bundle, tmp_path)
    assert (tmp_path / RUN).read_bytes() == (sft / RUN).read_bytes()


def plugins() -> Iterator[tuple[dict[str, Any], str]]:
    kinds = callbacks.DistributedType
    old = SimpleNamespace(fsdp_version=1)
    yield {"distributed_type": kinds.FSDP, "fsdp_plugin": old}, "fsdp_version: 2"
    third = SimpleNamespace(zero_stage=3)
    yield {"distributed_type": kinds.DEEPSPEED, "deepspeed_plugin": third}, "ZeRO 3"
    layout = SimpleNamespace(tp_size=2)
    yield {"distributed_type": kinds.MULTI_GPU, "parallelism_config": layout}, "Tensor"


@pytest.mark.parametrize(("state", "message"), plugins())
def test_sharding_out_of_reach_is_refused(
    bundle: Bundle, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any,
    message: str,
) -> None:  # fmt: skip
    trainer = make_trainer(base, bundle, tmp_path)
    monkeypatch.setattr(callbacks, "AcceleratorState", lambda: SimpleNamespace(**state))
    with pytest.raises(InputError, match=message):
        ForgettingCallback(trainer, bundle)
