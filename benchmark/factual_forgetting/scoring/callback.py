"""Tells what anyone's training makes a model forget, while it trains."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import transformers as hf
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, extract_model_from_parallel
from pydantic import PositiveInt, StringConstraints
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler

from factual_forgetting import __version__, checkpoint, files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.environment import environment
from factual_forgetting.errors import InputError, NotFoundError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.live import undisturbed
from factual_forgetting.protocol.recipe import Stored, is_main_process, world_size
from factual_forgetting.protocol.run import RUN, told_by_run
from factual_forgetting.protocol.weights import as_checkpoint, gathered, hollow
from factual_forgetting.scoring.threshold import Threshold
from factual_forgetting.scoring.watch import WATCHED, Watch


class Cadence(Config):
    """When a training is asked, how much, and what its result is called.

    Attributes:
        every: Optimizer steps from one point to the next.
        limit: Most facts of a split at such a point, always the same ones; None for all.
        full_every: Steps from one point on all facts to the next; None for the start and the end.
        method: Name of the method, for tables and the board.
    """

    every: PositiveInt = 50
    limit: PositiveInt | None = 200
    full_every: PositiveInt | None = None
    method: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "own"


class ForgettingCallback(hf.TrainerCallback):
    """Asks the model in memory what it still knows, and logs `ff/stability`, `ff/lost` and others.

    It asks before training, every few steps and at the end; training goes on as if it hadn't. The
    curve stands in the trainer's `output_dir`; with a bundle, `frontier` and `record` read it.
    """

    def __init__(
        self,
        trainer: Any,
        facts: Bundle | Sequence[Fact],
        *,
        every: int = 50,
        limit: int | None = 200,
        full_every: int | None = None,
        stop_if: str | None = None,
        tokenizer: Any = None,
        adapter_off: bool = False,
        method: str = "own",
    ) -> None:
        """Checks that the model can be asked.

        Args:
            trainer: A Trainer of transformers, or what is built on it. None where the callback is
                made before it, for `callbacks=[...]`.
            facts: The bundle of the base, asked zero-shot: for a training that teaches its form.
                Or facts, asked few-shot: those count that the model has right in each of five
                prompts before training, and they are then asked in a sixth. All are asked at the
                start: `load_facts(..., limit=N)` bounds what that costs.
            every: As in `Cadence`.
            limit: As in `Cadence`.
            full_every: As in `Cadence`.
            stop_if: Stops training when the whole 95 % interval of a metric lies beyond a bound,
                on the sample and then on all facts: `lost>0.05`, `stability<0.9`.
            tokenizer: The model's, where the trainer has none.
            adapter_off: Whether the base is the model with its adapter off, and not as it stands
                when training starts.
            method: As in `Cadence`.

        Raises:
            UserError: If an argument is wrong, or the model can't be asked.
        """
        given = {"every": every, "limit": limit, "full_every": full_every, "method": method}
        self._cadence = parse(Cadence, given, "ForgettingCallback")
        self._stop = Threshold.parse(stop_if, WATCHED) if stop_if else None
        self._trainer, self._facts, self._adapter_off = trainer, facts, adapter_off
        self._tokenizer = tokenizer
        self._hollow: Any = None  # the model without its weights, where they are sharded
        if trainer is not None:
            self._prepare(trainer.model, trainer.processing_class)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks that the model of a trainer that was made after it can be asked."""
        self._prepare(kwargs["model"], kwargs["processing_class"])

    def _prepare(self, model: Any, processing_class: Any) -> None:
        processor = self._tokenizer or processing_class
        self._tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(self._tokenizer, "eos_token_id"):
            raise InputError(
                "The trainer has no tokenizer, and questions are text. Give the model's: "
                "ForgettingCallback(..., tokenizer=AutoTokenizer.from_pretrained(...))."
            )
        if not (hasattr(model, "can_generate") and model.can_generate()):
            raise InputError(f"{type(model).__name__} generates no text, so it can't be asked.")
        if self._adapter_off and not hasattr(model, "disable_adapter"):
            raise InputError("adapter_off: the model has no adapter of peft. Leave it out.")
        if isinstance(self._facts, Bundle):
            _require_base(model, self._facts)
        if _sharded():
            if self._adapter_off:
                raise InputError("adapter_off: FSDP shards the adapter. Leave it out.")
            self._hollow = hollow(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks the model that training starts from; a resumed training goes on with its curve."""
        output = Path(args.output_dir)
        self._watch = Watch(self._facts, self._tokenizer, output, self._cadence.limit)
        if state.global_step:
            self._watch.resume(state.global_step)
            return
        if (output / RUN).exists():
            told = told_by_run(output)
            if told is None or told["protocol"]:
                whose = "a run of finetune" if told else f"a {RUN} that is not ours"
                raise InputError(f"{output} holds {whose}. Train into another output_dir.")
        with self._asked(kwargs["model"], self._adapter_off) as model:
            self._watch.start(model)
        if is_main_process():
            (output / RUN).unlink(missing_ok=True)  # of a training whose curve is overwritten
        self._log(args, state, control, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Asks where a point is due; the last one is of all facts."""
        step, cadence = state.global_step, self._cadence
        last = control.should_training_stop or step >= state.max_steps
        full = last or (cadence.full_every is not None and step % cadence.full_every == 0)
        if full or step % cadence.every == 0:
            self._evaluate(args, state, control, kwargs, step, full)
            if self._stops() and not full:
                self._evaluate(args, state, control, kwargs, step, full=True)
            if self._stops() and not last:
                _tell(f"step {step}: training stops, as {self._stop} asks")
                control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the curve with the model that training leaves."""
        step = state.global_step
        chosen = args.load_best_model_at_end and state.best_global_step is not None
        if chosen:
            step = state.best_global_step
        if chosen or not self._watch.whole(step):
            self._evaluate(args, state, control, kwargs, step, full=True)
        if isinstance(self._facts, Bundle) and is_main_process():
            run = _run(self._facts, self._cadence.method, args, state, kwargs["model"])
            files.write_json(Path(args.output_dir) / RUN, run)

    @contextmanager
    def _asked(self, model: Any, adapter_off: bool = False) -> Iterator[Any]:
        """Gives the model to ask: the one in training, or a whole copy of what is sharded."""
        bare = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
        if self._hollow is not None:
            dtype = _dtype(bare)
            bare = as_checkpoint(self._hollow, Stored(dtype), gathered(bare, dtype))
        with undisturbed(bare), bare.disable_adapter() if adapter_off else nullcontext():
            yield bare

    def _evaluate(
        self, args: Any, state: Any, control: Any, given: dict[str, Any], step: int, full: bool
    ) -> None:
        with self._asked(given["model"]) as model:
            self._watch.evaluate(model, step, _last_loss(state, step), final=full)
        self._log(args, state, control, given)

    def _stops(self) -> bool:
        found = self._watch.estimates(self._watch.points[-1])
        return self._stop is not None and self._stop.holds(found[self._stop.metric])

    def _log(self, args: Any, state: Any, control: Any, given: dict[str, Any]) -> None:
        """Logs the last point to whatever follows the training."""
        found = self._watch.estimates(self._watch.points[-1])
        logs = {f"ff/{name}": row.value for name, row in found.items() if row}
        if lost := found["lost"]:
            logs |= {"ff/lost_low": float(lost.low), "ff/lost_high": float(lost.high)}
        wanted = control.should_log
        if self._trainer is not None:
            # Its class's own `log` may add, and so use up, what it averages over steps.
            hf.Trainer.log(self._trainer, logs)
        else:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
            trackers = get_reporting_integration_callbacks(args.report_to)
            names = ("model", "processing_class", "optimizer", "lr_scheduler")
            handler = CallbackHandler(trackers, *(given[name] for name in names))
            handler.on_log(args, state, control, logs)
        control.should_log = wanted  # a log of ours isn't the one that was due


def _tell(text: str) -> None:
    if is_main_process():
        sys.stderr.write(f"forgetting: {text}\n")


def _last_loss(state: Any, step: int) -> float | None:
    """The training loss that was logged last, up to a step; None if there is none, or no number."""
    logged = (row for row in reversed(state.log_history) if "loss" in row and row["step"] <= step)
    loss = next((float(row["loss"]) for row in logged), math.nan)
    return loss if math.isfinite(loss) else None


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _sharded() -> bool:
    """Tells whether weights are sharded, by FSDP 2; refuses what no process can ask by itself."""
    state = AcceleratorState()
    layout = getattr(state, "parallelism_config", None)
    if any(getattr(layout, f"{kind}_size", 1) > 1 for kind in ("tp", "cp", "sp")):
        raise InputError(
            "Tensor, context and sequence parallelism spread one question over processes, and the "
            "callback asks another in each. Train by data parallelism or FSDP 2, or leave it out."
        )
    if state.distributed_type == DistributedType.DEEPSPEED:
        if state.deepspeed_plugin.zero_stage == 3:
            raise InputError(
                "ZeRO 3 shards the weights out of the callback's reach. Take ZeRO 2 or FSDP 2."
            )
        return False
    if state.distributed_type != DistributedType.FSDP:
        return False
    if state.fsdp_plugin.fsdp_version != 2:
        raise InputError("FSDP 1 is not supported. Set fsdp_version: 2.")
    return True


def _require_base(model: Any, bundle: Bundle) -> None:
    """Checks that a model was loaded from the base that a bundle was made for."""
    expected, name = bundle.manifest["base"], str(getattr(model, "name_or_path", ""))
    try:
        found = checkpoint.identity(name, getattr(model.config, "_commit_hash", None))
    except NotFoundError:
        found = {"weights_sha256": None}
    if found["weights_sha256"] is None or found["weights_sha256"] != expected["weights_sha256"]:
        raise InputError(
            f"The model was loaded from {name or 'no directory'}, and the bundle was made for "
            f"{expected['pretrained']}: these aren't its weights. Load the model from there, or "
            "give facts in place of the bundle: what the model knows is then found first."
        )


def _run(bundle: Bundle, method: str, args: Any, state: Any, model: Any) -> dict[str, Any]:
    """Describes a training as `run.json` does; its weights are those beside it when it is read."""
    held = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    return {
        "bundle_sha256": bundle.sha256,
        "base": bundle.manifest["base"],
        "foreign_base": None,
        "method": {"name": method, "settings": {}},
        "protocol": None,
        "protocol_sha256": None,
        "seed": args.seed,
        "steps": state.global_step,
        "track": "open",
        "resolved": {
            "batch_size": batch,
            "world_size": world_size(),
            "distributed": str(AcceleratorState().distributed_type.value),
            "attention": held.config._attn_implementation,
            "dtype": {"weights": _dtype(held)},
            "device": held.device.type,
        },
        "environment": environment(),
        "version": __version__,
        "weights_sha256": None,
        # Of what lies there before the trainer saves its model: no weights of this training.
        "earlier_sha256": checkpoint.weights_sha256(Path(args.output_dir)),
    }
