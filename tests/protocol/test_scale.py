import random
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from runs import altered, assert_same_bytes, curve, make_run, train, weights
from sharded import VOCABULARY, work
from transformers import AutoModelForCausalLM, TrainingArguments

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.models import default_device
from factual_forgetting.errors import UserError
from factual_forgetting.protocol.recipe import Execution, Protocol, Stored
from factual_forgetting.protocol.trainer import ForgettingTrainer, arguments
from factual_forgetting.protocol.weights import as_checkpoint, hollow
from processes import FSDP, environment
from small import make_model


@pytest.fixture(scope="session")
def brief(protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 steps with a point at each, as a file."""
    short = altered(
        protocol, name="brief", epochs=4, evaluate_every=1, max_new_tokens=2, learning_rate=1e-3
    )
    path = tmp_path_factory.mktemp("protocols") / "brief.yaml"
    files.write_json(path, short.model_dump(mode="json"))
    return path


def command(bundle: Bundle, protocol: Path, output: Path, method: str, settings: str) -> list[str]:
    return [
        *("-m", "factual_forgetting.cli", "finetune", "--bundle", str(bundle.path)),
        *("--method", method, "--method_args", settings, "--protocol", str(protocol)),
        *("--output_path", str(output)),
    ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("self_distillation", "teacher=snapshot"),
        pytest.param("sft", "", marks=pytest.mark.slow),
        pytest.param("l2", "weight=0.1", marks=pytest.mark.slow),
        pytest.param("context_distillation", "", marks=pytest.mark.slow),
    ],
)
def test_two_processes_follow_the_loss_of_one(
    bundle: Bundle, brief: Path, method: str, settings: str, tmp_path: Path
) -> None:
    for processes in (1, 2):
        given = command(bundle, brief, tmp_path / str(processes), method, settings)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        # Two processes with accumulation: each forward pass reads a quarter of the batch.
        given += ["--device_batch_size", "2"] if processes == 2 else []
        subprocess.run([sys.executable, *launch, *given], env=environment(), check=True)
    one, two = ([line["loss"] for line in curve(tmp_path / name)][1:] for name in "12")
    assert len(one) == 24
    assert two == pytest.approx(one, rel=1e-4)
    assert one[-1] < one[0] - 0.5
    run = files.read_json(tmp_path / "2" / "run.json")
    assert run["resolved"]["world_size"] == 2
    assert run["resolved"]["distributed"] == "MULTI_CPU"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("self_distillation", "teacher=snapshot"),
        ("lora", ""),
        ("early_stop", ""),
        ("wise_ft", "points=2"),
    ],
)
def test_a_sharded_run_is_that_of_one_process(
    bundle: Bundle, brief: Path, method: str, settings: str, tmp_path: Path
) -> None:
    half = yaml.safe_load(brief.read_text()) | {"precision": "bf16", "evaluate_every": 8}
    files.write_json(tmp_path / "half.yaml", half)
    sharding = [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        str(Path(__file__).parent / "fsdp_cpu.py"),
    ]
    for name in ("one", "two"):
        given = command(bundle, tmp_path / "half.yaml", tmp_path / name, method, settings)
        if name == "two":
            given = [*sharding, *given[2:]]
        more = FSDP if name == "two" else {}
        subprocess.run([sys.executable, *given], env={**environment(), **more}, check=True)
    assert files.read_json(tmp_path / "two" / "run.json")["resolved"]["distributed"] == "FSDP"
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-4
    for key in ("loss", "kl_to_base"):
        left, right = ([p[key] or 0.0 for p in curve(tmp_path / n)] for n in ("one", "two"))
        assert left == pytest.approx(right, rel=1e-2, abs=1e-3), key


def test_the_loss_and_its_gradient_are_the_same_under_fully_shard(tmp_path: Path) -> None:
    make_model("llama", VOCABULARY, seed=1).save_pretrained(tmp_path / "teacher")
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        given = (2, free_port(), str(tmp_path / "teacher"), str(tmp_path / "snapshot"), results)
        torch.multiprocessing.spawn(work, given, nprocs=2)
        found = dict(results)
    assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-5)
    assert found["gradient"] < 1e-5 * found["scale"] + 1e-7
    student = make_model("llama", VOCABULARY).state_dict()
    snapshot = weights(tmp_path / "snapshot")
    assert all(torch.equal(snapshot[name], student[name]) for name in snapshot)


def killed_and_resumed(
    bundle: Bundle, protocol: Path, output: Path, moments: list[tuple[int, float]]
) -> int:
    """Starts a run again and again, kills it at each moment, and returns how often it was."""
    given = command(bundle, protocol, output, "self_distillation", "teacher=snapshot")
    kills = 0
    for points, delay in moments:
        process = subprocess.Popen([sys.executable, *given], env=environment())
        while process.poll() is None:
            partial = output / "curve.partial.jsonl"
            if partial.exists() and len(partial.read_text().splitlines()) >= points:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.005)
    subprocess.run([sys.executable, *given], env=environment(), check=True)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(("moments", "seed"), [(2, 0), (10, 1)])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    bundle: Bundle, brief: Path, tmp_path: Path, moments: int, seed: int
) -> None:
    rng = random.Random(seed)
    points = sorted(rng.randint(1, 24) for _ in range(moments))
    killed = [(point, rng.random() * 0.3) for point in points]
    kills = killed_and_resumed(bundle, brief, tmp_path / "killed", killed)
    assert kills >= moments - 1  # the last may come too late
    killed_and_resumed(bundle, brief, tmp_path / "whole", [])
    assert_same_bytes(tmp_path / "killed", tmp_path / "whole")
    assert not [path.name for path in (tmp_path / "killed").iterdir() if "partial" in path.name]


def test_gradient_checkpointing_computes_twice_and_changes_nothing(
    bundle: Bundle, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    passes = {True: 0, False: 0}
    original = LlamaMLP.forward
    short = altered(protocol, epochs=1, learning_rate=1e-4, max_new_tokens=1)
    trained: dict[bool, dict[str, torch.Tensor]] = {}
    for twice in (False, True):

        def counted(self: Any, x: Any, twice: bool = twice) -> Any:
            passes[twice] += self.training
            return original(self, x)

        monkeypatch.setattr(LlamaMLP, "forward", counted)
        execution = Execution(gradient_checkpointing=twice)
        run = make_run(bundle, short, "sft")
        trained[twice] = train(run, tmp_path / str(twice), execution=execution)
    assert passes[True] == 2 * passes[False]
    for name, tensor in trained[False].items():
        assert torch.allclose(trained[True][name], tensor, atol=1e-6), name


def test_bf16_computes_over_fp32_weights(
    bundle: Bundle, protocol: Protocol, tmp_path: Path
) -> None:
    short = altered(protocol, epochs=1, learning_rate=1e-4, max_new_tokens=1)
    half, full = (
        train(make_run(bundle, altered(short, precision=name), "sft"), tmp_path / name)
        for name in ("bf16", "fp32")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert half[name].dtype == torch.float32
    # Not rounded to bf16, as weights kept in it would be; near to fp32, and not equal.
    assert not torch.equal(half[name], half[name].bfloat16().float())
    assert not torch.equal(half[name], full[name])
    assert torch.allclose(half[name], full[name], atol=2e-3)


def test_a_batch_that_does_not_split_is_told(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="can't be split over 3 processes"):
        arguments(protocol, 10, 0, tmp_path, Execution())


def test_an_absent_tracker_is_told(protocol: Protocol, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonsense"):
        arguments(protocol, 10, 0, tmp_path, Execution(report_to="nonsense"))


def test_a_tracker_gets_loss_and_curve(
    bundle: Bundle, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    logged: list[dict[str, float]] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logged.append(kwargs["logs"])

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    short = altered(protocol, epochs=1, evaluate_every=3, max_new_tokens=1)
    run = make_run(bundle, short, "sft")
    train(run, tmp_path / "run", execution=Execution(report_to="recorder"))
    assert [row["loss"] for row in logged if "loss" in row] == pytest.approx(
        [line["loss"] for line in curve(tmp_path / "run")][1:]
    )
    assert [row["curve/step"] for row in logged if "curve/step" in row] == [3, 6]


def test_accelerate_reads_the_shipped_configuration() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = package_files("factual_forgetting.protocol") / "accelerate" / "fsdp.yaml"
    loaded = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert loaded.distributed_type == written["distributed_type"]
    assert loaded.mixed_precision == "no"


def test_a_process_without_a_launcher_uses_one_of_many_gpus(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def four(self: TrainingArguments) -> torch.device:
        self._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(four))
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self._n_gpu))
    assert TrainingArguments(str(tmp_path)).n_gpu == 4
    found = arguments(protocol, 10, 0, tmp_path, Execution())
    assert found.n_gpu == 1
    assert found.train_batch_size * found.gradient_accumulation_steps == protocol.batch_size


def small_trainer(protocol: Protocol, path: Path) -> ForgettingTrainer:
    given = {"model": make_model("llama", VOCABULARY), "train_dataset": [{}]}
    return ForgettingTrainer(8, args=arguments(protocol, 10, 0, path, Execution()), **given)


def test_the_launcher_does_not_decide_the_precision(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small_trainer(protocol, tmp_path).accelerator.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="mixed_precision bf16, and the protocol computes in fp32"):
        small_trainer(protocol, tmp_path)
    half = altered(protocol, precision="bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert small_trainer(half, tmp_path).accelerator.mixed_precision == "bf16"


def test_deepspeed_is_refused(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(UserError, match=r"keeps in bf16.*Shard by FSDP"):
        small_trainer(protocol, tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_sharding_leaves_weights_in_fp32(
    protocol: Protocol, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
    plugin.set_mixed_precision("bf16", override=True)
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    half = altered(protocol, precision="bf16")
    if version == 1:
        with pytest.raises(UserError, match="FSDP 1 is not supported"):
            small_trainer(half, tmp_path)
    else:
        small_trainer(half, tmp_path)
        assert plugin.mixed_precision_policy is None


def test_a_launched_process_loads_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert default_device() == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert default_device() == "cuda:3"


def test_a_copy_in_the_checkpoints_dtype_never_holds_the_weights_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, copied = make_model("llama", VOCABULARY), []
    original = torch.nn.Parameter.__deepcopy__

    def watched(self: Any, memo: Any) -> Any:
        copied.append(self)
        return original(self, memo)

    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", watched)
    frozen = as_checkpoint(model, Stored("bfloat16"))
    assert not copied
    expected = {name: p.bfloat16() for name, p in model.named_parameters()}
    assert all(torch.equal(p, expected[name]) for name, p in frozen.named_parameters())
    assert all(p.is_meta for p in hollow(model).parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "lfm2"])
def test_the_curve_evaluates_what_a_saved_checkpoint_is_once_loaded(
    tmp_path: Path, kind: str
) -> None:
    """Rotary frequencies aren't in the file, and loading computes them in fp32."""
    model = make_model(kind, VOCABULARY)
    frozen = as_checkpoint(model, Stored("bfloat16"))
    frozen.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
    for own, others in (
        (frozen.named_parameters(), loaded.named_parameters()),
        (frozen.named_buffers(), loaded.named_buffers()),
    ):
        expected = dict(others)
        for name, tensor in own:
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor, expected.pop(name)), name
        assert not expected
    # A recipe that doesn't say otherwise casts them, as the first ones did.
    cast = dict(as_checkpoint(model, Stored("bfloat16", all_buffers=True)).named_buffers())
    assert {b.dtype for b in cast.values() if b.is_floating_point()} == {torch.bfloat16}
