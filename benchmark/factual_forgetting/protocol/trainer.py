"""transformers' Trainer with our loss, our order of examples, and the curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from factual_forgetting.errors import UserError
from factual_forgetting.protocol import losses
from factual_forgetting.protocol.config import Protocol
from factual_forgetting.protocol.curve import Curve
from factual_forgetting.protocol.methods import SelfDistillation


@dataclass
class Teacher:
    """A frozen model that training stays close to, loaded from a file at a step.

    Attributes:
        config: Weight, temperature and positions of the distillation term.
        path: Directory of its weights; a snapshot is written there when its step comes.
        from_step: Optimizer steps after which it teaches.
    """

    config: SelfDistillation
    path: Path
    from_step: int
    model: Any = field(default=None)

    def at(self, step: int, student: Any) -> Any:
        """Returns the frozen model in eval mode, or None before its step.

        Raises:
            UserError: If its vocabulary isn't the student's.
        """
        if step < self.from_step:
            return None
        if self.model is None:
            if not (self.path / "config.json").exists():
                student.save_pretrained(self.path)
            self.model = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=torch.float32, use_safetensors=True
            )
            self.model.requires_grad_(False).eval().to(student.device)
            if self.model.config.vocab_size != student.config.vocab_size:
                raise UserError(
                    f"The teacher in {self.path} has {self.model.config.vocab_size} tokens, the "
                    f"student {student.config.vocab_size}. Distillation needs one vocabulary."
                )
        return self.model


class ForgettingTrainer(Trainer):
    """Trains on a schedule with cross-entropy, and a teacher's term where there is one."""

    def __init__(self, teacher: Teacher | None = None, **kwargs: Any) -> None:
        """Takes Trainer's arguments and a teacher."""
        super().__init__(**kwargs)
        # It prints losses to stdout, which is for data.
        self.remove_callback(PrinterCallback)
        self._teacher = teacher
        # Our loss is normalised over the whole step already; it must not be divided again.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns the sum over this micro-batch, divided by the counts of the whole step."""
        labels, answers, positions = (inputs.pop(key) for key in ("labels", "answers", "positions"))
        outputs = model(**inputs)
        loss = losses.cross_entropy(outputs.logits, labels, answers[0])
        if self._teacher is not None:
            student = self.accelerator.unwrap_model(model)
            teacher = self._teacher.at(self.state.global_step, student)
            if teacher is not None:
                settings = self._teacher.config
                with torch.no_grad():
                    taught = teacher(**inputs).logits
                marked = losses.distilled_positions(
                    inputs["attention_mask"], labels, settings.positions
                )
                count = positions[0] if settings.positions == "all" else answers[0]
                loss = loss + settings.weight * losses.distillation(
                    outputs.logits, taught, marked, settings.tau, count
                )
        # Data parallelism averages gradients over processes; ours are shares of a sum.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


_SHORT = {"T": "task_learning", "P": "plasticity", "S": "stability"}


class CurveCallback(TrainerCallback):
    """Evaluates at the start, every few steps and at the end, and stops on a broken loss."""

    def __init__(self, curve: Curve, every: int, *, progress: bool) -> None:
        """Takes the curve, the steps between two points, and whether to draw a bar."""
        self._curve, self._every = curve, every
        self._loss: float | None = None
        self._bar = tqdm(desc="finetune", unit="step", disable=not progress)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates the model that training starts from."""
        self._bar.total = state.max_steps
        self._bar.update(state.global_step)
        self._evaluate(state, kwargs["model"])

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
        """Keeps the mean loss since the last point.

        Raises:
            UserError: If it is no number.
        """
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None:
            self._loss = float(loss)
            if self._loss != self._loss:
                raise UserError(
                    f"The loss is no number any more at step {state.global_step}. Lower the "
                    "learning rate, or compute in fp32; the last good state is kept."
                )
            self._evaluate(state, kwargs["model"])

    def _evaluate(self, state: Any, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        final = state.global_step >= state.max_steps
        if final or state.global_step % self._every == 0:
            point = self._curve.evaluate(model, state.global_step, self._loss, final=final)
            self._bar.set_postfix(
                {short: f"{point[name]:.3f}" for short, name in _SHORT.items() if point[name]}
            )


def arguments(
    protocol: Protocol, steps: int, seed: int, resume: Path, device_batch_size: int
) -> TrainingArguments:
    """Translates a protocol into Trainer's arguments, each pinned.

    Raises:
        UserError: If the batch can't be split evenly over devices and accumulation.
    """
    import os

    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_device = min(device_batch_size, protocol.batch_size // world)
    accumulation, rest = divmod(protocol.batch_size, max(per_device, 1) * world)
    if rest or not accumulation:
        raise UserError(
            f"A batch of {protocol.batch_size} can't be split over {world} processes with "
            f"{device_batch_size} facts each. Choose a --device_batch_size that divides it."
        )
    return TrainingArguments(
        output_dir=str(resume),
        max_steps=steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=protocol.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=protocol.warmup_steps,
        weight_decay=protocol.weight_decay,
        adam_beta1=protocol.adam_beta1,
        adam_beta2=protocol.adam_beta2,
        adam_epsilon=protocol.adam_epsilon,
        max_grad_norm=protocol.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=protocol.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=protocol.evaluate_every,
        save_strategy="steps",
        save_steps=protocol.evaluate_every,
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,
    )
