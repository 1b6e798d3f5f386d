"""Runs one training: protocol x method x bundle x seed -> checkpoint, run.json and curve."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting import __version__, checkpoint, files
from factual_forgetting.bundle.manifest import HELDOUT
from factual_forgetting.engines.models import load_causal_lm, quiet
from factual_forgetting.environment import environment
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import stable_hash
from factual_forgetting.protocol import data as schedule
from factual_forgetting.protocol import grid, methods
from factual_forgetting.protocol.config import Execution
from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.curve import CURVE, OUTCOMES, PARTIAL_CURVE, Curve, Points
from factual_forgetting.protocol.processes import is_main_process, world_size
from factual_forgetting.protocol.run import LOG, RUN, Run

if TYPE_CHECKING:
    from factual_forgetting.protocol.trainer import ForgettingTrainer

_PARTIAL = "run.partial.json"
_RESUME = "resume"
_SNAPSHOT = "snapshot"
_BEST = "best"


def finetune(
    run: Run,
    output: Path,
    *,
    pretrained: str | None = None,
    execution: Execution | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a run; one that is finished is returned as it is, an interrupted one resumes.

    Args:
        run: What to train.
        output: Its directory.
        pretrained: Where the base is, if not where the bundle's manifest says.
        execution: How to compute it.
        progress: Whether to draw a progress bar.

    Returns:
        The content of `run.json`; without weights and environment but on the main process.

    Raises:
        UserError: If the output holds another run, the base isn't the bundle's, or what is
            needed to train is missing.
    """
    base = locate_base(run, pretrained)
    identity = run.identity()
    quiet()
    with _room_on_disk(output):
        if not _finished(output, identity):
            started = time.time()
            content = {**identity, **_train(run, base, output, execution or Execution(), progress)}
            if not is_main_process():
                return content
            files.write_json(output / LOG, {"seconds": time.time() - started})
            content["weights_sha256"] = checkpoint.weights_sha256(output)
            files.write_json(output / RUN, content)
    if is_main_process():
        _tidy(output)
    return dict(files.read_json(output / RUN))


def locate_base(run: Run, pretrained: str | None) -> Path:
    """Finds the base that a run starts from.

    Raises:
        UserError: If it isn't found, or isn't the one that the run names.
    """
    expected = run.foreign_base or run.bundle.manifest["base"]
    if pretrained is None and expected["pretrained"] is None:
        raise UserError("The bundle doesn't say where its base is. Give --model_args pretrained=…")
    base = checkpoint.locate(pretrained or expected["pretrained"], expected.get("revision"))
    if checkpoint.weights_sha256(base) == expected["weights_sha256"]:
        return base
    raise UserError(
        f"The weights in {base} are not those of the base that this bundle was made for"
        f"{_differences(base, expected)}. Build a bundle for this base, give the right one with "
        "--model_args pretrained=…, or insist with --allow_foreign_base."
    )


def _differences(base: Path, expected: dict[str, Any]) -> str:
    found = checkpoint.shape(base)
    told = [
        f"{key} {found[key]} instead of {value}"
        for key, value in expected["shape"].items()
        if found[key] != value
    ]
    return f" ({', '.join(told)})" if told else ""


def _finished(output: Path, identity: dict[str, Any]) -> bool:
    """Tells whether the run is finished; refuses a directory that holds another one."""
    for name in (RUN, _PARTIAL):
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
        files.write_json(output / _PARTIAL, identity)
    return False


def _tidy(output: Path) -> None:
    """Removes what only an interrupted run needs; `run.json` is there, so nothing is lost."""
    for leftover in (_RESUME, _SNAPSHOT, _BEST):
        shutil.rmtree(output / leftover, ignore_errors=True)
    for leftover in (_PARTIAL, PARTIAL_CURVE):
        (output / leftover).unlink(missing_ok=True)
    for name in (_PARTIAL, PARTIAL_CURVE, CURVE, OUTCOMES, RUN, LOG):
        files.remove_unfinished(output / name)


@contextmanager
def _room_on_disk(output: Path) -> Iterator[None]:
    """Tells a full disk from other faults, whichever library met it."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if full or "No space left on device" in str(error) or "file write failed" in str(error):
            raise UserError(
                f"No space is left on the disk of {output}. Free some and run the same command "
                "again: it goes on from the last whole state."
            ) from None
        raise


def rehearse(run: Run, execution: Execution, steps: int) -> float:
    """Measures a few optimizer steps and one evaluation; returns the seconds of a whole run.

    Raises:
        UserError: As `finetune`.
    """
    from transformers import TrainerCallback

    from factual_forgetting.protocol.weights import as_checkpoint

    moments: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments.append(time.perf_counter())
            control.should_training_stop = state.global_step >= steps

    brief = run.protocol.model_copy(update={"evaluate_every": steps + 2})
    with tempfile.TemporaryDirectory() as scratch:
        base = locate_base(run, None)
        trial = dataclasses.replace(run, protocol=brief)
        trainer, curve, _ = _assemble(trial, base, Path(scratch), execution, progress=False)
        started = time.perf_counter()
        frozen = as_checkpoint(trainer.whole_model(), run.protocol.checkpoint_dtype)
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
    from factual_forgetting.protocol.weights import as_checkpoint

    method, protocol = methods.METHODS[run.method], run.protocol
    trainer, curve, context = _assemble(run, base, output, execution, progress)
    trainer.train(resume_from_checkpoint=last_checkpoint(output / _RESUME, curve))
    whole = trainer.whole_model()
    if is_main_process():
        if method.finish is not None:
            curve.persistent = False
            whole = method.finish(whole, curve, context, run.settings)
        curve.finish()
        final = as_checkpoint(whole, protocol.checkpoint_dtype)
        final.save_pretrained(output)
        context.tokenizer.save_pretrained(output)
    model = context.model
    return {
        "steps": run.steps(),
        "track": grid.track(run.protocol, run.method, run.settings, run.foreign_base),
        "resolved": {
            **execution.model_dump(mode="json"),
            "world_size": world_size(),
            "distributed": str(trainer.accelerator.distributed_type.value),
            "attention": model.config._attn_implementation,
            "dtype": {"weights": str(model.dtype), "compute": protocol.precision},
            "device": model.device.type,
        },
        "environment": environment(),
        "version": __version__,
    }


def _context(
    run: Run, base: Path, output: Path, execution: Execution, training: schedule.TrainingData
) -> Context:
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=run.protocol.attention)
    _set_dropout(model, run.protocol.dropout)
    if execution.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    seen = [*training.first, *training.repeated, *training.last]
    return Context(
        bundle=run.bundle,
        tokenizer=tokenizer,
        model=model,
        base=base,
        snapshot=output / _SNAPSHOT,
        opening=schedule.opening_steps(training, run.protocol),
        steps=run.steps(),
        facts=list({fact.id: fact for fact in seen}.values()),
        best=output / _BEST,
    )


def _assemble(
    run: Run, base: Path, output: Path, execution: Execution, progress: bool
) -> tuple[ForgettingTrainer, Curve, Context]:
    import torch

    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    method, protocol = methods.METHODS[run.method], run.protocol
    training = method.data(run.bundle, run.settings)
    context = _context(run, base, output, execution, training)
    tokenizer = context.tokenizer
    examples = schedule.encode(context.facts, tokenizer, schedule.limit(context.model))
    order = schedule.order(training, protocol, context.steps, run.seed)
    place = {fact.id: index for index, fact in enumerate(context.facts)}
    laid_out = schedule.Schedule([place[f.id] for f in order], examples, protocol.batch_size)
    divergence = _divergence(run, context)
    torch.manual_seed(run.seed)  # decides the start of what is new, such as an adapter
    model = method.prepare(context.model, run.settings) if method.prepare else context.model
    penalty = method.penalty(context, run.settings) if method.penalty else None

    def cost(step: int) -> dict[str, int]:
        taught = laid_out.between(penalty.from_step, step) if penalty else []
        extra = penalty.teacher_tokens(taught) if penalty else 0
        return {"tokens": laid_out.tokens(step), "teacher_tokens": extra}

    curve = Curve(run.bundle, tokenizer, protocol, output, divergence, cost)
    trainer = ForgettingTrainer(
        batch_size=protocol.batch_size,
        penalty=penalty,
        model=model,
        args=arguments(protocol, context.steps, run.seed, output / _RESUME, execution),
        train_dataset=laid_out,
        data_collator=partial(schedule.collate, pad=tokenizer.pad_token_id or 0),
    )
    best = context.best if method.keep_best else None
    trainer.add_callback(CurveCallback(trainer, curve, protocol, best, progress))
    return trainer, curve, context


def _divergence(run: Run, context: Context) -> Callable[[Any], float]:
    from factual_forgetting.protocol.divergence import DivergenceFromBase
    from factual_forgetting.protocol.weights import as_checkpoint

    facts = [item.fact for item in run.bundle.splits[HELDOUT]]
    drawn = sorted(facts, key=lambda fact: stable_hash("divergence", fact.id))
    base = as_checkpoint(context.model, run.protocol.checkpoint_dtype)
    return DivergenceFromBase(base, context.tokenizer, drawn[: run.protocol.kl_sample])


def _set_dropout(model: Any, rate: float) -> None:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        if hasattr(module, "attention_dropout"):
            vars(module)["attention_dropout"] = rate


def last_checkpoint(resume: Path, curve: Points) -> str | None:
    """Finds the last whole checkpoint of an interrupted run, and cuts the curve back to it."""
    from factual_forgetting.protocol.trainer import WHOLE

    steps = [int(mark.parent.name.rsplit("-", 1)[1]) for mark in resume.glob(f"*/{WHOLE}")]
    curve.forget_after(max(steps, default=-1))
    return str(resume / f"checkpoint-{max(steps)}") if steps else None
