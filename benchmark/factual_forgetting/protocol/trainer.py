"""transformers' Trainer with our loss, our order of examples, and the curve."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from accelerate.utils import DistributedType
from tqdm import tqdm
from transformers.integrations import get_reporting_integration_callbacks

from factual_forgetting import files
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.protocol import losses
from factual_forgetting.protocol.context import Penalty, Step
from factual_forgetting.protocol.curve import Points, selection_score
from factual_forgetting.protocol.recipe import Execution, Protocol, Stored, world_size
from factual_forgetting.protocol.weights import as_checkpoint, gathered, hollow

_WHOLE = "whole"
_WHOLE_FP32 = Stored("float32")
_SHORT = {"T": "task_learning", "P": "plasticity", "S": "stability"}
# Fields of a protocol that Trainer's arguments have too.
_ALIKE = "learning_rate warmup_steps weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon"


class ForgettingTrainer(hf.Trainer):
    """Trains on a schedule with cross-entropy, and a method's penalty where there is one."""

    def __init__(self, batch_size: int, penalty: Penalty | None = None, **kwargs: Any) -> None:
        """Takes the facts in an optimizer step, a penalty and Trainer's arguments.

        Raises:
            UserError: If the penalty reads weights that are sharded, or the launcher computes in
                another precision than the protocol.
        """
        super().__init__(**kwargs)
        # It prints losses to stdout, which is for data.
        self.remove_callback(hf.PrinterCallback)
        self._batch_size, self._penalty = batch_size, penalty
        # Our loss is normalised over the whole step already; it must not be divided again.
        self.model_accepts_loss_kwargs = True
        if penalty and penalty.of_weights and self.sharded:
            raise InputError(
                "This method pulls on whole weights, which FSDP shards. Train it by data "
                "parallelism, without FSDP."
            )
        self._require_the_protocols_precision()
        self._hollow = hollow(self.model) if self.sharded else None

    def _require_the_protocols_precision(self) -> None:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise InputError(
                "DeepSpeed trains weights that it keeps in bf16, and the protocol's are fp32 under "
                "autocast. Shard by FSDP instead."
            )
        launched = self.args.mixed_precision
        if launched != ("bf16" if self.args.bf16 else "no"):
            raise InputError(
                f"The launcher sets mixed_precision {launched}, and the protocol computes in fp32. "
                "Launch with mixed_precision no: the protocol decides."
            )
        if plugin := getattr(self.accelerator.state, "fsdp_plugin", None):
            # Its policy would hold weights in bf16 for a layer's pass; autocast is the rule.
            plugin.mixed_precision_policy = None
            if plugin.fsdp_version != 2:
                raise InputError("FSDP 1 is not supported. Set fsdp_version: 2, as in fsdp.yaml.")

    @property
    def sharded(self) -> bool:
        """Whether a process holds a part of the weights only."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns the sum over this micro-batch, divided by the counts of the whole step."""
        names = ("labels", "facts", "answers", "positions")
        # Every row carries the counts of the whole step; one is enough.
        labels, facts, answers, positions = (inputs.pop(name) for name in names)
        outputs = model(**inputs)
        loss = losses.cross_entropy(outputs.logits, labels, answers[0])
        penalty = self._penalty
        if penalty is not None and (share := self._share(penalty, len(labels))):
            loss = loss + penalty.term(
                Step(
                    model=self.accelerator.unwrap_model(model),
                    inputs=inputs,
                    logits=outputs.logits,
                    labels=labels,
                    facts=facts,
                    answers=answers[0],
                    positions=positions[0],
                    share=share,
                    save=self._save_whole,
                )
            )
        # Data parallelism averages gradients over processes; ours are shares of a sum.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _share(self, penalty: Penalty, facts: int) -> float:
        """Returns this pass's share of the optimizer step's penalty."""
        if self.state.global_step < penalty.from_step:
            return 0.0
        if penalty.of_weights:
            # They are the same in every pass of a step: once is enough.
            return float(self.accelerator.sync_gradients) / float(self.accelerator.num_processes)
        return facts / self._batch_size

    def _clip_grad_norm(self, model: Any) -> Any:
        """Stops before a gradient that isn't finite reaches the weights."""
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise _broken(self.state.global_step + 1)
        return norm

    def checkpoint(self, stored: Stored) -> Any:
        """Returns the model as it would be saved and loaded, whole on every process."""
        model = self.accelerator.unwrap_model(self.model)
        if self._hollow is None:
            return as_checkpoint(model, stored)
        return as_checkpoint(self._hollow, stored, gathered(model, stored.dtype))

    def whole_model(self) -> Any:
        """Returns the model in fp32 on every process; a copy in main memory if it is sharded."""
        model = self.accelerator.unwrap_model(self.model)
        if self._hollow is None:
            return model
        return as_checkpoint(self._hollow, _WHOLE_FP32, gathered(model, "float32", device="cpu"))

    def _save_whole(self, directory: Path) -> None:
        model, main = self.accelerator.unwrap_model(self.model), self.accelerator.is_main_process
        if self._hollow is not None:
            weights = gathered(model, "float32", keep=main, device="cpu")
            model = as_checkpoint(self._hollow, _WHOLE_FP32, weights) if main else None
        # Only the main process looks whether it is there: to others it may appear at any moment.
        if main and not directory.exists():
            with files.atomic_directory(directory) as beside:
                model.save_pretrained(beside)
        self.accelerator.wait_for_everyone()


def _broken(step: int) -> UserError:
    return UserError(
        f"The loss is no number any more at step {step}. Lower the learning rate, or compute in "
        "fp32; the last good state is kept."
    )


@dataclass
class CurveCallback(hf.TrainerCallback):
    """Evaluates at the start, every few steps and at the end.

    Attributes:
        trainer: The trainer; gives the model as it would be saved.
        curve: Keeps the points.
        protocol: Says when to evaluate, and in what dtype.
        best: Directory for the best weights so far; None keeps none.
        progress: Whether to draw a bar.
    """

    trainer: ForgettingTrainer
    curve: Points
    protocol: Protocol
    best: Path | None
    progress: bool
    _loss: float | None = None
    _saved: int = -1  # step of the last state that a killed run would go on from

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates the model that training starts from."""
        hidden, done = not (self.progress and state.is_world_process_zero), state.global_step
        self._bar = tqdm(
            desc="finetune", unit="step", total=state.max_steps, initial=done, disable=hidden
        )
        if state.is_world_process_zero and done:
            self._saved = done
            self._drop_bests(range(done + 1, state.max_steps + 1))
        self._evaluate(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the progress bar."""
        self._bar.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Logs the last step too, so that the curve ends where training does."""
        self._bar.update(1)
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates with the mean loss since the last point; stops if that is no number."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None:
            self._loss = float(loss)
            if self._loss != self._loss:
                raise _broken(state.global_step)
            self._evaluate(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks a checkpoint as whole: a killed process may leave half of one."""
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()
            self._saved = state.global_step
            self._drop_bests(range(max(self._bests(), default=0)))

    def _evaluate(self, state: Any) -> None:
        final = state.global_step >= state.max_steps
        due = final or state.global_step % self.protocol.evaluate_every == 0
        if not due or self.curve.at(state.global_step):
            return
        earlier = self.curve.lines()
        frozen = self.trainer.checkpoint(self.protocol.stored)
        point = self.curve.evaluate(frozen, state.global_step, self._loss, final=final)
        if not state.is_world_process_zero:
            return
        told = {short: f"{point[name]:.3f}" for short, name in _SHORT.items() if point[name]}
        self._bar.set_postfix(told)
        if point["step"]:
            self.trainer.log({f"curve/{key}": v for key, v in point.items() if v is not None})
        if self.best and all(selection_score(point) > selection_score(e) for e in earlier):
            with files.atomic_directory(self.best / str(point["step"])) as beside:
                frozen.save_pretrained(beside)
            # What was the best at the last state stays: a killed run would ask for it again.
            self._drop_bests(range(self._saved + 1, point["step"]))

    def _bests(self) -> list[int]:
        kept = self.best.glob("[0-9]*") if self.best else ()
        return [int(path.name) for path in kept]

    def _drop_bests(self, steps: range) -> None:
        for step in self._bests():
            if self.best and step in steps:
                shutil.rmtree(self.best / str(step))


def last_checkpoint(resume: Path, curve: Points) -> str | None:
    """Finds the last whole checkpoint of an interrupted run, and cuts the curve back to it."""
    steps = [int(mark.parent.name.rsplit("-", 1)[1]) for mark in resume.glob(f"*/{_WHOLE}")]
    curve.forget_after(max(steps, default=-1))
    return str(resume / f"checkpoint-{max(steps)}") if steps else None


def arguments(
    protocol: Protocol, steps: int, seed: int, resume: Path, execution: Execution
) -> hf.TrainingArguments:
    """Translates a protocol into Trainer's arguments, each pinned.

    Raises:
        UserError: If devices and accumulation don't divide the batch, or on an unknown tracker.
    """
    world = world_size()
    wanted = execution.device_batch_size or protocol.batch_size
    per_device = min(wanted, protocol.batch_size // world)
    accumulation, rest = divmod(protocol.batch_size, max(per_device, 1) * world)
    if rest or not accumulation:
        raise InputError(
            f"A batch of {protocol.batch_size} can't be split over {world} processes with "
            f"{wanted} facts each. Choose a --device_batch_size that divides it."
        )
    trackers = [] if execution.report_to == "none" else execution.report_to.split(",")
    try:
        get_reporting_integration_callbacks(trackers)
    except ValueError as error:
        raise InputError(f"--report_to {execution.report_to}: {error}") from None
    found = hf.TrainingArguments(
        output_dir=str(resume),
        max_steps=steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        lr_scheduler_type="constant_with_warmup",
        **protocol.model_dump(include=set(_ALIKE.split())),
        optim="adamw_torch_fused",
        bf16=protocol.precision == "bf16",
        tf32=False,
        train_sampling_strategy="sequential",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=protocol.evaluate_every,
        save_strategy="steps",
        # At points only: the loss of a point is a mean since the last.
        save_steps=protocol.evaluate_every * execution.resume_every,
        # The older one is there while the newer is being written.
        save_total_limit=2,
        report_to=trackers or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        # The other processes wait while the main one writes.
        ddp_timeout=6 * 3600,
        average_tokens_across_devices=False,
    )
    return on_one_device(found)


def on_one_device(found: hf.TrainingArguments) -> hf.TrainingArguments:
    """Keeps a process without a launcher on one device, in place.

    The Trainer would split its batch over all GPUs by nn.DataParallel, which multiplies our loss
    by their number and is told nowhere.
    """
    found._n_gpu = min(found.n_gpu, 1)
    return found
