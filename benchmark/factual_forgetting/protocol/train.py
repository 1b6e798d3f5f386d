"""Runs one training: protocol x method x bundle x seed -> checkpoint, run.json and curve."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from factual_forgetting import __version__, checkpoint, files, outputs
from factual_forgetting.bundle.manifest import HELDOUT
from factual_forgetting.engines.models import load_causal_lm, quiet
from factual_forgetting.environment import environment
from factual_forgetting.errors import UserError, disk_is_full
from factual_forgetting.facts.fact import stable_hash
from factual_forgetting.protocol import grid, groups, losses
from factual_forgetting.protocol import trainer as trainers
from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.curve import CURVE, OUTCOMES, PARTIAL_CURVE, Curve
from factual_forgetting.protocol.data import TrainingData, TrainingExamples, seen_order
from factual_forgetting.protocol.methods import METHODS
from factual_forgetting.protocol.recipe import Execution, Protocol, is_main_process, world_size
from factual_forgetting.protocol.run import BEST, LOG, MERGED, PARTIAL_RUN, RUN, SNAPSHOT, Run
from factual_forgetting.protocol.weights import as_checkpoint

_RESUME = "resume"
_BATCH = 64
_FOLDERS = (_RESUME, SNAPSHOT, BEST, MERGED)
_WRITTEN = (*_FOLDERS, PARTIAL_CURVE, CURVE, OUTCOMES, LOG, *checkpoint.WRITTEN)


def finetune(
    run: Run,
    output: Path,
    *,
    pretrained: str | None = None,
    adapter: str | None = None,
    execution: Execution | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a run, and returns the content of `run.json`.

    A finished run is returned as it is, an interrupted one resumes. Processes other than the
    main one return no hash of the weights.

    Args:
        run: What to train.
        output: Its directory.
        pretrained: Where the base is, if not where the bundle's manifest says.
        adapter: Where the adapter is that belongs on it, likewise.
        execution: How to compute it.
        progress: Whether to draw a progress bar.

    Raises:
        UserError: If the output holds another run, the base isn't the bundle's, or what is
            needed to train is missing.
    """
    base = run.locate_base(pretrained, adapter)
    identity = run.identity()
    quiet()
    if is_main_process():
        outputs.require_folder(output)
    with outputs.taken(output) if is_main_process() else nullcontext(), _room_on_disk(output):
        if not _finished(output, identity):
            started = time.time()
            whole = base.whole(output / MERGED)
            content = {**identity, **_train(run, whole, output, execution or Execution(), progress)}
            if not is_main_process():
                return content
            files.write_json(output / LOG, {"seconds": time.time() - started})
            content["weights_sha256"] = checkpoint.weights_sha256(output)
            files.write_json(output / RUN, content)
        if is_main_process():
            _tidy(output)
    return dict(files.read_json(output / RUN))


def _finished(output: Path, identity: dict[str, Any]) -> bool:
    """Tells whether the run is finished; refuses a directory that holds another one."""
    for name in (RUN, PARTIAL_RUN):
        if (output / name).exists():
            found = files.read_json(output / name)
            differing = [key for key, value in identity.items() if found.get(key) != value]
            if differing:
                raise UserError(
                    f"{output} holds another run (its {', '.join(differing)} differ). "
                    "Choose another --output_path."
                )
            return name == RUN
    if (output / "config.json").exists():
        raise UserError(f"{output} holds a checkpoint already. Choose another --output_path.")
    if is_main_process():
        outputs.require_folder(output, *_WRITTEN)
        files.write_json(output / PARTIAL_RUN, identity)
    return False


def _tidy(output: Path) -> None:
    """Removes what only an interrupted run needs; `run.json` is there, so nothing is lost."""
    if not (output / PARTIAL_RUN).exists():
        return  # What has such a name now came later, and isn't ours.
    for leftover in _FOLDERS:
        shutil.rmtree(output / leftover, ignore_errors=True)
    for leftover in (PARTIAL_CURVE, PARTIAL_RUN):
        (output / leftover).unlink(missing_ok=True)


@contextmanager
def _room_on_disk(output: Path) -> Iterator[None]:
    """Tells where a disk is full, and that nothing is lost."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise UserError(
            f"No space is left on the disk of {output}. Free some and run the same command "
            "again: it goes on from the last whole state."
        ) from None


def rehearse(run: Run, execution: Execution, steps: int) -> float:
    """Returns the seconds of a whole run, by a few optimizer steps and one evaluation."""
    moments: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments.append(time.perf_counter())
            control.should_training_stop = state.global_step >= steps

    brief = run.protocol.model_copy(update={"evaluate_every": steps + 2})
    trial, base = dataclasses.replace(run, protocol=brief), run.locate_base()
    with tempfile.TemporaryDirectory() as scratch:
        trainer, curve, _ = _assemble(
            trial, base.whole(Path(scratch)), Path(scratch), execution, progress=False
        )
        started = time.perf_counter()
        frozen = trainer.checkpoint(run.protocol.stored)
        curve.evaluate(frozen, 0, None, final=False)
        evaluation = time.perf_counter() - started
        trainer.add_callback(Stopwatch())
        trainer.train()
    # The first step warms up.
    step = (moments[-1] - moments[1]) / (len(moments) - 2)
    points = run.steps() // run.protocol.evaluate_every + 2
    return step * run.steps() + evaluation * points


def _train(
    run: Run, base: Path, output: Path, execution: Execution, progress: bool
) -> dict[str, Any]:
    """Trains, writes checkpoint and curve, and returns what was resolved."""
    trainer, curve, context = _assemble(run, base, output, execution, progress)
    trainer.train(resume_from_checkpoint=trainers.last_checkpoint(output / _RESUME, curve))
    finish, stored = METHODS[run.method].finish, run.protocol.stored
    if finish is None:
        frozen = trainer.checkpoint(stored)
    else:
        curve.persistent = False
        trainer.accelerator.wait_for_everyone()  # the best point may be the last
        frozen = as_checkpoint(finish(trainer.whole_model(), curve, context, run.settings), stored)
    if is_main_process():
        curve.finish()
        frozen.save_pretrained(output)
        context.tokenizer.save_pretrained(output)
    model = context.model
    return {
        "steps": run.steps(),
        "track": grid.track(run.protocol, run.method, run.settings, run.foreign_base),
        "resolved": {
            **execution.model_dump(mode="json", exclude={"resume_every"}),
            "world_size": world_size(),
            "distributed": str(trainer.accelerator.distributed_type.value),
            "attention": model.config._attn_implementation,
            "dtype": {"weights": str(model.dtype), "compute": run.protocol.precision},
            "device": model.device.type,
        },
        "environment": environment(),
        "version": __version__,
    }


def _assemble(
    run: Run, base: Path, output: Path, execution: Execution, progress: bool
) -> tuple[trainers.ForgettingTrainer, Curve, Context]:
    method, protocol, settings = METHODS[run.method], run.protocol, run.settings
    data = method.data(run.bundle, settings)
    context = _context(run, base, output, execution, data)
    rows, size = context.encode(context.facts), protocol.batch_size
    place = {fact.id: index for index, fact in enumerate(context.facts)}
    order = [place[fact.id] for fact in seen_order(data, protocol, run.steps(), run.seed)]
    divergence = _divergence_from_base(context, protocol)
    torch.manual_seed(run.seed)  # decides the start of what is new, such as an adapter
    model = method.prepare(context.model, settings) if method.prepare else context.model
    penalty = method.penalty(context, settings) if method.penalty else None

    def cost(step: int) -> dict[str, int]:
        read = order[: step * size]
        told = {"tokens": sum(len(rows[index]["input_ids"]) for index in read), "teacher_tokens": 0}
        if penalty and penalty.teacher_tokens:
            taught = read[penalty.from_step * size :]
            told["teacher_tokens"] = sum(penalty.teacher_tokens[index] for index in taught)
        return told

    curve = Curve(run.bundle, context.tokenizer, protocol, output, divergence, cost)
    trainer = trainers.ForgettingTrainer(
        batch_size=size,
        penalty=penalty,
        model=model,
        args=trainers.arguments(protocol, run.steps(), run.seed, output / _RESUME, execution),
        train_dataset=TrainingExamples(order, rows, size),
        data_collator=context.collate,
    )
    best = output / BEST if method.keep_best else None
    trainer.add_callback(trainers.CurveCallback(trainer, curve, protocol, best, progress))
    return trainer, curve, context


def _divergence_from_base(context: Context, protocol: Protocol) -> Callable[[Any], float | None]:
    """Returns what measures the mean KL(base || model), in nats a token; None without facts.

    It is taken over the answer tokens of `kl_sample` facts of D_Held, in the training text after
    `kl_prompt`, without EOS: that answers end with it is what the task teaches, and no forgetting.
    """
    held = [item.fact for item in context.bundle.splits[HELDOUT]]
    drawn = sorted(held, key=lambda fact: stable_hash("divergence", fact.id))
    before = {"preface": context.bundle.few_shot_prefix} if protocol.kl_prompt == "few_shot" else {}
    rows = context.encode(drawn[: protocol.kl_sample], **before)
    batches = [context.collate(rows[i : i + _BATCH]) for i in range(0, len(rows), _BATCH)]
    base = as_checkpoint(context.model, protocol.stored)
    expected = [_predict(base, batch).cpu() for batch in batches]

    def measure(model: Any) -> float | None:
        total, count = 0.0, 0
        for batch, taught in zip(batches, expected, strict=True):
            predicted = _predict(model, batch)
            taught = taught.to(predicted.device)
            total += losses.kl_divergence(predicted, taught, 1.0, "forward").item()
            count += len(predicted)
        return total / count if count else None

    return measure


def _predict(model: Any, batch: dict[str, Tensor]) -> Tensor:
    labels = batch["labels"].to(model.device)
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        return losses.answer_logits(model(**inputs).logits, labels)


def _context(
    run: Run, base: Path, output: Path, execution: Execution, data: TrainingData
) -> Context:
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=run.protocol.attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = run.protocol.dropout
        # Attention and others drop by a number of their own.
        for name, value in vars(module).items():
            if "dropout" in name and type(value) in {int, float}:
                vars(module)[name] = run.protocol.dropout
    groups.freeze_beside_text(model)
    if execution.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    facts = {fact.id: fact for fact in (*data.first, *data.repeated, *data.last)}
    opening = len(data.first) // run.protocol.batch_size
    return Context(
        bundle=run.bundle,
        tokenizer=tokenizer,
        model=model,
        base=base,
        output=output,
        facts=list(facts.values()),
        opening=opening,
        teacher_autocast=run.protocol.teacher_autocast,
    )
