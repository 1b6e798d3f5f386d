"""transformers' Trainer with our loss, our order of examples, and the curve."""

from __future__ import annotations

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
from factual_forgetting.protocol.recipe import Execution, Protocol, world_size
from factual_forgetting.protocol.weights import as_checkpoint

_WHOLE = "whole"
_SHORT = {"T": "task_learning", "P": "plasticity", "S": "stability"}
# Fields of a protocol that Trainer's arguments have too.
_ALIKE = "learning_rate warmup_steps weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon"
_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED}


class ForgettingTrainer(hf.Trainer):
    """Trains on a schedule with cross-entropy, and a method's penalty where there is one."""

    def __init__(self, batch_size: int, penalty: Penalty | None = None, **kwargs: Any) -> None:
        """Takes the facts in an optimizer step, a penalty and Trainer's arguments.

        Raises:
            UserError: If the penalty reads weights that are sharded.
        """
        super().__init__(**kwargs)
        # It prints losses to stdout, which is for data.
        self.remove_callback(hf.PrinterCallback)
        self._batch_size, self._penalty = batch_size, penalty
        # Our loss is normalised over the whole step already; it must not be divided again.
        self.model_accepts_loss_kwargs = True
        if penalty and penalty.whole_weights and self.sharded:
            raise InputError(
                "This method pulls on whole weights, which FSDP and DeepSpeed shard. Train it by "
                "data parallelism, without them."
            )

    @property
    def sharded(self) -> bool:
        """Whether a process holds a part of the weights only."""
        return self.accelerator.distributed_type in _SHARDED

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
        if self._penalty is not None and self.state.global_step >= self._penalty.from_step:
            loss = loss + self._penalty.term(
                Step(
                    model=self.accelerator.unwrap_model(model),
                    inputs=inputs,
                    logits=outputs.logits,
                    labels=labels,
                    facts=facts,
                    answers=answers[0],
                    positions=positions[0],
                    share=len(labels) / self._batch_size,
                    save=self._save_whole,
                )
            )
        # Data parallelism averages gradients over processes; ours are shares of a sum.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Stops before a gradient that isn't finite reaches the weights."""
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise _broken(self.state.global_step + 1)
        return norm

    def whole_model(self) -> Any:
        """Returns the model, gathered if it is sharded; then None but on the main process."""
        model = self.accelerator.unwrap_model(self.model)
        if not self.sharded:
            return model
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.accelerator.is_main_process:
            return None
        whole = hf.AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        whole.load_state_dict(weights)
        return whole.to(self.accelerator.device)

    def _save_whole(self, directory: Path) -> None:
        # Only the main process looks whether it is there: to others it may appear at any moment.
        whole = self.whole_model()
        if self.accelerator.is_main_process and not directory.exists():
            with files.atomic_directory(directory) as beside:
                whole.save_pretrained(beside)
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates the model that training starts from."""
        hidden, done = not (self.progress and state.is_world_process_zero), state.global_step
        self._bar = tqdm(
            desc="finetune", unit="step", total=state.max_steps, initial=done, disable=hidden
        )
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

    def _evaluate(self, state: Any) -> None:
        final = state.global_step >= state.max_steps
        due = final or state.global_step % self.protocol.evaluate_every == 0
        if not due or (self.curve.at(state.global_step) and not self.trainer.sharded):
            return
        whole = self.trainer.whole_model()
        if not state.is_world_process_zero or self.curve.at(state.global_step):
            return
        earlier = self.curve.lines()
        frozen = as_checkpoint(whole, self.protocol.checkpoint_dtype)
        point = self.curve.evaluate(frozen, state.global_step, self._loss, final=final)
        told = {short: f"{point[name]:.3f}" for short, name in _SHORT.items() if point[name]}
        self._bar.set_postfix(told)
        if point["step"]:
            self.trainer.log({f"curve/{key}": v for key, v in point.items() if v is not None})
        if self.best and all(selection_score(point) > selection_score(e) for e in earlier):
            with files.atomic_directory(self.best / str(point["step"])) as beside:
                whole.save_pretrained(beside)


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
    return hf.TrainingArguments(
        output_dir=str(resume),
        max_steps=steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        lr_scheduler_type="constant_with_warmup",
        **protocol.model_dump(include=set(_ALIKE.split())),
        optim="adamw_torch_fused",
        bf16=protocol.precision == "bf16",
        train_sampling_strategy="sequential",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=protocol.evaluate_every,
        save_strategy="steps",
        save_steps=protocol.evaluate_every,
        # The older one is there while the newer is being written.
        save_total_limit=2,
        report_to=trackers or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        # The other processes wait while the main one evaluates.
        ddp_timeout=6 * 3600,
        average_tokens_across_devices=False,
    )
